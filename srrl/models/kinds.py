"""What a model's parts are, by their configurations: those that cannot serve are named.

Each `..._fault` returns what stands against a part in one phrase, None where nothing does.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from srrl.ddim import ONLY, scheduler_fault

SD, SDXL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
# Pipelines that edit a picture, whose latents their UNets see beside the noisy ones, and those that
# hold the same parts.
EDITORS = {
    "StableDiffusionInstructPix2PixPipeline": SD,
    "StableDiffusionXLInstructPix2PixPipeline": SDXL,
}
# The parts with weights of each pipeline.
PARTS = {
    SD: {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel},
    SDXL: {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    },
}
# What a UNet of so many input channels is, where its VAE has 4.
CHANNELS = {
    5: "a depth-to-image UNet",
    7: "an upscaler's UNet",
    8: "an InstructPix2Pix UNet",
    9: "an inpainting UNet",
}
SERVE = "give a text-to-image model of SD or SDXL, for no other can be sampled and trained"


def channels_fault(inputs: int, outputs: int, latent: int) -> str | None:
    """Of a UNet's channels beside those of its VAE's latents."""
    if inputs != latent:
        what = CHANNELS.get(inputs, "a UNet")
        return f"{what} of {inputs} input channels, beside a VAE of {latent}: {SERVE}"
    if outputs == 2 * latent:
        return f"a UNet of {outputs} output channels, which learns its variance, too: {SERVE}"
    if outputs != latent:
        return f"a UNet of {outputs} output channels, beside a VAE of {latent}: {SERVE}"
    return None


def unet_fault(config: Mapping[str, Any], latent: int, xl: bool, pooled: int) -> str | None:
    """Of a UNet's config. pooled: the width of SDXL's second text encoder."""
    name = config.get("_class_name", UNet2DConditionModel.__name__)
    if name != UNet2DConditionModel.__name__:
        return f"a {name}: {SERVE}"
    if "quantization_config" in config:
        return "a quantised UNet: give the model in fp16, bf16 or fp32"
    if fault := channels_fault(config.get("in_channels", 4), config.get("out_channels", 4), latent):
        return fault
    if config.get("time_cond_proj_dim"):
        return f"an LCM-distilled UNet, which is told the guidance (time_cond_proj_dim): {SERVE}"
    for key in ("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type"):
        if config.get(key):
            return f"a UNet that needs more than a prompt ({key}={config[key]!r}): {SERVE}"
    kind = config.get("addition_embed_type")
    if kind != ("text_time" if xl else None):
        return f"a UNet of addition_embed_type={kind!r}, in a {SDXL if xl else SD}: {SERVE}"
    if xl:
        each, whole = (
            config.get(key)
            for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
        )
        if whole == 5 * (each or 0) + pooled:
            return f"an SDXL refiner's UNet, which refines the pictures of a base: {SERVE}"
    if not whole_number(config.get("sample_size")):
        size = config.get("sample_size")
        return f"a UNet whose config has sample_size={size!r}: one whole number is needed there"
    return None


def vae_fault(config: Mapping[str, Any]) -> str | None:
    """Of a VAE's config."""
    name = config.get("_class_name", config.get("model_type", AutoencoderKL.__name__))
    if name != AutoencoderKL.__name__:
        return f"a {name}: only an AutoencoderKL's latents and scale are known"
    channels = config.get("latent_channels", 4)
    if not whole_number(channels):
        return f"a VAE whose config has latent_channels={channels!r}: a whole number is needed"
    if config.get("shift_factor"):
        return f"a VAE of shift_factor={config['shift_factor']!r}, which SD and SDXL have not"
    scale = config.get("scaling_factor", 1.0)
    if not number(scale) or scale <= 0:
        return f"a VAE whose config has scaling_factor={scale!r}: a number above 0 is needed"
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        fits = isinstance(values, list | tuple) and len(values) == channels
        if values is not None and not (fits and all(map(number, values))):
            return f"a VAE whose config has {key}={values!r}: {channels} numbers are needed"
    return None


def index_fault(index: Mapping[str, Any], without: str = "") -> str | None:
    """Of a model_index.json: its pipeline and the classes of its parts, but of one `without`."""
    name = index.get("_class_name")
    if name not in (SD, SDXL):
        return f"is a {name}: only {SD} and {SDXL} can be trained"
    words = {"tokenizer": "CLIPTokenizer"} | (
        {"tokenizer_2": "CLIPTokenizer"} if name == SDXL else {}
    )
    for part, expected in {**{k: c.__name__ for k, c in PARTS[name].items()}, **words}.items():
        found = index.get(part)
        given = found[1] if isinstance(found, list) and len(found) == 2 else None
        if part != without and given not in (
            expected,
            "CLIPTokenizerFast" if part in words else expected,
        ):
            was = "no" if given is None else f"{given} as"
            return f"its model_index.json has {was} {part}, where a {name} has {expected}"
    found = index.get("scheduler")
    if not (isinstance(found, list) and len(found) == 2 and isinstance(found[1], str)):
        return "its model_index.json has no scheduler"
    return None


def sampler_fault(index: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Of a scheduler's config, made by the class that model_index.json names."""
    fault = scheduler_fault({**config, "_class_name": index["scheduler"][1]})
    return fault and f"{fault}: {ONLY}: choose another model"


def whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6
