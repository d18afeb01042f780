"""The policy: UNet, text encoders and VAE of a diffusers pipeline behind one face.

Everything that depends on the kind of pipeline, StableDiffusionPipeline or
StableDiffusionXLPipeline, is in this file; the rest of the code sees prompts, latents, noise
predictions and pictures.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from ml_collections import ConfigDict
from torch import Tensor, nn

from srrl.config import resolve
from srrl.ddim import Schedule, denoise_mean, invert, make_schedule, noise_from_output
from srrl.errors import UserError
from srrl.models import weights
from srrl.models.conditioning import Conditioning, PromptEncoder
from srrl.models.loading import load_pipeline, set_arithmetic
from srrl.models.start import start_from

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# On a CPU, matrix products of few rows, or of a number that is no multiple, take other kernels and
# round differently, and inversion amplifies it: samples are a multiple, and together have so many
# places.
CPU_MULTIPLE, CPU_PLACES = 4, 768


class Policy:
    """A Stable Diffusion or SDXL pipeline as a policy over denoising steps; a Trainee.

    `micro_batch` bounds the samples in one network call without gradient, `decode_batch` the
    pictures decoded at once, and so the memory; on a CPU results do not depend on them beyond
    rounding, a GPU's kernels may round otherwise for another batch. `dtype` is the precision of
    the network's arithmetic; everything around it is float32. `nfe` counts network evaluations,
    one for each sample and call (two under classifier-free guidance), with and without gradient.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        schedule: Schedule,
        *,
        micro_batch: int,
        decode_batch: int | None = None,
        resolution: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.pipe, self.dtype = pipe, dtype
        self.device = torch.device(device)
        self.schedule = schedule.to(self.device)
        self.micro_batch, self.decode_batch = micro_batch, decode_batch or micro_batch
        self.nfe = 0
        self.is_xl = isinstance(pipe, StableDiffusionXLPipeline)
        config, scale = pipe.unet.config, 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        resolution = resolution or config.sample_size * scale
        if resolution % (8 * scale) and resolution != config.sample_size * scale:
            raise UserError(
                f"config.sample.resolution={resolution} does not fit the model: a multiple of "
                f"{8 * scale}"
            )
        # (C, h, w) of one latent, and (H, W) of its picture
        self.latent_shape = (config.out_channels, resolution // scale, resolution // scale)
        self.image_size = (resolution, resolution)
        self.pads = self.device.type == "cpu"
        # SDXL's size conditioning: original size, crop corner, target size
        self.time_ids = torch.tensor([resolution, resolution, 0, 0, resolution, resolution])
        self.encoder = PromptEncoder(pipe, self.device)
        # SDXL's own VAE overflows in fp16; its config says so, and that of a mended one does not.
        upcast = self.is_xl and dtype == torch.float16 and pipe.vae.config.force_upcast
        self.vae_dtype = torch.float32 if upcast else dtype
        for module in (pipe.unet, pipe.vae, *self.text_encoders):
            module.requires_grad_(False).eval().to(self.device)
        for module, kind in ((pipe.vae, self.vae_dtype), *((e, dtype) for e in self.text_encoders)):
            if module.dtype != kind:
                nn.Module.to(module, kind)  # diffusers' own `to` warns of what does not apply
        for module in (pipe.unet, pipe.vae):
            module.to(memory_format=torch.channels_last)  # the faster layout for convolutions

    @classmethod
    def load(
        cls,
        model: str,
        *,
        num_steps: int,
        eta: float,
        micro_batch: int,
        decode_batch: int | None = None,
        resolution: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        float32_unet: bool = False,
        **source: Any,
    ) -> Self:
        """Load a model (`source`: see srrl.models.loading) for T = num_steps. Raises UserError.

        float32_unet keeps the UNet's weights in float32 in any precision, to train all of them.
        """
        weights = torch.float32 if float32_unet else dtype
        pipe = load_pipeline(model, dtype=weights, device=device, **source)
        return cls(
            pipe,
            make_schedule(pipe.scheduler.config, num_steps, eta),
            micro_batch=micro_batch,
            decode_batch=decode_batch,
            resolution=resolution,
            dtype=dtype,
            device=device,
        )

    @classmethod
    def from_config(
        cls,
        c: ConfigDict,
        *,
        device: torch.device | str,
        model: str | None = None,
        num_steps: int | None = None,
        eta: float | None = None,
    ) -> Self:
        """The config's model before training; the arguments replace the config's values.

        On a CPU, half precision becomes float32: it would be slow there.
        """
        p, half = c.pretrained, torch.device(device).type != "cpu"
        set_arithmetic(c.allow_tf32, c.deterministic, device)
        return cls.load(
            model or resolve(p.model),
            num_steps=num_steps or c.sample.num_steps,
            eta=c.sample.eta if eta is None else eta,
            micro_batch=c.sample.micro_batch,
            decode_batch=c.sample.decode_batch,
            resolution=c.sample.resolution,
            device=device,
            dtype=DTYPES[c.mixed_precision] if half else torch.float32,
            float32_unet=not c.use_lora,
            revision=p.revision,
            variant=p.variant,
            vae=p.vae and resolve(p.vae),
            single_file_config=p.single_file_config and resolve(p.single_file_config),
        )

    # ------------------------------------------------------------------ text and pictures

    @property
    def text_encoders(self) -> list[nn.Module]:
        return self.encoder.modules

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning of the prompts; each distinct prompt goes through the encoders once."""
        return self.encoder.encode(prompts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] on the CPU, of latents [B, C, h, w].

        A batch that overflows the VAE's half precision is decoded again in float32. Raises
        UserError for pixels that are not finite there either.
        """
        pictures = []
        for part in latents.split(self.decode_batch):
            decoded = self.pixels(part)
            if self.vae_dtype != torch.float32 and not torch.isfinite(decoded).all():
                nn.Module.to(self.pipe.vae, torch.float32)
                decoded = self.pixels(part, torch.float32)
                nn.Module.to(self.pipe.vae, self.vae_dtype)
            if not torch.isfinite(decoded).all():
                raise UserError(
                    "the VAE decodes to pixels that are not finite, in float32 as well: the "
                    "policy's latents have left what it knows; start again under another "
                    "run_name with a lower train.learning_rate or another pretrained.vae"
                )
            pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
            pictures.append(pixels.to(torch.uint8).cpu())
        return torch.cat(pictures)

    def pixels(self, latents: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The VAE's output float32 [B, 3, H, W], about -1 to 1, of latents [B, C, h, w].

        dtype: the VAE's precision, where it is not `vae_dtype` for now.
        """
        vae, dtype = self.pipe.vae, dtype or self.vae_dtype
        spread, mean = self._moments(latents)
        padded = self._pad(latents / vae.config.scaling_factor * spread + mean)
        return vae.decode(padded.to(dtype)).sample[: len(latents)].float()

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] as the VAE sees them: float32 [B, C, h, w], not scaled."""
        parts = []
        for part in images.split(self.decode_batch):
            pixels = self._pad(part.to(self.device).float() / 127.5 - 1)
            encoded = self.pipe.vae.encode(pixels.to(self.vae_dtype)).latent_dist.mode()
            parts.append(encoded[: len(part)].float())
        return torch.cat(parts)

    def to_latents(self, images: Tensor) -> Tensor:
        """x_0 float32 [B, C, h, w] of pictures uint8 [B, 3, H, W], the inverse of `decode`."""
        seen = self.see(images)
        spread, mean = self._moments(seen)
        return (seen - mean) / spread * self.pipe.vae.config.scaling_factor

    def _moments(self, like: Tensor) -> tuple[Tensor, ...]:
        """The VAE's latents' standard deviation and mean, where SDXL's pipeline reads them."""
        vae, given = self.pipe.vae.config, (1.0, 0.0)
        if self.is_xl and vae.latents_mean and vae.latents_std:
            given = (vae.latents_std, vae.latents_mean)
        return tuple(like.new_tensor(values).view(-1, 1, 1) for values in given)

    # ------------------------------------------------------------------ denoising steps

    def predict(
        self, x: Tensor, step: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Guided network output float32 [B, C, h, w] at x, for denoising-step indices [B].

        e_w = e(x, t, -) + w (e(x, t, c) - e(x, t, -)) (arXiv 2207.12598): one evaluation where
        w is 0 or 1, otherwise two in one call. Without gradient it runs in micro-batches.
        """
        if not torch.is_grad_enabled() and len(x) > self.micro_batch:
            parts = torch.arange(len(x), device=x.device).split(self.micro_batch)
            return torch.cat(
                [self.predict(x[i], step[i], conditioning.rows(i), guidance) for i in parts]
            )
        c, t = conditioning, self.schedule.timesteps[step]
        if guidance == 0:
            return self._unet(x, t, c.empty, c.pooled_empty)
        if guidance == 1:
            return self._unet(x, t, c.text, c.pooled)
        both = torch.cat([c.empty, c.text]), torch.cat([c.pooled_empty, c.pooled])
        empty, text = self._unet(torch.cat([x, x]), torch.cat([t, t]), *both).chunk(2)
        return empty + guidance * (text - empty)

    def step(
        self,
        x: Tensor,
        step: int | Tensor,
        conditioning: Conditioning,
        guidance: float,
        eta: float,
    ) -> tuple[Tensor, Tensor]:
        """The Gaussian p(x_s | x_t) of a denoising step: its mean [B, C, h, w] and sigma [B, 1, 1,
        1], 0 where eta is 0.

        x: x_t [B, C, h, w]; step: the step's index, one for all or int64 [B].
        """
        step = self._index(step, x)
        a_t, a_s, sigma = self.schedule.coefficients(step, eta)
        noise = self._noise(x, step, a_t, conditioning, guidance)
        return denoise_mean(x, noise, a_t, a_s, sigma), sigma

    def step_back(
        self, x: Tensor, step: int | Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """x_t [B, C, h, w] from x_s: the denoising step with this index inverted."""
        step = self._index(step, x)
        a_t, a_s, _ = self.schedule.coefficients(step, 0.0)
        noise = self._noise(x, step, a_s, conditioning, guidance)
        return invert(x, noise, a_s, a_t)

    def _noise(
        self, x: Tensor, step: Tensor, alpha: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Guided predicted noise [B, C, h, w] at x of level alpha [B, 1, 1, 1]."""
        output = self.predict(x, step, conditioning, guidance)
        return noise_from_output(output, x, alpha, self.schedule.prediction)

    def _index(self, step: int | Tensor, x: Tensor) -> Tensor:
        return step if isinstance(step, Tensor) else torch.full((len(x),), step, device=x.device)

    def _unet(self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """The network's output float32 [B, C, h, w]."""
        rows, half = len(x), self.dtype != torch.float32
        self.nfe += rows
        if not torch.is_grad_enabled():
            x, t, text, pooled = map(self._pad, (x, t, text, pooled))
        # Trained weights are float32 whatever the precision: autocast, not the weights, decides.
        with torch.autocast(self.device.type, self.dtype) if half else nullcontext():
            output = self.pipe.unet(
                x.to(self.dtype),
                t,
                text.to(self.dtype),
                added_cond_kwargs=self.size_conditioning(pooled.to(self.dtype)),
                return_dict=False,
            )[0]
        return output[:rows].float()

    def size_conditioning(self, pooled: Tensor) -> dict[str, Tensor] | None:
        """What SDXL's UNet is told besides: pooled embeddings [B, P] and sizes [B, 6]."""
        if not self.is_xl:
            return None
        sizes = self.time_ids.to(pooled.device, pooled.dtype).expand(len(pooled), -1)
        return {"text_embeds": pooled, "time_ids": sizes}

    def padded(self, rows: int) -> int:
        """The rows of a network call for so many: more where a CPU would round differently."""
        if not self.pads or not rows:
            return rows
        fewest = -(-CPU_PLACES // math.prod(self.latent_shape[1:]))
        return -(-max(rows, fewest) // CPU_MULTIPLE) * CPU_MULTIPLE

    def _pad(self, x: Tensor) -> Tensor:
        """x with its last row repeated up to padded rows."""
        missing = self.padded(len(x)) - len(x)
        return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x

    # ------------------------------------------------------------------ as a Trainee

    @property
    def network(self) -> UNet2DConditionModel:
        return self.pipe.unet

    def prepare(self, prompts: Iterable[str]) -> str:
        """Encode every prompt that is still to come and free the text encoders' memory."""
        return self.encoder.only(prompts)

    def trainable(self) -> Iterator[nn.Parameter]:
        return weights.trainable(self.network)

    def weights(self) -> dict[str, Tensor]:
        return weights.trained_weights(self.network)

    def save_weights(self, folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        weights.save_weights(self.network, folder, state)
        return state if weights.has_lora(self.network) else None

    def load_weights(self, folder: Path, exact: dict[str, Tensor] | None = None) -> None:
        weights.load_weights(self.network, folder)
        if exact:
            weights.put_weights(self.network, exact)

    def start(self, lora: str) -> str:
        """Give the fresh LoRA the effect of another one (srrl.models.start); says what it took."""
        return f"started from {lora}: {start_from(self.pipe, lora)}"
