"""The tiny pipelines of the embedded world: real diffusers and transformers classes, small.

They have the parts, tokenizer and scheduler configuration of their full-size counterparts, so
everything that runs on them runs on Stable Diffusion. `scripts/pretrain_tiny.py` trains them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from srrl.shapes.scenes import COLOURS, RELATIONS, SHAPES, SIZE

TINY_SD = Path(__file__).parent / "tiny_sd"
TINY_SDXL = Path(__file__).parent / "tiny_sdxl"
TINY_EDITOR = Path(__file__).parent / "tiny_editor"
# Longest first, so that the merges of a short word never break a longer one; those of edit prompts
# after them, which would break "green".
WORDS = sorted({"a", *COLOURS, *SHAPES, *" ".join(RELATIONS).split()}, key=lambda w: (-len(w), w))
EDIT_WORDS = [*WORDS, "remove", "shape", "make", "move", "add", "the", ";"]
MAX_TOKENS, EDIT_TOKENS = 16, 24  # of a prompt; of an edit prompt


def build_tokenizer(
    length: int = MAX_TOKENS, words: Sequence[str] = WORDS, **options: Any
) -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer: the byte alphabet and one chain of merges for each word."""
    alphabet = list(bytes_to_unicode().values())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    merges = []
    for word in words:
        left = word[0]
        for i, symbol in enumerate(word[1:], start=2):
            right = symbol + ("</w>" if i == len(word) else "")
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
    tokens += dict.fromkeys(a + b for a, b in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges, model_max_length=length, **options)


def text_config(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def build_unet(cross_attention_dim: int, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=(3, 6),  # the number of heads, as in SD v1.4: 16 dimensions each
        norm_num_groups=8,
        **options,
    )


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# The scheduler configurations that the full-size models are published with. They hold keys that
# are not their scheduler's own, and other schedulers made from them read them.
SD_SCHEDULER = {
    **BETAS,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SDXL_SCHEDULER = {
    **SD_SCHEDULER,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


def build_tiny_sd(seed: int) -> StableDiffusionPipeline:
    """The untrained tiny StableDiffusionPipeline: 32 x 32 pictures, 8 x 8 x 4 latents."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        unet=build_unet(cross_attention_dim=64),
        scheduler=PNDMScheduler.from_config(SD_SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tiny_sdxl(seed: int) -> StableDiffusionXLPipeline:
    """The untrained tiny StableDiffusionXLPipeline, of the same size.

    As in SDXL the UNet sees the last but one layer of two text encoders, the second one's pooled
    projection, and the size and crop of the picture; the empty prompt is all zeros.
    """
    torch.manual_seed(seed)
    tokenizer, tokenizer_2 = build_tokenizer(), build_tokenizer(pad_token="!")
    return StableDiffusionXLPipeline(
        vae=build_vae(),
        text_encoder=CLIPTextModel(text_config(tokenizer, layers=3)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(tokenizer_2, layers=3)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=build_unet(
            cross_attention_dim=128,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=16,
            projection_class_embeddings_input_dim=6 * 16 + 64,
        ),
        scheduler=EulerDiscreteScheduler.from_config(SDXL_SCHEDULER),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def build_tiny_editor(
    sd: StableDiffusionPipeline, seed: int
) -> StableDiffusionInstructPix2PixPipeline:
    """An InstructPix2Pix pipeline (arXiv 2211.09800) made from a tiny SD: a UNet that is shown a
    picture's latents, which it does not heed yet, and a text encoder that knows the words of edit
    prompts besides."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(EDIT_TOKENS, EDIT_WORDS)
    text, weights = CLIPTextModel(text_config(tokenizer, layers=2)), sd.text_encoder.state_dict()
    known, ours = sd.tokenizer.get_vocab(), text.state_dict()
    for name in weights:
        kept = ours[name]
        if name.endswith("token_embedding.weight"):
            for token, i in tokenizer.get_vocab().items():
                if token in known:
                    kept[i] = weights[name][known[token]]
        elif name.endswith("position_embedding.weight"):
            kept[: len(weights[name])] = weights[name]
        else:
            kept.copy_(weights[name])
    unet, weights = build_unet(cross_attention_dim=64, in_channels=8), sd.unet.state_dict()
    wide = torch.zeros_like(unet.conv_in.weight)
    wide[:, :4] = weights["conv_in.weight"]
    unet.load_state_dict({**weights, "conv_in.weight": wide})
    return StableDiffusionInstructPix2PixPipeline(
        vae=sd.vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=sd.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
