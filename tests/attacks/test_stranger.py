"""Strangers at a reward worker that listens on a port: it stays small and serves who it knows."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest

from rewards.client import Worker, worker_rewards
from rewards.protocol import Line
from rewards.worker import CONNECTIONS, TOKEN
from srrl.config import REPOSITORY
from tests.conftest import PROMPTS
from tests.rewards.test_worker import pictures

pytestmark = pytest.mark.slow
GROWTH = 50 * 2**20
GIGABYTE = 2**30


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[psutil.Process, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "rewards.worker", "--models", '{"shapes": {}}', "--host=127.0.0.1"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, TOKEN: "secret"},
    )
    port = int(process.stdout.readline().rpartition(":")[2])
    os.environ[TOKEN] = "secret"
    served(port)  # whatever a first request takes
    yield psutil.Process(process.pid), port
    del os.environ[TOKEN]
    process.kill()
    process.wait()


def served(port: int) -> float:
    """Seconds until somebody who knows the token is connected and has scores."""
    start = time.monotonic()
    client = Worker({"shapes": {}}, address=f"127.0.0.1:{port}")
    assert len(worker_rewards(client)["shapes"].score(pictures(), PROMPTS)) == 4
    client.close()
    return time.monotonic() - start


def opened(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def poured(line: socket.socket, total: int) -> None:
    """Send so many bytes, as long as somebody takes them."""
    chunk = bytes(2**20)
    with suppress(OSError):
        for _ in range(total // len(chunk)):
            line.sendall(chunk)


def idle(port: int) -> list[socket.socket]:
    """2,000 that say nothing."""
    return [opened(port) for _ in range(2000)]


def long_header(port: int) -> list[socket.socket]:
    """A first frame of 64 MB, 50 times."""
    lines = [opened(port) for _ in range(50)]
    for line in lines:
        with suppress(OSError):
            line.sendall(struct.pack("!i", 2**26))
            poured(line, 2**26)
    return lines


def lying_lengths(port: int) -> list[socket.socket]:
    """Frames that are longer than they say, or shorter, or of a length that is none."""
    lines = []
    for length in (-1, -(2**31), 2**31 - 1, 0, 5, 257):
        lines.append(opened(port))
        with suppress(OSError):
            lines[-1].sendall(struct.pack("!i", length) + struct.pack("!Q", 2**62) + b"x" * 4096)
    return lines


def wrong_token(port: int) -> list[socket.socket]:
    """A wrong proof, and a gigabyte behind it."""
    line = opened(port)
    with suppress(Exception):
        Line(line).prove("guess", asks=False)
    poured(line, GIGABYTE)
    return [line]


def no_proof(port: int) -> list[socket.socket]:
    """A gigabyte in the place of a proof."""
    line = opened(port)
    poured(line, GIGABYTE)
    return [line]


@pytest.mark.parametrize(
    "attack", [idle, long_header, lying_lengths, wrong_token, no_proof], ids=lambda f: f.__name__
)
def test_it_stays_small_and_serves(attack: Callable[[int], list[socket.socket]], worker):
    process, port = worker
    before, highest = process.memory_info().rss, [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            highest[0] = max(highest[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    lines = attack(port)
    seconds = served(port)
    over.set()
    watching.join()
    for line in lines:
        line.close()
    growth = highest[0] - before
    print(
        f"{attack.__name__}: grew by {growth / 2**20:.1f} MiB, served in {seconds:.2f} s meanwhile"
    )
    assert growth < GROWTH
    assert process.num_threads() < 4 * CONNECTIONS


def test_those_who_know_the_token_are_served_side_by_side_and_no_more_than_fit(worker):
    _, port = worker
    clients = [Worker({"shapes": {}}, address=f"127.0.0.1:{port}") for _ in range(CONNECTIONS)]
    for client in clients:
        assert len(worker_rewards(client)["shapes"].score(pictures(), PROMPTS)) == 4
    with opened(port) as line:
        assert line.recv(1) == b""
    for client in clients:
        client.close()
    served(port)
