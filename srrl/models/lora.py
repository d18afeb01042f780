"""A LoRA's file matched with a model: module by module, all of it or not at all."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from srrl.errors import UserError
from srrl.models.ldm_names import blocks, original_name
from srrl.models.lora_file import Delta, LoraFile, read_lora_file

PARTS = ("unet", "text_encoder", "text_encoder_2")
# Old processors of text encoders have their attention's names.
CLIP_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
# The width of the text that a UNet attends to, and whose it is.
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class Lora:
    """A LoRA that fits a pipeline: of each part of it the deltas by the modules' names there."""

    parts: dict[str, dict[str, Delta]]
    format: str

    def __str__(self) -> str:
        """Like "56 modules of rank 4, alpha 4, kohya"."""
        deltas = [*self.parts.get("unet", {}).values()]
        text = f"{len(deltas)} modules"
        if deltas:
            text += (
                f" of rank {span(d.rank for d in deltas)}, alpha {span(d.alpha for d in deltas)}"
            )
        if any(d.magnitude is not None for d in deltas):
            text += ", DoRA"
        encoders = sum(len(own) for part, own in self.parts.items() if part != "unet")
        also = f", and {encoders} of the text encoders" if encoders else ""
        return f"{text}, {self.format}{also}"


def span(values: Iterator[float]) -> str:
    found = sorted({float(f"{value:.4g}") for value in values})
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def read_lora(pipe: DiffusionPipeline, path: Path, named: str) -> Lora:
    """Read a LoRA for this pipeline. Raises UserError, which begins with `named`, unless all of it
    is plain, finite and fits."""
    return fitted(pipe, read_lora_file(path, named), named)


def fitted(pipe: DiffusionPipeline, file: LoraFile, named: str) -> Lora:
    """The file's deltas by the pipeline's own names, in its modules' shapes. Raises UserError with
    the count and the first of those that do not fit."""
    parts: dict[str, dict[str, Delta]] = {}
    strangers, misshapen = [], []
    known = {part: layers(pipe, part) for part in PARTS}
    names = {part: aliases(known[part], getattr(pipe, part, None)) for part in PARTS}
    for (part, given), delta in file.deltas.items():
        module = names[part].get(given)
        if module is None:
            strangers.append(given if part == "unet" else f"{part}.{given}")
        elif module in parts.setdefault(part, {}):
            raise UserError(f"{named}: holds the same module twice, as {given!r}: give one LoRA")
        elif fits(delta, known[part][module]):
            parts[part][module] = shaped(delta, known[part][module])
        else:
            sizes = [*delta.up.shape[:1], *delta.down.shape[1:]]
            misshapen.append(f"{given} ({sizes}, not {list(known[part][module].shape)})")
    hint = family(file, pipe.unet.config.cross_attention_dim)
    for what, faulty in (("are not of this model", strangers), ("have other sizes", misshapen)):
        if faulty:
            raise UserError(
                f"{named}: does not fit this model: {len(faulty)} of its {len(file.deltas)} "
                f"modules {what}, as {', '.join(faulty[:3])}{hint}"
            )
    return Lora(parts, file.format)


def family(file: LoraFile, width: int) -> str:
    """A hint, from the width of the text it attends to, for which models a LoRA is that is not for
    a UNet that attends to another width."""
    widths = {
        d.down.shape[1]
        for (_, name), d in file.deltas.items()
        if re.search(r"attn2[._]to_[kv]$", name)
    }
    if len(widths) != 1 or (found := widths.pop()) == width:
        return ""
    return f": it is for {FAMILIES.get(found, 'another model')}"


def layers(pipe: DiffusionPipeline, part: str) -> dict[str, Tensor]:
    """The weights of a part's linear and convolution layers; a trained LoRA is looked through."""
    network, found = getattr(pipe, part, None), {}
    for name, module in network.named_modules() if network is not None else ():
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        elif ".base_layer" in name or ".lora_" in name:
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            found[name] = module.weight
    return found


def aliases(known: dict[str, Tensor], network: nn.Module | None) -> dict[str, str]:
    """Every name that writers give a part's layers, and the layer's own."""
    names = {}
    originals = {}
    if network is not None and hasattr(network, "down_blocks"):
        originals = blocks(network)
    for module in known:
        called = {module, module.removesuffix(".0") if ".to_out." in module else module}
        if originals:
            called.add(original_name(module, originals))
        else:  # transformers' CLIP, whose prefix comes and goes with its versions
            bare = module.removeprefix("text_model.")
            stem, _, last = bare.rpartition(".")
            called |= {
                x
                for n in (bare, f"{stem}.{CLIP_NAMES.get(last, last)}")
                for x in (n, f"text_model.{n}")
            }
        for name in called:
            names[name] = names[name.replace(".", "_")] = module
    return names


def fits(delta: Delta, weight: Tensor) -> bool:
    rows, columns = weight.shape[:2]
    sizes = len(delta.up) == rows and delta.down.shape[1:].numel() == weight.shape[1:].numel()
    lengths = delta.magnitude
    return sizes and (lengths is None or tuple(lengths.shape) in ((rows,), (1, columns)))


def shaped(delta: Delta, weight: Tensor) -> Delta:
    """down in the shape of the module's own weight, whether the file has it flat or not."""
    down = delta.down.reshape(delta.rank, *weight.shape[1:])
    return replace(delta, down=down)


def changed(weight: Tensor, delta: Delta) -> Tensor:
    """float32 W + scale up @ down in W's shape; of DoRA with the lengths it gives."""
    change = delta.scale * (delta.up.float() @ delta.down.float().flatten(1))
    whole = weight.float() + change.to(weight.device).view(weight.shape)
    if delta.magnitude is None:
        return whole
    by_row = delta.magnitude.dim() == 1
    lengths = torch.linalg.vector_norm(
        whole.flatten(1) if by_row else whole.transpose(0, 1).flatten(1), dim=1
    )
    ratio = delta.magnitude.float().to(weight.device).view(-1) / lengths
    shape = (-1, 1) if by_row else (1, -1)
    return whole * ratio.view(*shape, *[1] * (weight.dim() - 2))


@torch.no_grad()
def take_over(module: BaseTunerLayer, delta: Delta) -> None:
    """Copy a delta's A [r, in] and B [out, r] into a layer's own LoRA, B at its scaling. Where the
    layer's rank is higher the rest stays as it was."""
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    up = delta.up.float() * (delta.scale / module.scaling["default"])
    a[: delta.rank] = delta.down.to(a)
    b[:, : delta.rank] = up.view(*up.shape, *b.shape[2:]).to(b)
