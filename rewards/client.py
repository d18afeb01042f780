"""The trainer's side of a reward worker: starts it, talks to it, starts it again if it dies."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from functools import cache
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from rewards import protocol
from rewards.worker import TOKEN
from srrl.errors import UserError

ROOT = Path(__file__).resolve().parent.parent  # where a worker finds this package
ATTEMPTS, PAUSES_S = 3, (5, 30)
CHECKED = 2**18  # bytes of prompts that are checked at once


class Worker:
    """A connection to a worker process, of our own or at an address (HOST:PORT, or a socket).

    load_s, batch_s: seconds that it has to load its models, and to answer a request. A request that
    the worker does not survive, or does not answer in time, is sent again, to a new process of our
    own or to the same address, ATTEMPTS times in all; then UserError ends the run, which can be
    resumed.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Any]],
        *,
        address: str = "",
        python: str = "",
        device: str = "cpu",
        dtype: str = "fp32",
        original: bool = False,
        load_s: float = 1800,
        batch_s: float = 600,
    ):
        self.address = address
        self.process: subprocess.Popen[str] | None = None
        self.line: protocol.Line | None = None
        self.load_s, self.batch_s = load_s, batch_s
        self.token = os.environ.get(TOKEN, "")
        if address and not self.token:
            raise UserError(f"reward.worker.address={address!r}: set {TOKEN} to the worker's token")
        self.command = [
            python or sys.executable,
            "-m",
            "rewards.worker",
            "--models",
            json.dumps(dict(models)),
            "--device",
            device,
            "--dtype",
            dtype,
            *(["--original"] * original),
        ]
        self.names = list(models)
        try:
            self.connect()
        except OSError as error:
            raise UserError(
                f"no reward worker at {address} ({error}): start it with "
                f"`python -m rewards.worker`, or unset reward.worker.address"
            ) from error

    def request(
        self, header: dict[str, Any], payload: bytes = b"", expected: int = 0
    ) -> tuple[dict, bytes]:
        """The worker's answer, with so many bytes of payload. Raises UserError if it reports an
        error, stays dead or silent, or answers what is none."""
        for attempt in range(ATTEMPTS):
            try:
                line = self.connect() if self.line is None else self.line
                with line.within(self.batch_s, "reward.worker.batch_s"):
                    line.send(header, payload)
                    answer, data = line.receive(lambda _: expected)
                if "error" not in answer and len(data) != expected:
                    raise ConnectionError(f"{len(data)} bytes of scores, not {expected}")
                break
            except ValueError as error:
                raise UserError(f"too much for a reward worker: {error}") from error
            except OSError as error:  # ConnectionError and TimeoutError among them
                self.close()
                reason = str(error)
                if attempt + 1 < ATTEMPTS:
                    print(f"the reward worker failed ({reason}): starting again", flush=True)
                    if self.address:  # whoever runs it may start it again
                        time.sleep(PAUSES_S[attempt])
        else:
            raise UserError(
                f"the reward worker {self.address or 'process'} failed {ATTEMPTS} times "
                f"({reason}): see its messages above and run the same command again"
            )
        if "error" in answer:
            raise UserError(f"reward worker: {str(answer['error'])[:2000]}")
        return answer, data

    def connect(self) -> protocol.Line:
        """The line, once the worker has said what it has. Raises OSError where nobody is there, and
        UserError where it is not the worker."""
        self.line = line = protocol.Line(self.reach() if self.address else self.start())
        try:
            with line.within(self.load_s, "reward.worker.load_s"):
                if self.address:
                    line.prove(self.token, asks=False)
                answer, _ = line.receive(lambda _: 0)
        except AuthenticationError:
            raise UserError(
                f"reward worker at {self.address}: the token is not this worker's"
            ) from None
        except TimeoutError as error:
            self.close()
            names = ", ".join(self.names)
            raise UserError(f"the reward worker is still loading {names}: {error}") from None
        except ConnectionError:
            if self.process is None:
                raise
            raise UserError(
                f"the reward worker ended with exit code {self.ended(self.process)} while loading "
                f"{', '.join(self.names)}: see its message above"
            ) from None
        there = answer.get("rewards")
        missing = set(self.names) - set(there if isinstance(there, list) else ())
        if missing:
            raise UserError(f"reward worker at {self.address} has no {', '.join(sorted(missing))}")
        told = answer.get("counts")
        self.counts = {n: counts(told.get(n)) if isinstance(told, dict) else {} for n in self.names}
        return line

    def reach(self) -> socket.socket:
        """A connection to the address."""
        if "/" in self.address:
            opened = socket.socket(socket.AF_UNIX)
            opened.connect(self.address)
            return opened
        host, _, port = self.address.rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 2**16):
            expected = "expected HOST:PORT, or a socket's path"
            raise UserError(f"reward.worker.address={self.address!r}: {expected}")
        opened = socket.create_connection((host.strip("[]"), int(port)), timeout=self.load_s)
        opened.settimeout(None)
        return opened

    def start(self) -> socket.socket:
        """Start a worker process of our own; returns our end of the line."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = process = subprocess.Popen(
                    [*self.command, f"--line={theirs.fileno()}"],
                    env=worker_environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C is for the trainer; we end with it
                )
        except OSError as error:
            ours.close()
            raise UserError(f"reward.worker.python={self.command[0]!r}: {error}") from error
        threading.Thread(target=drain, args=[process.stdout], daemon=True).start()
        return ours

    def ended(self, process: subprocess.Popen[str]) -> int:
        """The exit code of a process of our own that has closed the line."""
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """Close the connection and end a process of our own."""
        if self.line is not None:
            self.line.close()
            self.line = None
        if self.process is not None:
            if self.process.stdin is not None:
                self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.process = None


def worker_environment() -> dict[str, str]:
    """The environment in which a worker's interpreter finds this package."""
    ours = ROOT if (ROOT / "pyproject.toml").exists() else alone().name
    paths = [str(ours), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, paths))}
    environment.pop("SRRL_STATUS_FILE", None)
    return environment


@cache
def alone() -> tempfile.TemporaryDirectory:
    """A folder of the installed package without what is installed beside it, which would hide the
    packages of a worker's own interpreter."""
    folder = tempfile.TemporaryDirectory()
    for name in ("rewards", "srrl"):
        Path(folder.name, name).symlink_to(ROOT / name)
    return folder


def drain(output: IO[str]) -> None:
    """Show what the worker prints, so that it never waits for a reader."""
    for line in output:
        print(f"reward worker: {line}", end="", flush=True)
    output.close()


def counts(told: object) -> dict[str, int]:
    """What a reward counts, as a worker tells it."""
    return {k: n for k, n in told.items() if type(n) is int} if isinstance(told, dict) else {}


class WorkerReward:
    """One of a worker's rewards, as a reward."""

    def __init__(self, worker: Worker, name: str):
        self.worker, self.name, self.counts = worker, name, worker.counts[name]
        self.details: list | None = None

    def check_prompts(self, prompts: list[str]) -> None:
        part, size = [], 0
        for i, prompt in enumerate(prompts):
            part.append(prompt)
            size += len(json.dumps(prompt))
            if size < CHECKED and i + 1 < len(prompts):
                continue
            try:
                self.worker.request({"do": "check", "reward": self.name, "prompts": part})
            except UserError as error:
                text = str(error).removeprefix("reward worker: ValueError: ")
                raise ValueError(text) from error
            part, size = [], 0

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        asked = {"do": "score", "reward": self.name, "prompts": prompts}
        header = {**asked, "shape": list(images.shape)}
        pixels = protocol.images_to_bytes(images)
        answer, data = self.worker.request(header, pixels, expected=4 * len(prompts))
        self.details = answer.get("details")
        told = counts(answer.get("counts"))
        self.counts = {k: told.get(k, 0) for k in self.counts}
        return protocol.scores_from_bytes(data)


def worker_rewards(worker: Worker) -> dict[str, WorkerReward]:
    return {name: WorkerReward(worker, name) for name in worker.names}
