"""A diffusers folder before it is loaded: what it lacks, what it holds instead, which variant."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srrl.errors import UserError
from srrl.models.kinds import (
    EDITORS,
    PARTS,
    SDXL,
    index_fault,
    sampler_fault,
    unet_fault,
    vae_fault,
)
from srrl.models.tensor_files import POINTER, check_file, is_pointer

VOCABULARY = ("tokenizer.json", "vocab.json")


class Incomplete(UserError):
    """Files of a model are not there yet."""


@dataclass(frozen=True)
class Description:
    """A folder, its pipeline class by name, and the configs of its parts by their names."""

    folder: Path
    name: str
    configs: Mapping[str, Mapping[str, Any]]


def describe(
    folder: Path, named: str, vae: Mapping[str, Any] | None = None, edits: bool = False
) -> Description:
    """What a model's folder holds, by its JSON files. vae: the config of one that replaces its own;
    edits: it must be an InstructPix2Pix pipeline, else a text-to-image one.

    named: how its key and value are said. Raises UserError for what is missing, broken, or of a
    kind that cannot serve.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(f"{named} {_no_model(folder)}")
    index = read_json(folder / "model_index.json", named)
    if edits:
        name = index.get("_class_name")
        if name not in EDITORS:
            raise UserError(f"{named} is a {name}: an editor is one of {' and '.join(EDITORS)}")
        index = index | {"_class_name": EDITORS[name]}
    if fault := index_fault(index, without="vae" if vae is not None else ""):
        raise UserError(f"{named} {fault}")
    name = index["_class_name"]
    configs: dict[str, Any] = {
        part: read_json(folder / part / "config.json", named)
        for part in PARTS[name]
        if part != "vae" or vae is None
    }
    configs["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json", named)
    for part in ("tokenizer", "tokenizer_2")[: 1 + (name == SDXL)]:
        found = [f for f in VOCABULARY if (folder / part / f).is_file()]
        if not found:
            raise Incomplete(f"{named} has no {part}/{VOCABULARY[0]}: its download is incomplete")
        for file in (*found, "tokenizer_config.json"):
            read_json(folder / part / file, named)
    own: Any = configs.setdefault("vae", vae)
    fault = sampler_fault(index, configs["scheduler"]) or vae_fault(own)
    if fault is None:
        pooled = configs.get("text_encoder_2", {}).get("projection_dim", 0)
        latent = own.get("latent_channels", 4)
        unet = dict(configs["unet"])
        if edits:
            unet["in_channels"] = unet.get("in_channels", 4) - latent  # those of the picture
        fault = unet_fault(unet, latent, name == SDXL, pooled)
    if fault:
        raise UserError(f"{named} has {fault}")
    return Description(folder, name, configs)


def read_json(path: Path, named: str) -> dict[str, Any]:
    """The object of a JSON file below a model's folder. Raises UserError if it is none."""
    where = "/".join(path.parts[-2:])
    if not path.is_file():
        raise Incomplete(f"{named} has no {where}: its download is incomplete")
    if is_pointer(path):
        raise UserError(f"{named}: {where} {POINTER}")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{named}: {where} cannot be read ({error}): download it again") from error
    if not isinstance(read, dict):
        raise UserError(f"{named}: {where} is no JSON object: download it again")
    return read


def _no_model(folder: Path) -> str:
    """What a folder without model_index.json is, and what to give instead."""
    below = sorted(p.parent for p in folder.glob("*/model_index.json"))
    if below:
        return f"has no model_index.json, but {below[0].name} in it has: give {below[0]}"
    if (folder.parent / "model_index.json").is_file():
        return f"is a part of a model: give {folder.parent}"
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1 and not (folder / "config.json").is_file():
        return f"has no model_index.json: give {files[0]}, if that is the whole model"
    return "has no model_index.json: give a diffusers folder, which has one, or a .safetensors file"


def variant_of(
    folder: Path, part: str, wanted: str | None, named: str, any_variant: bool = False
) -> str | None:
    """The variant of a part's weights that is there: the wanted one, or the one without a name.

    part: a subfolder, or "" for the folder itself. any_variant: another will do. Raises UserError,
    with the remedy, where there are only others, no weights at all, or a file is a pointer or of a
    format that is not read.
    """
    inside, label = folder / part, part or folder.name
    pattern = re.compile(
        r"(?:diffusion_pytorch_)?model(?:-\d+-of-\d+)?(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors"
    )
    files = [(m[1], p) for p in sorted(inside.glob("*")) if (m := pattern.fullmatch(p.name))]
    variants = {variant for variant, _ in files}
    chosen = wanted if wanted in variants else None
    if any_variant and variants and chosen not in variants:
        chosen = min(variants)
    if chosen in variants:
        for file in (file for variant, file in files if variant == chosen):
            check_file(file, f"{named}: {label}/{file.name}")
        return chosen
    if variants:
        raise UserError(
            f"{named} has the weights of {label} only as variant {' or '.join(sorted(variants))}: "
            f"add --config.pretrained.variant={min(variants)}"
        )
    if any(inside.glob("*.bin")):
        raise UserError(f"{named} has only .bin weights of {label}: {conversion(str(folder))}")
    raise Incomplete(f"{named} has no .safetensors weights in {label}: its download is incomplete")


def check_variant(chosen: Mapping[str, str | None], wanted: str | None, named: str) -> None:
    """Raise UserError if no part has the wanted variant."""
    if wanted and wanted not in chosen.values():
        raise UserError(
            f"{named} has no variant {wanted!r}: leave out --config.pretrained.variant={wanted}"
        )


def conversion(model: str) -> str:
    """How to turn weights that may run code into safetensors."""
    to = f"{Path(model).name}-safetensors"
    return (
        f"they may run code, so they are not read: if you trust them, convert them once by "
        f'`python -c "from diffusers import DiffusionPipeline as P; '
        f"P.from_pretrained('{model}', use_safetensors=False).save_pretrained('{to}')\"` "
        f"and give {to}"
    )
