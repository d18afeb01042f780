"""samples.jsonl tells the whole story of a stage: advantages and selections follow from it."""

import json
import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from tests.srrl.test_trainer import make_trainer

WEIGHTS = {"shapes": 1.0, "dark": 0.3}
STAGES, HISTORY, POSITIVE, NEGATIVE = 3, 1, 0.1, -0.1


class Dark:
    def score(self, images, prompts):
        return -images.float().mean((1, 2, 3)) / 255


def run_with_two_rewards(folder, *overrides):
    from rewards import load_rewards

    trainer = make_trainer(
        folder,
        f"--config.stages.total={STAGES}",
        "--config.sample.num_steps=6",
        "--config.interval.left=1",
        "--config.interval.right=6",
        "--config.interval.skip_last=0",
        "--config.reflect.max_rounds=2",
        "--config.sample.batch_size=4",
        f"--config.reward.models={json.dumps(WEIGHTS)}",
        f"--config.reward.history={HISTORY}",
        "--config.eval.every=0",
        *overrides,
        rewards=load_rewards(["shapes"]) | {"dark": Dark()},
    )
    prompts = trainer.prompts["train"]
    trainer.prompts["train"] = prompts[:3]  # so that prompts meet their own past
    trainer.run()
    lines = (folder / "run" / "samples.jsonl").read_text().splitlines()
    return trainer, [json.loads(line) for line in lines]


def standardised(values):
    if len(values) < 2:
        return [0.0] * len(values)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return [(v - mean) / (std + 1e-8) for v in values]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--config.reflect.train_rounds=all"],
        ["--config.reflect.train_rounds=all", "--config.reward.rounds=last"],
        ["--config.select.mode=all", "--config.branch.count=1"],
        ["--config.reflect.train_rounds=all", "--config.reward.rounds=mean"],
        [
            "--config.reflect.rounds=2",
            "--config.branch.count=1",
            "--config.select.mode=all",
            "--config.reflect.baseline=0.5",
        ],
    ],
)
def test_advantages_and_selections_follow_from_the_file_alone(overrides, tmp_path):
    lines = run_with_two_rewards(tmp_path, *overrides)[1]
    by_round = "--config.reflect.train_rounds=all" in overrides
    mean = "--config.reward.rounds=mean" in overrides
    shared = "--config.reward.rounds=last" in overrides or mean
    share = 0.5 if "--config.reflect.baseline=0.5" in overrides else 0.0
    everything = "--config.select.mode=all" in overrides

    def key(line):
        return (line["prompt"], line["round"] if by_round and not shared else 0)

    def of_trajectory(line):
        place = ("stage", "slot", "branch")
        return [x for x in lines if [x[k] for k in place] == [line[k] for k in place]]

    def counts(line):
        return line["scores"] and not (mean and line["round"] < len(of_trajectory(line)))

    def credit(line, name):
        """What it is compared by: its score, its trajectory's, or beyond its first round's."""
        rounds = of_trajectory(line) if mean else [line]
        score = statistics.fmean(x["scores"][name] for x in rounds)
        return score - share * line["first"][name] if share else score

    seen = {"advantage": 0.0, "selected": set()}
    for stage in range(1, STAGES + 1):
        now = [line for line in lines if line["stage"] == stage]
        judged = [line for line in now if counts(line)]
        expected = {}
        for k in {key(line) for line in judged}:
            window = [
                x
                for x in lines
                if counts(x) and key(x) == k and stage - HISTORY <= x["stage"] <= stage
            ]
            window.sort(key=lambda x: x["stage"] != stage)  # this stage's first
            combined = [0.0] * len(window)
            for name, weight in WEIGHTS.items():
                z = standardised([credit(x, name) for x in window])
                combined = [c + weight * v for c, v in zip(combined, z, strict=True)]
            for line, a in zip(window, standardised(combined), strict=False):
                if line["stage"] == stage:
                    expected[line["slot"], line["branch"], line["round"] if not shared else 0] = a
        groups = {}
        for line in now:
            place = line["slot"], line["branch"], line["round"] if not shared else 0
            assert line["advantage"] == pytest.approx(expected[place], abs=1e-5)
            seen["advantage"] = max(seen["advantage"], abs(line["advantage"]))
            groups.setdefault((line["slot"], line["round"]), []).append(line)
        for group in groups.values():
            values = [line["advantage"] for line in group]
            wanted = set(range(len(group))) if everything else set()
            if not everything and max(values) >= POSITIVE:
                wanted.add(values.index(max(values)))
            if not everything and min(values) < NEGATIVE:
                wanted.add(values.index(min(values)))
            assert {i for i, line in enumerate(group) if line["selected"]} == wanted
            seen["selected"] |= wanted
    metrics = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counts = [sum(x["selected"] for x in lines if x["stage"] == n) for n in range(1, STAGES + 1)]
    assert counts == [line["selected"] for line in metrics]
    assert seen["advantage"] > 0.5 and seen["selected"]


@pytest.mark.slow
def test_saved_images_are_those_that_were_scored(tmp_path):
    trainer, lines = run_with_two_rewards(tmp_path, "--config.pictures.images=true")
    for line in lines:
        pixels = np.asarray(Image.open(tmp_path / "run" / line["image"]))
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        for name, reward in trainer.rewards.items():
            score = reward.score(image, [line["prompt"]]).item()
            assert score == pytest.approx(line["scores"][name], abs=1e-6)
    assert len({line["image"] for line in lines}) == len(lines)


@pytest.mark.slow
def test_stages_may_share_prompts_and_noise(tmp_path):
    lines = run_with_two_rewards(
        tmp_path,
        "--config.stages.seed_cycle=2",
        "--config.prompts.draw=replacement",
        "--config.reflect.rounds=1",
        "--config.train.learning_rate=1e-12",
    )[1]
    stages = [[x for x in lines if x["stage"] == n] for n in range(1, STAGES + 1)]
    prompts = [[x["prompt"] for x in stage] for stage in stages]
    assert prompts[0] == prompts[2] != prompts[1]
    dark = [[x["scores"]["dark"] for x in stage] for stage in stages]
    assert dark[0] == pytest.approx(dark[2], abs=1e-4)  # the policy has hardly moved
    assert dark[0] != pytest.approx(dark[1], abs=1e-3)
