"""scripts/evaluate.py: killed and gone on with, on two processes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys

import pytest

from srrl.config import REPOSITORY
from tests.slow.commands import run

pytestmark = pytest.mark.slow
FLAGS = [
    "--num-prompts",
    "5",
    "--images",
    "2",
    "--rewards",
    "shapes",
    "judge",
    "--samplers",
    "plain",
    "best:n=2",
    "reflect:rounds=2",
]
ENVIRONMENT = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}


def table(folder) -> list[dict]:
    """The table without its times."""
    lines = json.loads((folder / "table.json").read_text())
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    said = run(sys.executable, "scripts/evaluate.py", *FLAGS, "--out", folder, **ENVIRONMENT).stdout
    assert "ETA" in said and "reflect:rounds=2" in said
    return folder


def test_every_cell_costs_what_it_says_and_pairs_with_the_baseline(whole):
    lines = table(whole)
    assert len(lines) == 2 * 3 * 2
    costs = {line["sampler"]: line["evaluations"] for line in lines}
    assert costs == {"plain": 20, "best:n=2": 40, "reflect:rounds=2": 60}
    for line in lines:
        assert line["n"] == 10 and line["low"] <= line["mean"] <= line["high"]
        assert (line["difference_mean"] is None) == (line["sampler"] == "plain")
        assert line["diversity"] > 0
    best = [x for x in lines if x["sampler"] == "best:n=2" and x["reward"] == "shapes"]
    assert all(x["difference_mean"] > 0 for x in best)  # the first of two is plain's
    for name in ("table.md", "table.csv", "scores.png", "grid.png"):
        assert (whole / name).stat().st_size > 100


def test_killed_and_started_again_it_gives_the_same_table(whole, tmp_path):
    command = [sys.executable, "scripts/evaluate.py", *FLAGS, "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "cell 3/6" in line:
            process.send_signal(signal.SIGKILL)
    process.wait()
    with open(tmp_path / "cells.jsonl", "a") as file:
        file.write('{"key": "torn')
    said = run(*command, **ENVIRONMENT).stdout
    assert "6 cells, 2 done" in said or "6 cells, 3 done" in said
    assert table(tmp_path) == table(whole)


def test_two_processes_give_what_one_gives(whole, tmp_path):
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run(
        *two,
        "scripts/evaluate.py",
        *FLAGS,
        "--out",
        tmp_path,
        ACCELERATE_USE_CPU="true",
        **ENVIRONMENT,
    )
    for ours, theirs in zip(table(tmp_path), table(whole), strict=True):
        for key, value in theirs.items():
            same = pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            assert ours[key] == same, key


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--samplers", "magic"], "unknown sampler 'magic'"),
        (["--rewards", "nope"], "unknown reward 'nope'"),
        (["--checkpoints", "/nowhere"], "/nowhere: no such folder"),
        (["--prompts", "/no.json"], "/no.json"),
        (["--images", "0"], "--images 0: at least 1"),
        (["--baseline", "base zigzag", "--num-prompts", "2", "--images", "1"], "no such cell"),
    ],
)
def test_what_cannot_be_is_one_line(flags, said, tmp_path):
    result = run(
        sys.executable, "scripts/evaluate.py", *flags, "--out", tmp_path, check=2, **ENVIRONMENT
    )
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
