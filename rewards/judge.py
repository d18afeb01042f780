"""The embedded world's second judge: a small network's reading of the picture.

It shares nothing with the exact verifier, which policies are trained on, and tells whether what
they learned is to draw or to please it. Its embedding measures how different pictures are.
"""

import torch
from torch import Tensor

from srrl.shapes.judge import load_judge, read_parts
from srrl.shapes.scenes import parse, pixels_of


class ShapesJudge:
    """Reward `judge`: the probability that presence, shapes and relation are right, 0 to 1."""

    def __init__(self) -> None:
        self.network = load_judge()

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for the first prompt outside the grammar."""
        for prompt in prompts:
            parse(prompt)

    def parts(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """ "presence", "shape" and "relation" float32 [B] of images uint8 [B, 3, H, W]."""
        return read_parts(self.network, images, [parse(prompt) for prompt in prompts])

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts: the product of the parts."""
        return torch.stack(list(self.parts(images, prompts).values())).prod(0)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """float32 [B, 128] of images uint8 [B, 3, H, W], for distances between pictures."""
        return self.network.embed(pixels_of(images))
