"""The instruct editor: InstructPix2Pix (arXiv 2211.09800) as a policy over denoising steps.

Its UNet sees the picture's latents beside the noisy ones; there are two guidance scales, for the
text and for the picture.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy


@dataclass(frozen=True)
class Instruction(Conditioning):
    """Conditioning of B edits: of their texts, and picture float32 [B, C, h, w], what is edited."""

    picture: Tensor


class InstructPolicy(Policy):
    """A StableDiffusion(XL)InstructPix2PixPipeline as a policy.

    image_guidance: the picture's guidance scale; at 1 the evaluation without a picture cancels, and
    a step costs two instead of three.
    """

    image_guidance: float = 1.0

    @classmethod
    def load(cls, model: str, *, image_guidance: float = 1.0, **settings: Any) -> "InstructPolicy":
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

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """The latents float32 [B, C, h, w] of pictures uint8 [B, 3, H, W]: the mode of the VAE's
        posterior, not scaled, as InstructPix2Pix is trained on."""
        parts = []
        for part in images.split(self.decode_batch):
            pixels = self._pad(part.to(self.device).float() / 127.5 - 1)
            encoded = self.pipe.vae.encode(pixels.to(self.vae_dtype)).latent_dist.mode()
            parts.append(encoded[: len(part)].float())
        return torch.cat(parts)

    def predict(
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
        c, seen = conditioning, self.image_guidance
        nothing = torch.zeros_like(c.picture)
        terms = [
            (guidance, c.text, c.pooled, c.picture),
            (seen - guidance, c.empty, c.pooled_empty, c.picture),
            (1 - seen, c.empty, c.pooled_empty, nothing),
        ]
        weights, *given = zip(*(term for term in terms if term[0]), strict=True)
        text, pooled, picture = map(torch.cat, given)
        n = len(weights)
        both = torch.cat([torch.cat([x] * n), picture], 1)
        output = self._unet(both, self.schedule.timesteps[step].repeat(n), text, pooled)
        return sum(w * part for w, part in zip(weights, output.chunk(n), strict=True))
