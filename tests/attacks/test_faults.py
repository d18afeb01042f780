"""A disk that fails or is full at any moment: one line, code 2, and the same command goes on."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PRESET, small_run
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
QUICK = ["--config.eval.every=0", "--config.pictures.every=1"]
ERRORS = [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.EDQUOT, errno.ENOTDIR]


def flags(folder: Path) -> list[str]:
    return [PRESET, *small_run(folder, 1), *QUICK]


def one_line(ended: subprocess.CompletedProcess, where: object) -> None:
    assert ended.returncode == 2, (where, ended.stdout, ended.stderr)
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), (where, ended.stderr)


def assert_same(ours: Path, theirs: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert logged(ours, name) == logged(theirs, name)
    one, other = lora(ours, 1), lora(theirs, 1)
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that nothing has happened to, and its calls."""
    folder = tmp_path_factory.mktemp("whole")
    said = run(sys.executable, "tests/attacks/fail_at.py", 0, 0, *flags(folder)).stdout
    calls = [x.removeprefix("call ") for x in said.splitlines() if x.startswith("call ")]
    assert len(calls) > 30
    return folder / "run", calls


@pytest.mark.parametrize(
    "some", [3, pytest.param(None, marks=pytest.mark.attack)], ids=["slice", "all"]
)
def test_a_call_that_fails_is_one_line_and_nothing_is_lost(some, whole, tmp_path):
    undisturbed, calls = whole
    numbers = range(1, len(calls) + 1)
    chance = random.Random(2)
    for number in chance.sample(numbers, some) if some else numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        error = ERRORS[number % len(ERRORS)]
        given = [number, error, *flags(folder)]
        ended = run(sys.executable, "tests/attacks/fail_at.py", *given, check=None)
        what = f"{calls[number - 1]}: {errno.errorcode[error]}"
        print(what, ended.returncode, ended.stderr.strip(), flush=True)
        one_line(ended, what)
        run(sys.executable, "scripts/train.py", *flags(folder))
        assert_same(folder / "run", undisturbed)


@pytest.mark.attack
@pytest.mark.parametrize("fill", range(64))
def test_a_disk_that_is_full_is_one_line_and_nothing_is_lost(fill, whole, tmp_path):
    """A real small file system; the run does not look at the space before it begins."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 64 + 1400 * fill // 63  # KiB; the whole run takes some 1,300
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("only root can make a file system")
    try:
        command = ["tests/attacks/full_disk.py", *flags(disk)]
        ended = run(sys.executable, *command, check=None)
        if ended.returncode:
            one_line(ended, fill)
            assert "disk space" in ended.stderr or "no space" in ended.stderr.lower()
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            run(sys.executable, *command)
        assert_same(disk / "run", whole[0])
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_folder_that_vanishes_is_one_line(instead, tmp_path):
    """In the second stage; something else may stand there."""
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, 40), *QUICK]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    for line in process.stdout:
        if line.startswith("stage 1/"):
            (tmp_path / "run").rename(tmp_path / "elsewhere")
            if instead == "a file":
                (tmp_path / "run").touch()
            break
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 2, out + errors
    lines = [x for x in errors.splitlines() if "torchvision" not in x]
    assert len(lines) == 1 and str(tmp_path / "run") in lines[0], errors
