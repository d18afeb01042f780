"""Cheaper reflections: shared by stages, of fewer steps, of prompts whose first round failed."""

import pytest
import torch

from srrl.budget import stage_cost, stage_decodes
from srrl.config import load_config
from srrl.curriculum import plan_for, reflected_at
from srrl.rollout import Starts, rollout
from srrl.rounds import rollout_settings
from srrl.run.folder import read_lines
from tests.conftest import PRESET, PROMPTS
from tests.srrl.test_trainer import make_trainer, strip_times

K3 = ("--config.reflect.rounds=3", "--config.eval.every=0")
ECONOMIES = {
    "reuse": ("--config.reflect.reuse=2",),
    "fewer steps": ("--config.reflect.num_steps=3",),
    "failed": ("--config.reflect.when=failed", "--config.reflect.threshold=0.2"),
    "failed, clamped": (
        "--config.reflect.when=failed",
        "--config.reflect.threshold=0.2",
        "--config.reflect.clamp=true",
    ),
    "all": (
        "--config.reflect.reuse=2",
        "--config.reflect.num_steps=3",
        "--config.reflect.when=failed",
        "--config.reflect.threshold=0.2",
    ),
    "prompts by variance, reused": ("--config.prompts.draw=variance", "--config.reflect.reuse=2"),
}


def test_reflections_are_shared_by_stages_of_as_many_rounds():
    fixed = load_config([PRESET, "--config.reflect.rounds=2", "--config.reflect.reuse=3"])
    assert [reflected_at(fixed, n) for n in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    grown = ["--config.stages.per_cycle=4", "--config.reflect.max_rounds=3"]
    growing = load_config([PRESET, "--config.reflect.reuse=3", *grown])
    # K = 1 for four stages, which reflect nothing, then 2 for four, then 3.
    assert [reflected_at(growing, n) for n in range(12)] == [
        *range(4), 4, 4, 4, 7, 8, 8, 8, 11,
    ]  # fmt: skip
    alone = load_config([PRESET, "--config.reflect.rounds=2"])
    assert [reflected_at(alone, n) for n in range(3)] == [0, 1, 2]


def test_fewer_steps_begin_and_end_as_all_of_them_do(policy):
    schedule = policy.schedule
    few = schedule.thinned(3)
    assert few.num_steps == 3 and few.timesteps[0] == schedule.timesteps[0]
    assert few.alpha_next[-1] == schedule.alpha_next[-1]
    assert few.alpha_next[:-1].tolist() == few.alpha[1:].tolist()
    whole = schedule.thinned(schedule.num_steps)
    assert all(
        torch.equal(getattr(whole, name), getattr(schedule, name))
        for name in ("timesteps", "alpha", "alpha_next")
    )


def test_starts_are_exact_in_json():
    x = torch.randn(3, 4, 2, 2)
    scores = {"shapes": torch.rand(3)}
    same = Starts.from_state(Starts(x, torch.tensor([True, False, True]), scores).state())
    assert torch.equal(same.x, x) and same.again.tolist() == [True, False, True]
    assert torch.equal(same.scores["shapes"], scores["shapes"])


def roll(policy, judging=None, starts=None, stage=0, seed=0, **changes):
    settings = rollout_settings(load_config([PRESET, "--config.branch.count=2"]))
    return rollout(
        policy,
        policy.encode(PROMPTS),
        settings,
        rounds=3,
        trained_steps=4,
        seed=seed,
        stage=stage,
        prompts=list(range(len(PROMPTS))),
        judging=judging,
        starts=starts,
        **changes,
    )


@pytest.mark.slow
def test_a_rollout_from_kept_starts_is_the_one_that_reflected(policy):
    before = policy.nfe
    whole = roll(policy)
    spent = policy.nfe - before
    again = roll(policy, starts=whole.starts)
    assert policy.nfe - before - spent < spent / 2
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.log_probs, whole.log_probs)
    assert not torch.equal(roll(policy, starts=whole.starts, stage=1).images, whole.images)


@pytest.mark.slow
def test_prompts_whose_first_round_is_good_are_drawn_as_with_one_round(policy):
    n = len(PROMPTS)
    failed = torch.arange(n) % 2 == 1
    scores = {"any": torch.arange(n).float()}
    mixed = roll(policy, judging=lambda images: (scores, failed), keep_reflected=True)
    assert mixed.starts.again.tolist() == failed.tolist() and mixed.starts.scores == scores
    reflected = roll(policy, keep_reflected=True)
    noise = roll(policy, judging=lambda images: (scores, torch.zeros(n).bool()))
    spread = failed.repeat_interleave(2)
    for name in ("images", "latents"):
        one, all_, none = (getattr(r, name).float() for r in (mixed, reflected, noise))
        for row in range(2 * n):
            wanted = all_ if spread[row] else none
            assert (one[row] - wanted[row]).abs().max() < (2 if name == "images" else 1e-3)
    # What is shown of a prompt that went no further is its first round.
    assert [len(images) for images in mixed.reflected] == [n, n]
    assert torch.equal(mixed.reflected[0], reflected.reflected[0])
    assert torch.equal(mixed.reflected[1][~failed], mixed.reflected[0][~failed])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reuse", "fewer steps", "failed", "all"])
def test_the_ledger_is_the_formula(name, tmp_path):
    flags = [*K3, *ECONOMIES[name], "--config.stages.total=2"]
    if "failed" in name or name == "all":
        flags.append("--config.reflect.threshold=99")  # every first round fails
    trainer = make_trainer(tmp_path, *flags)
    trainer.prepare(0)
    decoded = []
    decode = trainer.policy.decode
    trainer.policy.decode = lambda x: decoded.append(len(x)) or decode(x)
    for stage in range(2):
        plan = plan_for(trainer.config, stage)
        before, images = trainer.policy.nfe, sum(decoded)
        trainer.sample(plan, trainer.draw_prompts(plan))
        trainer.scorer.collect()
        cost = stage_cost(trainer.config, plan)
        assert trainer.policy.nfe - before == cost.reflect + cost.sample
        expected = sum(x.samples * x.times for x in stage_decodes(trainer.config, plan))
        assert sum(decoded) - images == expected
        assert cost.reflect or ("--config.reflect.reuse=2" in flags and stage == 1)


def check_resumed(folder, *flags):
    """A run of three stages is the same whole, in the folder "whole", and resumed at each stage."""
    flags = (*flags, "--config.stages.total=3")
    make_trainer(folder / "whole", *flags).run()
    for stage in range(3):
        trainer = make_trainer(folder / "resumed", *flags)
        trainer.resume()
        trainer.run_stage(stage)
    for log in ("metrics.jsonl", "samples.jsonl"):
        one, two = (strip_times(folder / f / "run" / log) for f in ("whole", "resumed"))
        assert one == two and one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reuse", "failed, clamped", "all", "prompts by variance, reused"])
def test_a_run_that_is_resumed_is_the_same(name, tmp_path):
    flags = [*K3, *ECONOMIES[name]]
    check_resumed(tmp_path, *flags)
    if "failed" in name or name == "all":
        lines = read_lines(tmp_path / "whole" / "run" / "metrics.jsonl")
        assert 0 < sum(line["reflected"] for line in lines) < len(lines)


@pytest.mark.slow
def test_no_credit_below_a_failed_first_round(tmp_path):
    flags = [*K3, *ECONOMIES["failed, clamped"], "--config.reflect.threshold=99"]
    trainer = make_trainer(tmp_path, *flags)
    plan = plan_for(trainer.config, 0)
    prompts = trainer.draw_prompts(plan)
    scored = trainer.score(plan, trainer.sample(plan, prompts), prompts)
    first = trainer.starts.scores["shapes"][scored.prompt]
    assert (scored.scores["shapes"] >= first).all() and (scored.scores["shapes"] == first).any()
