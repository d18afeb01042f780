"""Pipelines from a diffusers folder, the hub or a single .safetensors file, or one clear line."""

import os
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from safetensors import SafetensorError

from srrl.errors import UserError
from srrl.models.architectures import RANDOM_MODEL, is_xl_file, random_pipeline
from srrl.models.hub import local_files_only

CLASSES = {c.__name__: c for c in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
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
) -> DiffusionPipeline:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline with weights of `dtype`.

    model: a diffusers folder, a hub name (with its revision and file variant), "random:sd14" or
    "random:sdxl" (that architecture, random weights, made on `device`), or a .safetensors file,
    whose configs and tokenizers come from `single_file_config` (a folder or hub name; the original
    model's on the hub if None). `vae` replaces the pipeline's own.
    Raises UserError if the model cannot be had, or is neither of the two classes.
    """
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        if model.startswith(RANDOM_MODEL):
            pipe = random_pipeline(model, dtype, device)
        elif model.endswith(".safetensors"):
            pipe = _from_single_file(model, dtype, single_file_config)
        else:
            pipe = _from_folder_or_hub(model, dtype, revision, variant)
    except (OSError, ValueError, SafetensorError, KeyError) as error:
        raise _cannot_load("pretrained.model", model, error) from error
    if vae:
        try:
            pipe.vae = AutoencoderKL.from_pretrained(
                vae, torch_dtype=dtype, local_files_only=local_files_only(vae)
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise _cannot_load("pretrained.vae", vae, error) from error
    return pipe


def _from_folder_or_hub(
    model: str, dtype: torch.dtype, revision: str | None, variant: str | None
) -> DiffusionPipeline:
    offline = local_files_only(model)
    index = DiffusionPipeline.load_config(model, revision=revision, local_files_only=offline)
    name = index.get("_class_name")
    if name not in CLASSES:
        raise UserError(
            f"config.pretrained.model={model!r} is a {name}: only {' and '.join(CLASSES)} can be "
            f"trained"
        )
    options = NO_CHECKER if name == "StableDiffusionPipeline" else {}
    return CLASSES[name].from_pretrained(
        model,
        revision=revision,
        variant=variant,
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=offline,
        **options,
    )


def _from_single_file(model: str, dtype: torch.dtype, config: str | None) -> DiffusionPipeline:
    xl = is_xl_file(model)
    options = {} if xl else NO_CHECKER
    chosen = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    return chosen.from_single_file(
        model,
        config=config,
        torch_dtype=dtype,
        local_files_only=local_files_only(config),
        **options,
    )


def _cannot_load(key: str, name: str, error: Exception) -> UserError:
    text = f"{error} {error.__cause__ or ''}"
    if Path(name).exists():
        remedy = "the files there are incomplete or damaged"
        if name.endswith(".safetensors"):
            remedy += ", or pretrained.single_file_config is needed (a folder with its configs)"
    elif "gated" in text.lower() or "401" in text or "403" in text:
        remedy = "accept its terms on huggingface.co and log in with `hf auth login`"
    else:
        remedy = (
            f"is it spelled right, and can this machine reach the hub? If it cannot, run "
            f"`hf download {name} --local-dir DIR` where there is a network and give DIR"
        )
    reason = " ".join(str(error).split())[:200]
    return UserError(
        f"cannot load config.{key}={name!r}: {remedy} ({type(error).__name__}: {reason})"
    )
