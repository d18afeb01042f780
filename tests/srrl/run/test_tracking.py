"""Logs are JSON whatever the numbers, and a run's last lines are over prompts."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from scripts.train import start_tracker
from srrl.config import load_config
from srrl.run.pictures import Row
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

        accelerator = SimpleNamespace(
            is_main_process=main, init_trackers=init_trackers, trackers=["wandb"]
        )
        start_tracker(config, accelerator, tmp_path)
        return given

    assert not started(main=False) and not list(tmp_path.iterdir())
    (first,) = started(main=True)
    assert (tmp_path / "wandb_id.txt").read_text() == first["id"] + "\n"
    assert [p.name for p in tmp_path.iterdir()] == ["wandb_id.txt"]
    again = started(main=True)[-1]
    assert {**again, "settings": None} == {**first, "settings": None}
    assert 0 < first["settings"].finish_timeout < 30 > first["settings"].init_timeout > 0


class Failing(GeneralTracker):
    """A tracker that takes a few things and then none."""

    name, requires_logging_directory, main_process_only = "failing", False, False

    def __init__(self, takes: int):
        super().__init__(_blank=True)
        self.left = takes

    def log(self, values: dict, step: int | None = None, **_: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConnectionResetError("the server\n is gone")

    tracker = property(lambda self: self)
    log_images = store_init_configuration = log

    def start(self) -> None: ...


@pytest.mark.parametrize("takes", range(4))
def test_a_tracker_that_fails_is_left_and_the_folder_has_everything(takes, tmp_path, capsys):
    accelerator = Accelerator()
    accelerator.trackers = [Failing(takes), Failing(99)]
    tracker = Tracker(tmp_path, accelerator)
    tracker.metrics({"stage": 1, "loss": 1.5})
    tracker.evaluation({"stage": 1, "split": "train", "rounds": 1, "reward": "x", "mean": 1.0})
    tracker.page(1, [Row("a", [torch.zeros(3, 8, 8, dtype=torch.uint8)], ["b"])], "c")
    tracker.metrics({"stage": 2, "loss": 1.0})
    said = "failing failed (the server is gone): logging to the run's folder only\n"
    assert capsys.readouterr().out == said
    assert [t.left for t in accelerator.trackers] == [95]
    assert [line["stage"] for line in read(tmp_path / "metrics.jsonl")] == [1, 2]
    assert read(tmp_path / "eval.jsonl") and (tmp_path / "samples" / "stage_0001.png").exists()
    tracker.finish()
    assert not accelerator.trackers
