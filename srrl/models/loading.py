"""Pipelines from a diffusers folder, the hub or a single .safetensors file, or one clear line."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import nn

from srrl.errors import UserError
from srrl.models.architectures import RANDOM_MODEL, architecture, blank_of, random_pipeline, try_out
from srrl.models.folders import Description, check_variant, describe, variant_of
from srrl.models.hub import local_files_only
from srrl.models.kinds import PARTS, SD, SDXL
from srrl.models.parts import faults, json_files, load_vae, loaded, quiet, vae_config
from srrl.models.single_file import file_kind, marked, markers, parts_of_file
from srrl.models.tensor_files import Header, check_file

CLASSES = {c.__name__: c for c in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
# Where the configs of a single file come from that comes without.
CONFIGS = {
    SD: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    SDXL: "stabilityai/stable-diffusion-xl-base-1.0",
}
NO_CHECKER = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "requires_safety_checker": False,
}


def set_arithmetic(tf32: bool, deterministic: bool, device: torch.device | str) -> None:
    """How a GPU computes; a CPU, which always gives the same, is left alone.

    tf32: the factors of float32 products may be rounded to TF32. deterministic: only algorithms
    that give the same sums every time; to be said before the first product.
    """
    if torch.device(device).type != "cuda":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS begins
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def load_pipeline(
    model: str,
    *,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    single_file_config: str | None = None,
    device: torch.device | str = "cpu",
    edits: bool = False,
) -> DiffusionPipeline:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline with weights of `dtype`.

    model: a diffusers folder, a hub name (with its revision and file variant), "random:sd14" or
    "random:sdxl" (that architecture, random weights, made on `device`), or a .safetensors file,
    whose configs and tokenizers come from `single_file_config` (a folder or hub name; the original
    model's on the hub if None). `vae` replaces the pipeline's own (srrl.models.parts).
    edits: an InstructPix2Pix model instead, no file, as the pipeline that has the same parts.
    Raises UserError if the model cannot be had, is neither of the two classes or of a kind that
    cannot serve, or if a tensor is missing, of another shape or not finite.
    """
    key, named = _said(model, edits)
    if model.startswith(RANDOM_MODEL):
        pipe = random_pipeline(model, dtype, device, edits)
        if vae:
            with quiet():
                pipe.vae = load_vae(vae, vae_config(vae) or pipe.vae.config, dtype)
        return pipe
    with quiet(), faults(key, model):
        if Path(model).is_file():
            return _from_single_file(model, dtype, single_file_config, vae, named)
        return _from_folder_or_hub(model, dtype, revision, variant, vae, named, edits)


def find_pipeline(
    model: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | None = None,
    single_file_config: str | None = None,
    edits: bool = False,
) -> str:
    """The class of what load_pipeline would load, without reading weights. Raises UserError as
    load_pipeline does, but for what only tensors tell."""
    key, named = _said(model, edits)
    if model.startswith(RANDOM_MODEL):
        return SDXL if len(architecture(model, edits).text) == 2 else SD
    with quiet(), faults(key, model):
        if Path(model).is_file():
            return _find_file(model, single_file_config, vae, named)[1].name
        return _find_folder(model, revision, variant, vae, named, edits)[0].name


def _said(model: str, edits: bool) -> tuple[str, str]:
    """A model's key, and how it is said with its value. Raises UserError for an editor's file."""
    key = "editor.model" if edits else "pretrained.model"
    named = f"config.{key}={model!r}"
    if edits and Path(model).is_file():
        raise UserError(
            f"config.editor.model={model!r}: an editor is a diffusers folder or a hub name"
        )
    return key, named


def _find_folder(
    model: str,
    revision: str | None,
    variant: str | None,
    vae: str | None,
    named: str,
    edits: bool,
) -> tuple[Description, Path, dict[str, str | None]]:
    """What a folder or hub name holds, the folder, and the variant of each part's weights."""
    local = Path(model).is_dir()
    folder = Path(model) if local else json_files(model, revision)
    described = describe(folder, named, vae_config(vae) if vae else None, edits)
    try_out(blank_of(described), named)
    if not local:
        folder = Path(
            CLASSES[described.name].download(
                model,
                revision=revision,
                variant=variant,
                use_safetensors=True,
                local_files_only=local_files_only(model),
                **(NO_CHECKER if described.name == SD else {}),
            )
        )
    needed = [part for part in PARTS[described.name] if part != "vae" or not vae]
    chosen = {part: variant_of(folder, part, variant, named) for part in needed}
    check_variant(chosen, variant, named)
    return described, folder, chosen


def _from_folder_or_hub(
    model: str,
    dtype: torch.dtype,
    revision: str | None,
    variant: str | None,
    vae: str | None,
    named: str,
    edits: bool,
) -> DiffusionPipeline:
    described, folder, chosen = _find_folder(model, revision, variant, vae, named, edits)
    parts = {
        part: _part(described.name, part, folder, kind, dtype, named)
        for part, kind in chosen.items()
    }
    if vae:
        parts["vae"] = load_vae(vae, described.configs["vae"], dtype)
    return _pipeline(described.name, folder, parts)


def _find_file(
    model: str, config: str | None, vae: str | None, named: str
) -> tuple[Header, Description, str]:
    """A file's header, the folder of its configs, and how that is said."""
    header = check_file(Path(model), named)
    kind = file_kind(header, named, bool(config))
    config = config or CONFIGS[kind]
    where = f"config.pretrained.single_file_config={config!r}"
    with faults("pretrained.single_file_config", config):
        folder = Path(config) if Path(config).is_dir() else json_files(config)
        described = describe(folder, where, vae_config(vae) if vae else None)
        if described.name != kind:
            raise UserError(f"{where} is a {described.name}, and {named} a {kind}: give its own")
        try_out(blank_of(described), where)
    return header, described, where


def _from_single_file(
    model: str, dtype: torch.dtype, config: str | None, vae: str | None, named: str
) -> DiffusionPipeline:
    header, described, where = _find_file(model, config, vae, named)
    folder, kind = described.folder, described.name
    said = markers(header, described.configs["scheduler"], named)
    parts = parts_of_file(model, described, dtype, named, without=("vae",) if vae else ())
    if vae:
        parts["vae"] = load_vae(vae, described.configs["vae"], dtype)
    if "vae" not in parts:
        raise UserError(
            f"{named} has no VAE: add --config.pretrained.vae=VAE (a folder, a hub name or a "
            f".safetensors file)"
        )
    for part in PARTS[kind]:  # a text encoder that the file lacks
        if part not in parts:
            if not any((folder / part).glob("*model*")):
                raise UserError(
                    f"{named} has no {part}, nor has {where}: give a single_file_config, a folder, "
                    f"that has its weights"
                )
            chosen = variant_of(folder, part, None, where)
            parts[part] = _part(kind, part, folder, chosen, dtype, where)
    pipe = _pipeline(kind, folder, parts)
    pipe.scheduler = marked(pipe.scheduler, said)
    return pipe


def _pipeline(name: str, folder: Path, parts: Mapping[str, nn.Module]) -> DiffusionPipeline:
    """Its parts with the tokenizers and the scheduler of a folder."""
    return CLASSES[name].from_pretrained(
        folder,
        local_files_only=True,
        **parts,
        **(NO_CHECKER if name == SD else {"add_watermarker": False}),
    )


def _part(
    pipeline: str, part: str, folder: Path, variant: str | None, dtype: torch.dtype, named: str
) -> nn.Module:
    """A part of a folder, complete and finite, with weights of `dtype`."""
    return loaded(
        PARTS[pipeline][part],
        folder,
        f"{named}: its {part}",
        subfolder=part,
        variant=variant,
        torch_dtype=dtype,
    )
