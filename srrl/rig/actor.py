"""RL-RIG's actor (arXiv 2602.19974): a VLM that looks at a picture, its prompt and what failed, and
writes an edit prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from srrl.models.conversations import Completions
from srrl.models.vlm import VLM
from srrl.rig.forms import Edit, embedded_request, read_edit, request
from srrl.rig.graphs import Requirement

TINY_ACTOR = Path(__file__).parents[1] / "shapes" / "tiny_actor"


@dataclass(frozen=True)
class Actor:
    """A VLM that writes for an editor of the kind "instruct" or "inversion".

    embedded: the tiny VLM of the shapes world, which is asked in the words that it knows.
    """

    vlm: VLM
    editor: str
    embedded: bool
    temperature: float = 1.0
    max_tokens: int = 256

    def requests(
        self, prompts: Sequence[str], failed: Sequence[Sequence[Requirement]]
    ) -> list[str]:
        """What it is asked about pictures of prompts, with the requirements that each fails."""
        if self.embedded:
            asked = [[r.question for r in some] for some in failed]
            return [embedded_request(p, some) for p, some in zip(prompts, asked, strict=True)]
        return [request(p, some, self.editor) for p, some in zip(prompts, failed, strict=True)]

    def complete(
        self, images: Tensor, requests: Sequence[str], generators: Sequence[torch.Generator]
    ) -> list[Completions]:
        """Its completions of requests about pictures uint8 [B, 3, H, W], each drawn by its own
        generator, in batches of the VLM's size."""
        size = self.vlm.batch_size
        parts = [slice(i, i + size) for i in range(0, len(requests), size)]
        return [
            self.vlm.write(
                images[part],
                requests[part],
                max_tokens=self.max_tokens,
                generators=generators[part],
                temperature=self.temperature,
            )
            for part in parts
        ]

    def write(
        self,
        images: Tensor,
        prompts: Sequence[str],
        failed: Sequence[Sequence[Requirement]],
        generators: Sequence[torch.Generator],
    ) -> list[Edit]:
        """An edit prompt for each picture uint8 [B, 3, H, W], or the reason why there is none."""
        written = self.complete(images, self.requests(prompts, failed), generators)
        texts = [text for part in written for text in part.texts]
        return [read_edit(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
