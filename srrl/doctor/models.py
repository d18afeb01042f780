"""A config's prompts, models and LoRAs: where they are, without their weights being read."""

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from huggingface_hub.errors import LocalEntryNotFoundError
from ml_collections import ConfigDict
from transformers import AutoConfig

from rewards.checkpoints import INDEXES
from srrl.config import project_path, resolve
from srrl.doctor.rows import FAIL, WARN, Row, attempted, refused
from srrl.errors import UserError
from srrl.methods import METHODS
from srrl.models.folders import Incomplete
from srrl.models.hub import NotHere, hub_answers, hub_folder
from srrl.models.loading import find_pipeline
from srrl.models.locate import locate
from srrl.models.lora_file import read_lora_file
from srrl.models.parts import faults, quiet, vae_config
from srrl.models.random_vlm import named_vlm
from srrl.models.random_weights import RANDOM
from srrl.models.start import start_file
from srrl.models.vlm import FILES
from srrl.prompts import check_model, split_files, split_prompts
from srrl.rig.seeing import EMBEDDED
from srrl.run.folder import newest

SHAPES = project_path("srrl/shapes")
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def prompts(config: ConfigDict, _: bool) -> Iterator[Row]:
    """The method's own check of its files."""
    found = ", ".join(split_files(config).values())
    bad = refused("files", found, lambda: METHODS[config.method].load("files")(config))
    if bad:
        yield from bad
    elif config.method == "srrl":
        counts = {split: len(lines) for split, lines in split_prompts(config).items()}
        numbers = (f"{count} {split}" for split, count in counts.items())
        yield Row("files", f"prompts: {', '.join(numbers)}")
    else:
        yield Row("files", found)


def models(config: ConfigDict, offline: bool) -> Iterator[Row]:
    """offline: whether the user keeps the libraries from asking the hub."""
    p = config.pretrained
    given = {
        "revision": p.revision,
        "variant": p.variant,
        "vae": p.vae and resolve(p.vae),
        "single_file_config": p.single_file_config and resolve(p.single_file_config),
    }
    look: dict[str, Callable[[str], str]] = {"pretrained.model": partial(find_pipeline, **given)}
    named = {"pretrained.model": p.model}
    if config.method == "rig":
        if config.editor.kind == "instruct":
            named["editor.model"] = config.editor.model
            look["editor.model"] = partial(find_pipeline, edits=True)
        for part in ("checker", "actor"):
            named[f"{part}.model"] = config[part].model
            look[f"{part}.model"] = find_vlm
    if p.vae:
        named["pretrained.vae"], look["pretrained.vae"] = p.vae, find_vae
    for key, model in named.items():
        yield from attempted(key, partial(placed, key, model, look[key], offline))
    yield from attempted("lora", partial(loras, config))


def placed(
    check: str, model: str, look: Callable[[str], str], offline: bool, key: str = ""
) -> Iterator[Row]:
    """Where a model is, and what `look` says that it is. key: the config's, else as the check."""
    there, key = resolve(model), key or f"config.{check}"
    bad = refused(check, model, lambda: check_model(key, there)) if model != EMBEDDED else []
    if bad:
        yield from bad
        return
    try:
        with quiet():
            what = look(there)
    except UserError as error:
        yield lacking(check, there, error, offline)
    else:
        yield Row(check, f"{model}: {what}, {place(model)}")


def find_vae(model: str) -> str:
    """The class of a VAE that replaces a model's own. Raises UserError where it cannot serve."""
    vae_config(model)
    return "AutoencoderKL"


def find_vlm(model: str) -> str:
    """The class of a VLM. Raises UserError where it is not there, or not whole."""
    if model == EMBEDDED:
        return "Qwen2.5-VL"
    if model.startswith(RANDOM):
        return named_vlm(model)
    with faults("checker.model or actor.model", model):
        folder = hub_folder(model, FILES)
        check_weights(folder, f"the VLM {model!r}")
        return type(AutoConfig.from_pretrained(folder)).__name__.removesuffix("Config")


def check_weights(folder: Path, named: str) -> None:
    """Raise Incomplete where a checkpoint's weights, or one of their shards, are not there."""
    index = next((folder / name for name in INDEXES if (folder / name).is_file()), None)
    if index:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        lacking = [name for name in sorted(set(shards)) if not (folder / name).is_file()]
    else:
        lacking = [] if any(any(folder.glob(w)) for w in WEIGHTS) else ["weights"]
    if lacking:
        raise Incomplete(f"{named} has no {lacking[0]} in {folder}: its download is incomplete")


def place(model: str) -> str:
    path = Path(resolve(model))
    if model == EMBEDDED or (path.exists() and SHAPES in path.resolve().parents):
        return "embedded"
    if model.startswith(RANDOM):
        return "random weights"
    return f"a {'folder' if path.is_dir() else 'file'}" if path.exists() else "in the hub's cache"


def not_fetched(error: BaseException | None) -> bool:
    """Whether an error comes from what the hub's cache lacks."""
    while error is not None:
        if isinstance(error, Incomplete | LocalEntryNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


def lacking(check: str, model: str, error: UserError, offline: bool) -> Row:
    """Of a model that an error stands against: it, or what goes with it, has to be fetched, or
    cannot serve."""
    wanted = error.model if isinstance(error, NotHere) else model
    if Path(wanted).exists() or not not_fetched(error):
        return Row(check, model, FAIL, str(error))
    return absent(check, wanted, offline)


def absent(check: str, model: str, offline: bool) -> Row:
    """Of a model on the hub that is not here, or not whole."""
    fetch = f"`hf download {model}`"
    if offline:
        remedy = f"unset HF_HUB_OFFLINE, or {fetch} where it is not set"
        return Row(check, f"{model}: not here, and HF_HUB_OFFLINE is set", FAIL, remedy)
    if hub_there():
        remedy = f"the run would fetch it as it begins; to do so before: {fetch}"
        return Row(check, f"{model}: not here yet", WARN, remedy)
    remedy = (
        f"{fetch} with --local-dir DIR where there is a network, and give DIR; or look at this "
        f"machine's network (HF_ENDPOINT, HTTPS_PROXY)"
    )
    return Row(check, f"{model}: not here, and the hub does not answer", FAIL, remedy)


@cache
def hub_there() -> bool:
    return hub_answers()


def loras(config: ConfigDict) -> Iterator[Row]:
    """What the config's networks start from, where the run begins."""
    if config.method == "rig":
        given = {f"{part}.lora": config[part].lora for part in ("actor", "editor")}
    else:
        given = {"pretrained.lora": config.pretrained.lora}
    begun = newest(Path(config.output_dir) / config.run_name)
    for key, lora in given.items():
        if lora:
            bad = [] if begun else refused(key, lora, partial(read_start, key, lora))
            yield from bad or [Row(key, lora)]


def read_start(key: str, given: str) -> None:
    """Raise UserError for a LoRA that is not there, or cannot be read."""
    named = f"config.{key}={given!r}"
    if key == "pretrained.lora":
        start_file(given)
    elif key == "editor.lora":
        read_lora_file(locate(given, named).file, named)
    else:
        locate(given, named)
