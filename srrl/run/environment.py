"""What made a run: environment.json in its folder, with an entry for each start."""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict

from srrl.config import COMMAND, ENVIRONMENT, REPOSITORY, flatten, starts
from srrl.run.checkpoint import write_atomic

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy")
GIT_S = 10  # for git to answer, as on a slow disk


def begin(run: Path, config: ConfigDict, accelerator: Accelerator) -> None:
    """Add an entry: the command as typed, when and where, by which code and versions, and the
    config."""
    cuda = accelerator.device.type == "cuda"
    entry = {
        "command": os.environ.get(COMMAND) or shlex.join(["python", *sys.argv]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
        **code(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(accelerator.device) if cuda else None,
        "processes": accelerator.num_processes,
        "config": flatten(config),
    }
    write(run, [*starts(run), entry])


def end(run: Path, begun: float) -> None:
    """Add to the last entry how long it took, since time.monotonic() was `begun`."""
    *before, last = starts(run)
    write(run, [*before, {**last, "seconds": round(time.monotonic() - begun, 1)}])


def write(run: Path, entries: list[dict[str, Any]]) -> None:
    write_atomic(run / ENVIRONMENT, json.dumps(entries, indent=1) + "\n")


def code() -> dict[str, Any]:
    """The commit of this checkout, and whether it was changed since; None where it is none."""
    nothing = {"commit": None, "changed": None}
    if not (REPOSITORY / ".git").exists():  # a repository around an environment is another's
        return nothing
    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return nothing
    return {"commit": commit, "changed": bool(changes)}


def git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S)
    return done.stdout.strip()


def processor() -> str:
    """Its name, as Linux tells it, or its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
