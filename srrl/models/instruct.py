"""The instruct editor: InstructPix2Pix (arXiv 2211.09800) as a policy over denoising steps.

Its UNet sees the picture's latents beside the noisy ones; there are two guidance scales, for the
text and for the picture.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy


@dataclass(frozen=True)
class Instruction(Conditioning):
    """Conditioning of B edits: of their texts, and picture float32 [B, C, h, w], what is edited."""

    picture: Tensor


def weights_of(guidance: float, image_guidance: float) -> tuple[float, float, float]:
    """Of the network's outputs given text and picture, the picture alone, and neither."""
    return guidance, image_guidance - guidance, 1 - image_guidance


def evaluations_a_step(guidance: float, image_guidance: float) -> int:
    """Of the network, for a picture: an evaluation for each output that does not cancel."""
    return sum(weight != 0 for weight in weights_of(guidance, image_guidance))


class InstructPolicy(Policy):
    """A StableDiffusion(XL)InstructPix2PixPipeline as a policy.

    image_guidance: the picture's guidance scale; at 1 the evaluation without a picture cancels, and
    a step costs two instead of three.
    """

    image_guidance: float = 1.0

    @classmethod
    def load(cls, model: str, *, image_guidance: float = 1.0, **settings: Any) -> Self:
        """Load an InstructPix2Pix folder or hub name; settings: those of Policy.load. Raises
        UserError."""
        policy = super().load(model, edits=True, **settings)
        policy.image_guidance = image_guidance
        return policy

    def instruct(self, images: Tensor, texts: list[str]) -> Instruction:
        """What to do with pictures uint8 [B, 3, H, W] of the policy's own size."""
        if len(images) != len(texts) or tuple(images.shape[-2:]) != self.image_size:
            raise ValueError(
                f"{list(images.shape)} pictures for {len(texts)} texts: one for each, of "
                f"{self.image_size}"
            )
        return Instruction(**vars(self.encode(texts)), picture=self.see(images))

    def predict(  # type: ignore[override]  # what `instruct` made is all that it is given
        self, x: Tensor, step: Tensor, conditioning: Instruction, guidance: float
    ) -> Tensor:
        """Guided network output float32 [B, C, h, w] at x, for denoising-step indices [B].

        e = e(x, -, -) + w (e(x, c, p) - e(x, -, p)) + v (e(x, -, p) - e(x, -, -)), of text c under
        w and picture p under v = image_guidance (equation 3 there): an evaluation for each of the
        three that does not cancel. Without gradient it runs in micro-batches.
        """
        if not torch.is_grad_enabled() and len(x) > self.micro_batch:
            parts = torch.arange(len(x), device=x.device).split(self.micro_batch)
            return torch.cat(
                [self.predict(x[i], step[i], conditioning.rows(i), guidance) for i in parts]
            )
        c, nothing = conditioning, torch.zeros_like(conditioning.picture)
        given = [
            (c.text, c.pooled, c.picture),
            (c.empty, c.pooled_empty, c.picture),
            (c.empty, c.pooled_empty, nothing),
        ]
        terms = zip(weights_of(guidance, self.image_guidance), given, strict=True)
        weights, used = zip(*(term for term in terms if term[0]), strict=True)
        text, pooled, picture = map(torch.cat, zip(*used, strict=True))
        n = len(weights)
        both = torch.cat([torch.cat([x] * n), picture], 1)
        output = self._unet(both, self.schedule.timesteps[step].repeat(n), text, pooled)
        return sum(w * part for w, part in zip(weights, output.chunk(n), strict=True))
