"""Logs are JSON whatever the numbers, and a run's last lines are over prompts."""

import json
from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from scripts.train import start_tracker
from srrl.config import load_config
from srrl.run.tracking import Tracker, to_json
from tests.conftest import PRESET


def read(path) -> list[dict]:
    """A log's lines; NaN and Infinity, which are not JSON, are refused."""
    return [json.loads(x, parse_constant=pytest.fail) for x in path.read_text().splitlines()]


def test_what_is_not_finite_is_logged_as_null(tmp_path):
    tracker = Tracker(tmp_path, Accelerator())
    of_one = float("nan")  # the standard deviation of one sample
    tracker.metrics({"stage": 1, "advantage/std": of_one, "reward/shapes/std": of_one, "loss": 1.5})
    tracker.samples(1, [{"scores": {"shapes": float("inf")}, "advantage": 0.5}])
    (line,) = read(tmp_path / "metrics.jsonl")
    assert line == {"stage": 1, "advantage/std": None, "reward/shapes/std": None, "loss": 1.5}
    assert read(tmp_path / "samples.jsonl")[0]["scores"] == {"shapes": None}
    assert json.loads(to_json([(1.0, -float("inf")), "NaN"])) == [[1.0, None], "NaN"]


def test_a_summary_pairs_prompts_and_says_how_many(tmp_path, capsys):
    """Three prompts at two seeds: their means rise by 0.1, 0.2 and 0.3."""
    tracker = Tracker(tmp_path, Accelerator())
    before, after = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3], [0.0, 0.5, 0.6, 0.4, 0.3, 0.6]
    for stage, scores in ((0, before), (8, after)):
        line = {"stage": stage, "split": "train", "rounds": 1, "reward": "shapes", "n": 6}
        mean = sum(scores) / 6
        tracker.evaluation(line | {"seeds": 2, "first_seed": 5, "mean": mean, "scores": scores})
    tracker.summary()
    said = capsys.readouterr().out
    assert "0.200 to 0.400, paired +0.200 +- 0.248 (95%, n 3 prompts x 2 seeds)" in said


def test_only_the_main_process_logs_in_and_has_an_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, given = load_config([PRESET, "--config.tracker=wandb"]), []

    def started(main: bool) -> list[dict]:
        def init_trackers(project: str, config: dict, init_kwargs: dict) -> None:
            given.append(init_kwargs["wandb"])

        accelerator = SimpleNamespace(is_main_process=main, init_trackers=init_trackers)
        start_tracker(config, accelerator, tmp_path)
        return given

    assert not started(main=False) and not list(tmp_path.iterdir())
    (first,) = started(main=True)
    assert (tmp_path / "wandb_id.txt").read_text() == first["id"] + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["wandb_id.txt"]
    assert started(main=True) == [first, first]
