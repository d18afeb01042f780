"""One life: signals that end a run, and processes that do not outlive the one they work for.

Without torch. A run may be killed at any moment (srrl.run.checkpoint), so nobody waits for it to
reach one.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from srrl.errors import Stopped

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
LAUNCHER = "SRRL_LAUNCHER"  # its process, for those below it
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def end_on_signals() -> None:
    """Let the first of ENDING raise Stopped in the main thread, also if it was blocked until now,
    and a second one end the process at once."""

    def again(number: int, _: object) -> None:
        os._exit(128 + number)

    def once(number: int, _: object) -> None:
        for each in ENDING:
            signal.signal(each, again)
        sys.unraisablehook = lambda _: None  # of what is half made now, and taken down
        raise Stopped(number)

    for number in ENDING:
        signal.signal(number, once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def prctl(option: int, value: int) -> None:
    """Ask the kernel; it is Linux's, elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)


def die_with_parent() -> None:
    """Be killed when the parent dies."""
    prctl(SET_PDEATHSIG, signal.SIGKILL)


def follow_launcher() -> None:
    """Below scripts/launch.py: die with it, at once where it is gone already."""
    if LAUNCHER in os.environ:
        die_with_parent()
        if not Path(f"/proc/{os.environ[LAUNCHER]}").exists() and sys.platform == "linux":
            raise Stopped(signal.SIGTERM)


def adopt_orphans() -> None:
    """Be the parent of those below whose own has died, so that `descendants` finds them."""
    prctl(SET_CHILD_SUBREAPER, 1)


def descendants(pid: int | None = None) -> list[int]:
    """The processes below one (this one), nearest first."""
    found, asked = [], [pid or os.getpid()]
    while asked:
        one = asked.pop(0)
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                below = [int(child) for child in children.read_text().split()]
            except OSError:  # it has just ended
                continue
            found += below
            asked += below
    return found


def send_all(number: int) -> None:
    """Send a signal to all descendants."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
