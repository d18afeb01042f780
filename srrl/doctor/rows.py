"""What the doctor says: rows of a table, and their remedies."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from srrl.errors import UserError
from srrl.life import die_with_parent

OK, WARN, FAIL = "ok", "warn", "fail"
WIDEST = 80  # characters of what was found, beyond which a row is longer than the others


class Row(NamedTuple):
    """state: OK; WARN, where a run goes on; FAIL, where it would not. The remedy is of the latter
    two."""

    check: str
    found: str
    state: str = OK
    remedy: str = ""


class Trouble(Exception):
    """A command that failed, or did not end in time."""


def brief(error: BaseException, most: int = 200) -> str:
    """An error in a short line."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, UserError | Trouble) else f"{type(error).__name__}: "
    return f"{kind}{text}"[:most].rstrip(": ")


def refused(check: str, found: str, look: Callable[[], object], state: str = FAIL) -> list[Row]:
    """A row where `look` raises UserError, whose line has the remedy; none where it does not."""
    try:
        look()
    except UserError as error:
        return [Row(check, found, state, str(error))]
    return []


def attempted(check: str, rows: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Its rows; where it raises, another one that says so."""
    try:
        yield from rows()
    except UserError as error:
        yield Row(check, "refused", FAIL, str(error))
    except Exception as error:
        yield Row(check, brief(error), FAIL, "see the error: a run would meet it, too")


def page(rows: list[Row]) -> str:
    """The table, and below it the remedies in its order, each once."""
    heading = Row("check", "found", "state")
    first = max(len(row.check) for row in (heading, *rows))
    second = min(WIDEST, max(len(row.found) for row in (heading, *rows)))
    lines = [f"{r.check:{first}}  {r.found:{second}}  {r.state}" for r in (heading, *rows)]
    remedies = dict.fromkeys(f"{r.state} {r.check}: {r.remedy}" for r in rows if r.state != OK)
    return "\n".join([*lines, *([""] if remedies else []), *remedies])


def answer(command: list[str], seconds: float, environment: Mapping[str, str] | None = None) -> str:
    """What a command prints. It and all that it has started are ended after so many seconds.

    Raises Trouble, with its last line, where it fails or is late, and OSError where there is none.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    try:
        said, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Trouble(f"no answer within {seconds:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        lines = [line for line in errors.splitlines() if line.strip()]
        raise Trouble(lines[-1].strip() if lines else ended(process.returncode))
    return said


def ended(code: int) -> str:
    """How a process ended."""
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
