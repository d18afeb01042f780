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

from srrl.config import REPOSITORY, load_config
from srrl.measure.biller import Biller
from srrl.measure.job import Job
from srrl.measure.page import TITLES
from srrl.measure.stages import stage_flags
from srrl.trainer import Trainer
from tests.slow.commands import run

pytestmark = pytest.mark.slow
TRIAL = ["scripts/gpu_report.py", "--device", "cpu", "--model", "tiny"]


def rows_of(out: Path) -> dict[tuple[str, str, str | None], dict]:
    rows = json.loads((out / "report.json").read_text())["rows"]
    return {(row["part"], row["name"], row.get("phase")): row for row in rows}


def test_every_part_runs_and_the_page_is_right(tmp_path):
    run(sys.executable, *TRIAL, "--out", tmp_path, timeout=3600)
    rows = rows_of(tmp_path)
    assert not [row for row in rows.values() if "error" in row or "skipped" in row]
    assert rows["machine", "machine", None]["differs_from_pins"] == {}
    for part in ("sd14", "sdxl"):
        whole = rows[part, "float32, a batch of prompts", None]
        assert whole["ratio_first_max_dev"] <= 1e-4 and whole["selected"] == whole["images"]
        for phase in Trainer.phases:
            row = rows[part, "float32, a batch of prompts", phase]
            assert row["images_per_second"] > 0 and row["planned_gib"] > 0
        fewer = rows[part, "float32, gradient checkpointing", "update"]["planned_gib"]
        assert fewer < rows[part, "float32, a batch of prompts", "update"]["planned_gib"]
    for preset in ("tiny", "tiny_xl"):
        row = rows["parity", preset, None]
        assert row["same_selection"] and row["pixel_max_difference"] == 0
    killed = rows["resume", "killed and resumed", None]
    assert killed["killed_by"] == signal.SIGKILL
    assert killed["resumed_difference"] == 0 and killed["resumed_logs_equal"]
    assert rows["scoring", "own stream against in turn", None]["same_scores"]
    page = (tmp_path / "GPU.md").read_text()
    assert page.startswith("# A trial of the report") and "0 failed, 0 left out" in page
    assert [f"## {title}" for title in TITLES.values()] == [
        line for line in page.splitlines() if line.startswith("## ")
    ]


def test_a_part_that_dies_is_reported_and_other_calls_fill_the_page(tmp_path):
    only = [sys.executable, *TRIAL, "--out", str(tmp_path), "--only"]
    run(*only, "machine", "sd14", "--measure-only")
    report = subprocess.Popen(
        [*only, "rewards", "parity"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    for line in report.stdout:
        if line.startswith("[1/2] rewards"):
            while not (children := psutil.Process(report.pid).children()):
                time.sleep(0.05)
            os.kill(children[0].pid, signal.SIGKILL)
    assert report.wait() == 0
    rows = rows_of(tmp_path)
    assert "killed by signal 9" in rows["rewards", "the part", None]["error"]
    assert rows["parity", "tiny_xl", None]["same_selection"]
    assert rows["sd14", "float32, a batch of prompts", "update"]["planned_gib"] > 0
    page = (tmp_path / "GPU.md").read_text()
    assert "**the part failed**: was killed by signal 9" in page and "1 failed" in page
    assert "## The machine" in page


def test_planned_figures_are_added_later_and_a_part_keeps_its_rows_at_its_time(tmp_path):
    command = [sys.executable, *TRIAL, "--out", tmp_path, "--only", "sd14"]
    run(*command, "--measure-only", "--minutes", "0.15")
    rows = rows_of(tmp_path)
    assert not any("planned_gib" in row for row in rows.values())
    missing = [row for row in rows.values() if "error" in row or "skipped" in row]
    assert any("time" in str(row) for row in missing)
    job = Job("sd14", "cpu", True, tmp_path, deadline=time.monotonic() + 3600)
    flags = stage_flags(job, "sd14")
    job.write("known", {"phase": "update", "seconds": 2.0})
    job.write("known", {"flags": flags})
    run(sys.executable, *TRIAL, "--out", tmp_path, "--page-only")
    row = rows_of(tmp_path)["sd14", "known", "update"]
    bill = Biller(load_config(flags), cuda=False).bill()
    flops = sum(bill.stages[0]["update"].flops.values())
    assert row["tflops"] == pytest.approx(flops / 1e12 / 2.0, abs=0.01)
    assert row["planned_gib"] == pytest.approx(bill.phases["update"].peak / 2**30, abs=0.001)


def test_a_measurement_that_fails_is_a_row_and_the_next_one_runs(tmp_path):
    def fail():
        yield {"phase": "reflect"}
        raise RuntimeError("out of\nmemory")

    def endless():
        yield {"phase": "reflect"}
        while True:
            time.sleep(0.01)

    job = Job("sd14", "cpu", True, tmp_path, deadline=time.monotonic() + 3600)
    job.measure("one", fail)
    job.measure("two", lambda: {"tflops": 1.0})
    job.deadline = time.monotonic() + 0.2
    job.measure("three", endless)
    job.measure("four", fail)
    lines = (tmp_path / "sd14.jsonl").read_text().splitlines()
    kept, one, two, also_kept, three, four = (json.loads(line) for line in lines)
    assert kept["phase"] == also_kept["phase"] == "reflect"
    assert one["error"] == "RuntimeError: out of memory" and one["at"].startswith("test_report.py")
    assert two["tflops"] == 1.0 and "no time was left" in four["skipped"]
    assert three["error"] == "TimeoutError: the part's time is up"


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
