"""The one kind of error a user can cause: one line that names the value and the remedy."""

import contextlib
import errno
import io
import os
import re
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# What each system error of a file that could not grow is, and what helps.
FULL = {
    errno.ENOSPC: ("no disk space left", "free some"),
    errno.EDQUOT: ("the disk quota is used up", "free some"),
    errno.EFBIG: ("a file is larger than is allowed", "raise the limit (ulimit -f)"),
}


class UserError(Exception):
    """Bad input. Its message is one line: the value, the place, and what to do."""


class Stopped(KeyboardInterrupt):
    """A signal has asked for the end: SIGINT, as by Ctrl-C, or another one."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def show_help(text: str, arguments: list[str]) -> None:
    """With --help or -h among a command's own arguments, print the text and end."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if {"-h", "--help"} & set(own):
        print(text.strip())
        sys.exit(0)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError, a full disk or a file that cannot be used into one line on stderr and exit
    code 2, and Ctrl-C or another signal into one line and 128 + its number. What is printed never
    ends a command: see _steady."""
    if sys.stdout is sys.__stdout__:  # else somebody has put up their own
        sys.stdout, sys.stderr = _steady(sys.stdout), _steady(sys.stderr)
    try:
        yield
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except UserError as error:
        _stop(str(error))
    except KeyboardInterrupt as stopped:
        if not isinstance(stopped, Stopped):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        number = getattr(stopped, "number", signal.SIGINT)
        status = os.environ.get("SRRL_STATUS_FILE")
        if not status:
            print("stopped", file=sys.stderr, flush=True)
        elif int(os.environ.get("WORLD_SIZE", 1)) == 1:  # scripts/launch.py says it
            ask_to_stop(Path(status), number)
        sys.exit(128 + number)
    except Exception as error:
        system = _system_error(error)
        if system is None:
            raise
        if system.errno in FULL:
            what, remedy = FULL[system.errno]
            file = system.filename or "output"
            _stop(f"{what} while writing {file}: {remedy} and run the same command again")
        place = repr(str(system.filename)) if system.filename else "a file"
        _stop(f"cannot use {place}: {str(system.strerror).lower()}: choose another, or change it")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Give a system's error inside, which may not say where it happened, a path."""
    try:
        yield
    except Exception as error:
        system = _system_error(error, anywhere=True)
        if system is None:
            raise
        raise OSError(system.errno, system.strerror, str(path)) from error


class _Pipe(io.FileIO):
    """A stream whose reader may leave, as of `| head -1` or a closed terminal. What comes after an
    error is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            closed = error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if not (closed or isinstance(error, BrokenPipeError)):
                raise
            return len(memoryview(data))


def _steady(stream: Any) -> io.TextIOWrapper | None:
    """A standard stream that goes on without its reader, and writes what its encoding lacks as
    \\uXXXX."""
    if stream is None:  # closed before Python began
        return None
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(stream.fileno(), "w", closefd=False)),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _system_error(error: BaseException | None, anywhere: bool = False) -> OSError | None:
    """The OSError about a file, a full disk or a limit that an error is, comes from, or tells of
    in its message, as those of safetensors and torch do; anywhere: or one that does not say what it
    is about."""
    if error is None:
        return None
    told = re.search(r"\(os error (\d+)\)", str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    number = number or next((n for n in FULL if os.strerror(n) in str(error)), None)
    if number and (anywhere or told or number in FULL or getattr(error, "filename", None)):
        return OSError(number, os.strerror(number), getattr(error, "filename", None))
    return _system_error(error.__cause__ or error.__context__, anywhere)


def report(message: str) -> None:
    """Say what is wrong in a line; below scripts/launch.py, leave it to be said there, once."""
    line = f"error: {' '.join(message.split())}"
    try:
        with open(os.environ["SRRL_STATUS_FILE"], "xb") as file:
            file.write(line.encode(errors="backslashreplace"))
    except FileExistsError:  # of several processes the first one writes
        pass
    except (KeyError, OSError):  # nobody reads it, or the disk is full there, too
        print(line, file=sys.stderr, flush=True)


def _stop(message: str) -> NoReturn:
    report(message)
    sys.exit(2)


def read_status(path: Path) -> tuple[int, str] | None:
    """(exit code, message) that a process below left in SRRL_STATUS_FILE, if one did."""
    return (2, path.read_text(encoding="utf-8")) if path.exists() else None


def stop_file(status: Path) -> Path:
    """The file beside SRRL_STATUS_FILE that has the number of the signal that ended the run."""
    return status.with_name("stop")


def ask_to_stop(status: Path, number: int) -> None:
    """Leave a signal's number where those who begin look, unless there is one."""
    if not stop_file(status).exists():
        temporary = status.with_name(f"stop.{os.getpid()}")
        temporary.write_text(str(number))
        temporary.replace(stop_file(status))


def stopped_by(status: Path) -> int | None:
    """The signal that ended the run, if one did."""
    return int(stop_file(status).read_text()) if stop_file(status).exists() else None


def stop_if_asked() -> None:
    """Raise Stopped if the launcher was told to end before this process was there to hear it."""
    status = os.environ.get("SRRL_STATUS_FILE")
    number = stopped_by(Path(status)) if status else None
    if number:
        raise Stopped(number)
