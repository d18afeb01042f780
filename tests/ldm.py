"""A tiny StableDiffusionPipeline as one file with the key names of the original checkpoints.

The names are those of CompVis' latent diffusion code, as `sd-v1-4.ckpt` and the files people
share have them: "model.diffusion_model", "first_stage_model", "cond_stage_model".
"""

from pathlib import Path

from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

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


def save_single_file(pipe: StableDiffusionPipeline, path: Path) -> None:
    unet, vae, text = (m.state_dict() for m in (pipe.unet, pipe.vae, pipe.text_encoder))
    state = rename(unet, unet_names(pipe.unet), RESNET, "model.diffusion_model.")
    shortcut = {"conv_shortcut": "nin_shortcut"}
    state |= rename(vae, vae_names(pipe.vae), shortcut, "first_stage_model.")
    for key, value in text.items():
        key = "text_model." + key.removeprefix("text_model.")
        state["cond_stage_model.transformer." + key] = value.contiguous()
    save_file(state, path)
