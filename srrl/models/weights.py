"""What is trained, a LoRA or the whole UNet: made, written and read in diffusers' own formats."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from ml_collections import ConfigDict
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from srrl.errors import UserError
from srrl.models.lora import read_lora, take_over

LORA_FILE = "pytorch_lora_weights.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
# States are saved whole even where the UNet is spread over processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)


def make_trainable(network: UNet2DConditionModel, c: ConfigDict) -> None:
    """Make trainable what the config trains: a fresh LoRA, or with use_lora=False the network."""
    if c.use_lora:
        add_lora(network, c.lora, c.seed)
    else:
        network.float().requires_grad_(True)
    if c.train.gradient_checkpointing:
        network.enable_gradient_checkpointing()


def add_lora(network: UNet2DConditionModel, settings: ConfigDict, seed: int) -> None:
    """Add a fresh LoRA (arXiv 2106.09685) to a UNet, which changes nothing until trained.

    settings: the config's `lora` section. Its weights are float32 whatever the UNet's are.
    """
    torch.manual_seed(seed)
    try:
        network.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian",
                target_modules=list(settings.target_modules),
            )
        )
    except ValueError as error:  # no module of these names
        raise UserError(
            f"config.lora.target_modules={list(settings.target_modules)}: {error}"
        ) from error
    for parameter in trainable(network):
        parameter.data = parameter.data.float()


def trainable(network: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are trained, in the network's order."""
    return (p for p in network.parameters() if p.requires_grad)


def has_lora(network: nn.Module) -> bool:
    return bool(getattr(network, "peft_config", None))


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """The LoRA's or the UNet's state. Every process takes part: a UNet may be spread over them."""
    if has_lora(network):
        return get_peft_model_state_dict(network)
    state: dict[str, Any] = get_model_state_dict(network, options=WHOLE)
    return state


def write_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file: the same bytes for the same tensors, with ordinary permissions, and
    in one step, for the tensors may lie in the file that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file({k: v.contiguous() for k, v in state.items()}, temporary, metadata={"format": "pt"})
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # save_file leaves it to its owner alone
    os.replace(temporary, path)


def lora_scale(network: UNet2DConditionModel) -> float:
    settings = network.peft_config["default"]
    return settings.lora_alpha / settings.r


def scaled(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """A LoRA's state with its B times a factor."""
    return {k: v * factor if "lora_B" in k else v for k, v in state.items()}


def save_weights(network: UNet2DConditionModel, folder: Path, state: dict[str, Tensor]) -> None:
    """Write trained_weights: the LoRA as LORA_FILE, which `pipe.load_lora_weights` reads, or the
    UNet as `unet`, which `UNet2DConditionModel.from_pretrained` reads.

    alpha / rank is in the LoRA's B, so that readers which know only weights, as every version of
    diffusers does, apply the whole effect.
    """
    if not has_lora(network):
        write_tensors(state, folder / UNET_FILE)
        network.save_config(folder / "unet")
        return
    plain = convert_state_dict_to_diffusers(scaled(state, lora_scale(network)))
    write_tensors({f"unet.{k}": v for k, v in plain.items()}, folder / LORA_FILE)


def put_weights(network: nn.Module, state: dict[str, Tensor]) -> bool:
    """Set a LoRA's weights; says whether they are all there and fit."""
    result = set_peft_model_state_dict(network, state)
    missing = any("lora_" in k for k in result.missing_keys)
    return not (missing or result.unexpected_keys)


def load_weights(network: nn.Module, folder: Path) -> None:
    """Read what save_weights wrote into what make_trainable made: exactly, but for a rounding
    where alpha / rank is not a power of two."""
    if has_lora(network):
        fits = load_lora(network, folder / LORA_FILE)
    else:
        try:
            state: dict[str, Any] = load_file(folder / UNET_FILE)
            result = set_model_state_dict(network, state, options=WHOLE)
            fits = not (result.missing_keys or result.unexpected_keys)
        except RuntimeError:  # other shapes
            fits = False
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read the weights in {folder}: {error}") from error
    if not fits:
        raise UserError(
            f"the weights in {folder} do not fit this model and lora settings: use the "
            f"pretrained.model, use_lora and lora.* they were trained with"
        )


def load_lora(network: nn.Module, file: Path) -> bool:
    """Give a UNet's LoRA the weights of its own file; says whether the settings are the same."""
    lora = read_lora(SimpleNamespace(unet=network), file, f"the weights in {file.parent}")
    layers = {n: m for n, m in network.named_modules() if isinstance(m, BaseTunerLayer)}
    deltas = lora.parts.get("unet", {})
    ranks = {name: delta.rank for name, delta in deltas.items()}
    if ranks != {name: layer.r["default"] for name, layer in layers.items()}:
        return False
    for name, delta in deltas.items():
        take_over(layers[name], delta)
    return True
