"""A full disk, however it is reported, is one line and exit code 2."""

import errno
import subprocess
import sys

import pytest

from srrl.config import REPOSITORY
from srrl.errors import UserError, one_line_errors


class FromRust(Exception):
    pass


def full_disk_below():
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "x.pt")
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch.save does


@pytest.mark.parametrize(
    "fail",
    [
        lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device", "x.json")),
        lambda: (_ for _ in ()).throw(FromRust("I/O error: No space left on device (os error 28)")),
        full_disk_below,
    ],
)
def test_a_full_disk_is_one_line_and_exit_2(fail, capsys, monkeypatch):
    monkeypatch.delenv("SRRL_STATUS_FILE", raising=False)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        fail()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no disk space left") and len(said.strip().splitlines()) == 1


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0


def test_of_several_processes_only_the_first_says_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SRRL_STATUS_FILE", str(tmp_path / "status"))
    for message in ("the first", "the second"):
        with pytest.raises(SystemExit), one_line_errors():
            raise UserError(message)
    assert (tmp_path / "status").read_text() == "error: the first"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_really_full_device():
    code = (
        "from srrl.errors import one_line_errors\n"
        "with one_line_errors():\n"
        "    with open('/dev/full', 'w') as file:\n"
        "        file.write('x'); file.flush()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 2 and "no disk space left" in result.stderr
