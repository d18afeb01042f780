"""Killed at any time, again and again, a run ends with the logs and weights of one never killed."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from tests.conftest import small_run
from tests.slow.commands import logged, run

pytestmark = [pytest.mark.slow, pytest.mark.attack]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
TWO = ("--", "--num_processes", "2")
RIG = [
    "--config.run_name=run",
    "--config.sample.batch_size=4",
    "--config.stages.total=2",
    "--config.phase.actor.group=3",
    "--config.phase.editor.group=3",
    "--config.phase.actor.rounds=1",
    "--config.phase.editor.rounds=1",
    "--config.train.need_gain=false",
    "--config.eval.every=0",
]


def command(method: str, folder: Path, launcher: tuple[str, ...]) -> list[str]:
    if method == "srrl":
        return ["bash", "train.sh", *small_run(folder, 3), *launcher]
    return ["bash", "train_rig.sh", f"--config.output_dir={folder}", *RIG, *launcher]


def outcome(folder: Path) -> dict[str, object]:
    """Every log's lines without their times, and every tensor of every checkpoint."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*.jsonl")):
        found[str(file.relative_to(folder))] = logged(file.parent, file.name)
    for file in sorted(folder.rglob("*.safetensors")):
        tensors = {name: tensor.tolist() for name, tensor in load_file(file).items()}
        found[str(file.relative_to(folder))] = tensors
    return found


@pytest.mark.parametrize(
    ("method", "launcher", "kills"),
    [("srrl", (), 80), ("srrl", TWO, 60), ("rig", (), 40), ("rig", TWO, 20)],
    ids=["srrl-one", "srrl-two", "rig-one", "rig-two"],
)
def test_killed_at_random_it_ends_as_if_never_killed(method, launcher, kills, tmp_path):
    """SRRL_KILLS: fewer of them."""
    kills = min(kills, int(os.environ.get("SRRL_KILLS", kills)))
    begun = time.monotonic()
    run(*command(method, tmp_path / "whole", launcher), **ONE_THREAD)
    length = time.monotonic() - begun
    expected = outcome(tmp_path / "whole")
    chance, done, finished = random.Random(f"{method} {len(launcher)}"), 0, 0
    while done < kills or not finished:
        folder = tmp_path / f"killed_{finished}"
        process = subprocess.Popen(
            command(method, folder, launcher),
            cwd=REPOSITORY,
            env={**os.environ, **ONE_THREAD},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, errors = process.communicate(timeout=chance.uniform(0, length))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        assert process.returncode == 0, errors
        assert outcome(folder) == expected
        finished += 1
    print(f"{method}, {1 + bool(launcher)} processes: {done} kills, {finished} runs ended alike")
