"""Prompt files, and which prompts a stage draws."""

import json
import random
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import resolve
from srrl.errors import UserError


def load_prompts(path: str | Path) -> list[str]:
    """The prompts of a JSON list of strings, or of a .txt file with one a line.

    Raises UserError naming the file and the fault.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = (line.strip() for line in text.splitlines())
        prompts = [*filter(None, lines)] if Path(path).suffix == ".txt" else json.loads(text)
    except FileNotFoundError:
        raise UserError(f"prompt file {str(path)!r} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"prompt file {str(path)!r} cannot be read as JSON ({error}): "
            f'it must be a list of strings, ["a prompt", ...], or a .txt with one a line'
        ) from None
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
        raise UserError(f'prompt file {str(path)!r} must be a list of strings, ["a prompt", ...]')
    if not prompts or not all(p.strip() for p in prompts):
        raise UserError(f"prompt file {str(path)!r} is empty or has an empty prompt: fill it")
    return prompts


def stage_prompts(
    prompts: list[str], stage: int, count: int, seed: int, draw: str = "passes"
) -> list[str]:
    """The `count` prompts of a stage, which depend on (seed, stage) alone.

    draw "passes": consecutive ones of endless shuffled passes, each drawn equally often;
    "replacement": each independently from all.
    """
    if draw == "replacement":
        return random.Random(f"{seed}/{stage}/replacement").choices(prompts, k=count)
    drawn = []
    for position in range(stage * count, (stage + 1) * count):
        epoch, place = divmod(position, len(prompts))
        if not drawn or place == 0:
            order = random.Random(f"{seed}/{epoch}").sample(prompts, len(prompts))
        drawn.append(order[place])
    return drawn


def evenly_spaced(n: int, count: int) -> list[int]:
    """`count` of 0 .. n-1 evenly spaced, or all if there are fewer."""
    count = min(count, n)
    return [i * n // count for i in range(count)]


def evenly(prompts: list[str], count: int) -> list[str]:
    """`count` prompts evenly spaced over the list, or all if it has fewer."""
    return [prompts[i] for i in evenly_spaced(len(prompts), count)]


def split_prompts(c: ConfigDict) -> dict[str, list[str]]:
    """The prompts of each split: "train", and "heldout" where it is evaluated."""
    splits = {"train": c.prompts.train}
    if c.eval.heldout and c.eval.every:
        splits["heldout"] = c.prompts.heldout
    return {split: load_prompts(resolve(file)) for split, file in splits.items()}


def check_files(c: ConfigDict) -> None:
    """Raise UserError for prompt files or a local model that are not there."""
    splits = split_prompts(c)
    if "heldout" in splits and set(splits["heldout"]) == set(splits["train"]):
        raise UserError(
            f"config.prompts.heldout={c.prompts.heldout!r} has the prompts that are trained on: "
            f"choose others, or --config.eval.heldout=false"
        )
    model = resolve(c.pretrained.model)
    if model.lower().endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise UserError(
            f"config.pretrained.model={model!r}: only .safetensors files and diffusers folders are "
            f"read, for others may run code: convert it"
        )
    if model.lower().endswith(".gguf"):
        raise UserError(
            f"config.pretrained.model={model!r}: a quantised model (GGUF) cannot be trained: give "
            f"it in fp16, bf16 or fp32, as .safetensors or a diffusers folder"
        )
    if Path(model).exists() or model.startswith("random:"):
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"config.pretrained.model={model!r}: no such folder or hub name")
