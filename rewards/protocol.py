"""Messages between a trainer and its reward worker: JSON and raw numbers, nothing that can run.

A message is a header (JSON, UTF-8) and, where that has a "payload", so many raw bytes; each is a
frame of multiprocessing.connection, of bytes and never pickled. A frame that is longer than what
may come is refused before it is read.
"""

import contextlib
import json
import math
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from threading import Timer
from typing import Any

import numpy as np
import torch
from torch import Tensor

HEADER, PAYLOAD = 2**20, 2**31  # bytes, at most


class Line:
    """One end of a connection. `within` bounds all that happens on it in time."""

    def __init__(self, opened: socket.socket):
        self.socket, self.late = opened, ""
        self.frames = Connection(os.dup(opened.fileno()))

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Raises ValueError for a header that is too long, ConnectionError where nobody listens."""
        text = json.dumps({**header, "payload": len(payload)}).encode()
        if len(text) > HEADER:
            raise ValueError(f"{len(text)} bytes beside the pictures, of {HEADER} at most")
        with self.broken():
            self.frames.send_bytes(text)
            if payload:
                self.frames.send_bytes(payload)

    def receive(self, allowed: Callable[[dict], int]) -> tuple[dict[str, Any], bytes]:
        """The next message, with so many bytes of payload as its header allows, at most. Raises
        ConnectionError at the end, or for no message, and TimeoutError."""
        with self.broken():
            text = self.frames.recv_bytes(HEADER)
        try:
            header = json.loads(text)
            size, most = header["payload"], min(allowed(header), PAYLOAD)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConnectionError(f"no message of a reward worker ({brief(error)})") from error
        if type(size) is not int or not 0 <= size <= most:
            raise ConnectionError(f"a payload of {str(size)[:20]} bytes, {most} at most")
        payload = b""
        if size:
            with self.broken():
                payload = self.frames.recv_bytes(size)
        if len(payload) != size:
            raise ConnectionError(f"{len(payload)} bytes of payload, not {size}")
        return header, payload

    def wait(self) -> None:
        """Until something comes, or the end."""
        with self.broken():
            self.frames.poll(None)

    def prove(self, token: str, asks: bool) -> None:
        """That both ends know the token, which is not sent; the end that was connected to asks
        first. Raises AuthenticationError, or ConnectionError."""
        steps = [deliver_challenge, answer_challenge]
        with self.broken():
            for step in steps if asks else steps[::-1]:
                step(self.frames, token.encode())

    @contextlib.contextmanager
    def within(self, seconds: float, named: str = "") -> Iterator[None]:
        """Raise TimeoutError where what is inside takes longer, also if bytes trickle in."""

        def cut() -> None:
            self.late = f"no answer within {seconds:g} s" + (f" ({named})" if named else "")
            self.cut()

        timer = Timer(seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """Say how a connection has ended in one kind of error."""
        try:
            yield
        except AuthenticationError:
            raise
        except (OSError, EOFError, AssertionError) as error:
            if self.late:
                raise TimeoutError(self.late) from error
            raise ConnectionError(str(error) or "the connection was closed") from error

    def hung_up(self) -> bool:
        """Whether the other end has closed it, and nothing is left to read."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError as error:
            return not isinstance(error, BlockingIOError)

    def cut(self) -> None:
        """End it, also from another thread, which then is where `broken` is."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.cut()
        self.frames.close()
        self.socket.close()


def brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:80]}"


def images_size(header: dict[str, Any]) -> int:
    """Bytes of the pictures that a request announces, 0 where there are none. Raises ValueError."""
    if "shape" not in header:
        return 0
    shape, prompts = header["shape"], header["prompts"]
    if not (
        isinstance(shape, list)
        and len(shape) == 4
        and all(type(n) is int and 0 < n <= 2**16 for n in shape)
        and shape[:2] == [len(prompts), 3]
    ):
        raise ValueError("no pictures' shape")
    return math.prod(shape)


def images_to_bytes(images: Tensor) -> bytes:
    return images.contiguous().cpu().numpy().tobytes()


def images_from_bytes(payload: bytes, shape: list[int]) -> Tensor:
    """uint8 of the shape. Raises ValueError if the payload has another size."""
    return torch.from_numpy(np.frombuffer(payload, np.uint8).reshape(shape).copy())


def scores_to_bytes(scores: Tensor) -> bytes:
    return scores.float().cpu().numpy().astype("<f4").tobytes()


def scores_from_bytes(payload: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(payload, "<f4").astype(np.float32))
