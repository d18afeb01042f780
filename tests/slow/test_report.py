"""scripts/gpu_report.py as a trial on the CPU: every part, a part that dies, a machine without."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from srrl.config import REPOSITORY
from srrl.measure.job import Job
from tests.slow.commands import run

pytestmark = pytest.mark.slow
TRIAL = ["scripts/gpu_report.py", "--device", "cpu", "--model", "tiny"]


def rows_of(out: Path) -> dict[tuple[str, str], dict]:
    rows = json.loads((out / "report.json").read_text())["rows"]
    return {(row["part"], row["name"]): row for row in rows}


def test_every_part_runs_and_the_page_is_right(tmp_path):
    run(sys.executable, *TRIAL, "--out", tmp_path, timeout=3600)
    rows = rows_of(tmp_path)
    assert not [row for row in rows.values() if "error" in row]
    assert rows["machine", "machine"]["differs_from_pins"] == {}
    for part in ("sd14", "sdxl"):
        row = rows[part, "float32, as the preset is"]
        assert row["ratio_first_max_dev"] <= 1e-4 and row["selected"] == row["images"]
        assert all(phase["images_per_second"] > 0 for phase in row["phases"].values())
        fewer = rows[part, "gradient checkpointing"]["phases"]["update"]["planned_gib"]
        assert fewer < row["phases"]["update"]["planned_gib"]
    for preset in ("tiny", "tiny_xl"):
        row = rows["parity", preset]
        assert row["same_selection"] and row["pixel_max_difference"] == 0
    killed = rows["resume", "killed and resumed"]
    assert killed["killed_by"] == signal.SIGKILL
    assert killed["resumed_difference"] == 0 and killed["resumed_logs_equal"]
    assert rows["scoring", "own stream against in turn"]["same_scores"]
    assert rows["processes", "two processes"]["weights_difference"] <= 1e-5
    assert rows["processes", "FSDP"]["weights_difference"] <= 1e-3
    page = (tmp_path / "GPU.md").read_text()
    assert page.startswith("# A trial of the report") and "0 failed" in page
    for title in (
        "The machine",
        "The embedded SDXL in its place",
        "Rewards",
        "Against the CPU",
        "Killed and resumed",
        "Several processes",
        "Compiled blocks",
    ):
        assert f"## {title}" in page


def test_a_part_that_dies_is_reported_and_the_rest_goes_on(tmp_path):
    command = [
        sys.executable,
        *TRIAL,
        "--only",
        "machine",
        "rewards",
        "parity",
        "--out",
        str(tmp_path),
    ]
    report = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    for line in report.stdout:
        if line.startswith("[2/3] rewards"):
            while not (children := psutil.Process(report.pid).children()):
                time.sleep(0.05)
            os.kill(children[0].pid, signal.SIGKILL)
    assert report.wait() == 0
    rows = rows_of(tmp_path)
    assert "killed by signal 9" in rows["rewards", "the part"]["error"]
    assert rows["parity", "tiny_xl"]["same_selection"]
    page = (tmp_path / "GPU.md").read_text()
    assert "**the part failed**: was killed by signal 9" in page and "1 failed" in page


def test_a_measurement_that_fails_is_a_row_and_the_next_one_runs(tmp_path):
    def fail():
        raise RuntimeError("out of\nmemory")

    job = Job("sd14", "cpu", True, tmp_path, deadline=0.0)
    job.measure("one", 1, fail)
    job.measure("two", 1, lambda: {"tflops": 1.0})
    job.device = "cuda"  # where time counts
    job.measure("three", 1, fail)
    one, two, three = (json.loads(line) for line in job.log.read_text().splitlines())
    assert one["error"] == "RuntimeError: out of memory" and one["at"].startswith("test_report.py")
    assert two["tflops"] == 1.0 and "no time left" in three["skipped"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no GPU found"),
        (["--device", "cpu"], "add --model tiny"),
        (["--minutes", "0"], "--minutes 0.0"),
        (["--wheels", "docs"], "holds no .whl"),
    ],
)
def test_what_cannot_be_is_one_line(flags, said, tmp_path):
    result = run(sys.executable, "scripts/gpu_report.py", "--out", tmp_path, *flags, check=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
