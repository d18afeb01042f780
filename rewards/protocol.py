"""Frames between a trainer and its reward worker: JSON and raw numbers, nothing that can run.

A frame is the length of its header (4 bytes, big-endian), the header (JSON, UTF-8), and as many
bytes of payload as the header's "payload" says.
"""

import json
import socket
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_HEADER, MAX_PAYLOAD = 2**26, 2**34


def send(connection: socket.socket, header: dict[str, Any], payload: bytes = b"") -> None:
    text = json.dumps({**header, "payload": len(payload)}).encode()
    connection.sendall(struct.pack(">I", len(text)) + text)
    connection.sendall(payload)


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytes]:
    """The next frame's header and payload. Raises ConnectionError at the end or for no frame."""
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    if length > MAX_HEADER:
        raise ConnectionError(f"a frame's header of {length} bytes: not a reward worker's")
    try:
        header = json.loads(_exactly(connection, length))
        size = int(header["payload"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConnectionError(f"not a reward worker's frame: {error}") from error
    if not 0 <= size <= MAX_PAYLOAD:
        raise ConnectionError(f"a frame's payload of {size} bytes")
    return header, _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = connection.recv(min(left, 2**20))
        if not part:
            raise ConnectionError("the connection was closed")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def images_to_bytes(images: Tensor) -> bytes:
    return images.contiguous().cpu().numpy().tobytes()


def images_from_bytes(payload: bytes, shape: list[int]) -> Tensor:
    """uint8 of the shape. Raises ValueError if the payload has another size."""
    return torch.from_numpy(np.frombuffer(payload, np.uint8).reshape(shape).copy())


def scores_to_bytes(scores: Tensor) -> bytes:
    return scores.float().cpu().numpy().astype("<f4").tobytes()


def scores_from_bytes(payload: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(payload, "<f4").astype(np.float32))
