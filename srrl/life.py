"""One life: signals that end a run, and processes that do not outlive the one they work for.

Without torch. A run may be killed at any moment (srrl.run.checkpoint), so nobody waits for it to
reach one.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srrl.errors import Stopped

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
LAUNCHER = "SRRL_LAUNCHER"  # its process, for those below it
GRACE_S = 10  # for a process that has been told to end
SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)


def handle(handler: Callable[[int, Any], None]) -> None:
    """Have ENDING handled, and let those come in that were blocked until now. SIGHUP stays ignored
    where it was, as by nohup."""
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def end_on_signals() -> None:
    """Let the first of ENDING raise Stopped in the main thread, and a second one end the process at
    once; it also ends where Stopped was lost, as in an object's __del__."""

    def once(number: int, _: object) -> None:
        def at_once(*_: object) -> None:
            os._exit(128 + number)

        handle(at_once)
        signal.signal(signal.SIGALRM, at_once)
        signal.alarm(GRACE_S)
        sys.unraisablehook = lambda _: None  # of what is half made now, and taken down
        raise Stopped(number)

    handle(once)


def end_in_calls() -> None:
    """Have ENDING end this process also where its main thread is inside a library's call, such as a
    wait for other processes, and hears nothing: a second one at once."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def watch() -> None:
        first = 0
        while True:
            heard = select.select([read], [], [], GRACE_S if first else None)[0]
            number = os.read(read, 1)[0] if heard else first
            if number in ENDING and signal.getsignal(number) != signal.SIG_IGN:
                if first:
                    os._exit(128 + first)
                first = number

    threading.Thread(target=watch, daemon=True).start()


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
        if sys.platform == "linux" and not lives(int(os.environ[LAUNCHER])):
            raise Stopped(signal.SIGTERM)


def lives(pid: int) -> bool:
    """Whether there is such a process, which is not only waiting to be buried."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def adopt_orphans() -> None:
    """Be the parent of those below whose own has died, so that `descendants` finds them."""
    prctl(SET_CHILD_SUBREAPER, 1)


def descendants(pid: int | None = None) -> list[int]:
    """The processes below one (this one), nearest first."""
    found: list[int] = []
    asked = [pid or os.getpid()]
    while asked:
        one = asked.pop(0)
        with contextlib.suppress(OSError):  # it has just ended
            for thread in os.listdir(f"/proc/{one}/task"):
                children = Path(f"/proc/{one}/task/{thread}/children").read_text().split()
                found += map(int, children)
                asked += map(int, children)
    return found


def send_all(number: int, below: int | None = None) -> None:
    """Send a signal to all descendants of a process (this one)."""
    for pid in descendants(below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
