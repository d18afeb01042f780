"""Processes that meet on this host and add their numbers: python -m srrl.doctor.meet gloo 2."""

import socket
import sys
from datetime import timedelta

import torch
from torch import distributed
from torch.multiprocessing import start_processes

PATIENCE = timedelta(seconds=30)


def meet(rank: int, backend: str, count: int, port: int) -> None:
    """As one of `count` processes, all-reduce a number. Raises RuntimeError for a wrong sum."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    where = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group(backend, where, PATIENCE, count, rank)
    number = torch.full((1000,), rank + 1.0, device=device)
    distributed.all_reduce(number)
    distributed.destroy_process_group()
    if not (number == count * (count + 1) / 2).all():
        raise RuntimeError(f"the sum of 1 to {count} came back as {number[0].item()}")


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


if __name__ == "__main__":
    backend, count = sys.argv[1], int(sys.argv[2])
    start_processes(meet, (backend, count, free_port()), nprocs=count, start_method="fork")
