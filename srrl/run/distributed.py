"""Work and results spread over the processes of a run, by accelerate's collectives.

Every process works on its own part and then knows everybody's results, so that whatever follows
is computed alike on each of them, and no process waits for one that has nothing to do.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.distributed_c10d import _get_default_store

from srrl.errors import UserError

# Errors of torch's collectives: others are gone, or let wait for longer than the group's timeout.
LOST = re.compile(r"gloo|NCCL|ProcessGroup|[Cc]onnection (closed|reset) by peer")
TIMED_OUT = re.compile(r"[Tt]imed? ?out")
# Seconds that those who miss others wait for each other, and for a launcher that knows of a death.
FOUND_S = 5


def waiting_at_most(seconds: float) -> InitProcessGroupKwargs:
    """For Accelerator: the longest that a process waits for the others in a collective."""
    return InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))


@contextmanager
def together(accelerator: Accelerator, patience: float) -> Iterator[None]:
    """Raise UserError, which names them, where other processes of the run are gone or have not
    come to a collective within so many seconds. One that dies on this machine ends this process
    first: its launcher tells of it."""
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not LOST.search(str(error)):
            raise
        named = " and ".join(map(str, missed(accelerator)))
        late = f"within {patience:g} s (config.process_timeout)"
        raise UserError(
            f"process {named} of {accelerator.num_processes} did not answer {late}: it may be "
            f"stopped, stuck or slow; the same command goes on from the newest checkpoint"
            if TIMED_OUT.search(str(error))
            else f"process {named} of {accelerator.num_processes} has ended: its own launcher says "
            f"why; the same command goes on from the newest checkpoint"
        ) from error


def missed(accelerator: Accelerator) -> list[int | str]:
    """The processes that do not miss any other, FOUND_S after this one has; "?" where whoever
    counts them is gone, too."""
    try:
        store = _get_default_store()
        store.set(f"missing others: {accelerator.process_index}", "")
        time.sleep(FOUND_S)
        ranks = range(accelerator.num_processes)
        return [rank for rank in ranks if not store.check([f"missing others: {rank}"])] or ["?"]
    except RuntimeError:
        return ["?"]


def local_range(accelerator: Accelerator, n: int) -> range:
    """The consecutive share of 0 .. n-1 that this process works on; empty if there are too few."""
    return part(n, accelerator.process_index, accelerator.num_processes)


def part(n: int, rank: int, processes: int) -> range:
    """The consecutive share of 0 .. n-1 of one of so many processes."""
    return range(n * rank // processes, n * (rank + 1) // processes)


def gather_rows(accelerator: Accelerator, values: Tensor, index: Tensor, total: int) -> Tensor:
    """All processes' rows together: [total, ...], row index[i] from this process's values[i].

    values: [n, ...] of any number type and n; index: int64 [n]. Each row is given by exactly one
    process. The result is the same on every process, on the device of `values`.
    """
    whole = values.new_zeros(total, *values.shape[1:])
    whole[index.to(values.device)] = values
    if accelerator.num_processes == 1:
        return whole
    return accelerator.reduce(whole.to(accelerator.device), "sum").to(values.device)


def gather_objects(accelerator: Accelerator, values: list, index: Tensor, total: int) -> list:
    """As gather_rows, of things that JSON can hold; None where no process has given one. A process
    may have none to give."""
    mine = [*zip(index.tolist(), values, strict=True)] if values else []
    every = mine if accelerator.num_processes == 1 else gather_object(mine)
    whole = [None] * total
    for place, value in every:
        whole[place] = value
    return whole


def all_sum(accelerator: Accelerator, number: int) -> int:
    """The sum of every process's number."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.reduce(torch.tensor(number, device=accelerator.device), "sum"))


def all_max(accelerator: Accelerator, number: float) -> float:
    """The largest of every process's number."""
    return max(accelerator.gather(torch.tensor([number], device=accelerator.device)).tolist())


def differing(accelerator: Accelerator, tensors: dict[str, Tensor]) -> list[str]:
    """The names of float32 tensors that are not the same bits on every process, in their order; by
    a sum of their bits, so what they cost is one small reduction."""
    if accelerator.num_processes == 1:
        return []
    bits = [t.detach().contiguous().view(torch.int32) for t in tensors.values()]
    sums = torch.stack([b.sum(dtype=torch.int64) for b in bits]).to(accelerator.device)[None]
    everybodys = accelerator.gather(sums)
    apart = (everybodys != everybodys[:1]).any(0).tolist()
    return [name for name, differs in zip(tensors, apart, strict=True) if differs]


def since(before: dict[str, int], now: dict[str, int]) -> dict[str, int]:
    """How much counters have counted; one that is lower now has begun anew."""
    return {k: n - before.get(k, 0) if n >= before.get(k, 0) else n for k, n in now.items()}
