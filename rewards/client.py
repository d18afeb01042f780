"""The trainer's side of a reward worker: starts it, talks to it, starts it again if it dies."""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from rewards import protocol
from rewards.worker import TOKEN
from srrl.errors import UserError

ROOT = Path(__file__).resolve().parent.parent  # where a worker finds this package
ATTEMPTS, PAUSES_S = 3, (5, 30)
LOADING_S = 1800  # xxl checkpoints take minutes from a slow disk


class Worker:
    """A connection to a worker process, of our own or at an address.

    A request that the worker does not survive is sent again, to a new process of our own or to
    the same address, ATTEMPTS times in all; then UserError ends the run, which can be resumed.
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
    ):
        self.address, self.process, self.connection = address, None, None
        self.token = os.environ.get(TOKEN, "") if address else secrets.token_hex(16)
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
            "--child",
            *(["--original"] * original),
        ]
        self.names = list(models)
        try:
            self.connect()
        except OSError as error:
            raise UserError(
                f"no reward worker at {address or 'its port'} ({error}): start it with "
                f"`python -m rewards.worker`, or unset reward.worker.address"
            ) from error

    def request(self, header: dict[str, Any], payload: bytes = b"") -> tuple[dict, bytes]:
        """The worker's answer. Raises UserError if it reports an error or stays dead."""
        for attempt in range(ATTEMPTS):
            try:
                if self.connection is None:
                    self.connect()
                protocol.send(self.connection, header, payload)
                answer, data = protocol.receive(self.connection)
                break
            except OSError as error:  # ConnectionError among them
                self.close()
                reason = str(error)
                if attempt + 1 < ATTEMPTS:
                    print(f"the reward worker died ({reason}): starting again", flush=True)
                    if self.address:  # whoever runs it may start it again
                        time.sleep(PAUSES_S[attempt])
        else:
            raise UserError(
                f"the reward worker {self.address or 'process'} died {ATTEMPTS} times ({reason}): "
                f"see its messages above and run the same command again"
            )
        if "error" in answer:
            raise UserError(f"reward worker: {answer['error']}")
        return answer, data

    def connect(self) -> None:
        if self.address:
            host, _, port = self.address.rpartition(":")
            if not port.isdigit():
                raise UserError(f"reward.worker.address={self.address!r}: expected HOST:PORT")
        else:
            host, port = "127.0.0.1", self.start()
        self.connection = socket.create_connection((host, int(port)), timeout=LOADING_S)
        protocol.send(self.connection, {"token": self.token})
        answer, _ = protocol.receive(self.connection)
        if "error" in answer:
            raise UserError(f"reward worker at {self.address}: {answer['error']}")
        missing = set(self.names) - set(answer["rewards"])
        if missing:
            raise UserError(f"reward worker at {self.address} has no {', '.join(sorted(missing))}")

    def start(self) -> int:
        """Start a worker process of our own; returns its port."""
        paths = [str(ROOT), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, TOKEN: self.token, "PYTHONPATH": ":".join(filter(None, paths))}
        environment.pop("SRRL_STATUS_FILE", None)
        try:
            self.process = subprocess.Popen(
                self.command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,  # Ctrl-C is for the trainer; we end with it
            )
        except OSError as error:
            raise UserError(f"reward.worker.python={self.command[0]!r}: {error}") from error
        for line in self.process.stdout:
            if line.startswith("listening "):
                threading.Thread(target=drain, args=[self.process.stdout], daemon=True).start()
                return int(line.split()[1])
        code = self.process.wait()
        raise UserError(
            f"the reward worker ended with exit code {code} while loading {', '.join(self.names)}: "
            f"see its message above"
        )

    def close(self) -> None:
        """Close the connection and end a process of our own."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.process is not None:
            self.process.stdin.close()
            self.process.kill()
            self.process.wait()
            self.process = None


def drain(output: IO[str]) -> None:
    """Show what the worker prints, so that it never waits for a reader."""
    for line in output:
        print(f"reward worker: {line}", end="", flush=True)
    output.close()


class WorkerReward:
    """One of a worker's rewards, as a reward."""

    def __init__(self, worker: Worker, name: str):
        self.worker, self.name = worker, name
        self.details: list | None = None

    def check_prompts(self, prompts: list[str]) -> None:
        try:
            self.worker.request({"do": "check", "reward": self.name, "prompts": prompts})
        except UserError as error:
            raise ValueError(str(error).removeprefix("reward worker: ValueError: ")) from error

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        header = {
            "do": "score",
            "reward": self.name,
            "prompts": prompts,
            "shape": list(images.shape),
        }
        answer, data = self.worker.request(header, protocol.images_to_bytes(images))
        self.details = answer.get("details")
        return protocol.scores_from_bytes(data).reshape(answer["shape"])


def worker_rewards(worker: Worker) -> dict[str, WorkerReward]:
    return {name: WorkerReward(worker, name) for name in worker.names}
