"""A tiny pipeline as one file with the key names of the original checkpoints.

The names are those of CompVis' latent diffusion code, as `sd-v1-4.ckpt` and the files people
share have them: "model.diffusion_model", "first_stage_model", "cond_stage_model"; those of SDXL's
text encoders are "conditioner.embedders.0" and, under OpenCLIP's names, "conditioner.embedders.1".
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_names(unet) -> dict[str, str]:
    """Prefixes of diffusers' UNet and what they are called in the original."""
    config = unet.config
    levels, layers = len(config.block_out_channels), config.layers_per_block
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    block = 1
    for i in range(levels):
        for j in range(layers):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{block}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{block}.1"
            block += 1
        if i < levels - 1:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{block}.0.op"
            block += 1
    block = 0
    for i in range(levels):
        for j in range(layers + 1):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{block}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{block}.1"
            block += 1
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{block - 1}.2.conv"
    return names


def vae_names(vae) -> dict[str, str]:
    levels, layers = len(vae.config.block_out_channels), vae.config.layers_per_block
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        names |= {
            f"{half}.conv_in": f"{half}.conv_in",
            f"{half}.conv_out": f"{half}.conv_out",
            f"{half}.conv_norm_out": f"{half}.norm_out",
            f"{half}.mid_block.resnets.0": f"{half}.mid.block_1",
            f"{half}.mid_block.resnets.1": f"{half}.mid.block_2",
        }
    for i in range(levels):
        up = f"decoder.up.{levels - 1 - i}"
        for j in range(layers + 1):
            names[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
            names[f"decoder.up_blocks.{i}.resnets.{j}"] = f"{up}.block.{j}"
        names[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        names[f"decoder.up_blocks.{i}.upsamplers.0"] = f"{up}.upsample"
    return names


def rename(state: dict, names: dict[str, str], inner: dict[str, str], prefix: str) -> dict:
    renamed = {}
    for key, value in state.items():
        start = max((n for n in names if key.startswith(n + ".")), key=len)
        rest = key.removeprefix(start)
        for one, other in inner.items() if "resnets" in start else ():
            rest = rest.replace(f".{one}.", f".{other}.")
        renamed[prefix + names[start] + rest] = value.contiguous()
    return renamed


PROJECTIONS = ("q_proj", "k_proj", "v_proj")
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn": "attn",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A text encoder under OpenCLIP's names, which has one matrix for query, key and value."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if ".q_proj." in key:
            whole = [state_of(state, key.replace("q_proj", p)) for p in PROJECTIONS]
            key, value = key.replace("q_proj.", "in_proj_"), torch.cat(whole)
        elif ".k_proj." in key or ".v_proj." in key:
            continue
        elif key == "text_projection.weight":
            key, value = "text_projection", value.T
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        renamed[prefix + key] = value.contiguous()
    return renamed


def state_of(state: dict[str, Tensor], key: str) -> Tensor:
    return state[key] if key in state else state["text_model." + key]


def clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}transformer.text_model.{key.removeprefix('text_model.')}": value.contiguous()
        for key, value in state.items()
    }


def single_file_state(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    unet, vae, text = (m.state_dict() for m in (pipe.unet, pipe.vae, pipe.text_encoder))
    state = rename(unet, unet_names(pipe.unet), RESNET, "model.diffusion_model.")
    shortcut = {"conv_shortcut": "nin_shortcut"}
    state |= rename(vae, vae_names(pipe.vae), shortcut, "first_stage_model.")
    if not hasattr(pipe, "text_encoder_2"):
        return state | clip(text, "cond_stage_model.")
    second = open_clip(pipe.text_encoder_2.state_dict(), "conditioner.embedders.1.model.")
    return state | clip(text, "conditioner.embedders.0.") | second


def save_single_file(pipe: DiffusionPipeline, path: Path) -> None:
    save_file(single_file_state(pipe), path)
