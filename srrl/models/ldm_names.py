"""What a UNet's modules are called in the original code (CompVis' and Stability's), which kohya-ss
uses for SDXL and ComfyUI for all."""

from diffusers import UNet2DConditionModel

RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}


def blocks(unet: UNet2DConditionModel) -> dict[str, str]:
    """Prefixes of diffusers' names, and of the original's."""
    names, number = dict(OUTSIDE), 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        if block.upsamplers:  # beside the last resnet, behind its attention where it has one
            place = 1 + hasattr(block, "attentions")
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return names


def original_name(module: str, names: dict[str, str]) -> str:
    """A module's name in the original code; its own where it has none there."""
    prefix = max((n for n in names if f"{module}.".startswith(f"{n}.")), key=len, default="")
    rest = module.removeprefix(prefix)
    if ".resnets." in prefix and (inner := rest.removeprefix(".")) in RESNET:
        rest = "." + RESNET[inner]
    return names.get(prefix, "") + rest
