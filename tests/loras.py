"""LoRAs in the formats that their writers leave, written here from one list of deltas."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from srrl.models.lora import CLIP_NAMES, PARTS
from srrl.models.lora_file import Delta

PEFT = "base_model.model."


def layers(pipe, part: str = "unet") -> dict[str, Tensor]:
    network = getattr(pipe, part, None)
    modules = network.named_modules() if network is not None else ()
    return {n: m.weight for n, m in modules if isinstance(m, nn.Linear | nn.Conv2d)}


def random_delta(weight: Tensor, rank: int, alpha: float, seed: int) -> Delta:
    """A LoRA of one layer, in the layer's own shape."""
    g = torch.Generator().manual_seed(seed)
    columns = weight[0].numel()
    down = torch.randn(rank, *weight.shape[1:], generator=g) / columns**0.5
    return Delta(down, torch.randn(weight.shape[0], rank, generator=g) * 0.3, alpha / rank)


def merged(weight: Tensor, delta: Delta) -> Tensor:
    """W + alpha / rank up @ down, by hand."""
    change = delta.alpha / delta.rank * (delta.up.double() @ delta.down.double().flatten(1))
    return (weight.double() + change.view(weight.shape)).float()


def up_of(delta: Delta) -> Tensor:
    """As a module's weight has it: of a convolution 1 x 1."""
    return delta.up.view(*delta.up.shape, *[1] * (delta.down.dim() - 2))


def whole(delta: Delta) -> Tensor:
    """up with the scale in it, for formats which have no other place for it."""
    return up_of(delta) * delta.scale


def kohya(parts: dict, names=lambda part, name: name) -> dict[str, Tensor]:
    te = "lora_te1" if "text_encoder_2" in parts else "lora_te"
    prefix = {"unet": "lora_unet", "text_encoder": te, "text_encoder_2": "lora_te2"}
    state = {}
    for part, name, d in each(parts):
        if name.startswith("encoder."):
            name = f"text_model.{name}"
        key = f"{prefix[part]}_{names(part, name).replace('.', '_')}"
        state[f"{key}.lora_down.weight"], state[f"{key}.lora_up.weight"] = d.down, up_of(d)
        state[f"{key}.alpha"] = torch.tensor(d.alpha)
    return state


def diffusers(parts: dict, prefix=lambda part: f"{part}.", adapter="") -> dict[str, Tensor]:
    state = {}
    for part, name, d in each(parts):
        state[f"{prefix(part)}{name}.lora_A.{adapter}weight"] = d.down
        state[f"{prefix(part)}{name}.lora_B.{adapter}weight"] = whole(d)
    return state


def old_diffusers(parts: dict) -> dict[str, Tensor]:
    """Up to 0.26: `.lora.down` in the UNet, `_lora.down` or lora_linear_layer in text encoders."""
    state = {}
    for part, name, d in each(parts):
        if part != "unet":
            stem, _, last = name.rpartition(".")
            name = f"{stem}.{CLIP_NAMES[last]}" if last in CLIP_NAMES else name
            lora = "_lora" if last in CLIP_NAMES else ".lora_linear_layer"
        else:
            lora = ".lora"
        state[f"{part}.{name}{lora}.down.weight"] = d.down
        state[f"{part}.{name}{lora}.up.weight"] = whole(d)
    return state


def attention_processors(parts: dict) -> dict[str, Tensor]:
    state = {}
    for _, name, d in each(parts):
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        key = f"{attention}.processor.{projection}_lora"
        state[f"{key}.down.weight"], state[f"{key}.up.weight"] = d.down, whole(d)
    return state


def each(parts: dict):
    return ((p, n, d) for p in PARTS if p in parts for n, d in parts[p].items())


def write(state: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().clone().contiguous() for k, v in state.items()}
    save_file(tensors, file, metadata=metadata)
    return file


def peft_settings(deltas: dict[str, Delta]) -> dict:
    """alpha and rank by module, as peft's patterns say them."""
    return {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {name: d.rank for name, d in deltas.items()},
        "alpha_pattern": {name: d.alpha for name, d in deltas.items()},
        "use_rslora": False,
        "init_lora_weights": True,
    }


def unscaled(deltas: dict[str, Delta]) -> dict[str, Delta]:
    return {name: Delta(d.down, d.up, 1.0) for name, d in deltas.items()}


def write_peft(deltas: dict[str, Delta], folder: Path) -> Path:
    """peft's save_pretrained of a UNet: adapter_model.safetensors and adapter_config.json."""
    state = diffusers({"unet": unscaled(deltas)}, lambda _: PEFT)
    file = write(state, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(peft_settings(deltas)))
    return file


def write_header(parts: dict, file: Path) -> Path:
    """As diffusers writes it since 0.34: peft's settings by part in the header."""
    settings = {f"{part}.{k}": v for part in parts for k, v in peft_settings(parts[part]).items()}
    state = diffusers({part: unscaled(parts[part]) for part in parts})
    return write(state, file, {"lora_adapter_metadata": json.dumps(settings)})
