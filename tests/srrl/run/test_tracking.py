"""Logs are JSON whatever the numbers, and a run's last lines are over prompts."""

import errno
import json
import math
import os
from types import SimpleNamespace

import accelerate.tracking
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from scripts.train import start_tracker
from srrl.config import load_config
from srrl.run.folder import LOGS, read_lines
from srrl.run.image_statistics import Evaluated
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


def test_a_tracker_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])  # as it is imported
    config = load_config([PRESET, "--config.tracker=tensorboard"])
    start_tracker(config, Accelerator(log_with="tensorboard", project_dir=tmp_path), tmp_path)
    said = capsys.readouterr().out
    assert said == "tensorboard is not installed: logging to the run's folder only\n"


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


@pytest.mark.parametrize("fault", [ValueError("no\nfont"), MemoryError(), OSError("cut short")])
def test_a_picture_that_cannot_be_drawn_is_said_once(fault, tmp_path, capsys, monkeypatch):
    def fail(*_: object) -> None:
        raise fault

    for name in ("sheet", "progress", "save_fixed"):
        monkeypatch.setattr(f"srrl.run.pictures.{name}", fail)
    monkeypatch.setattr("srrl.run.tracking.curves", fail)
    monkeypatch.setattr("srrl.run.tracking.by_prompt", fail)
    tracker = Tracker(tmp_path, Accelerator())
    line = {"stage": 1, "split": "train", "rounds": 1, "reward": "x", "mean": 1.0, "n": 1}
    tracker.evaluation(line | {"seeds": 1, "first_seed": 0, "scores": [1.0]})
    for _ in range(2):
        tracker.page(1, [Row("a", [torch.zeros(3, 8, 8, dtype=torch.uint8)], ["b"])], "c")
        shown = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        tracker.fixed(1, "train", 1, Evaluated({}, {}, shown))
        tracker.progress(1, {})
        tracker.draw_again = 0.0
        tracker.curves()
        tracker.summary()
    said = capsys.readouterr().out.splitlines()
    named = f"cannot be drawn ({type(fault).__name__}: "
    assert len(said) == 5 and all(named in x and x.startswith("warning: ") for x in said)


def test_curves_that_have_just_been_drawn_are_drawn_again_at_the_end(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("srrl.run.tracking.curves", lambda folder, panels: drawn.append(panels))
    tracker = Tracker(tmp_path, Accelerator())
    tracker.curves(["first"])
    assert tracker.draw_again > 0
    tracker.draw_again = math.inf  # as after a slow drawing
    tracker.curves(["second"])
    tracker.curves(["third"])
    assert drawn == [["first"]]
    tracker.summary()
    tracker.summary()
    assert drawn == [["first"], ["third"]]
    tracker.draw_again = math.inf
    tracker.curves(["last"], last=True)
    assert drawn == [["first"], ["third"], ["last"]]


def test_a_disk_that_is_full_still_ends_the_run(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("srrl.run.tracking.curves", fail)
    with pytest.raises(OSError, match=r"curves\.png"):
        Tracker(tmp_path, Accelerator()).curves()


def test_logs_with_lines_that_are_none_are_read(tmp_path, capsys):
    """And drawn as far as they go; nothing that stands in them ends a run."""
    text = '{"stage": 1, "loss": 2.0}\n7\n[\n\xff\n' + "[" * 100_000 + '\n{"stage": 2'
    for name in LOGS:
        (tmp_path / name).write_bytes(text.encode("latin1"))
    assert read_lines(tmp_path / LOGS[0]) == [{"stage": 1, "loss": 2.0}]
    tracker = Tracker(tmp_path, Accelerator())
    tracker.curves()
    tracker.progress(1, {"train": {0: "a"}})
    tracker.summary()
    assert "Traceback" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_caption_of_a_megabyte_is_cut(tmp_path):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = [
        Row("word " * 200_000, [image], ["x" * 10**6]),
        Row("b" * 10**6, [image], ["y, " * 10**6]),
    ]
    tracker = Tracker(tmp_path, Accelerator())
    tracker.page(1, rows, "c" * 10**6)
    with Image.open(tmp_path / "samples" / "stage_0001.png") as page:
        assert page.width < 4000 and page.height < 8000


def test_an_error_at_the_very_end_is_said_and_no_failure(tmp_path, capsys, monkeypatch):
    accelerator = Accelerator()
    tracker = Tracker(tmp_path, accelerator)

    def fail() -> None:
        raise RuntimeError("too late")

    monkeypatch.setattr(accelerator, "end_training", fail)
    tracker.finish()
    assert capsys.readouterr().out == "warning: after the last stage: RuntimeError: too late\n"
