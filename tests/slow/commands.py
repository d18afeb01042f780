"""What the end-to-end tests share: running commands, reading logs, comparing LoRAs."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from srrl.models.weights import LORA_FILE


def run(
    *arguments, check: int | None = 0, timeout: int = 3600, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command in the repository; its exit code must be `check`, if that is given.

    A script without an environment of its own is run by a process that has imported already.
    """
    command, surroundings = [str(a) for a in arguments], {**os.environ, **environment}
    script = command[0] == sys.executable and command[1].startswith("scripts/")
    if script and same_surroundings(surroundings):
        result = warm_run(command)
    else:
        result = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=surroundings,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    assert check is None or result.returncode == check, result.stdout + result.stderr
    return result


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


STARTED_IN = dict(os.environ)


def same_surroundings(environment: dict[str, str]) -> bool:
    """Are these variables those that this process was started with? pytest's name of the test, and
    a PYTHONPATH to srrl, which a script finds by itself, make no difference."""
    where = environment.get("PYTHONPATH", ".").strip(":").split(":")
    ours = all((REPOSITORY / path).resolve() == REPOSITORY for path in where)
    unread = {"PYTEST_CURRENT_TEST", "PYTHONPATH"}
    changed = {k for k, _ in environment.items() ^ STARTED_IN.items()}
    return ours and changed <= unread


def warm_run(command: list[str]) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        asked = {"arguments": command[1:], "out": str(out), "err": str(err)}
        warm().stdin.write(json.dumps(asked) + "\n")
        warm().stdin.flush()
        code = int(warm().stdout.readline())
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def logged(run_folder: Path, name: str) -> list[dict]:
    """A log's lines without their times."""
    lines = [json.loads(x) for x in (run_folder / name).read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]


def lora(run_folder: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(weights.items())])
