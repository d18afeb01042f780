"""Prompt files, and which prompts a stage draws."""

import codecs
import contextlib
import json
import math
import os
import random
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ml_collections import ConfigDict

from srrl.config import REPOSITORY, resolve
from srrl.errors import UserError

Prompt = TypeVar("Prompt")  # a text, or what has one

LEAST = 0.1  # of the chance to be drawn, of a prompt whose scores do not vary
LINE_END = re.compile(r"\r\n|\n|\r")


def load_prompts(path: str | Path) -> list[str]:
    """The prompts of a JSON list of strings, or of a .txt file with one a line, in UTF-8, or in
    UTF-16 that begins with its mark; the project's own where it is not below the working folder.

    Raises UserError naming the file, the place and the fault.
    """
    path = resolve(str(path))
    where = f"prompt file {path!r}"
    text = read_text(path, where)
    if Path(path).suffix.lower() == ".txt":
        prompts = [line.strip() for line in LINE_END.split(text) if line.strip()]
        if text.strip().startswith('["'):
            raise UserError(f"{where} holds a JSON list: name it .json")
    else:
        try:
            prompts = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _no_list(where, f"cannot be read as JSON ({error})") from None
        if not isinstance(prompts, list):
            raise _no_list(where, f"is a {type(prompts).__name__}")
        other = next((p for p in prompts if not isinstance(p, str)), None)
        if not all(isinstance(p, str) for p in prompts):
            raise _no_list(where, f"has {json.dumps(other)[:40]}, no string")
    if not prompts or not all(p.strip() for p in prompts):
        raise UserError(f"{where} is empty or has an empty prompt: fill it")
    for number, prompt in enumerate(prompts, 1):
        check_text(prompt, f"{where}, prompt {number}")
    return prompts


def read_text(path: str | Path, where: str) -> str:
    """A text file, without byte order marks. Raises UserError with the line for other encodings."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{where} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}): choose another") from None
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        return data.decode(encoding).replace("\ufeff", "")
    except UnicodeDecodeError as error:
        line = len(LINE_END.split(data[: error.start].decode(encoding, "ignore")))
        raise UserError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not {encoding.upper()}: save "
            f"the file as UTF-8"
        ) from None


def _no_list(where: str, fault: str) -> UserError:
    return UserError(
        f'{where} {fault}: it must be a list of strings, ["a prompt", "another"], or a .txt with '
        f"one prompt a line"
    )


def check_text(text: str, where: str) -> None:
    """Raise UserError, with the place, for what is no text: half a character, which cannot be
    encoded, and control characters but white space."""
    for place, character in enumerate(text, 1):
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and not character.isspace()):
            what = "half a character" if kind == "Cs" else "a control character"
            raise UserError(
                f"{where}: character {place} is {what} (U+{ord(character):04X}), no text: "
                f"remove it, or write it in UTF-8"
            )


def typed(text: str, flag: str) -> str:
    """A prompt of the command line, which is UTF-8 whatever the locale. Raises UserError."""
    with contextlib.suppress(UnicodeError):
        text = os.fsencode(text).decode()
    check_text(text, f"{flag} {text!r}")
    return text


def stage_prompts(
    prompts: list[Prompt], stage: int, count: int, seed: int, draw: str = "passes"
) -> list[Prompt]:
    """The `count` prompts of a stage, which depend on (seed, stage) alone.

    draw "passes": consecutive ones of endless shuffled passes, each drawn equally often;
    "replacement": each independently from all.
    """
    if draw == "replacement":
        return random.Random(f"{seed}/{stage}/replacement").choices(prompts, k=count)
    drawn: list[Prompt] = []
    for position in range(stage * count, (stage + 1) * count):
        epoch, place = divmod(position, len(prompts))
        if not drawn or place == 0:
            order = random.Random(f"{seed}/{epoch}").sample(prompts, len(prompts))
        drawn.append(order[place])
    return drawn


def varied_prompts(
    prompts: list[str], spreads: Mapping[str, float], stage: int, count: int, seed: int
) -> list[str]:
    """`count` prompts, each once before any comes again, drawn by how much their scores have varied
    (after CGPO, arXiv 2605.17807): those of no or little spread teach nothing.

    spreads: a standard deviation of scores for each prompt that has some. The others have a chance
    as the most varied one has, and none has less than LEAST of that.
    """
    most = max(spreads.values(), default=0.0) or 1.0
    weights = [max(spreads.get(prompt, most) / most, LEAST) for prompt in prompts]
    chance = random.Random(f"{seed}/{stage}/variance")
    # The largest of u^(1/w) are a draw without replacement of these weights.
    keys = [math.log(1 - chance.random()) / weight for weight in weights]
    order = sorted(range(len(prompts)), key=keys.__getitem__, reverse=True)
    whole, rest = divmod(count, len(prompts))
    return [prompts[i] for i in [*order * whole, *order[:rest]]]


def evenly_spaced(n: int, count: int) -> list[int]:
    """`count` of 0 .. n-1 evenly spaced, or all if there are fewer."""
    count = min(count, n)
    return [i * n // count for i in range(count)]


def evenly(prompts: list[Prompt], count: int) -> list[Prompt]:
    """`count` prompts evenly spaced over the list, or all if it has fewer."""
    return [prompts[i] for i in evenly_spaced(len(prompts), count)]


def split_prompts(c: ConfigDict) -> dict[str, list[str]]:
    """The prompts of each split: "train", and "heldout" where it is evaluated."""
    return {split: load_prompts(file) for split, file in split_files(c).items()}


def split_files(c: ConfigDict) -> dict[str, str]:
    """The file of each split: "train", and "heldout" where it is evaluated."""
    evaluated = c.eval.heldout and c.eval.every
    return {"train": c.prompts.train, **({"heldout": c.prompts.heldout} if evaluated else {})}


def foreign_heldout(c: ConfigDict) -> str:
    """A line where own prompts are trained on and the project's, of something else, held out; ""
    where not."""
    ours = {split: is_ours(file) for split, file in split_files(c).items()}
    if ours["train"] or not ours.get("heldout"):
        return ""
    return (
        f"warning: {c.prompts.train} is trained on and {c.prompts.heldout} held out: give your own "
        f"by --config.prompts.heldout=FILE, or none"
    )


def is_ours(file: str) -> bool:
    """Whether a prompt file is one of the project's."""
    return Path(resolve(file)).resolve().is_relative_to(REPOSITORY / "config" / "prompts")


def check_files(c: ConfigDict) -> None:
    """Raise UserError for prompt files or a local model that are not there."""
    check_splits(c, split_prompts(c))
    check_model("config.pretrained.model", resolve(c.pretrained.model))


def check_splits(c: ConfigDict, splits: dict[str, list[str]]) -> None:
    """Raise UserError where the held-out prompts are those that are trained on."""
    if "heldout" in splits and set(splits["heldout"]) == set(splits["train"]):
        raise UserError(
            f"config.prompts.heldout={c.prompts.heldout!r} has the prompts that are trained on: "
            f"choose others, or --config.eval.heldout=false"
        )


def check_model(key: str, model: str) -> None:
    """Raise UserError for a model that is not there, or of files that are not read. key: how it is
    said, with its value."""
    named = f"{key}={model!r}"
    if model.lower().endswith((".ckpt", ".pt", ".pth", ".bin")):
        raise UserError(
            f"{named}: only .safetensors files and diffusers folders are "
            f"read, for others may run code: convert it"
        )
    if model.lower().endswith(".gguf"):
        raise UserError(
            f"{named}: a quantised model (GGUF) cannot be trained: give it in fp16, bf16 or fp32, "
            f"as .safetensors or a diffusers folder"
        )
    if Path(model).exists() or model.startswith("random:"):
        return
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise UserError(f"{named}: no such folder or hub name")
