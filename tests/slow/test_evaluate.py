"""scripts/evaluate.py: killed and gone on with, on two processes, and what it refuses."""

import json
import os
import signal
import subprocess
import sys

import pytest

from srrl.config import REPOSITORY
from tests.conftest import PRESET, small_run
from tests.slow.commands import logged, run

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
    assert all(line["at_most"] == line["evaluations"] for line in lines)
    looked = {line["sampler"]: line["scored"] for line in lines}
    assert looked == {"plain": 0, "best:n=2": 2, "reflect:rounds=2": 0}
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


def test_a_run_is_evaluated_as_it_evaluates_itself_whatever_its_rounds_train(tmp_path):
    """The untrained policy of a run that trains every round, at the same prompts and seeds."""
    flags = [*small_run(tmp_path, 1), "--config.reflect.train_rounds=all"]
    flags += ["--config.eval.rounds=[1, 2]", "--config.eval.seeds=2", "--config.eval.heldout=false"]
    run(sys.executable, "scripts/train.py", PRESET, *flags)
    means = [e["mean"] for e in logged(tmp_path / "run", "eval.jsonl") if e["stage"] == 0]
    asked = ["--num-prompts", 3, "--images", 2, "--first-seed", 1_000_000, "--rounds", 1, 2]
    file = json.loads((tmp_path / "run" / "config.json").read_text())["prompts.train"]
    asked += ["--prompts", file, "--checkpoints", f"{tmp_path / 'run'}:0"]
    run(sys.executable, "scripts/evaluate.py", *asked, "--out", tmp_path / "out")
    found = {line["sampler"]: line["mean"] for line in table(tmp_path / "out")}
    assert [found["plain"], found["reflect:rounds=2"]] == pytest.approx(means, abs=1e-6)


def test_all_are_scored_by_the_same_options_or_it_is_said(tmp_path):
    """JSON with spaces after a list, and no order of the names matters."""
    for name, options in {"a": "{}", "b": '{"shapes": {"success": 0.5}}'}.items():
        flags = [*small_run(tmp_path / name, 1), f"--config.reward.options={options}"]
        run(sys.executable, "scripts/train.py", PRESET, *flags, "--config.eval.every=0")
    runs = [str(tmp_path / name / "run") for name in ("a", "b")]
    small = ["--num-prompts", 2, "--images", 1, "--samplers", "plain"]
    for order in (runs, runs[::-1]):
        asked = ["--checkpoints", *order, *small, "--out", tmp_path / "no"]
        refused = run(sys.executable, "scripts/evaluate.py", *asked, check=2).stderr
        assert "is scored by" in refused and "give --rewards and --options for all" in refused
    scores = {}
    for name, order in {"ab": runs, "ba": runs[::-1]}.items():
        asked = ["--checkpoints", *order, *small, "--rewards", "shapes", "--options"]
        asked += ['{"shapes": {"success": 0.5}}', "--out", tmp_path / name]
        run(sys.executable, "scripts/evaluate.py", *asked)
        scores[name] = {x["checkpoint"]: x["mean"] for x in table(tmp_path / name)}
    assert scores["ab"] == scores["ba"]
