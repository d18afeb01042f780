"""The reflective trajectory: its randomness, its branches, its cost, its log-probabilities."""

import pytest
import torch

from srrl.budget import rollout_calls
from srrl.config import load_config
from srrl.ddim import log_prob
from srrl.rollout import Rollout, rollout
from srrl.rounds import (
    Randomness,
    RolloutSettings,
    denoise_steps,
    generator,
    invert_steps,
    sample_round,
)
from tests.conftest import PRESET, PROMPTS, load_policy

BASE = {
    "branches": 3,
    "guidance_scale": 5.0,
    "eta": 1.0,
    "denoise_guidance": 5.0,
    "inversion_guidance": 0.1,
    "reflect_eta": 0.0,
    "train_rounds": "last",
    "skip_last": 2,
}


def roll(policy, slots=(0, 1, 2, 3), rounds=2, m=4, **changes) -> Rollout:
    return rollout(
        policy,
        policy.encode([PROMPTS[i % 4] for i in slots]),
        RolloutSettings(**{**BASE, **changes}),
        rounds=rounds,
        trained_steps=m,
        seed=5,
        stage=7,
        prompts=list(slots),
        keep_reflected=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train_rounds", "rounds"),
    [("last", 1), ("last", 3), ("all", 1), ("all", 3)],
)
def test_images_do_not_depend_on_how_prompts_are_batched(policy, train_rounds, rounds):
    settings = {"rounds": rounds, "train_rounds": train_rounds, "m": 10, "skip_last": 0}
    together = roll(policy, **settings)
    parts = Rollout.cat(roll(policy, slots=[s], **settings) for s in (0, 1, 2, 3))
    keys = [
        [tuple(k) for k in torch.stack([r.prompt, r.branch, r.round], 1).tolist()]
        for r in (together, parts)
    ]
    order = [keys[1].index(k) for k in keys[0]]
    vae = policy.pipe.vae
    with torch.no_grad():
        one, other = (
            (vae.decode(r.latents[:, -1] / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
            for r in (together, parts)
        )
    difference = (one - other[order]).abs()
    assert difference.max() <= 1e-4
    torch.testing.assert_close(together.log_probs, parts.log_probs[order], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_micro_batches_change_nothing():
    one, other = roll(load_policy(micro_batch=5)), roll(load_policy(micro_batch=64))
    torch.testing.assert_close(one.latents, other.latents, atol=1e-4, rtol=0)
    assert (one.images.int() - other.images.int()).abs().max() <= 1


def test_branches_share_everything_before_the_trained_interval_and_nothing_after(policy):
    result = roll(policy, m=4)
    by_prompt = result.latents.view(4, 3, 5, *policy.latent_shape)
    for g in (1, 2):
        assert torch.equal(by_prompt[:, 0, 0], by_prompt[:, g, 0])
        assert not torch.isclose(by_prompt[:, 0, 1], by_prompt[:, g, 1]).all()
    assert result.prompt.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert result.branch.tolist() == [0, 1, 2] * 4


def test_stored_log_probs_are_those_of_the_stored_latents(policy):
    m, skip = 4, 2
    result = roll(policy, m=m)
    conditioning = policy.encode([PROMPTS[i] for i in result.prompt.tolist()])
    for j in range(m):
        x, x_next = result.latents[:, j], result.latents[:, j + 1]
        with torch.no_grad():
            mean, sigma = policy.step(x, 10 - skip - m + j, conditioning, 5.0, 1.0)
        expected = log_prob(x_next, mean, sigma)
        torch.testing.assert_close(result.log_probs[:, j], expected, atol=1e-5, rtol=1e-5)


def test_reflection_is_denoise_then_invert_then_denoise(policy):
    """The rounds by hand, from the same start."""
    result = roll(policy, slots=[0], rounds=2, m=10, skip_last=0, branches=1)
    conditioning = policy.encode(PROMPTS[:1])
    x = torch.randn(1, *policy.latent_shape, generator=generator(5, 7, 0, 2**16, 0, "start"))
    x0 = denoise_steps(policy, x, conditioning, range(10), 5.0, 0.0)[0][-1]
    x = invert_steps(policy, x0, conditioning, 0.1)
    torch.testing.assert_close(result.latents[:, 0], x, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.reflected[0], policy.decode(x0))


@pytest.mark.slow
def test_runs_of_different_rounds_share_start_and_last_rounds_noise(policy):
    """So that comparisons over K are paired: K = 1's last-round noise is K = 3's."""
    latents = {k: roll(policy, rounds=k, m=10, skip_last=0, branches=1).latents for k in (1, 3)}
    drawn = {}
    for k, path in latents.items():
        with torch.no_grad():
            mean, sigma = policy.step(path[:, 0], 0, policy.encode(PROMPTS), 5.0, 1.0)
        drawn[k] = (path[:, 1] - mean) / sigma
    torch.testing.assert_close(drawn[1], drawn[3], atol=1e-4, rtol=1e-4)


def test_every_part_of_the_key_changes_the_noise():
    base = (1, 2, 3, 4, 5, "steps")
    draws = {torch.rand(1, generator=generator(*base)).item()}
    for i in range(5):
        changed = [*base]
        changed[i] += 1
        draws.add(torch.rand(1, generator=generator(*changed)).item())
    draws.add(torch.rand(1, generator=generator(1, 2, 3, 4, 5, "start")).item())
    assert len(draws) == 7


@pytest.mark.slow
def test_all_mode_gives_a_trajectory_for_every_round_and_renoises_each_samples_own_image(policy):
    result = roll(policy, slots=[0, 1], rounds=3, m=4, train_rounds="all")
    assert len(result.prompt) == 2 * 3 * 3 and sorted(set(result.round.tolist())) == [1, 2, 3]
    second = result.latents[result.round == 2].view(2, 3, 5, *policy.latent_shape)
    assert not torch.isclose(second[:, 0, 0], second[:, 1, 0]).all()  # branches stay apart


@pytest.mark.slow
def test_no_graph_is_kept(lora_policy):
    result = roll(lora_policy, slots=[0])
    assert not result.latents.requires_grad and not result.log_probs.requires_grad


@pytest.mark.slow
def test_a_reflection_of_some_depth_walks_back_and_samples_again_so_many_steps(policy):
    """Three rounds by hand: all steps, then the last 7 of 10 twice."""
    result = roll(policy, slots=[0], rounds=3, m=5, skip_last=2, branches=2, depth=7)
    conditioning = policy.encode(PROMPTS[:1])
    x = torch.randn(1, *policy.latent_shape, generator=generator(5, 7, 0, 2**16, 0, "start"))
    for k in (1, 2):
        steps = range(0 if k == 1 else 3, 10)
        x0 = denoise_steps(policy, x, conditioning, steps, 5.0, 0.0)[0][-1]
        x = invert_steps(policy, x0, conditioning, 0.1, 7)
    for branch in (0, 1):  # both diverge right where the round begins
        torch.testing.assert_close(result.latents[branch, 0], x[0], atol=1e-5, rtol=1e-5)
    assert result.latents.shape[1] == 6
    with pytest.raises(ValueError, match="depth"):
        roll(policy, slots=[0], rounds=2, m=8, skip_last=2, depth=7)


@pytest.mark.slow
def test_a_depth_of_all_steps_is_none(policy):
    whole, given = (roll(policy, rounds=2, m=4, depth=depth) for depth in (None, 10))
    assert torch.equal(whole.latents, given.latents)


@pytest.mark.slow
@pytest.mark.parametrize("train_rounds", ["last", "all"])
@pytest.mark.parametrize("depth", [None, 7])
def test_the_count_is_the_formulas(policy, train_rounds, depth):
    flags = [f"--config.reflect.train_rounds={train_rounds}", "--config.branch.count=3"]
    flags += ["--config.reflect.when=always"]
    config = load_config([PRESET, *flags, *([f"--config.reflect.depth={depth}"] if depth else [])])
    before = policy.nfe
    roll(policy, rounds=3, m=3, skip_last=4, train_rounds=train_rounds, depth=depth)
    calls = rollout_calls(config, 4, 3, 3, 3, config.reflect.train_rounds)
    assert policy.nfe - before == sum(x.nfe for x in calls)


@pytest.mark.slow
def test_an_editor_is_calls_of_a_rounds_parts(policy):
    """A picture inverted under one prompt and drawn again under another; and branches that have
    parted already go on each from its own start."""
    settings = RolloutSettings(**{**BASE, "branches": 2, "skip_last": 0})
    before, after = policy.encode(PROMPTS[:1]), policy.encode(PROMPTS[1:2])
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    x0 = denoise_steps(policy, x, before, range(10), 5.0, 0.0)[0][-1]
    start = invert_steps(policy, x0, after, 0.1)
    assert not torch.equal(start, invert_steps(policy, x0, before, 0.1))
    randomness = Randomness(policy, 0, 0, [7], 2)
    shared = sample_round(policy, start, after, settings, randomness, trained_steps=4)
    assert shared.latents.shape[:2] == (2, 5) and shared.log_probs.shape == (2, 4)
    assert torch.equal(shared.latents[0, 0], shared.latents[1, 0])
    apart = torch.cat([start, start + 1])
    parted = sample_round(
        policy, apart, after, settings, randomness, trained_steps=10, branched=True
    )
    assert torch.equal(parted.latents[:, 0], apart) and parted.log_probs.shape == (2, 10)
