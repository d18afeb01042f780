"""The policy: UNet with LoRA, text encoders and VAE of a diffusers pipeline behind one face.

Everything that depends on the kind of pipeline is in this file; the rest of the code sees
prompts, latents, noise predictions and pictures.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from ml_collections import ConfigDict
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from srrl.config import resolve
from srrl.ddim import Schedule, make_schedule, noise_from_output
from srrl.errors import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of B samples: text [B, L, D] of the prompts, empty [B, L, D] of ""."""

    text: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.text)

    def rows(self, index: Tensor | slice) -> "Conditioning":
        return replace(self, text=self.text[index], empty=self.empty[index])


class Policy:
    """A StableDiffusionPipeline as a policy over denoising steps.

    `micro_batch` bounds the samples in one network call without gradient, and so the memory;
    results do not depend on it. `nfe` counts network evaluations, one for each sample and call
    (two under classifier-free guidance), with and without gradient.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        schedule: Schedule,
        *,
        micro_batch: int,
        device: torch.device | str = "cpu",
    ):
        self.pipe = pipe
        self.device = torch.device(device)
        self.schedule = schedule.to(self.device)
        self.micro_batch = micro_batch
        self.nfe = 0
        self._embeddings: dict[str, Tensor] = {}
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            module.requires_grad_(False).eval().to(self.device)
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
        revision: str | None = None,
        variant: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Policy":
        """Load a pipeline folder or hub model. Raises UserError if it cannot be had or used."""
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                model,
                revision=revision,
                variant=variant,
                torch_dtype=dtype,
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
                requires_safety_checker=False,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot load pretrained.model={model!r}: give a local diffusers folder or a hub "
                f"name this machine can reach ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        schedule = make_schedule(pipe.scheduler.config, num_steps, eta)
        return cls(pipe, schedule, micro_batch=micro_batch, device=device)

    @classmethod
    def from_config(
        cls,
        c: ConfigDict,
        *,
        device: torch.device | str,
        model: str | None = None,
        num_steps: int | None = None,
        eta: float | None = None,
    ) -> "Policy":
        """The config's model without a LoRA; the arguments replace the config's values.

        On a CPU, half precision becomes float32: it would be slow there, and is not supported.
        """
        half = torch.device(device).type != "cpu"
        return cls.load(
            model or resolve(c.pretrained.model),
            num_steps=num_steps or c.sample.num_steps,
            eta=c.sample.eta if eta is None else eta,
            micro_batch=c.sample.micro_batch,
            revision=c.pretrained.revision,
            variant=c.pretrained.variant,
            device=device,
            dtype=DTYPES[c.mixed_precision] if half else torch.float32,
        )

    # ------------------------------------------------------------------ text and pictures

    def encode(self, prompts: list[str]) -> Conditioning:
        """Conditioning of the prompts; each distinct prompt goes through the encoder once."""
        missing = [p for p in dict.fromkeys([*prompts, ""]) if p not in self._embeddings]
        if missing:
            with torch.no_grad():
                embedded, _ = self.pipe.encode_prompt(missing, self.device, 1, False)
            self._embeddings.update(zip(missing, embedded.float(), strict=True))
        text = torch.stack([self._embeddings[p] for p in prompts])
        return Conditioning(text, self._embeddings[""].expand_as(text))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] of latents [B, C, h, w]."""
        vae = self.pipe.vae
        pictures = []
        for part in latents.split(self.micro_batch):
            decoded = vae.decode((part / vae.config.scaling_factor).to(vae.dtype)).sample.float()
            if not bool(torch.isfinite(decoded).all()):
                raise FloatingPointError("the VAE decoded non-finite pixels: use fp32 for the VAE")
            pictures.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8))
        return torch.cat(pictures)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        config = self.pipe.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    # ------------------------------------------------------------------ noise prediction

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
        t = self.schedule.timesteps[step]
        if guidance == 0:
            return self._unet(x, t, conditioning.empty)
        if guidance == 1:
            return self._unet(x, t, conditioning.text)
        both = torch.cat([conditioning.empty, conditioning.text])
        empty, text = self._unet(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return empty + guidance * (text - empty)

    def noise(
        self, x: Tensor, step: Tensor, alpha: Tensor, conditioning: Conditioning, guidance: float
    ) -> Tensor:
        """Guided predicted noise [B, C, h, w] at x of level alpha [B, 1, 1, 1]."""
        output = self.predict(x, step, conditioning, guidance)
        return noise_from_output(output, x, alpha, self.schedule.prediction)

    def _unet(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.nfe += len(x)
        dtype = self.pipe.unet.dtype
        half = dtype in (torch.float16, torch.bfloat16)  # LoRA weights stay float32
        with torch.autocast(self.device.type, dtype) if half else nullcontext():
            output = self.pipe.unet(x.to(dtype), t, text.to(dtype), return_dict=False)[0]
        return output.float()

    # ------------------------------------------------------------------ LoRA

    def add_lora(self, settings: ConfigDict, seed: int) -> None:
        """Add a fresh LoRA (arXiv 2106.09685), which changes nothing until it is trained.

        settings: the config's `lora` section.
        """
        torch.manual_seed(seed)
        self.pipe.unet.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian",
                target_modules=list(settings.target_modules),
            )
        )
        for parameter in self.trainable():
            parameter.data = parameter.data.float()

    def trainable(self) -> Iterator[nn.Parameter]:
        return (p for p in self.pipe.unet.parameters() if p.requires_grad)

    def save_lora(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `pipe.load_lora_weights` reads."""
        unet = self.pipe.unet
        self.pipe.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet)),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )

    def load_lora(self, folder: Path) -> None:
        """Read what save_lora wrote into the LoRA that add_lora made, exactly."""
        state = {k.removeprefix("unet."): v for k, v in load_file(folder / LORA_FILE).items()}
        state = convert_unet_state_dict_to_peft(state)
        result = set_peft_model_state_dict(self.pipe.unet, state)
        if result.unexpected_keys or any("lora_" in k for k in result.missing_keys):
            raise UserError(
                f"the LoRA in {folder} does not fit this model and lora settings: use the "
                f"pretrained.model and lora.* it was trained with"
            )
