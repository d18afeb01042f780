"""What the end-to-end tests share: running commands, reading logs, comparing LoRAs."""

import atexit
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from srrl.models.weights import LORA_FILE
from tests import lines


def run(
    *arguments,
    check: int | None = 0,
    timeout: int = 3600,
    folder: Path = REPOSITORY,
    cold: bool = False,
    **environment: str,
) -> subprocess.CompletedProcess:
    """Run a command in the repository, or another folder; its exit code must be `check`, if that is
    given.

    The project's scripts, and those that they or a shell script start, are run by processes that
    have imported already, unless their environment matters to what is imported, or all are to be
    `cold`, for what only a process's own children have, as its limits.
    """
    command = [*map(str, arguments)]
    if not cold:
        command = [warm() if a == sys.executable else a for a in command]
        environment = warm_path() | environment
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    lines.shown(result.stdout + result.stderr)
    assert check is None or result.returncode == check, result.stdout + result.stderr
    return result


def warm_path() -> dict[str, str]:
    """What has shell scripts find `warm`."""
    return {"PATH": f"{Path(warm()).parent}:{os.environ['PATH']}"}


STARTED_IN = dict(os.environ)


@cache
def warm() -> str:
    """A python whose commands begin at once: its tests/slow/warm.py ends with this process."""
    folder = Path(tempfile.mkdtemp())
    python, address = folder / "python", folder / "socket"
    ask = [sys.executable, "-IS", REPOSITORY / "tests/slow/ask.py", sys.executable, address, python]
    python.write_text(f'#!/usr/bin/env bash\nexec {shlex.join(map(str, ask))} "$@"\n')
    python.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, REPOSITORY / "tests" / "slow" / "warm.py", address],
        cwd=REPOSITORY,
        env={**STARTED_IN, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(server.kill)
    assert server.stdout.readline() == "ready\n"
    return str(python)


def logged(run_folder: Path, name: str) -> list[dict]:
    """A log's lines without their times."""
    lines = [json.loads(x) for x in (run_folder / name).read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]


def lora(run_folder: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(weights.items())])
