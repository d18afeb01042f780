"""RL-RIG's reward (arXiv 2602.19974): the share of a prompt's requirements that a VLM sees met.

A prompt is read as a scene graph ("a red circle left of a blue square"; "stone tower attached to
stone bridge; man riding horse"): each thing and each relation is a question.
"""

from typing import Any

import torch
from torch import Tensor

from rewards import DTYPES
from srrl.rig.graphs import Requirement, parse_graph
from srrl.rig.seeing import EMBEDDED, Seer
from srrl.shapes.reader import read, truths
from srrl.shapes.scenes import parse

REMEDY = 'give another model: reward.options {"NAME": {"model": "Qwen/Qwen2.5-VL-7B-Instruct"}}'


def check_graphs(prompts: list[str], embedded: bool) -> None:
    """Raise ValueError for the first prompt that is no scene graph, or not of the shapes world
    where the embedded model is to see it."""
    for prompt in prompts:
        parse_graph(prompt)
        if embedded:
            try:
                parse(prompt)
            except ValueError as error:
                raise ValueError(f"{error}; for other prompts {REMEDY}") from None


def by_text(required: list[list[Requirement]], answers: list[list[Any]]) -> list[dict[str, Any]]:
    """Of each picture its requirements' answers by their texts."""
    return [
        dict(zip((r.text for r in some), given, strict=True))
        for some, given in zip(required, answers, strict=True)
    ]


class Checker:
    """Reward `checker`: 0 to 1.

    model: "embedded" (the tiny VLM of the shapes world), or a folder or hub name of a Qwen VLM;
    form, threshold: see srrl.rig.seeing; side: pictures are scaled to so many pixels. `details`:
    of the pictures scored last, each requirement's P(yes).
    """

    def __init__(
        self,
        model: str = EMBEDDED,
        form: str = "yesno",
        threshold: float = 0.5,
        side: int | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        dtype: str = "fp32",
    ):
        self.seer = Seer.load(
            model,
            dtype=DTYPES[dtype],
            device=device,
            batch_size=batch_size,
            side=side,
            form=form,
            threshold=threshold,
        )
        self.details: list[dict[str, Any]] = []

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for the first prompt that is no scene graph that the model can see."""
        check_graphs(prompts, self.seer.embedded)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        required = [parse_graph(prompt).requirements() for prompt in prompts]
        chances = self.seer.check(images, required)
        self.details = by_text(required, [[round(x, 4) for x in p.tolist()] for p in chances])
        shares = [self.seer.passed(p).float().mean() for p in chances]
        return torch.stack(shares) if shares else torch.zeros(0)


class Requirements:
    """Reward `requirements`: the share that a picture of the shapes world meets, read off its
    pixels; what `checker` says is to be measured by. `details`: each requirement's truth."""

    def __init__(self) -> None:
        self.details: list[dict[str, bool]] = []

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for the first prompt outside the grammar."""
        check_graphs(prompts, embedded=True)

    @torch.no_grad()
    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        required = [parse_graph(prompt).requirements() for prompt in prompts]
        held = [truths(s, parse(p)) for s, p in zip(read(images), prompts, strict=True)]
        self.details = by_text(required, held)
        return torch.tensor([sum(h) / len(h) for h in held])
