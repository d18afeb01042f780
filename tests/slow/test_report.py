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

from srrl.checks import PHASES
from srrl.config import REPOSITORY, load_config
from srrl.measure.biller import Biller
from srrl.measure.parts import Job, stage_flags
from srrl.rig.trainer import PhaseRun
from srrl.trainer import Trainer
from tests.slow.commands import run

pytestmark = pytest.mark.slow
TRIAL = ["scripts/gpu_report.py", "--device", "cpu", "--model", "tiny", "--minutes", "60"]
NO_GPU = "Skipped: there is no GPU"


def json_rows(out: Path, part: str) -> list[dict]:
    rows = json.loads((out / "report.json").read_text())["rows"]
    return [row for row in rows if row["part"] == part]


def rows_of(out: Path) -> dict[tuple[str, str, str | None], dict]:
    rows = json.loads((out / "report.json").read_text())["rows"]
    return {(row["part"], row["name"], row.get("phase")): row for row in rows}


def test_every_part_runs_and_the_page_is_right(tmp_path):
    one_test = "-k 'stage_is_the_cpus and xl or peak'"
    run(sys.executable, *TRIAL, "--out", tmp_path, PYTEST_ADDOPTS=one_test)
    rows = rows_of(tmp_path)
    assert not [row for row in rows.values() if "error" in row]
    assert [row["skipped"] for row in rows.values() if "skipped" in row] == [NO_GPU] * 2
    assert rows["machine", "machine", None]["differs_from_pins"] == {}
    for part in ("sd14", "sdxl"):
        whole = rows[part, "float32, a batch of prompts", None]
        assert whole["ratio_first_max_dev"] <= 1e-4 and whole["selected"] == whole["images"]
        for phase in Trainer.phases:
            row = rows[part, "float32, a batch of prompts", phase]
            assert row["images_per_second"] > 0 and row["planned_gib"] > 0
        fewer = rows[part, "float32, gradient checkpointing", "update"]["planned_gib"]
        assert fewer < rows[part, "float32, a batch of prompts", "update"]["planned_gib"]
    for phase in PHASES:
        steps = [r for r in json_rows(tmp_path, "rig") if r["name"] == f"no, the {phase}"]
        assert {r["step"] for r in steps[:-1]} == set(PhaseRun.phases)
        assert all(r["per_second"] > 0 for r in steps[:-1])
        assert steps[-1]["ratio_first_max_dev"] <= 1e-4 and steps[-1]["selected"] > 0
    row = rows["checks", "test_a_stage_is_the_cpus[tiny_xl]", None]
    assert row["passed"] and row["figures"]["pixels' largest difference in levels"] == 0
    page = (tmp_path / "GPU.md").read_text()
    assert page.startswith("# A trial of the report") and "0 failed, 2 left out" in page
    assert [f"## {part}" for part in ("machine", "sd14", "sdxl", "rewards", "rig", "checks")] == [
        line for line in page.splitlines() if line.startswith("## ")
    ]


def test_a_part_that_dies_is_reported_and_other_calls_fill_the_page(tmp_path):
    only = [sys.executable, *TRIAL, "--out", str(tmp_path), "--no-plan", "--only"]
    run(*only, "machine")
    report = subprocess.Popen(
        [*only, "sd14", "checks"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTEST_ADDOPTS": "--no-such-option"},
    )
    for line in report.stdout:
        if line.startswith("[1/2] sd14"):
            file = tmp_path / "sd14.jsonl"
            while not (file.exists() and '"flags"' in file.read_text()):
                assert '"error"' not in (file.read_text() if file.exists() else "")
                time.sleep(0.05)
            os.kill(psutil.Process(report.pid).children()[0].pid, signal.SIGKILL)
    assert report.wait() == 0
    rows = rows_of(tmp_path)
    assert rows["sd14", "the part", None]["error"] == "ended with -9, see sd14.log"
    assert rows["sd14", "float32, a batch of prompts", "update"]["seconds"] > 0
    assert "pytest ended with" in rows["checks", "tests/gpu", None]["error"]
    page = (tmp_path / "GPU.md").read_text()
    assert "**the part failed**: ended with -9" in page and "2 failed" in page
    assert "## machine" in page and not any("planned_gib" in row for row in rows.values())


def test_a_part_stops_at_its_time(tmp_path):
    run(sys.executable, *TRIAL, "--out", tmp_path, "--only", "sd14", "--minutes", "0.01")
    assert rows_of(tmp_path)["sd14", "the part", None]["error"] == "its time was up"


def test_planned_figures_are_added_where_there_is_no_gpu(tmp_path):
    job = Job("sd14", "cpu", True, tmp_path)
    flags = stage_flags(job, "sd14")
    job.write("known", {"phase": "update", "seconds": 2.0})
    job.write("known", {"flags": flags})
    run(sys.executable, *TRIAL, "--out", tmp_path, "--only")
    row = rows_of(tmp_path)["sd14", "known", "update"]
    bill = Biller(load_config(flags), cuda=False).bill()
    flops = sum(bill.stages[0]["update"].flops.values())
    assert row["tflops"] == pytest.approx(flops / 1e12 / 2.0, abs=0.01)
    assert row["planned_gib"] == pytest.approx(bill.phases["update"].peak / 2**30, abs=0.001)


def test_a_measurement_that_fails_is_a_row_and_the_next_one_runs(tmp_path):
    def fail():
        yield {"phase": "reflect"}
        raise RuntimeError("out of\nmemory")

    job = Job("sd14", "cpu", True, tmp_path)
    job.measure("one", fail)
    job.measure("two", lambda: {"tflops": 1.0})
    kept, one, two = map(json.loads, (tmp_path / "sd14.jsonl").read_text().splitlines())
    assert kept["phase"] == "reflect" and two["tflops"] == 1.0
    assert one["error"] == "RuntimeError: out of memory"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no GPU found"),
        (["--device", "cpu"], "add --model tiny"),
        (["--minutes", "0"], "--minutes 0.0"),
    ],
)
def test_what_cannot_be_is_one_line(flags, said, tmp_path):
    result = run(sys.executable, "scripts/gpu_report.py", "--out", tmp_path, *flags, check=2)
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
