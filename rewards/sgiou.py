"""SG-IoU (LAION-SG, arXiv 2412.08580): how much of a prompt's scene graph a picture shows, and no
other relation, as unique triples |A n B| / |A u B|."""

from typing import Any

import torch
from torch import Tensor

from rewards import DTYPES
from rewards.checker import check_graphs
from srrl.rig.graphs import SceneGraph, parse_graph, similarities
from srrl.rig.seeing import EMBEDDED, Seer
from srrl.shapes.reader import graph_of, read

EXACT = "exact"


class SGIoU:
    """Reward `sgiou`: 0 to 1; 0 where the VLM writes no scene graph.

    model: "exact" (read off the pixels, in the shapes world), "embedded" (its tiny VLM), or a
    folder or hub name of a Qwen VLM; bound: the VLM may only use the prompt's things and relations.
    `details`: of the pictures scored last, the graph that was seen.
    """

    def __init__(
        self,
        model: str = EXACT,
        bound: bool = False,
        side: int | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        dtype: str = "fp32",
    ):
        self.bound, self.seer = bound, None
        if model != EXACT:
            given: dict[str, Any] = {"dtype": DTYPES[dtype], "device": device, "side": side}
            self.seer = Seer.load(model, batch_size=batch_size, **given)
        self.within_world = model in (EXACT, EMBEDDED)
        self.details: list[dict[str, Any]] = []

    def check_prompts(self, prompts: list[str]) -> None:
        """Raise ValueError for the first prompt that is no scene graph that can be seen."""
        check_graphs(prompts, self.within_world)

    def seen(self, images: Tensor, truths: list[SceneGraph]) -> list[SceneGraph | None]:
        if self.seer is None:
            return [graph_of(seen) for seen in read(images)]
        return self.seer.describe(images, truths if self.bound else None)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """float32 [B] of images uint8 [B, 3, H, W] and B prompts."""
        truths = [parse_graph(prompt) for prompt in prompts]
        found = self.seen(images, truths)
        self.details = [{"seen": None if graph is None else str(graph)} for graph in found]
        return torch.tensor(
            [
                0.0 if graph is None else similarities(graph, truth)["sg_iou"]
                for graph, truth in zip(found, truths, strict=True)
            ]
        )
