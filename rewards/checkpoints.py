"""Published checkpoints from a folder or the hub, read without running what they contain."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from srrl.errors import UserError
from srrl.models.hub import NotHere, hub_folder

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")


def checkpoint_folder(reward: str, model: str, patterns: list[str]) -> Path:
    """The folder of a local or hub checkpoint, fetching what matches the patterns.

    Raises UserError, naming the reward, if it can be had neither here nor there.
    """
    try:
        return hub_folder(model, patterns)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise NotHere(
            f"reward {reward!r}: cannot get {model!r}: run `hf download {model} --local-dir DIR` "
            f"where there is a network and set reward.options to "
            f'{{"{reward}": {{"model": "DIR"}}}} ({type(error).__name__}: {reason})',
            model,
        ) from error


def weight_files(reward: str, folder: Path) -> list[Path]:
    """The shards of a checkpoint, safetensors before .bin."""
    for name in INDEXES:
        if (folder / name).exists():
            index = json.loads((folder / name).read_text(encoding="utf-8"))
            return [folder / shard for shard in sorted(set(index["weight_map"].values()))]
    for name in SINGLE:
        if (folder / name).exists():
            return [folder / name]
    raise UserError(f"reward {reward!r}: {folder} holds none of {', '.join((*INDEXES, *SINGLE))}")


def read_weights(reward: str, file: Path) -> dict[str, Tensor]:
    """A file's tensors, .bin and .pt with weights_only. Raises UserError if it cannot be read."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # torch.load raises a dozen kinds
        if isinstance(error, OSError | SafetensorError | RuntimeError | ValueError | KeyError) or (
            type(error).__name__ == "UnpicklingError"
        ):
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"reward {reward!r}: cannot read {file}: {reason}") from error
        raise


def fill(
    reward: str, model: nn.Module, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype
) -> None:
    """Put (name, tensor) pairs into a model made on the meta device, converted to dtype.

    Position numbers, which are no parameters, are made anew. Raises UserError if any parameter is
    left without a value, or a tensor has no place.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unexpected, seen = [], set()
    for name, tensor in tensors:
        if name not in parameters or parameters[name].shape != tensor.shape:
            unexpected.append(f"{name} {list(tensor.shape)}")
            continue
        path, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensor.to(dtype), requires_grad=False)
        setattr(model.get_submodule(path), leaf, value)
        seen.add(name)
    missing = [name for name in parameters if name not in seen]
    if missing or unexpected:
        raise UserError(
            f"reward {reward!r}: the checkpoint does not fit the model: "
            f"missing {missing[:3]} ({len(missing)}), unexpected {unexpected[:3]} "
            f"({len(unexpected)})"
        )
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name == "position_ids":
                positions = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
                module.register_buffer(name, positions, persistent=False)
