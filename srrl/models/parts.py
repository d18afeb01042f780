"""One part of a pipeline at a time, complete and finite, and what goes wrong said in one line."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ModelMixin
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn

from srrl.errors import UserError
from srrl.models.folders import conversion, read_json, variant_of
from srrl.models.hub import NotHere, local_files_only
from srrl.models.kinds import vae_fault
from srrl.models.tensor_files import check_file


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings: what matters in them is an error here."""
    logs = [library.utils.logging for library in (diffusers, transformers)]
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.set_verbosity(level)


@contextmanager
def faults(key: str, name: str) -> Iterator[None]:
    """Turn whatever a library makes of a model's files into a UserError: they may hold anything."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise _cannot_load(key, name, error) from error


def _cannot_load(key: str, name: str, error: Exception) -> UserError:
    text = f"{error} {error.__cause__ or ''}"
    if Path(name).exists():
        remedy = "the files there are incomplete or damaged, or do not belong together"
    elif name.lower().endswith(".safetensors"):
        remedy = "there is no such file"
    elif "gated" in text.lower() or "401" in text or "403" in text:
        remedy = "accept its terms on huggingface.co and log in with `hf auth login`"
    elif "`safetensors` weights" in text:
        remedy = conversion(name)
    else:
        remedy = (
            f"is it spelled right, and can this machine reach the hub? If it cannot, run "
            f"`hf download {name} --local-dir DIR` where there is a network and give "
            f"--config.{key}=DIR"
        )
    reason = " ".join(str(error).split())[:200]
    said = f"cannot load config.{key}={name!r}: {remedy} ({type(error).__name__}: {reason})"
    return NotHere(said, name)


def json_files(name: str, revision: str | None = None) -> Path:
    """The folder of a hub model's configs and tokenizers, without its weights."""
    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=["*.json", "*.txt"],
            local_files_only=local_files_only(name),
        )
    )


def loaded(cls: type[Any], source: str | Path, named: str, **options: Any) -> nn.Module:
    """from_pretrained of a class. Raises UserError for tensors that are missing, of other shapes or
    not finite."""
    part, info = cls.from_pretrained(
        source,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        local_files_only=local_files_only(str(source)),
        **options,
    )
    others = [key for key, *_ in info["mismatched_keys"]]
    refuse_unfit(named, info["missing_keys"], others, len(part.state_dict()))
    return finite(part, named)


def assembled(
    cls: type[ModelMixin],
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    convert: Callable[..., Mapping[str, Tensor]],
    dtype: torch.dtype,
    named: str,
) -> ModelMixin:
    """A UNet or VAE of a config with the tensors of a file, under diffusers' names or those that
    `convert` knows. Raises UserError as `loaded` does."""
    with init_empty_weights():
        model = cls.from_config(config)
    expected = model.state_dict()
    if not expected.keys() <= state.keys():
        state = convert(dict(state), config=config)
    missing = [key for key in expected if key not in state]
    others = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    refuse_unfit(named, missing, others, len(expected))
    model.load_state_dict({key: state[key] for key in expected}, assign=True)
    return finite(model.to(dtype).eval(), named)


def refuse_unfit(named: str, missing: Any, others: Any, of: int) -> None:
    """Raise UserError if tensors of a part are missing, or of other shapes."""
    for keys, fault in ((missing, "are missing"), (others, "are of other shapes")):
        if keys:
            raise UserError(
                f"{named} does not fit its config: {len(keys)} of {of} tensors {fault}, as "
                f"{min(keys)}: the file is incomplete, or the config is that of another model"
            )


def finite(part: nn.Module, named: str) -> nn.Module:
    """The part itself. Raises UserError for a number in it that is not finite."""
    for key, values in part.state_dict().items():
        if values.is_floating_point() and values.numel():
            least, most = values.aminmax()
            if not (least.isfinite() and most.isfinite()):
                raise UserError(
                    f"{named} has numbers in {key} that are not finite as {values.dtype}: get the "
                    f"file again, or choose another --config.mixed_precision"
                )
    return part


# ---------------------------------------------------------------------- pretrained.vae


def vae_config(given: str) -> Mapping[str, Any] | None:
    """The config of a VAE that replaces a model's own; None for a file without one beside it,
    whose config is that of the model. Raises UserError if it cannot serve."""
    named, path = f"config.pretrained.vae={given!r}", Path(given)
    config: Mapping[str, Any] | None
    if path.is_file():
        beside = path.parent / "config.json"
        config = read_json(beside, named) if beside.is_file() else None
        if config and "_class_name" not in config:  # of something else
            config = None
    elif path.is_dir():
        config = read_json(path / _below(path) / "config.json", named)
    else:
        with faults("pretrained.vae", given):
            config = _hub_config(given)[0]
    if config and (fault := vae_fault(config)):
        raise UserError(f"{named} is {fault}")
    return config


def load_vae(given: str, config: Mapping[str, Any], dtype: torch.dtype) -> AutoencoderKL:
    """A VAE of a folder, a pipeline's folder, a hub name, or a .safetensors file of that config.

    Raises UserError if it cannot be had or is not whole.
    """
    named, path = f"config.pretrained.vae={given!r}", Path(given)
    with faults("pretrained.vae", given):
        if path.is_file():
            if path.suffix.lower() != ".safetensors":
                raise UserError(f"{named}: only .safetensors files are read, others may run code")
            check_file(path, named)
            state = load_file(path)
            return assembled(AutoencoderKL, config, state, convert_ldm_vae_checkpoint, dtype, named)
        options: dict[str, Any] = {"torch_dtype": dtype}
        if path.is_dir():
            options["subfolder"] = _below(path)
            options["variant"] = variant_of(path, _below(path), None, named, any_variant=True)
        else:
            options["subfolder"] = _hub_config(given)[1]
        return loaded(AutoencoderKL, given, named, **options)


def _below(folder: Path) -> str:
    """Where in a folder its VAE is: "vae" of a pipeline, or "" for the folder itself."""
    return "" if (folder / "config.json").is_file() else "vae"


def _hub_config(name: str) -> tuple[Mapping[str, Any], str]:
    """The config of a hub name's VAE and its subfolder, that of a pipeline or none."""
    offline = local_files_only(name)
    try:
        return AutoencoderKL.load_config(name, local_files_only=offline), ""
    except OSError:
        try:
            return AutoencoderKL.load_config(name, subfolder="vae", local_files_only=offline), "vae"
        except OSError:
            pass
        raise
