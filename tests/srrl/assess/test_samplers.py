"""Samplers begin alike, cost what they say, and are what they are called."""

import inspect

import pytest
import torch

from rewards.shapes import ShapesVerifier
from srrl.assess.samplers import RANGES, SAMPLERS, Task, parse_sampler
from srrl.config import load_config
from srrl.ddim import make_schedule
from srrl.errors import UserError
from srrl.rollout import Rollout, rollout
from srrl.rounds import rollout_settings
from tests.conftest import PRESET, PROMPTS, load_policy

SETTINGS = rollout_settings(load_config([PRESET]), branches=1)
SCORE = ShapesVerifier().score


@pytest.fixture(scope="module")
def sd():
    return load_policy("sd", num_steps=4)


def drawn(policy, text: str, seed: int = 3, score=SCORE) -> tuple[torch.Tensor, float]:
    """Pictures of a sampler, and the network evaluations of each."""
    task = Task(policy, policy.encode(PROMPTS), SETTINGS, PROMPTS, [0, 1, 2, 3], seed, score)
    before = policy.nfe
    images = parse_sampler(text).draw(task)
    return images, (policy.nfe - before) / len(PROMPTS)


def rolled(policy, rounds: int = 1, stage: int = 0, **given) -> Rollout:
    """What training would draw."""
    where = {"rounds": rounds, "stage": stage, "seed": 3, "prompts": [0, 1, 2, 3], **given}
    return rollout(policy, policy.encode(PROMPTS), SETTINGS, trained_steps=0, **where)


def reds(images, prompts):
    """A score that differs from picture to picture."""
    return images[:, 0].float().mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "evaluations"),
    [
        ("plain:steps=6", 12),
        ("plain:guidance=1", 4),
        ("reflect:rounds=3", 40),
        ("reflect:rounds=3,depth=3", 32),
        ("reflect:rounds=2,inversion=0", 20),
        ("reflect:rounds=2,denoise=1,eta=1", 20),
        ("best:n=3", 24),
        ("zigzag", 24),
        ("zigzag:steps=2", 16),
        ("until:rounds=2,threshold=2", 24),
        ("until:rounds=3,threshold=0", 8),
        ("best_round:rounds=3", 40),
        ("best_reflect:n=2,rounds=2", 32),
        ("repair:rounds=2,threshold=2,low=-1", 24),
        ("repair:rounds=2,threshold=2,low=2", 16),
        ("repair:threshold=0", 8),
        ("cycle:cycles=1,particles=2,threshold=2", 20),
        ("cycle:threshold=0", 8),
    ],
)
def test_each_costs_what_it_says(sd, text, evaluations):
    images, cost = drawn(sd, text)
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8
    assert cost == evaluations


@pytest.mark.parametrize(
    "text",
    [
        "reflect:rounds=1",
        "best:n=1",
        "until:rounds=1",
        "plain:steps=4",
        "best_round:rounds=1",
        "best_reflect:n=1,rounds=1",
        "repair:rounds=1",
        "cycle:threshold=0",
    ],
)
def test_without_what_makes_it_special_each_is_plain(sd, text):
    assert torch.equal(drawn(sd, text)[0], drawn(sd, "plain")[0])


@pytest.mark.slow
def test_a_reflection_takes_the_configs_settings_unless_it_is_given_others(sd):
    s = SETTINGS
    own = f"denoise={s.denoise_guidance},inversion={s.inversion_guidance},eta={s.reflect_eta}"
    reflected = drawn(sd, "reflect:rounds=2")[0]
    assert torch.equal(reflected, drawn(sd, f"reflect:rounds=2,{own}")[0])
    for other in ("denoise=3", "inversion=1", "eta=0", "guidance=8"):
        assert not torch.equal(reflected, drawn(sd, f"reflect:rounds=2,{other}")[0]), other


def test_plain_is_the_evaluation_of_training(sd):
    assert torch.equal(rolled(sd).images, drawn(sd, "plain")[0])


@pytest.mark.slow
def test_best_takes_for_each_prompt_the_picture_that_scores_highest(sd):
    alone = [rolled(sd, stage=i).images for i in range(3)]
    assert torch.equal(alone[0], drawn(sd, "plain")[0])
    scores = torch.stack([reds(images, PROMPTS) for images in alone])
    chosen = drawn(sd, "best:n=3", score=reds)[0]
    for p, place in enumerate(scores.argmax(0).tolist()):
        assert torch.equal(chosen[p], alone[place][p])
    assert len(set(scores.argmax(0).tolist())) > 1


def test_until_goes_on_only_where_the_score_is_low(sd):
    first = drawn(sd, "plain")[0]
    content = torch.tensor([1.0, 0.0, 1.0, 0.0])

    def score(images, prompts):
        known = [next((i for i in range(4) if torch.equal(first[i], x)), None) for x in images]
        return torch.tensor([0.1 if i is None else float(content[i]) for i in known])

    images, cost = drawn(sd, "until:rounds=2,threshold=0.5", score=score)
    assert cost == 8 + 2 / 4 * 16
    same = [torch.equal(images[i], first[i]) for i in range(4)]
    assert same == [True, False, True, False]


@pytest.mark.slow
def test_the_best_round_is_chosen_among_those_that_are_drawn(sd):
    rounds = rolled(sd, rounds=3, keep_reflected=True)
    assert torch.equal(rounds.images, drawn(sd, "reflect:rounds=3")[0])
    every = torch.stack([*rounds.reflected, rounds.images])
    scores = torch.stack([reds(images, PROMPTS) for images in every])
    chosen = drawn(sd, "best_round:rounds=3", score=reds)[0]
    assert torch.equal(chosen, every[scores.argmax(0), torch.arange(4)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("best_reflect:n=2", "best:n=2"),
        ("repair:rounds=3,threshold=999,low=0", "plain"),
        ("cycle:threshold=999", "plain"),
        ("until:rounds=3,threshold=999", "plain"),
    ],
)
def test_looking_further_never_ends_lower(sd, text, least):
    more, less = (reds(drawn(sd, t, score=reds)[0], PROMPTS) for t in (text, least))
    assert (more >= less).all() and (more > less).any()


@pytest.mark.slow
def test_what_fails_in_part_is_reflected_and_what_fails_whole_is_drawn_anew(sd):
    first = drawn(sd, "plain")[0]
    content = torch.tensor([1.0, 0.3, 0.0, 0.3])

    def score(images, prompts):
        known = [next((i for i in range(4) if torch.equal(first[i], x)), None) for x in images]
        return torch.tensor([0.6 if i is None else float(content[i]) for i in known])

    task = Task(sd, sd.encode(PROMPTS), SETTINGS, PROMPTS, [0, 1, 2, 3], 3, score)
    images = parse_sampler("repair:rounds=2,threshold=0.5,low=0.1").draw(task)
    assert task.spent == [8, 24, 16, 24]
    assert torch.equal(images[0], first[0])
    reflected = drawn(
        sd,
        "until:rounds=2,threshold=2",
        score=lambda images, prompts: torch.tensor(
            [float(not any(torch.equal(x, y) for y in first)) for x in images]
        ),
    )[0]
    anew = drawn(
        sd,
        "best:n=2",
        score=lambda images, prompts: torch.tensor(
            [float(not any(torch.equal(x, y) for y in first)) for x in images]
        ),
    )[0]
    apart = (images[1].int() - reflected[1].int()).abs().max()
    assert apart <= 2 and (images[2].int() - anew[2].int()).abs().max() <= 2


@pytest.mark.slow
def test_another_number_of_steps_is_that_schedule_and_leaves_the_policys_own(sd):
    images = drawn(sd, "plain:steps=6")[0]
    other = load_policy("sd", num_steps=6)
    assert torch.equal(images, drawn(other, "plain")[0])
    own = make_schedule(sd.pipe.scheduler.config, 4, 1.0)
    assert torch.equal(sd.schedule.timesteps, own.timesteps)


@pytest.mark.slow
def test_zigzag_is_the_paper_step_by_step(sd):
    """Denoise, invert, denoise (arXiv 2412.10891, algorithm 1), by diffusers' own schedulers."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler

    from srrl.assess.samplers import plain, zigzag

    policy = sd
    config = dict(policy.pipe.scheduler.config) | {"clip_sample": False}
    down, up = (cls.from_config(config) for cls in (DDIMScheduler, DDIMInverseScheduler))
    down.set_timesteps(4)
    up.set_timesteps(4)
    settings = SETTINGS.__class__(**{**vars(SETTINGS), "eta": 0.0})
    cond = policy.encode(PROMPTS)
    task = Task(policy, cond, settings, PROMPTS, [0, 1, 2, 3], 3, SCORE)
    x = task.noise("start").draw()

    @torch.no_grad()
    def guided(x, t, w):
        text = policy.pipe.unet(x, t, cond.text).sample
        empty = policy.pipe.unet(x, t, cond.empty).sample
        return empty + w * (text - empty)

    for t in down.timesteps:
        ahead = down.step(guided(x, t, 5.0), t, x).prev_sample
        x = up.step(guided(ahead, t, 0.1), t, ahead).prev_sample
        x = down.step(guided(x, t, 5.0), t, x).prev_sample
    ours = zigzag(task)
    assert torch.equal(zigzag(task, steps=0), plain(task))
    assert (ours.int() - policy.decode(x).int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("magic", "known are plain, reflect"),
        ("best:k=3", "best takes n, not 'k'"),
        ("best:n=many", "n must be a whole number"),
        ("best:n=0", "n=0 is not from 1 to 1000"),
        ("reflect:eta=3", "eta=3 is not from 0 to 1"),
        ("plain:guidance=nan", "guidance=nan is not from 0 to 100"),
        ("reflect:rounds=2,rounds=3", "rounds is given twice"),
        ("plain:guidance=x", "guidance must be a number"),
    ],
)
def test_a_wrong_name_is_one_line(text, said):
    with pytest.raises(UserError, match=said):
        parse_sampler(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("reflect:depth=11", "11 of 10 denoising steps"),
        ("reflect:depth=7,steps=6", "7 of 6 denoising steps"),
        ("zigzag:steps=11", "11 of 10 denoising steps"),
    ],
)
def test_more_steps_back_than_there_are_are_refused(text, said):
    for fits in ("reflect:depth=10", "reflect:depth=7,steps=20", "plain:steps=50", "zigzag"):
        parse_sampler(fits).check(10)
    with pytest.raises(UserError, match=said):
        parse_sampler(text).check(10)


def test_every_keyword_has_a_range():
    for function in SAMPLERS.values():
        _, *keywords = inspect.signature(function).parameters
        assert set(keywords) <= RANGES.keys()
