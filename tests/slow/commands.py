"""What the end-to-end tests share: running commands, reading logs, comparing LoRAs."""

import json
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from srrl.models.weights import LORA_FILE


def run(
    *arguments, check: int | None = 0, timeout: int = 3600, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command in the repository; its exit code must be `check`, if that is given."""
    result = subprocess.run(
        [str(a) for a in arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert check is None or result.returncode == check, result.stdout + result.stderr
    return result


def logged(run_folder: Path, name: str) -> list[dict]:
    """A log's lines without their times."""
    lines = [json.loads(x) for x in (run_folder / name).read_text().splitlines()]
    return [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]


def lora(run_folder: Path, stage: int) -> dict[str, torch.Tensor]:
    return load_file(run_folder / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE)


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for _, tensor in sorted(weights.items())])
