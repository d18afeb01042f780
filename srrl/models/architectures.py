"""The published architectures, without their weights: to count with, and to try a machine with.

A pipeline's parts are made here from configurations alone: of SD v1.4 and SDXL base 1.0, which
stand below, or of a diffusers folder. On the meta device they have shapes and no numbers; with
random numbers they cost what the published model costs and draw noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from srrl.errors import UserError
from srrl.models.folders import Description, describe
from srrl.models.kinds import SDXL
from srrl.models.parts import faults, quiet
from srrl.models.random_weights import RANDOM, fill_random
from srrl.models.single_file import file_kind
from srrl.models.tensor_files import check_file
from srrl.shapes.pipeline import SD_SCHEDULER, SDXL_SCHEDULER, build_tokenizer

RANDOM_MODEL = RANDOM + ":"  # pretrained.model=random:sd14

SD_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
CLIP_BIG_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class Architecture:
    """The configurations of a pipeline's parts; one text encoder for SD, two for SDXL."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: tuple[Mapping[str, Any], ...]
    scheduler: Mapping[str, Any]


ARCHITECTURES = {
    "sd14": Architecture(
        unet=SD_UNET,
        vae={**VAE, "sample_size": 512},
        text=(CLIP_L,),
        scheduler=SD_SCHEDULER,
    ),
    "sdxl": Architecture(
        unet=SDXL_UNET,
        vae={**VAE, "sample_size": 1024, "scaling_factor": 0.13025},
        text=(CLIP_L, CLIP_BIG_G),
        scheduler=SDXL_SCHEDULER,
    ),
}
TEXT_ENCODERS = (CLIPTextModel, CLIPTextModelWithProjection)
HUB_NAMES = {
    "CompVis/stable-diffusion-v1-4": "sd14",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd14",
    "runwayml/stable-diffusion-v1-5": "sd14",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
}
# Editors: of these architectures, but for their UNets' inputs and the side of their pictures.
EDITORS = {
    "timbrooks/instruct-pix2pix": "sd14",
    "diffusers/sdxl-instructpix2pix-768": "sdxl",
}
EDITING = {"sd14": {"in_channels": 8}, "sdxl": {"in_channels": 8, "sample_size": 96}}


def blank_pipeline(model: str) -> DiffusionPipeline:
    """A pipeline with the model's parts on the meta device.

    model: a name of HUB_NAMES, "random:" with one of ARCHITECTURES, a single .safetensors file, of
    which the kind is looked at, or a diffusers folder, of which the configurations and tokenizers
    are read. Raises UserError for any other.
    """
    named = f"config.pretrained.model={model!r}"
    if Path(model).is_dir():
        with quiet(), faults("pretrained.model", model):
            pipe = blank_of(describe(Path(model), named))
            try_out(pipe, named)
            return pipe
    if Path(model).is_file():
        kind = file_kind(check_file(Path(model), named), named)
        return _of(ARCHITECTURES["sdxl" if kind == SDXL else "sd14"])
    return _of(architecture(model))


def blank_editor(model: str) -> DiffusionPipeline:
    """As blank_pipeline, of an InstructPix2Pix model: a name of EDITORS, "random:" with one of
    ARCHITECTURES, or a diffusers folder."""
    if Path(model).is_dir():
        named = f"config.editor.model={model!r}"
        with quiet(), faults("editor.model", model):
            return blank_of(describe(Path(model), named, edits=True))
    return _of(architecture(model, edits=True))


def blank_like(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with the parts of `pipe` on the meta device, however they were loaded."""
    suffixes = ("", "_2") if isinstance(pipe, StableDiffusionXLPipeline) else ("",)
    texts = [getattr(pipe, "text_encoder" + x).config for x in suffixes]
    words = [getattr(pipe, "tokenizer" + x) for x in suffixes]
    return _of_configs(pipe.unet.config, pipe.vae.config, texts, words, pipe.scheduler.config)


def random_pipeline(
    model: str, dtype: torch.dtype, device: torch.device | str = "cpu", edits: bool = False
) -> DiffusionPipeline:
    """A "random:" model with random weights of `dtype`, the same ones every time."""
    pipe = _of(architecture(model, edits))
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            fill_random(part, dtype, device)
    return pipe


def architecture(model: str, edits: bool = False) -> Architecture:
    """Raises UserError, which says what is known."""
    names = EDITORS if edits else HUB_NAMES
    random = model.startswith(RANDOM_MODEL)
    name = model.removeprefix(RANDOM_MODEL) if random else names.get(model)
    if name not in ARCHITECTURES:
        key = "editor.model" if edits else "pretrained.model"
        known = ", ".join((*names, *(RANDOM_MODEL + n for n in ARCHITECTURES)))
        raise UserError(
            f"config.{key}={model!r}: its architecture is not known here: known are {known} and "
            f"diffusers folders"
        )
    found = ARCHITECTURES[name]
    return replace(found, unet={**found.unet, **EDITING[name]}) if edits else found


def _of(a: Architecture) -> DiffusionPipeline:
    # Stand-ins for CLIP's tokenizer: 77 tokens as there, but words in other pieces.
    words = [build_tokenizer(77, pad_token=pad) for pad in ("<|endoftext|>", "!")[: len(a.text)]]
    texts = [
        CLIPTextConfig(**size, **special_tokens(tokenizer))
        for size, tokenizer in zip(a.text, words, strict=True)
    ]
    return _of_configs(a.unet, a.vae, texts, words, a.scheduler)


def special_tokens(tokenizer: CLIPTokenizer) -> dict[str, int]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def blank_of(described: Description) -> DiffusionPipeline:
    """A folder's pipeline on the meta device. Whatever the libraries make of its files may be
    raised; what its tokenizer and its text encoder do not share is a UserError."""
    folder, configs = described.folder, described.configs
    suffixes = ("", "_2")[: 1 + (described.name == SDXL)]
    texts = [CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder" + x) for x in suffixes]
    words = [CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer" + x) for x in suffixes]
    return _of_configs(configs["unet"], configs["vae"], texts, words, configs["scheduler"])


def try_out(pipe: DiffusionPipeline, named: str) -> None:
    """Run a pipeline's parts on the meta device, together: numbers that configs hold, and widths
    that do not fit, are found before weights are read. Raises UserError, or whatever torch does."""
    xl = isinstance(pipe, StableDiffusionXLPipeline)
    suffixes = ("", "_2")[: 1 + xl]
    unet = pipe.unet.config
    with torch.no_grad(), torch.device("meta"):
        texts = [
            getattr(pipe, "text_encoder" + x)(_tokens(pipe, x, named), output_hidden_states=True)
            for x in suffixes
        ]
        hidden = torch.cat([text.hidden_states[-1] for text in texts], dim=-1)
        sizes = {"text_embeds": texts[-1][0], "time_ids": torch.zeros(1, 6)} if xl else None
        x = torch.zeros(1, unet.in_channels, unet.sample_size, unet.sample_size)
        pipe.unet(x, torch.zeros(1, dtype=torch.long), hidden, added_cond_kwargs=sizes)
        pipe.vae.decode(x[:, : unet.out_channels])


def _tokens(pipe: DiffusionPipeline, suffix: str, named: str) -> Tensor:
    """A prompt's tokens [1, L] on the meta device. Raises UserError for a tokenizer that is not its
    text encoder's."""
    tokenizer = getattr(pipe, "tokenizer" + suffix)
    text, length = getattr(pipe, "text_encoder" + suffix).config, tokenizer.model_max_length
    if length > text.max_position_embeddings:
        raise UserError(
            f"{named} has a tokenizer of {length} tokens, and a text encoder of "
            f"{text.max_position_embeddings}: set model_max_length in its tokenizer_config.json"
        )
    if len(tokenizer) > text.vocab_size:
        raise UserError(
            f"{named} has a tokenizer that knows {len(tokenizer)} tokens, and a text encoder that "
            f"knows {text.vocab_size}: give the two of one model"
        )
    options = {"padding": "max_length", "max_length": length, "truncation": True}
    return torch.tensor(tokenizer(["a picture"], **options).input_ids)


def _of_configs(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    texts: list[CLIPTextConfig],
    words: list[CLIPTokenizer],
    scheduler: Mapping[str, Any],
) -> DiffusionPipeline:
    with torch.device("meta"):
        encoders = [kind(text) for kind, text in zip(TEXT_ENCODERS, texts, strict=False)]
        common = {
            "unet": UNet2DConditionModel.from_config(unet),
            "vae": AutoencoderKL.from_config(vae),
            "text_encoder": encoders[0],
            "tokenizer": words[0],
        }
    if len(encoders) == 2:
        return StableDiffusionXLPipeline(
            **common,
            text_encoder_2=encoders[1],
            tokenizer_2=words[1],
            scheduler=EulerDiscreteScheduler.from_config(scheduler),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        **common,
        scheduler=PNDMScheduler.from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
