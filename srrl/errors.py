"""The one kind of error a user can cause: one line that names the value and the remedy."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Bad input. Its message is one line: the value, the place, and what to do."""


def show_help(text: str, arguments: list[str]) -> None:
    """With --help or -h among a command's own arguments, print the text and end."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if {"-h", "--help"} & set(own):
        print(text.strip())
        sys.exit(0)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError, a full disk or a file that cannot be used into one line on stderr and exit
    code 2, and Ctrl-C into one line and 130."""
    try:
        yield
    except UserError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not os.environ.get("SRRL_STATUS_FILE"):  # else scripts/launch.py says it
            print("stopped", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not _is_full_disk(error):
            if isinstance(error, OSError) and error.filename and error.strerror:
                _stop(
                    f"cannot use {str(error.filename)!r}: {error.strerror.lower()}: choose "
                    "another, or change it"
                )
            raise
        _stop(
            f"no disk space left while writing {getattr(error, 'filename', None) or 'output'}: "
            "free some and run the same command again, the run resumes"
        )


def _is_full_disk(error: BaseException | None) -> bool:
    """Also where safetensors or torch hide the cause in a message or below another error."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return True
    if "No space left on device" in str(error):
        return True
    return _is_full_disk(error.__cause__ or error.__context__)


def _stop(message: str) -> None:
    """Say it and exit with 2; below scripts/launch.py, leave it to be said there, once."""
    line = f"error: {' '.join(message.split())}"
    status_file = os.environ.get("SRRL_STATUS_FILE")
    if status_file:  # of several processes the first one writes
        with contextlib.suppress(FileExistsError), open(status_file, "x") as file:
            file.write(line)
    else:
        print(line, file=sys.stderr, flush=True)
    sys.exit(2)


def read_status(path: Path) -> tuple[int, str] | None:
    """(exit code, message) that a process below left in SRRL_STATUS_FILE, if one did."""
    return (2, path.read_text()) if path.exists() else None


def stop_file(status: Path) -> Path:
    """The file beside SRRL_STATUS_FILE whose presence says that Ctrl-C was pressed."""
    return status.with_name("stop")


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed before this process was there to hear it."""
    status = os.environ.get("SRRL_STATUS_FILE")
    if status and stop_file(Path(status)).exists():
        raise KeyboardInterrupt
