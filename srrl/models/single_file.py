"""A model in one .safetensors file, as people share them: what it is, its markers, its parts.

The names are those of CompVis' latent diffusion code; the configs, tokenizers and the scheduler
come from a diffusers folder of the same architecture.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from safetensors.torch import load_file
from torch import nn

from srrl.errors import UserError
from srrl.models.folders import Description
from srrl.models.kinds import PARTS, SD, SDXL, SERVE, channels_fault
from srrl.models.parts import assembled, finite, refuse_unfit
from srrl.models.tensor_files import Header

UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer."
VAE = ("first_stage_model.", "vae.")
# What the names of each part begin with.
PREFIXES = {
    SD: {"unet": (UNET,), "vae": VAE, "text_encoder": ("cond_stage_model.",)},
    SDXL: {
        "unet": (UNET,),
        "vae": VAE,
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
}
CONVERT = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}
# What a file is that is no model of ours, by what a name in it contains; the first that is there.
LORA = "a LoRA: give it as --checkpoint or --config.pretrained.lora, beside the model it is for"
PART_OF = "give the whole model, or a diffusers folder"
MARKS = {
    "lora_": LORA,
    ".lora.": LORA,
    "lokr_": LORA,
    "hada_": LORA,
    ".oft_": LORA,
    "dora_scale": LORA,
    "control_model.": f"a ControlNet: {SERVE}",
    "controlnet_": f"a ControlNet: {SERVE}",
    "lllite": f"a ControlNet: {SERVE}",
    "ip_adapter": f"an IP-Adapter: {SERVE}",
    "motion_modules.": f"an AnimateDiff motion module: {SERVE}",
    "double_blocks.": f"a Flux model: {SERVE}",
    "joint_blocks.": f"an SD3 model: {SERVE}",
    "adaln_single.": f"a PixArt model: {SERVE}",
    "edm_mean": f"a Playground v2.5 model, of EDM preconditioning: {SERVE}",
    "edm_vpred.": f"a model of EDM preconditioning (edm_vpred): {SERVE}",
    "time_embed.cond_proj": f"an LCM-distilled model: {SERVE}",
}
ALONE = {
    "emb_params": "a textual inversion: not a model",
    "model_ema.": "a model with its averaged weights (EMA) alone: give one with the others",
    "input_blocks.": f"a UNet by itself: {PART_OF}",
    "down_blocks.0.attentions": f"a UNet by itself: {PART_OF}",
    "time_embedding.": f"a UNet by itself: {PART_OF}",
    "decoder.": "a VAE: give it as --config.pretrained.vae, beside a model",
    "text_model.": f"a text encoder: {PART_OF}",
    "resblocks.": f"a text encoder: {PART_OF}",
    "encoder.layers.": f"a text encoder: {PART_OF}",
    "transformer_blocks.": f"a diffusion transformer (Flux, SD3, PixArt): {SERVE}",
}


def file_kind(header: Header, named: str, configured: bool = True) -> str:
    """SD or SDXL, by a file's names and shapes. configured: are its configs given?

    Raises UserError for another kind.
    """
    fault = next((what for mark, what in MARKS.items() if _any(header.shapes, mark)), None)
    fault = fault or _other_architecture(header)
    unet = {k.removeprefix(UNET): v for k, v in header.shapes.items() if k.startswith(UNET)}
    xl = _any(header.shapes, "conditioner.") or "label_emb.0.0.weight" in unet
    if fault is None and not unet:
        fault = next((what for mark, what in ALONE.items() if _any(header.shapes, mark)), None)
        first = next(iter(header.shapes), "it is empty")
        fault = fault or f"no model: none of its {len(header.shapes)} tensors is known ({first})"
    if fault is None:
        fault = _unet_file_fault(header, unet, xl, configured)
    if fault:
        raise UserError(f"{named} is {fault}")
    return SDXL if xl else SD


def _any(names: Iterable[str], mark: str) -> bool:
    return any(mark in name for name in names)


def _other_architecture(header: Header) -> str | None:
    """What the standard header (modelspec) calls it, if that is no SD or SDXL."""
    said = header.metadata.get("modelspec.architecture", "").lower()
    if (said and not said.startswith("stable-diffusion")) or "stable-diffusion-3" in said:
        return f"of modelspec.architecture={said}: {SERVE}"
    base, _, adapter = said.partition("/")
    if adapter or "refiner" in base:
        return f"of modelspec.architecture={said}: " + (LORA if "lora" in adapter else SERVE)
    return None


def _unet_file_fault(
    header: Header, unet: Mapping[str, tuple[int, ...]], xl: bool, configured: bool
) -> str | None:
    if not _any(unet, "input_blocks."):
        return f"a diffusion model of another architecture ({next(iter(unet))}): {SERVE}"
    first, last = (unet.get(key, ()) for key in ("input_blocks.0.0.weight", "out.2.weight"))
    if len(first) != 4 or len(last) != 4:
        return "incomplete: its UNet lacks the first or the last convolution: download it again"
    decoders = (header.shapes.get(f"{prefix}decoder.conv_in.weight") for prefix in VAE)
    latent = next((shape[1] for shape in decoders if shape and len(shape) == 4), 4)
    if fault := channels_fault(first[1], last[0], latent):
        return fault
    if xl and _any(header.shapes, "conditioner.embedders.0.model."):
        return f"an SDXL refiner, which refines the pictures of a base: {SERVE}"
    if xl and not _any(header.shapes, "conditioner.") and _any(header.shapes, "cond_stage_model."):
        return f"an unCLIP model, which needs a picture, too: {SERVE}"
    if not (xl or configured) and _any(header.shapes, "cond_stage_model.model."):
        return (
            "an SD 2.x model, and does not say whether it predicts epsilon or v: add "
            "--config.pretrained.single_file_config=MODEL, a folder or hub name of the one it is of"
        )
    return None


def markers(header: Header, scheduler: Mapping[str, Any], named: str) -> dict[str, Any]:
    """What the file says of its scheduler, to be set beside the config's.

    Read are the names `v_pred` and, of a model of v, `ztsnr`, as NoobAI left them and ComfyUI reads
    them, and modelspec.prediction_type. Raises UserError where they contradict each other or a
    config of v.
    """
    said = {"v_prediction"} if "v_pred" in header.shapes else set()
    spec = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if spec in ("v", "v_prediction", "v-prediction"):
        said.add("v_prediction")
    elif spec in ("epsilon", "eps"):
        said.add("epsilon")
    elif spec not in ("", "none"):
        raise UserError(f"{named} has modelspec.prediction_type={spec}: {SERVE}")
    elif header.metadata.get("modelspec.architecture", "").lower().endswith("-v"):
        said.add("v_prediction")  # as stable-diffusion-v2-768-v
    if len(said) > 1:
        raise UserError(
            f"{named} contradicts itself: it has the marker v_pred and modelspec.prediction_type="
            f"epsilon: remove the one that is wrong"
        )
    prediction = scheduler.get("prediction_type", "epsilon")
    if said == {"epsilon"} and prediction != "epsilon":
        raise UserError(
            f"{named} has modelspec.prediction_type=epsilon, and the scheduler of "
            f"config.pretrained.single_file_config {prediction}: give the config of the same model"
        )
    found: dict[str, Any] = {"prediction_type": said.pop()} if said else {}
    if "ztsnr" in header.shapes and found.get("prediction_type", prediction) == "v_prediction":
        found["rescale_betas_zero_snr"] = True
    return {key: value for key, value in found.items() if scheduler.get(key) != value}


def marked(scheduler: SchedulerMixin, found: Mapping[str, Any]) -> SchedulerMixin:
    """The scheduler, or where the file has markers, DDIM by them."""
    if not found:
        return scheduler
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False, **found)


def parts_of_file(
    file: str, described: Description, dtype: torch.dtype, named: str, without: Iterable[str] = ()
) -> dict[str, nn.Module]:
    """The parts that a file has, with weights of `dtype`, but those of `without`.

    Raises UserError for a part of which the file has not every tensor in its shape.
    """
    state = {_today(key): value for key, value in load_file(file).items()}
    parts: dict[str, nn.Module] = {}
    for part, cls in PARTS[described.name].items():
        prefixes = PREFIXES[described.name][part]
        own = {key: value for key, value in state.items() if key.startswith(prefixes)}
        where = f"{named}: its {part}"
        if part in without or not own:
            continue
        if part in CONVERT:
            config = described.configs[part]
            parts[part] = assembled(cls, config, own, CONVERT[part], dtype, where)
        else:
            configs = str(described.folder)
            encoder = create_diffusers_clip_model_from_ldm(
                cls, own, part, configs, dtype, local_files_only=True
            )
            missing = [key for key, p in encoder.named_parameters() if p.is_meta]
            refuse_unfit(where, missing, [], len(encoder.state_dict()))
            parts[part] = finite(encoder, where)
    return parts


def _today(key: str) -> str:
    """A name as it is today: of old files, text encoders lack `text_model`."""
    if key.startswith(CLIP) and not key.startswith(CLIP + "text_model."):
        return CLIP + "text_model." + key.removeprefix(CLIP)
    return key
