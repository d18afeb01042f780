"""The doctor's command, and the process that it looks from."""

import os
import subprocess
import sys

import pytest

from srrl.config import REPOSITORY
from srrl.doctor.checkup import visit
from srrl.doctor.rows import FAIL
from tests.conftest import PRESET


def doctor(folder, *flags: str) -> subprocess.CompletedProcess:
    """From another folder, with an empty one for temporary files."""
    for name in ("here", "tmp"):
        (folder / name).mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which torch sets where it was imported
    return subprocess.run(
        [sys.executable, REPOSITORY / "scripts" / "doctor.py", *flags],
        cwd=folder / "here",
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_healthy_machine_and_the_embedded_preset_are_well(tmp_path):
    result = doctor(tmp_path, PRESET)
    assert result.returncode == 0, result.stdout
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["check", "found", "state"]
    checks = {"python", "packages", "imports", "processes", "precision", "pretrained.model", "run"}
    assert checks <= {row.split()[0] for row in rows} and not result.stderr
    assert not [*(tmp_path / "here").iterdir(), *(tmp_path / "tmp").iterdir()]


def test_flags_that_training_refuses_are_one_line(tmp_path):
    for flags, told in (
        (["--config", "nowhere.py:tiny"], "no file 'nowhere.py'"),
        ([PRESET, "--config.seed=x"], "expected int"),
    ):
        result = doctor(tmp_path, *flags)
        assert result.returncode == 2 and not result.stdout
        assert told in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_any_package_it_runs_and_says_so(tmp_path):
    """By an interpreter that sees the standard library alone."""
    command = [sys.executable, "-I", "-S", REPOSITORY / "scripts" / "doctor.py", PRESET]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and not result.stderr, result.stderr
    assert "torch is not installed" in result.stdout and "not looked at" in result.stdout
    assert "pip install -e" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os._exit(3)", "ended with exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import time; time.sleep(1000)", "no answer within 4 s"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_a_check_does_not_survive_is_a_row(code, told, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    names, limit = ("checkup:config", "machine:environment"), 4 if "sleep" in code else 120
    seen = dict(visit([f"--config={tmp_path / 'mine.py'}:x"], names, str(tmp_path), limit))
    (row,) = seen["checkup:config"]
    assert row.check == "config" and row.state == FAIL and told in f"{row.found} {row.remedy}"
    assert ("machine:environment" in seen) == ("1 / 0" in code)
