"""Where the weights are that a user names: a run's, a checkpoint's, or a LoRA's file."""

from dataclasses import dataclass
from pathlib import Path

from srrl.config import saved_values
from srrl.errors import UserError
from srrl.models.weights import LORA_FILE, UNET_FILE
from srrl.run.best import named_folder
from srrl.run.folder import stages

PEFT_FILE = "adapter_model.safetensors"  # peft's save_pretrained
UNREAD = (
    "only .safetensors files are read, for others may run code: convert it, if you trust it, by "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'lora.safetensors')"
)
REMEDY = "give a run, RUN:best, one of its checkpoints/stage_NNNN, or a LoRA's .safetensors"


@dataclass(frozen=True)
class Located:
    """file: the weights, a LoRA's or a whole UNet's; checkpoint: the folder of a run's checkpoint
    that it belongs to, None for a file of no run; config: that run's config.json."""

    file: Path
    checkpoint: Path | None
    config: Path | None


def locate(given: str | Path, named: str) -> Located:
    """The weights of a run (its newest checkpoint's), a checkpoint (also as RUN:best, RUN:last or
    RUN:STAGE), another folder with a LoRA, or a file. Raises UserError; `named` says in it who
    asked, like "--checkpoint runs/x"."""
    path = named_folder(given, named)
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{named}: no such folder or file: {REMEDY}")
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise UserError(f"{named}: {UNREAD}")
        return of_run(path, path.parent) if path.name == LORA_FILE else Located(path, None, None)
    for folder in (path, *stages(path)):
        there = [folder / n for n in (LORA_FILE, PEFT_FILE, UNET_FILE) if (folder / n).is_file()]
        if len(there) > 1:
            raise UserError(f"{named}: holds {there[0].name} and {there[1].name}: give one of them")
        if there:
            return of_run(there[0], folder)
    found = weights_in(path, "*")
    if len(found) == 1:
        return Located(found[0], None, None)
    if found:
        names = ", ".join(file.name for file in found[:4])
        raise UserError(f"{named}: holds {len(found)} .safetensors files ({names}): give one")
    below = weights_in(path, "*/*")
    if below:
        raise UserError(f"{named}: its weights are below it: give {below[-1].parent}")
    if any(path.glob("*.bin")):
        raise UserError(f"{named}: {UNREAD}")
    raise UserError(
        f"{named}: holds no {LORA_FILE}, no {UNET_FILE} and no checkpoints/stage_NNNN: {REMEDY}"
    )


def weights_in(folder: Path, pattern: str) -> list[Path]:
    """The .safetensors files that a pattern finds."""
    found = (p for p in folder.glob(pattern) if p.suffix.lower() == ".safetensors" and p.is_file())
    return sorted(found)


def of_run(file: Path, folder: Path) -> Located:
    """The weights in a folder, which is a checkpoint where a run's config.json is two above."""
    config = folder.resolve().parent.parent / "config.json"
    if saved_values(config):
        return Located(file, folder, config)
    return Located(file, None, None)
