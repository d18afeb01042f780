"""What the end-to-end tests share: running commands, reading logs, comparing LoRAs."""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srrl.assess.pool import Pool
from srrl.config import REPOSITORY
from srrl.models.weights import LORA_FILE
from tests import lines


def run(
    *arguments,
    check: int | None = 0,
    timeout: int = 3600,
    folder: Path = REPOSITORY,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run a command in the repository, or another folder; its exit code must be `check`, if that is
    given.

    A script is run by a process that has imported already, unless its environment matters to
    what is imported.
    """
    command, given = [str(a) for a in arguments], {**os.environ, **environment}
    script = command[0] == sys.executable and WARM.match(command[1])
    if script and all(LATE.fullmatch(name) for name in changed(given)):
        result = warm_run(command, given, folder, timeout)
    else:
        result = subprocess.run(
            command,
            cwd=folder,
            env=given,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    lines.shown(result.stdout + result.stderr)
    assert check is None or result.returncode == check, result.stdout + result.stderr
    return result


STARTED_IN = dict(os.environ)
WARM = re.compile(rf"({re.escape(str(REPOSITORY))}/)?scripts/|tests/slow/kill_at|tests/attacks/f")
# Variables that nothing reads while torch, diffusers, transformers and peft are imported.
LATE = re.compile(
    r"(WANDB|PYTEST|SRRL|SLURM|MASTER|PMI|WORLD|LOCAL)_\w+|HOME|PYTHONPATH|RANK|ACCELERATE_USE_CPU"
)


def changed(environment: dict[str, str]) -> set[str]:
    """The names of the variables that are not as this process was started with."""
    return {name for name, _ in environment.items() ^ STARTED_IN.items()}


@cache
def warm() -> subprocess.Popen:
    """This process's tests/slow/warm.py."""
    server = subprocess.Popen(
        [sys.executable, REPOSITORY / "tests" / "slow" / "warm.py"],
        cwd=REPOSITORY,
        env={**STARTED_IN, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    assert server.stdout.readline() == "ready\n"
    return server


def warm_run(
    command: list[str], environment: dict[str, str], where: Path, timeout: int
) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = {"environment": environment, "folder": str(where), "out": str(out), "err": str(err)}
        warm().stdin.write(json.dumps({"arguments": command[1:], **given}) + "\n")
        warm().stdin.flush()
        child = int(warm().stdout.readline())
        watch = threading.Timer(timeout, os.killpg, (child, signal.SIGKILL))
        watch.start()
        code = int(warm().stdout.readline())
        watch.cancel()
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def warm_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a pool's commands be processes that have imported already, one at a time."""
    given = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def command(pool: Pool, command: list[str], log: Path) -> int:
        done = warm_run(command, given, REPOSITORY, 3600)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout + done.stderr)
        return done.returncode

    monkeypatch.setattr(Pool, "command", command)


def logged(run_folder: Path, name: str) -> list[dict]:
    """A log's lines without their times."""
    lines = [json.loads(x) for x in (run_folder / name).read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]


def lora(run_folder: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(weights.items())])
