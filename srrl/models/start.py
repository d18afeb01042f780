"""A warm start: the fresh LoRA takes over the effect of one that is trained already."""

from pathlib import Path

from diffusers import DiffusionPipeline

from srrl.errors import UserError
from srrl.models.locate import locate
from srrl.models.lora import Lora, fitted, take_over
from srrl.models.lora_file import LoraFile, read_lora_file
from srrl.models.weights import UNET_FILE


def start_file(given: str) -> Path:
    """The file of config.pretrained.lora: a LoRA's, or that of a run, a checkpoint or a folder.

    Raises UserError if there is none, or what it holds is no plain LoRA of a UNet alone.
    """
    return read_start(given)[0]


def read_start(given: str, key: str = "config.pretrained.lora") -> tuple[Path, LoraFile]:
    """The file as start_file finds it, and what it holds."""
    named = f"{key}={given!r}"
    path = locate(given, named).file
    if path.name == Path(UNET_FILE).name:
        raise UserError(f"{named}: holds a whole UNet, not a LoRA: give a run with use_lora")
    file = read_lora_file(path, named)
    elsewhere = [part for part, _ in file.deltas if part != "unet"]
    if elsewhere:
        raise UserError(
            f"{named}: holds weights of more than the UNet, of its {elsewhere[0]}: only the UNet "
            f"is trained"
        )
    if any(delta.magnitude is not None for delta in file.deltas.values()):
        raise UserError(f"{named}: is a DoRA, which a LoRA cannot start from: merge it first")
    return path, file


def start_from(pipe: DiffusionPipeline, given: str, key: str = "config.pretrained.lora") -> Lora:
    """Give the fresh LoRA the effect of another one, in any format; returns what was taken.

    Where the other has a lower rank, or lacks modules, the rest stays as it was: without effect.
    Raises UserError, naming the remedy, for one that does not fit; nothing has changed then.
    """
    where = f"{key}={given!r}"
    lora = fitted(pipe, read_start(given, key)[1], where)
    for name, delta in lora.parts["unet"].items():
        module = pipe.unet.get_submodule(name)
        if "default" not in getattr(module, "lora_A", ()):
            raise UserError(f"{where}: has {name}: add it to config.lora.target_modules")
        if delta.rank > module.r["default"]:
            raise UserError(f"{where}: is of rank {delta.rank}: raise config.lora.rank to it")
    for name, delta in lora.parts["unet"].items():
        take_over(pipe.unet.get_submodule(name), delta)
    return lora
