"""Models as people have them, made from the embedded ones: folders with a change, other files."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from srrl.shapes.pipeline import TINY_SD

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3226184\n"


def linked(to: Path, source: Path = TINY_SD) -> Path:
    """A model's folder whose files are links, each to be replaced before it is written to."""
    for file in (p for p in source.rglob("*") if p.is_file()):
        link = to / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, link)
    return to


def write(file: Path, content: str | bytes) -> None:
    """In place of a link."""
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def edit(file: Path, **values: Any) -> None:
    """Other values in a JSON object."""
    write(file, json.dumps(json.loads(file.read_text()) | values))


def set_scheduler(folder: Path, config: dict[str, Any]) -> None:
    write(folder / "scheduler/scheduler_config.json", json.dumps(config))
    edit(folder / "model_index.json", scheduler=["diffusers", config["_class_name"]])


def rewrite(file: Path, change: Any) -> None:
    """A safetensors file with its state changed by a function, in place or returned."""
    state = load_file(file)
    state = change(state) or state
    file.unlink()
    save_file({k: v.contiguous() for k, v in state.items()}, file)


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
