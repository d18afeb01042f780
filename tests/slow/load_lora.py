"""Run with another diffusers on the path: what does a UNet say with each LoRA its pipeline loads?

python load_lora.py MODEL FILE.safetensors ...      writes FILE.npy beside each
"""

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def main(model: str, *files: str) -> None:
    xl = "sdxl" in Path(model).name
    without = dict.fromkeys(ENCODERS if xl else ENCODERS[:2])
    pipe = diffusers.DiffusionPipeline.from_pretrained(model, **without)
    for file in map(Path, files):
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        with torch.no_grad():
            np.save(file.with_suffix(".npy"), pipe.unet(**inputs(pipe.unet)).sample.numpy())
        pipe.unload_lora_weights()
    print(diffusers.__version__)


def inputs(unet) -> dict:
    """Fixed inputs for a UNet of SD or SDXL."""
    generator = torch.Generator().manual_seed(0)
    c = unet.config
    given = {
        "sample": torch.randn(2, c.in_channels, 8, 8, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 7, c.cross_attention_dim, generator=generator),
    }
    if c.addition_embed_type == "text_time":
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]] * 2),
        }
    return given


if __name__ == "__main__":
    main(*sys.argv[1:])
