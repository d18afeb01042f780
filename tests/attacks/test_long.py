"""A run of 200 stages takes no more memory, disk and time to resume than a short one does."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from srrl.config import REPOSITORY
from srrl.run.folder import LOGS, stage_of, stages
from tests.conftest import PRESET, small_run
from tests.slow.commands import logged

pytestmark = [pytest.mark.slow, pytest.mark.attack]
STAGES, SETTLED, KEPT = 200, 20, 10


def watched(folder: Path) -> list[tuple[int, int]]:
    """Run it; of each stage as it ends the trainer's resident memory and the folder's bytes but
    those of the checkpoints that may be pruned."""
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(folder, STAGES)]
    seldom = [f"--config.{k}={KEPT}" for k in ("eval.every", "pictures.every")]
    process = subprocess.Popen(
        [*command, *seldom, f"--config.checkpoint.keep_every={KEPT}"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log, seen = folder / "run" / "metrics.jsonl", []
    while process.poll() is None:
        if log.exists() and log.read_text().count("\n") > len(seen):
            seen.append((psutil.Process(process.pid).memory_info().rss, grown(folder / "run")))
        time.sleep(0.05)
    assert process.returncode == 0
    return seen


def grown(run: Path) -> int:
    kept = [p for p in stages(run) if stage_of(p) % KEPT == 0][2:]
    files = [run / name for name in LOGS]
    files += [p for folder in kept for p in folder.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files if file.exists())


def test_memory_and_folder_of_200_stages(tmp_path):
    seen = watched(tmp_path)
    assert len(seen) >= STAGES - 2  # two may end between two looks
    memory, bytes_ = zip(*seen, strict=True)
    first, last = (statistics.median(memory[a:b]) for a, b in ((SETTLED, 40), (-20, None)))
    growth = (bytes_[-1] - bytes_[99]) / (len(seen) - 100)
    run = tmp_path / "run"
    weights = sum(p.stat().st_size for p in (run / "checkpoints" / "stage_0100").iterdir())
    lines = sum((run / name).stat().st_size for name in LOGS) / STAGES
    print(
        f"resident {first / 2**20:.0f} to {last / 2**20:.0f} MiB ({last / first - 1:+.2%}, highest "
        f"{max(memory[SETTLED:]) / first - 1:+.2%}); {growth / 1024:.1f} KiB a stage: "
        f"{lines / 1024:.1f} of logs, {weights / KEPT / 1024:.1f} of weights"
    )
    assert last <= 1.02 * first
    # README: a stage adds its lines, and every tenth a checkpoint of the weights alone.
    assert growth == pytest.approx(weights / KEPT + lines, rel=0.1)
    whole = [p for p in stages(run) if (p / "trainer_state.json").exists()]
    assert [stage_of(p) for p in whole] == [STAGES, STAGES - 1]
    assert len(stages(run)) == STAGES // KEPT + 2  # the start's, each tenth, the one before
    assert [line["stage"] for line in logged(run, "metrics.jsonl")] == [*range(1, STAGES + 1)]
