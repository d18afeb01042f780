"""Prompts as what a UNet is conditioned on: a pipeline's text encoders and what they made."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from srrl.models.parts import quiet

ENCODERS = ("text_encoder", "text_encoder_2")  # SDXL has both
TOKENIZERS = ("tokenizer", "tokenizer_2")


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of B samples.

    text, empty           float32 [B, L, D], of the prompts and of the empty prompt
    pooled, pooled_empty  float32 [B, P], SDXL's pooled embeddings of both; P is 0 for SD
    """

    text: Tensor
    empty: Tensor
    pooled: Tensor
    pooled_empty: Tensor

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, index: Tensor | slice) -> Self:
        return type(self)(*(tensor[index] for tensor in vars(self).values()))


class PromptEncoder:
    """A pipeline's text encoders. What was encoded is kept, so they may be released.

    negative_prompt: what guidance leads away from; to be set before prompts are encoded.
    """

    def __init__(self, pipe: DiffusionPipeline, device: torch.device):
        self.pipe, self.device, self.negative_prompt = pipe, device, ""
        self._embeddings: dict[str, tuple[Tensor, Tensor]] = {}
        self._empty: tuple[Tensor, Tensor] | None = None

    @property
    def modules(self) -> list[nn.Module]:
        found = (getattr(self.pipe, name, None) for name in ENCODERS)
        return [encoder for encoder in found if encoder is not None]

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning of the prompts; each distinct prompt goes through the encoders once."""
        self.remember(prompts)
        text, pooled = zip(*(self._embeddings[p] for p in prompts), strict=True)
        assert self._empty is not None  # remembered with the first prompt
        empty, pooled_empty = self._empty
        n = (len(prompts), *[-1] * empty.dim())
        return Conditioning(
            torch.stack(text).to(self.device),
            empty.to(self.device).expand(n),
            torch.stack(pooled).to(self.device),
            pooled_empty.to(self.device).expand(n[:2]),
        )

    def remember(self, prompts: Iterable[str]) -> None:
        """Encode what is not encoded yet and keep it.

        One at a time, so that an embedding does not depend on the company it was made in.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:
                self._embeddings[prompt], self._empty = self._encode(prompt)

    @torch.no_grad()
    def _encode(self, prompt: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """((hidden [L, D], pooled [P]) of the prompt, and of the empty one), as the pipeline's."""
        if not self.modules:
            raise RuntimeError(f"the text encoders were released before {prompt!r} was encoded")
        with quiet():  # what it says of each prompt that is cut, `cut` says once
            result = self.pipe.encode_prompt(
                [prompt],
                device=self.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=True,
                negative_prompt=[self.negative_prompt] if self.negative_prompt else None,
            )
        text, empty, *rest = (tensor[0].float().cpu() for tensor in result)
        pooled, pooled_empty = rest or (torch.zeros(0), torch.zeros(0))
        return (text, pooled), (empty, pooled_empty)

    def only(self, prompts: Iterable[str]) -> str:
        """Remember these prompts, release the encoders, and say what is cut."""
        prompts = [*prompts]
        self.remember(prompts)
        self.release()
        return self.cut(prompts)

    def cut(self, prompts: Iterable[str]) -> str:
        """A line about those of the prompts whose end no text encoder reads, "" for none."""
        words = filter(None, (getattr(self.pipe, name, None) for name in TOKENIZERS))
        prompts, long = [*dict.fromkeys(prompts)], {}
        with quiet():
            for tokenizer in words:
                for prompt in prompts:
                    tokens = len(tokenizer(prompt).input_ids)
                    if tokens > tokenizer.model_max_length:
                        long[prompt] = tokens, tokenizer.model_max_length
        if not long:
            return ""
        prompt, (tokens, most) = max(long.items(), key=lambda item: item[1])
        return (
            f"  {len(long)} of {len(prompts)} prompts are longer than the {most} tokens that the "
            f"text encoder reads, up to {tokens}: their end is not seen, as of {prompt[:60]!r}..."
        )

    def forget(self, prompts: Iterable[str]) -> None:
        """Free what is kept of prompts that are not likely to come again."""
        for prompt in prompts:
            self._embeddings.pop(prompt, None)

    def release(self) -> None:
        """Free the text encoders' memory; new prompts cannot be encoded then."""
        for name in ENCODERS:
            if hasattr(self.pipe, name):
                setattr(self.pipe, name, None)
