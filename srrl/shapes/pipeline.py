"""The tiny pipelines of the embedded world: real diffusers and transformers classes, small.

They have the parts, tokenizer and scheduler configuration of their full-size counterparts, so
everything that runs on them runs on Stable Diffusion. `scripts/pretrain_tiny.py` trains them.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from srrl.shapes.scenes import COLOURS, RELATIONS, SHAPES, SIZE

TINY_SD = Path(__file__).parent / "tiny_sd"
# Longest first, so that the merges of a short word never break a longer one.
WORDS = sorted({"a", *COLOURS, *SHAPES, *" ".join(RELATIONS).split()}, key=lambda w: (-len(w), w))
MAX_TOKENS = 16


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP byte-pair tokenizer: the byte alphabet and one chain of merges for each word."""
    alphabet = list(bytes_to_unicode().values())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    merges = []
    for word in WORDS:
        left = word[0]
        for i, symbol in enumerate(word[1:], start=2):
            right = symbol + ("</w>" if i == len(word) else "")
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
    tokens += dict.fromkeys(a + b for a, b in merges)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


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


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=(3, 6),  # the number of heads, as in SD v1.4: 16 dimensions each
        norm_num_groups=8,
    )


def build_scheduler() -> PNDMScheduler:
    """The scheduler configuration that Stable Diffusion v1.4 is published with."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def build_tiny_sd(seed: int) -> StableDiffusionPipeline:
    """The untrained tiny StableDiffusionPipeline: 32 x 32 pictures, 8 x 8 x 4 latents."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return StableDiffusionPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
