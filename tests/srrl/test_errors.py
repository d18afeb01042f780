"""A full disk or a limit, however it is reported, is one line and exit code 2; what is printed
ends nothing."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from srrl.config import REPOSITORY
from srrl.errors import Stopped, UserError, one_line_errors, writing
from tests.lines import shown


class FromRust(Exception):
    pass


def full_disk_below():
    try:
        raise OSError(errno.ENOSPC, "No space left on device", "x.pt")
    except OSError:
        raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch.save does


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            lambda: fail(OSError(errno.ENOSPC, "No space left on device", "x.json")),
            "no disk space left while writing x.json: free some and run the same command again",
        ),
        (
            lambda: fail(FromRust("I/O error: No space left on device (os error 28)")),
            "no disk space left while writing output: free some",
        ),
        (full_disk_below, "no disk space left while writing x.pt: free some"),
        (
            lambda: fail(FromRust("I/O error: File too large (os error 27)")),
            "a file is larger than is allowed while writing output: raise the limit (ulimit -f)",
        ),
        (
            lambda: fail(OSError(errno.EDQUOT, "Disk quota exceeded", "x.png")),
            "the disk quota is used up while writing x.png: free some",
        ),
        (
            lambda: fail(FromRust("I/O error: Read-only file system (os error 30)")),
            "cannot use a file: read-only file system: choose another",
        ),
        (
            lambda: fail(OSError(errno.EACCES, "Permission denied", "x.png")),
            "cannot use 'x.png': permission denied: choose another",
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line_and_exit_2(fault, said, capsys, monkeypatch):
    monkeypatch.delenv("SRRL_STATUS_FILE", raising=False)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        fault()
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {said}") and len(line.strip().splitlines()) == 1
    assert "resume" not in line


def test_a_signal_is_one_line_and_its_exit_code(capsys, monkeypatch):
    monkeypatch.delenv("SRRL_STATUS_FILE", raising=False)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise Stopped(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert shown(capsys.readouterr().err) == "stopped\n"


def test_a_place_is_given_to_errors_of_the_system_that_have_none(tmp_path):
    place = tmp_path / "stage_0001"
    with pytest.raises(OSError, match=r"File too large: .*stage_0001") as error, writing(place):
        raise FromRust("I/O error: File too large (os error 27)")
    assert error.value.errno == errno.EFBIG
    with pytest.raises(ValueError, match="another"), writing(tmp_path):
        raise ValueError("another")


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors():
        _ = 1 / 0


def test_of_several_processes_only_the_first_says_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SRRL_STATUS_FILE", str(tmp_path / "status"))
    for message in ("the first", "the second"):
        with pytest.raises(SystemExit), one_line_errors():
            raise UserError(message)
    assert (tmp_path / "status").read_text() == "error: the first"


def test_an_error_is_said_where_its_file_cannot_be_written(monkeypatch, capsys):
    monkeypatch.setenv("SRRL_STATUS_FILE", "/dev/full/status")
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise UserError("it")
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: it\n"


def printing(code: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run code below one_line_errors, its output redirected by the shell."""
    code = f"from srrl.errors import one_line_errors\nwith one_line_errors():\n    {code}\n"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" {redirected}', sys.executable, code],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("code", "redirected"),
    [
        ("file = open('/dev/full', 'w'); file.write('x'); file.flush()", ""),
        ("print('x')", "> /dev/full"),
        ("print('x', flush=True)", "> /dev/full"),
    ],
)
def test_a_really_full_device(code, redirected):
    result = printing(code, redirected)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: no disk space left")


def test_letters_that_a_terminal_lacks_are_spelled_out():
    code = "print('B\\u00e4r \\U0001f43b \\udcff', flush=True)"
    result = printing(code, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout) == (0, r"B\xe4r \U0001f43b \udcff" + "\n")
    said = printing("raise __import__('srrl.errors').errors.UserError('B\\u00e4r \\ud83d')")
    assert said.returncode == 2 and said.stderr.endswith("r \\ud83d\n")


@pytest.mark.parametrize("redirected", ["| true", "| head -1", "2>&1 | head -1", ">&- 2>&-"])
def test_a_reader_that_leaves_ends_nothing(redirected, tmp_path):
    code = "import sys, time; print(1, flush=True); time.sleep(0.3); [print(2, flush=True, file=f) "
    code += f"for f in (sys.stdout, sys.stderr)]; open({str(tmp_path / 'done')!r}, 'w').close()"
    result = printing(code, redirected)
    assert result.returncode == 0 and "Error" not in result.stderr + result.stdout
    assert (tmp_path / "done").exists()
