"""What one does with a run: stop it, lengthen it, change how it is split and logged, watch it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srrl.config import REPOSITORY
from tests.conftest import PRESET, small_run
from tests.lines import shown
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
CONSTANT = "--config.train.final_lr_fraction=1"


def stopped(folder, number: int, *launcher: str) -> subprocess.CompletedProcess:
    """`bash train.sh` of 40 stages, sent a signal in its third."""
    process = subprocess.Popen(
        ["bash", "train.sh", *small_run(folder, 40), CONSTANT, *launcher],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("stage 2/"):
            os.kill(process.pid, number)
            break
    out, err = process.communicate(timeout=1800)
    shown(err)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("launcher", [(), ("--", "--num_processes", "2")])
def test_ctrl_c_is_one_line_and_130_and_the_run_goes_on(launcher, tmp_path):
    ended = stopped(tmp_path, signal.SIGINT, *launcher)
    assert ended.returncode == 130
    assert ended.stderr.strip() == f"stopped: the same command resumes {tmp_path / 'run'}"
    command = ["bash", "train.sh"] if launcher else [sys.executable, "scripts/train.py", PRESET]
    again = run(*command, *small_run(tmp_path, 4), CONSTANT, *launcher)
    assert "resuming" in again.stdout
    assert [x["stage"] for x in logged(tmp_path / "run", "metrics.jsonl")] == [1, 2, 3, 4]


def test_ctrl_c_before_the_trainer_listens_is_not_lost(tmp_path):
    process = subprocess.Popen(
        ["bash", "train.sh", *small_run(tmp_path, 40)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("no GPU found")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text().split():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    said, complained = process.communicate(timeout=600)
    shown(complained)
    assert process.returncode == 130 and "stage 1/" not in said
    assert complained == "stopped\n"


def test_a_finished_run_that_is_lengthened_and_split_otherwise_is_the_longer_run(tmp_path):
    command = [sys.executable, "scripts/train.py", PRESET]
    run(*command, *small_run(tmp_path / "long", 3), CONSTANT)
    short = small_run(tmp_path / "short", 2)
    run(*command, *short, CONSTANT)
    changes = [
        "--config.stages.total=3",
        "--config.eval.seeds=2",
        "--config.pictures.every=1",
        "--config.train.micro_batch=5",
    ]
    said = run(*command[:2], "--resume", tmp_path / "short" / "run", *changes).stdout
    assert "stages.total is 3 now, not 2: the learning rate goes on at 3.00e-03" in said
    first, second = json.loads((tmp_path / "short" / "run" / "environment.json").read_text())
    assert first["config"]["eval.seeds"] == 1 and second["config"]["eval.seeds"] == 2
    assert first["started"] < second["started"] and min(first["seconds"], second["seconds"]) > 0
    assert second["command"].startswith("python scripts/train.py --resume ")
    one, other = (lora(tmp_path / name / "run", 3) for name in ("short", "long"))
    for key in other:  # another micro-batch rounds otherwise
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-2)
    evals = logged(tmp_path / "short" / "run", "eval.jsonl")
    assert [e["seeds"] for e in evals if e["split"] == "train"][-2:] == [1, 2]
    refused = run(*command, *short, CONSTANT, "--config.seed=4", "--config.branch.count=2", check=2)
    assert "seed=300, not 4" in refused.stderr and "branch.count=3, not 2" in refused.stderr


def test_a_second_run_in_the_folder_is_refused_with_the_firsts_pid(tmp_path):
    again = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, 40), CONSTANT]
    first = subprocess.Popen(
        again,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        next(line for line in first.stdout if line.startswith("stage 1/"))
        second = run(*again, check=2)
    finally:
        first.kill()
        first.communicate()
    assert f"in use by process {first.pid} on " in second.stderr
    assert len(second.stderr.splitlines()) == 1


def test_tensorboard_gets_figures_and_pictures(tmp_path):
    run(
        sys.executable,
        "scripts/train.py",
        PRESET,
        *small_run(tmp_path, 2),
        "--config.tracker=tensorboard",
    )
    folders = {p.parent for p in (tmp_path / "run").rglob("events.out.tfevents.*")}
    seen = [EventAccumulator(str(folder)).Reload().Tags() for folder in folders]
    figures = {tag for tags in seen for tag in tags["scalars"]}
    assert {"reward/shapes/mean", "eval/train/shapes"} <= figures
    assert {tag for tags in seen for tag in tags["images"]} == {"samples"}


def test_a_run_that_goes_on_is_the_same_run_in_wandb(tmp_path):
    command = [sys.executable, "scripts/train.py", PRESET, CONSTANT, "--config.tracker=wandb"]
    for stages in (1, 2):
        run(*command, *small_run(tmp_path, stages), WANDB_MODE="offline")
    known = (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    runs = [p.name for p in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert runs and all(name.endswith(f"-{known}") for name in runs)
