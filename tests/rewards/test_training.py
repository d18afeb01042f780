"""Training on VQAScore and ImageReward, in this process and behind a worker, and scores by hand."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from srrl.config import REPOSITORY
from tests.conftest import PRESET, small_run
from tests.rewards.tiny import tiny_options
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
STAGES = 2


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict:
    return tiny_options(tmp_path_factory.mktemp("rewards"), "vqascore", "imagereward")


def command(folder: Path, options: dict, *extra: str) -> list[str]:
    models = json.dumps(dict.fromkeys(options, 1.0))
    return [
        sys.executable,
        "scripts/train.py",
        PRESET,
        *small_run(folder, STAGES),
        f"--config.reward.models={models}",
        f"--config.reward.options={json.dumps(options)}",
        *extra,
    ]


@pytest.fixture(scope="module")
def local(options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("local")
    run(*command(folder, options))
    return folder / "run"


def assert_same(one: Path, two: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert logged(one, name) == logged(two, name)
    ours, theirs = lora(one, STAGES), lora(two, STAGES)
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_both_rewards_are_logged_and_trained_on(local):
    for line in logged(local, "metrics.jsonl"):
        for name in ("vqascore", "imagereward"):
            assert line[f"reward/{name}/std"] > 0
    assert any(line["selected"] for line in logged(local, "metrics.jsonl"))
    names = {e["reward"] for e in logged(local, "eval.jsonl")}
    assert names == {"vqascore", "imagereward", "total"}


def test_a_worker_gives_the_same_run(local, options, tmp_path):
    run(*command(tmp_path, options, "--config.reward.backend=worker"))
    assert_same(tmp_path / "run", local)


def test_a_worker_killed_in_the_middle_changes_nothing(local, options, tmp_path):
    process = subprocess.Popen(
        command(tmp_path, options, "--config.reward.backend=worker"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("stage 1/"):
            os.kill(worker_of(process.pid), signal.SIGKILL)
    assert process.wait() == 0 and "starting again" in text, text
    assert_same(tmp_path / "run", local)


def worker_of(trainer: int) -> int:
    children = Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()
    return next(
        int(pid)
        for pid in children
        if b"rewards.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def test_process_rewards_and_the_last_rounds_alone(options, tmp_path):
    """train_rounds "all": every round's image scored, or the last one's score for all rounds."""
    for rounds in ("all", "last"):
        extra = [
            "--config.reflect.train_rounds=all",
            "--config.eval.every=0",
            f"--config.reward.rounds={rounds}",
        ]
        args = command(tmp_path / rounds, options, *extra)
        run(*args)
        lines = logged(tmp_path / rounds / "run", "metrics.jsonl")
        assert [line["samples_total"] for line in lines] == [9, 27]
        state = tmp_path / rounds / "run" / "checkpoints" / "stage_0002" / "trainer_state.json"
        keys = json.loads(state.read_text())["history"]
        assert all(("(round" in key) == (rounds == "all") for key in keys)


def test_score_prints_a_table_and_json(options, tmp_path):
    modes = {"rgb": "RGB", "grey": "L", "rgba": "RGBA", "palette": "P", "one": "RGB"}
    for name, mode in modes.items():
        size = (1, 1) if name == "one" else (37, 21)
        Image.effect_noise((37, 21), 60).resize(size).convert(mode).save(tmp_path / f"{name}.png")
    images = [str(tmp_path / f"{name}.png") for name in modes]
    result = run(
        sys.executable,
        "scripts/score.py",
        *images,
        "--prompt",
        'a "red" {dog}',
        "--options",
        json.dumps(options),
        "--json",
        tmp_path / "scores.json",
    )
    rows = json.loads((tmp_path / "scores.json").read_text())
    assert [row["image"] for row in rows] == images
    assert all(isinstance(row[name], float) for row in rows for name in options)
    table = result.stdout.splitlines()
    assert re.split(r"\s{2,}", table[-6]) == ["image", "prompt", "imagereward", "vqascore"]
    assert len(table) >= 6
    shapes = run(
        sys.executable,
        "scripts/score.py",
        images[0],
        "--prompt",
        "a walrus",
        "--rewards",
        "shapes",
        check=2,
    )
    assert "a walrus" in shapes.stderr and len(shapes.stderr.strip().splitlines()) == 1
    missing = run(sys.executable, "scripts/score.py", "no.png", "--prompt", "x", check=2)
    assert "no.png" in missing.stderr
