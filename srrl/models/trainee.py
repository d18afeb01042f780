"""What a run and its learner know of what they train: a diffusion policy, a language model, ..."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn


class Trainee(Protocol):
    """A network with trained parts, and how these are kept.

    network  whose parameters are trained, or some of them; several processes may share it out
    device   where it computes
    dtype    the precision of its arithmetic; trained parameters are float32 whatever it is
    nfe      network evaluations so far, counted by whoever calls the network
    """

    device: torch.device
    dtype: torch.dtype
    nfe: int

    @property
    def network(self) -> nn.Module: ...

    def trainable(self) -> Iterator[nn.Parameter]:
        """The parameters that are trained, always in the same order."""

    def prepare(self, prompts: Iterable[str]) -> str:
        """Make ready for these prompts, in their order, the only ones that will follow. Returns
        what should be known of them, "" if nothing."""

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, whole. Every process takes part."""

    def save_weights(self, folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Write `weights` into a folder, as others read them. Returns what `load_weights` needs
        besides to restore them exactly, None where the files are exact."""

    def load_weights(self, folder: Path, exact: dict[str, Tensor] | None = None) -> None:
        """Read what `save_weights` wrote; `exact`: what it returned. Raises UserError if it does
        not fit."""
