"""How far the work at hand is: a line that rewrites itself on a terminal, a line now and then in a
log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

SILENCE_S = 15.0  # the longest between two lines in a log
GRADIENT = 3  # evaluations without gradient that one with its backward pass counts as
BAR = "{desc}: {percentage:3.0f}%|{bar:30}| {elapsed}<{remaining}"


class Meter:
    """Counts the rows that go through a network; shows nothing on processes that are not active."""

    def __init__(self, active: bool = True):
        self.active, self.name, self.phase = active, "", ""
        self.terminal = sys.stdout.isatty()
        self.bar: tqdm | None = None

    @contextmanager
    def work(self, name: str, network: nn.Module, evaluations: float) -> Iterator[None]:
        """Show the progress of what is done inside, expected to take so many evaluations of this
        process."""
        if not self.active:
            yield
            return
        self.name, self.phase = name, ""
        self.done, self.total = 0.0, max(evaluations, 1.0)
        self.start = self.said = time.monotonic()
        hook = network.register_forward_hook(self._count)
        if self.terminal:
            self.bar = tqdm(
                total=self.total,
                desc=name,
                bar_format=BAR,
                leave=False,
                file=sys.stdout,
                dynamic_ncols=True,
            )
        try:
            yield
        finally:
            hook.remove()
            if self.bar is not None:
                self.bar.close()
                self.bar = None

    def _count(self, _: nn.Module, inputs: tuple, __: object) -> None:
        rows: float = len(inputs[0]) * (GRADIENT if torch.is_grad_enabled() else 1)
        rows = min(rows, self.total - self.done)  # padding and what was not expected
        self.done += rows
        if self.bar is not None:
            self.bar.set_description_str(f"{self.name} {self.phase}".strip(), refresh=False)
            self.bar.update(rows)
            return
        now = time.monotonic()
        if now - self.said >= SILENCE_S:
            self.said, share = now, self.done / self.total
            left = (now - self.start) * (1 - share) / max(share, 1e-6)
            where = f"{self.name} {self.phase}".strip()
            print(f"  {where}: {share:.0%}, {left:.0f} s left", flush=True)
