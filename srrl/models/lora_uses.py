"""What a LoRA is for besides training: a pipeline draws with it, other programs read it."""

import re
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from ml_collections import ConfigDict
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from srrl.errors import UserError
from srrl.models.lora import Lora, changed, read_lora
from srrl.models.lora_file import Delta
from srrl.models.weights import has_lora, load_weights, make_trainable, write_tensors

KOHYA_FILE = "lora_kohya.safetensors"


def load_trained(pipe: DiffusionPipeline, c: ConfigDict, weights: Path | None) -> Lora | None:
    """Turn the config's model into the trained one of a checkpoint's folder, or of a LoRA's file,
    which is returned; None leaves it as it is."""
    lora = None
    if weights and weights.is_dir():
        make_trainable(pipe.unet, c)
        load_weights(pipe.unet, weights)
    elif weights:
        lora = read_lora(pipe, weights, f"--checkpoint {weights}")
        draw_with(pipe, lora)
    pipe.unet.requires_grad_(False)
    return lora


@torch.no_grad()
def draw_with(pipe: DiffusionPipeline, lora: Lora) -> None:
    """Put a LoRA on a pipeline: as adapters of float32 beside the weights, DoRA into them."""
    for part, deltas in lora.parts.items():
        network = getattr(pipe, part)
        plain = {name: d for name, d in deltas.items() if d.magnitude is None}
        for name in deltas.keys() - plain.keys():
            weight = network.get_submodule(name).weight
            weight.copy_(changed(weight, deltas[name]))
        if plain:
            targets = "|".join(map(re.escape, plain))
            network.add_adapter(LoraConfig(r=1, lora_alpha=1, target_modules=targets))
        for name, delta in plain.items():
            layer = network.get_submodule(name)
            a, b = layer.lora_A["default"], layer.lora_B["default"]
            device = layer.get_base_layer().weight.device
            a.weight = nn.Parameter(delta.down.float().to(device))
            b.weight = nn.Parameter(
                delta.up.float().view(*delta.up.shape, *b.weight.shape[2:]).to(device)
            )
            layer.r["default"], layer.scaling["default"] = delta.rank, delta.scale
        network.requires_grad_(False)


def trained_lora(pipe: DiffusionPipeline) -> Lora:
    """The LoRA that a UNet is trained with."""
    deltas = {
        name: Delta(
            layer.lora_A["default"].weight.detach(),
            layer.lora_B["default"].weight.detach().flatten(1),
            layer.scaling["default"],
        )
        for name, layer in pipe.unet.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    return Lora({"unet": deltas}, "srrl")


def export_kohya(pipe: DiffusionPipeline, path: Path, lora: Lora | None = None) -> Lora:
    """Write a LoRA, by default the one that the UNet is trained with, under the names that ComfyUI
    and A1111 read (kohya-ss/sd-scripts); returns what was written.

    lora_unet_MODULE.lora_down.weight, .lora_up.weight and .alpha, the module's dots as underscores;
    lora_te_MODULE of a text encoder (SDXL: lora_te1_, lora_te2_), and .dora_scale of DoRA.
    """
    if lora is None and not has_lora(pipe.unet):
        raise UserError("--export kohya: the checkpoint is a whole UNet, not a LoRA")
    lora = lora or trained_lora(pipe)
    first = "lora_te1" if hasattr(pipe, "text_encoder_2") else "lora_te"
    prefixes = {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}
    state = {}
    for part, deltas in lora.parts.items():
        for name, d in deltas.items():
            if name.startswith("encoder."):  # a text encoder's: transformers 5 lost the prefix
                name = f"text_model.{name}"
            key = f"{prefixes[part]}_{name.replace('.', '_')}"
            ones = [1] * (d.down.dim() - 2)
            state[f"{key}.lora_down.weight"] = d.down
            state[f"{key}.lora_up.weight"] = d.up.view(*d.up.shape, *ones)
            state[f"{key}.alpha"] = torch.tensor(float(d.alpha))
            if d.magnitude is not None:
                rows = d.magnitude if d.magnitude.dim() > 1 else d.magnitude[:, None]
                state[f"{key}.dora_scale"] = rows.view(*rows.shape, *ones)
    write_tensors(state, path)
    return lora
