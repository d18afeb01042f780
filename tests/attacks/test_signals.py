"""What is told to end, by whom, and when: nothing of the run is alive five seconds later."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from srrl.config import REPOSITORY
from srrl.life import descendants
from tests.conftest import small_run
from tests.lines import shown

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux")]
whole = pytest.mark.attack
MARK = "SRRL_TEST_MARK"
TWO = ("--", "--num_processes", "2")


@dataclass
class Running:
    """A run by train.sh in a session, and on a terminal, of its own."""

    process: subprocess.Popen
    terminal: int
    mark: str
    errors: Path
    said: str = ""

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 600
        while not re.search(text, self.said):
            ready = select.select([self.terminal], [], [], end - time.monotonic())[0]
            assert ready, self.said
            try:
                self.said += os.read(self.terminal, 4096).decode()
            except OSError:  # it has ended
                raise AssertionError(self.said + self.errors.read_text()) from None

    def alive(self) -> list[str]:
        """The commands of all its processes, by a variable in their environment."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:  # another user's, or gone
                continue
        return found

    def trainers(self) -> list[int]:
        """The processes that train, in the order of their ranks."""
        found = []
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):  # it has just ended
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(part.endswith(b"scripts/train.py") for part in command[:4]):
                    found.append(pid)
        return found


def on_terminal() -> None:
    """In the child: its output is its controlling terminal, also where tests run below nohup."""
    os.close(os.open(os.ttyname(1), os.O_RDWR))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def begun(tmp_path) -> Iterator:
    runs = []

    def begin(*launcher: str, shell: tuple[str, ...] = ()) -> Running:
        mark, errors = uuid.uuid4().hex, tmp_path / "errors"
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*shell, "bash", "train.sh", *small_run(tmp_path, 40), *launcher],
            cwd=REPOSITORY,
            env={**os.environ, MARK: mark},
            stdin=slave,
            stdout=slave,
            stderr=open(errors, "w"),  # noqa: SIM115
            start_new_session=True,
            preexec_fn=on_terminal,
        )
        os.close(slave)
        runs.append(Running(process, master, mark, errors))
        return runs[-1]

    yield begin
    for one in runs:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if one.mark.encode() in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue


def nothing_lives(run: Running) -> None:
    """Five seconds later."""
    end = time.monotonic() + 5
    while run.alive() and time.monotonic() < end:
        time.sleep(0.1)
    assert run.alive() == []


def ends(run: Running, codes: int | set[int], said: str | None) -> None:
    """With this exit code and, if given, this one line; and nothing of it lives."""
    codes = codes if isinstance(codes, set) else {codes}
    run.process.wait(timeout=60)
    nothing_lives(run)
    assert run.process.returncode in codes, run.errors.read_text()
    if said is not None:
        assert re.fullmatch(said, shown(run.errors.read_text()).strip()), run.errors.read_text()


STOPPED = r"stopped: the same command resumes \S+"
SIGNALS = [signal.SIGTERM, *(pytest.param(s, marks=whole) for s in ("INT", "HUP", "QUIT"))]


@pytest.mark.parametrize("launcher", [pytest.param((), marks=whole), TWO], ids=["one", "two"])
@pytest.mark.parametrize("number", SIGNALS, ids=str)
def test_a_signal_to_the_launcher_is_one_line_and_its_code(number, launcher, begun):
    number = getattr(signal, f"SIG{number}") if isinstance(number, str) else number
    run = begun(*launcher)
    run.wait_for(r"stage 1/")
    os.kill(run.process.pid, number)
    ends(run, 128 + number, STOPPED)


@pytest.mark.parametrize("launcher", [(), pytest.param(TWO, marks=whole)], ids=["one", "two"])
def test_a_closed_terminal_ends_it(launcher, begun):
    run = begun(*launcher)
    run.wait_for(r"stage 1/")
    os.close(run.terminal)
    ends(run, 129, None)


@whole
@pytest.mark.parametrize("launcher", [(), TWO], ids=["one", "two"])
def test_ctrl_z_and_then_a_closed_terminal_ends_it(launcher, begun):
    """The shell, which has jobs, ends with the stopped one."""
    shell = ("bash", "--norc", "-i", "-c", '"$@"; sleep 3', "shell")
    run = begun(*launcher, shell=shell)
    run.wait_for(r"stage 1/")
    pids = run.trainers()
    os.write(run.terminal, b"\x1a")
    end = time.monotonic() + 30
    while any(") T " not in Path(f"/proc/{p}/stat").read_text() for p in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.close(run.terminal)
    run.process.wait(timeout=60)
    nothing_lives(run)


@pytest.mark.parametrize("launcher", [pytest.param((), marks=whole), TWO], ids=["one", "two"])
def test_a_launcher_that_is_killed_takes_all_with_it(launcher, begun):
    run = begun(*launcher)
    run.wait_for(r"stage 1/")
    assert len(run.trainers()) == (2 if launcher else 1)
    os.kill(run.process.pid, signal.SIGKILL)
    ends(run, -signal.SIGKILL, "")


@whole
@pytest.mark.parametrize("launcher", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
def test_the_whole_group_is_told(number, launcher, begun):
    run = begun(*launcher)
    run.wait_for(r"stage 1/")
    os.killpg(run.process.pid, number)
    ends(run, 128 + number, STOPPED)


@whole
@pytest.mark.parametrize("launcher", [(), TWO], ids=["one", "two"])
def test_told_twice_it_ends_at_once(launcher, begun):
    run = begun(*launcher)
    run.wait_for(r"stage 1/")
    os.kill(run.process.pid, signal.SIGTERM)
    time.sleep(0.05)
    os.kill(run.process.pid, signal.SIGINT)
    ends(run, 143, STOPPED)


@whole
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_single_rank_is_told(rank, number, begun):
    run = begun(*TWO)
    run.wait_for(r"stage 1/")
    os.kill(run.trainers()[rank], number)
    # Where the other one fails before torch has seen that this one has ended, it is the first.
    said = r"error: process \d ended with exit code \d+ and the others were stopped.*"
    ends(run, {128 + number, 1}, said)


@whole
def test_the_one_trainer_is_told(begun):
    run = begun()
    run.wait_for(r"stage 1/")
    os.kill(run.trainers()[0], signal.SIGTERM)
    ends(run, 143, STOPPED)


@whole
def test_who_does_not_hear_that_a_terminal_is_closed_goes_on(begun):
    """As below nohup."""
    run = begun(shell=("bash", "-c", 'trap "" HUP; exec "$@"', "shell"))
    run.wait_for(r"stage 1/")
    os.close(run.terminal)
    time.sleep(5)
    assert run.process.poll() is None and len(run.trainers()) == 1
    os.kill(run.process.pid, signal.SIGTERM)
    ends(run, 143, None)


@whole
@pytest.mark.parametrize("launcher", [(), TWO], ids=["one", "two"])
@pytest.mark.parametrize("delay", [0.0, 0.5, 2.0, 5.0, 8.0, 11.0])
def test_before_it_trains(delay, launcher, begun):
    run = begun(*launcher)
    run.wait_for("no GPU found")
    time.sleep(delay)
    os.kill(run.process.pid, signal.SIGTERM)
    ends(run, 143, r"stopped(: the same command resumes \S+)?")
