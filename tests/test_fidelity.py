"""The figures of docs/FIDELITY.md. Each test prints its own:

python -m pytest tests/test_fidelity.py -s -k decoding
"""

import json
import random
import statistics
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from rewards import load_rewards
from srrl.advantages import ScoreHistory, prompt_advantages, select, stage_advantages
from srrl.batch import shuffled_pairs
from srrl.budget import trained_passes
from srrl.config import load_config
from srrl.curriculum import StagePlan, plan_for
from srrl.ddim import log_prob, make_schedule
from srrl.models.architectures import blank_pipeline
from srrl.prompts import stage_prompts
from tests.conftest import PROMPTS, load_policy
from tests.slow.commands import logged, run

SD14 = "--config=config/stage_process.py:sd14"
RELEASED = SD14 + "+released"


def released_steps(selected: int, steps: int, epochs: int = 2) -> int:
    """Optimizer steps of a released stage, by accelerate's own count: an accumulation of 64 x m
    micro-steps that runs on from pass to pass, each over an even number of trajectories."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=64 * steps)
    model, done = torch.nn.Linear(1, 1), 0
    for _ in range(epochs * (selected // 2 * 2) * steps):
        with accelerator.accumulate(model):
            done += accelerator.sync_gradients
    return done


def our_steps(config, selected: int, steps: int) -> list[int]:
    """Pairs in each of our optimizer steps."""
    return [len(pairs) for pairs in shuffled_pairs(config, StagePlan(0, 1, steps), selected)]


@pytest.mark.parametrize("selected", [0, 1, 31, 32, 33, 40, 63, 64])
def test_the_preset_takes_as_many_optimizer_steps_as_the_release(selected):
    ours, released = load_config([SD14]), load_config([RELEASED])
    for steps in (1, 5):
        theirs = released_steps(selected, steps)
        print(
            f"{selected} selected, m {steps}: released {theirs}, ours "
            f"{len(our_steps(ours, selected, steps))} optimizer steps"
        )
        taken = our_steps(released, selected, steps)
        assert taken == [64 * steps] * theirs
        assert sum(taken) == trained_passes(released, selected) * steps
        whole = our_steps(ours, selected, steps)
        assert sum(whole) == 2 * selected * steps == trained_passes(ours, selected) * steps
        assert len(whole) == (2 if selected else 0)


def fifty_stages(config, prompts: list[str], seed: int) -> list[tuple[StagePlan, int]]:
    """The plan and the selected trajectories of each stage, with normally distributed scores."""
    generator, history = torch.Generator().manual_seed(seed), ScoreHistory(config.reward.history)
    stages = []
    for n in range(config.stages.total):
        drawn = n % (config.stages.seed_cycle or config.stages.total)
        names = stage_prompts(prompts, drawn, 32, config.seed, config.prompts.draw)
        keys = [name for name in names for _ in range(config.branch.count)]
        scores = {"reward": torch.randn(len(keys), generator=generator)}
        advantages = stage_advantages(keys, scores, {"reward": 1.0}, history, n)
        groups = torch.arange(len(keys)) // config.branch.count
        s = config.select
        rows = select(advantages, groups, s.pos_threshold, s.neg_threshold, s.mode)
        stages.append((plan_for(config, n), len(rows)))
    return stages


def test_optimizer_steps_in_fifty_stages():
    ours, released = load_config([SD14]), load_config([RELEASED])
    prompts = [f"prompt {i}" for i in range(45)]  # as many as the released file has
    counts, lost, selected = [], [], []
    for seed in range(5):
        stages = fifty_stages(released, prompts, seed)
        counts.append(sum(trained_passes(released, s) // 64 for _, s in stages))
        pairs = sum(2 * s * plan.trained_steps for plan, s in stages)
        kept = sum(trained_passes(released, s) * plan.trained_steps for plan, s in stages)
        lost.append(1 - kept / pairs)
        selected += [s for _, s in stages]
        mine = fifty_stages(ours, prompts, seed)
        assert sum(len(our_steps(ours, s, 1)) for _, s in mine) == 100
    odd = sum(s % 2 for s in selected) / len(selected)
    print(
        f"normally distributed scores, seeds 0 to 4: {statistics.mean(selected):.1f} selected a "
        f"stage; released {counts} optimizer steps in 50 stages, ours 100; pairs never applied "
        f"{min(lost):.0%} to {max(lost):.0%}; {odd:.0%} of the selections are odd"
    )
    assert all(45 <= count <= 65 for count in counts)
    assert all(0.2 < share < 0.5 for share in lost)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["sd14", "sd14+released"])
def test_the_embedded_model_under_these_presets_takes_the_steps_predicted(preset, tmp_path):
    shapes = [
        f"--config.prompts.{split}=config/prompts/shapes_unconventional_{split}.json"
        for split in ("train", "heldout")
    ]
    run(
        sys.executable,
        "scripts/train.py",
        f"--config=config/stage_process.py:{preset}",
        *shapes,
        "--config.pretrained.model=srrl/shapes/tiny_sd",
        '--config.reward.models={"tests.slow.peak:Redness": 1.0}',
        f"--config.output_dir={tmp_path}",
        "--config.run_name=run",
        "--config.sample.num_steps=8",
        "--config.interval.right=8",
        "--config.mixed_precision=no",
        "--config.tracker=none",
        "--config.stages.total=6",
        "--config.reflect.rounds=1",
        "--config.sample.micro_batch=64",
        "--config.train.micro_batch=32",
        "--config.sample.decode_batch=64",
        "--config.sample.batch_size=32",
        "--config.sample.num_batches_per_stage=1",
        "--config.eval.every=0",
    )
    for line in logged(tmp_path / "run", "metrics.jsonl"):
        predicted = released_steps(line["selected"], 1) if "released" in preset else 2
        print(
            f"{preset}, m {line['trained_steps']}: {line['selected']} selected, "
            f"{line['updates']} optimizer steps"
        )
        assert line["updates"] == predicted
    lines = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    first, sixth = ([x["prompt"] for x in lines if x["stage"] == n] for n in (1, 6))
    assert (first == sixth) == ("released" in preset)


def test_prompts_and_noise_that_fifty_stages_see():
    prompts = [f"prompt {i}" for i in range(45)]
    seen = {}
    for name, config in (("ours", load_config([SD14])), ("released", load_config([RELEASED]))):
        cycle = config.stages.seed_cycle or config.stages.total
        starts, texts, fewest = set(), set(), []
        for n in range(50):
            drawn = stage_prompts(prompts, n % cycle, 32, config.seed, config.prompts.draw)
            starts |= {(n % cycle, slot) for slot in range(32)}
            texts |= set(drawn)
            fewest.append(len(set(drawn)))
        seen[name] = len(starts), len(texts), statistics.mean(fewest)
        print(
            f"{name}, 50 stages: {len(starts)} starting noises, {len(texts)} of 45 prompts, "
            f"{statistics.mean(fewest):.1f} different ones in a stage"
        )
    assert seen["ours"][:2] == (1600, 45) and seen["ours"][2] > 28
    assert seen["released"][0] == 160
    assert seen["released"][2] < 26


def test_decoding_by_truncation_is_half_a_level_darker():
    policy, reward = load_policy(), load_rewards(["shapes"])["shapes"]
    prompts = PROMPTS * 16
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        latents = torch.randn(64, *policy.latent_shape, generator=generator)
        pixels = policy.pipe.vae.decode(latents / policy.pipe.vae.config.scaling_factor).sample
        levels = 255 * (pixels / 2 + 0.5).clamp(0, 1)
    rounded, truncated = levels.round().to(torch.uint8), levels.to(torch.uint8)
    darker = (rounded.float() - truncated.float()).mean().item()
    change = (reward.score(rounded, prompts) - reward.score(truncated, prompts)).abs().max().item()
    print(
        f"truncated images are {darker:.2f} of 255 levels darker; the verifier's score moves by "
        f"{change:.4f} at most"
    )
    assert 0.2 < darker < 0.6 and change < 0.05


def test_latents_stored_in_half_precision_move_the_first_ratio():
    """SD v1.4's schedule at 20 steps and its latents' size, x_s = mean + sigma z of unit variance:
    log p of the stored x_s against that of the one that was drawn."""
    config = load_config([SD14])
    schedule = make_schedule(
        blank_pipeline("random:sd14").scheduler.config, config.sample.num_steps, 1.0
    )
    generator = torch.Generator().manual_seed(0)
    shape = (64, 4, 64, 64)
    worst = {}
    for i in range(config.sample.num_steps):
        _, _, sigma = schedule.coefficients(torch.full((64,), i), 1.0)
        mean = (1 - sigma**2).sqrt() * torch.randn(shape, generator=generator)
        x = mean + sigma * torch.randn(shape, generator=generator)
        drawn, stored = log_prob(x, mean, sigma), log_prob(x.half().float(), mean, sigma)
        worst[i] = ((stored - drawn).exp() - 1).abs().max().item()
    last = config.sample.num_steps - 1
    print(
        f"|ratio - 1| before any update: up to {max(worst.values()):.1e} (the last step "
        f"{worst[last]:.1e}, the first {worst[0]:.1e}); with float32 latents 0"
    )
    assert max(worst.values()) == worst[last] > 1e-5 > worst[0]


def released_advantages(scores: torch.Tensor) -> torch.Tensor:
    """(score - mean) / (std + 1e-8), once and in float32 as the release computes it."""
    return (scores - scores.mean().item()) / (scores.std().item() + 1e-8)


def test_equal_scores_are_selected_by_rounding_error_in_the_release():
    chosen = {"released": 0, "ours": 0}
    for seed in range(1000):
        scores = torch.full((5,), 0.1 + 0.3 * random.Random(seed).random())
        none = {"reward": torch.zeros(0)}
        ours = prompt_advantages({"reward": scores}, none, {"reward": 1.0})
        for name, a in (("released", released_advantages(scores)), ("ours", ours.float())):
            rows = select(a, torch.zeros(5, dtype=torch.int64), 0.5, -0.5, "extremes")
            chosen[name] += len(rows) > 0
    print(
        f"of 1000 groups of 5 equal scores, trained on: released {chosen['released']}, ours "
        f"{chosen['ours']}"
    )
    assert chosen["ours"] == 0 < chosen["released"]


@pytest.mark.parametrize(("width", "bound"), [(1.0, 1e-6), (0.1, 1e-5)])
def test_one_reward_standardised_twice_is_standardised_once(width, bound):
    """Scores spread over `width`: the narrower, the more of the release's float32 is rounded."""
    largest = []
    for seed in range(4):
        scores = torch.rand(1000, 13, generator=torch.Generator().manual_seed(seed))
        differences = []
        for row in 0.3 + width * scores:
            now, before = {"reward": row[:5]}, {"reward": row[5:]}
            ours = prompt_advantages(now, before, {"reward": 1.0})
            differences.append((ours - released_advantages(row)[:5]).abs().max().item())
        largest.append(max(differences))
    print(
        f"scores within {width}: largest difference of an advantage {min(largest):.1e} to "
        f"{max(largest):.1e}, seeds 0 to 3"
    )
    assert 0 < max(largest) < bound


def test_an_empty_selection_ends_the_release():
    with pytest.raises(RuntimeError, match="non-empty"):
        torch.stack([])
    assert our_steps(load_config([SD14]), 0, 5) == []
