"""What the rewards that are networks share: device, precision, batches, loading."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from rewards import DTYPES
from rewards.preprocess import to_pil
from srrl.errors import UserError


class NetworkReward(ABC):
    """A reward that a network computes on its own device, in its own precision and batches.

    device: a torch device; dtype: "fp32", "fp16" or "bf16"; batch_size: pictures at once. Every
    subclass takes these three besides its own keywords, of which `model` and what `folders` takes
    name what is loaded.
    """

    name: str  # in rewards.REGISTRY
    batch_size: int
    network: Any  # a Module, with what its reward reads off it

    def __init__(self, device: str = "cpu", dtype: str = "fp32", batch_size: int | None = None):
        self.device, self.dtype = device, DTYPES[dtype]
        if batch_size is not None:
            self.batch_size = batch_size

    @classmethod
    @abstractmethod
    def folders(cls, model: str, *others: Any) -> tuple[Path, ...]:
        """The checkpoint's folder and those of what goes with it, fetched where they are not here.
        Raises UserError for one that cannot be had."""

    @abstractmethod
    def batch(self, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
        """The scores [B] of B pictures and prompts, at most batch_size."""

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] on the CPU, of images uint8 [B, 3, H, W] and B prompts."""
        starts = range(0, len(prompts), self.batch_size)
        parts = [slice(start, start + self.batch_size) for start in starts]
        return torch.cat([self.batch(to_pil(images[p]), prompts[p]).cpu() for p in parts])

    def use(self, network: nn.Module) -> None:
        """Take a network as the one that scores."""
        self.network = network.eval().requires_grad_(False).to(self.device)

    def pixels(self, prepared: list[Tensor]) -> Tensor:
        """[B, 3, H, W] as the network takes them, of B prepared pictures float32 [3, H, W]."""
        return torch.stack(prepared).to(self.device, self.dtype)

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """Turn transformers' ways of saying that a checkpoint cannot be read into a UserError."""
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"reward {self.name!r}: cannot load {model!r}: {reason}") from error
