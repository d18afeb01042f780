"""A LoRA's file, whoever wrote it: read, checked and brought to one form, before a model is there.

Of each module a LoRA (arXiv 2106.09685) is W + scale B A. Its writers differ in names (kohya-ss,
diffusers old and new, peft, attention processors, wrappers around them) and in where the scale is:
alpha / rank by module, in peft's config, in the header, or in B already.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from srrl.errors import UserError
from srrl.models.tensor_files import POINTER, is_pointer

PEFT_CONFIG = "adapter_config.json"
HEADER = "lora_adapter_metadata"  # diffusers' place for peft's config
PEFT_PREFIX = "base_model.model."
WEIGHT = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?[._](?P<role>A|B|down|up|mid|magnitude_vector)"
    r"(?:\.(?P<adapter>(?!bias$|weight$|.*scale)[^.]+))??(?:\.weight)?"
)
SCALAR = re.compile(r"(?P<module>.+)\.(?P<role>alpha|dora_scale)")
ROLES = {"A": "down", "B": "up"}
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_(?:fsdp|checkpoint)_wrapped_module)\.")
# What names begin with, and the part of the pipeline that they then are of.
PREFIXES = {
    PEFT_PREFIX: "",
    "pipe.": "",
    "model.unet.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "unet.": "unet",
    "lora_unet_": "unet",
    "lora_unet.": "unet",
    "lycoris_te1_": "text_encoder",
    "lycoris_te2_": "text_encoder_2",
    "lycoris_text_model_": "text_encoder",
    "lycoris_": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "text_encoder_2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
# Parts of the names of what is no plain LoRA, and what it is called.
OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
    "lora_E": "AdaLoRA",
    "vera_": "VeRA",
    "ia3_": "IA3",
    "on_input": "IA3",
    ".a1.": "GLoRA",
    ".b1.": "GLoRA",
    ".diff": "full differences (diff)",
    ".w_norm": "differences of norms",
    "lora_embedding_": "a LoRA of embeddings",
    "bundle_emb": "a textual inversion",
    "emb_params": "a textual inversion",
    "string_to_param": "a textual inversion",
}
LARGEST = 1e6  # that a LoRA may add to a weight
# peft's starts that change the base's weights, too.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass
class Delta:
    """What a LoRA does to one module: W + scale up @ down.

    down [r, in] or, of a convolution, [r, in, h, w]; up [out, r]. magnitude, of DoRA (arXiv
    2402.09353): [out], the lengths of W's rows then, or [1, in], those of its columns.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def largest(self) -> float:
        """A bound of what it adds to a weight, as float32 holds it."""
        sizes = (t.detach().float().abs().max() for t in (self.up, self.down))
        return float(abs(self.scale) * math.prod(sizes) * self.rank)

    @property
    def alpha(self) -> float:
        return self.scale * self.rank


@dataclass(frozen=True)
class LoraFile:
    """deltas: by (part, module's name as the file has it); format: who writes such files."""

    deltas: Mapping[tuple[str, str], Delta]
    format: str


def read_lora_file(path: Path, named: str) -> LoraFile:
    """Read a LoRA's .safetensors file. Raises UserError, which begins with `named`, for one that
    cannot be read, holds something else or more than a plain LoRA or DoRA, or is not finite."""
    state, header = read_tensors(path, named)
    config = peft_config(path, state, header, named)
    gathered: dict[tuple[str, str], dict[str, Tensor]] = {}
    styles = set()
    matches = filter(None, map(WEIGHT.fullmatch, state))
    if len(adapters := {m["adapter"] for m in matches} - {None}) > 1:
        several = ", ".join(sorted(adapters))
        raise UserError(f"{named}: holds several adapters ({several}): save one by itself")
    for key, tensor in state.items():
        found = WEIGHT.fullmatch(key) or SCALAR.fullmatch(key)
        if not found:
            raise UserError(f"{named}: {foreign(key, state)}")
        if not torch.isfinite(tensor.float()).all():
            raise UserError(f"{named}: {path.name} has numbers that are not finite in {key!r}")
        styles.add(style(key))
        role = ROLES.get(found["role"], found["role"])
        tensors = gathered.setdefault(plain_name(found["module"]), {})
        if role in tensors:
            raise UserError(f"{named}: holds the same module twice, as {key!r}: give one LoRA")
        tensors[role] = tensor
    if not gathered:
        raise UserError(f"{named}: {path.name} holds no tensor at all")
    deltas = {}
    for (part, module), tensors in gathered.items():
        try:
            delta = delta_of(module, tensors, config.get(part))
            if not delta.largest < LARGEST:
                raise ValueError(f"it adds up to {delta.largest:.3g} to a weight: it is damaged")
            deltas[part, module] = delta
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{named}: {module}: {error}") from None
    return LoraFile(deltas, " and ".join(sorted(styles - {""})) or "diffusers")


def read_tensors(path: Path, named: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header's texts of a .safetensors file."""
    try:
        if is_pointer(path):
            raise UserError(f"{named}: {path.name} {POINTER}")
        with safe_open(path, "pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{named}: {path.name} cannot be read ({reason}): give a whole .safetensors file"
        ) from None


def foreign(key: str, state: Mapping[str, Tensor]) -> str:
    """What a file is that holds a key which is no LoRA's."""
    if not any(WEIGHT.fullmatch(k) for k in state):
        kinds = [name for k in state for mark, name in OTHERS.items() if mark in k]
        if not kinds:
            hint = ": a whole model is given as pretrained.model" if len(state) > 20 else ""
            return f"holds no LoRA, but {len(state)} other tensors, as {key!r}{hint}"
        return f"is no plain LoRA, but {kinds[0]}, as {key!r}: merge it, or convert it to a LoRA"
    kind = next((name for mark, name in OTHERS.items() if mark in key), "other weights")
    return f"holds {kind} besides a plain LoRA, as {key!r}: merge it, or convert it to a LoRA"


def style(key: str) -> str:
    """Who names weights so; "" where that cannot be told."""
    if ".processor." in key:
        return "attention processors"
    if key.startswith(("lora_", "lycoris_")):
        return "kohya"
    return "peft" if PEFT_PREFIX in key else ""


def plain_name(name: str) -> tuple[str, str]:
    """(part of the pipeline, module in it) without what wrappers, trainers and old processors put
    around it; the module still has its writer's name, with dots or underscores."""
    part, name = "", re.sub(r"[._]lora$", "", WRAPPERS.sub("", name))
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        part, name = PREFIXES[prefix] or part, name.removeprefix(prefix)
    part = part or ("text_encoder" if name.startswith("text_model.") else "unet")
    return part, name.replace(".processor.", ".")


def delta_of(module: str, tensors: Mapping[str, Tensor], config: Mapping | None) -> Delta:
    """A module's tensors as one Delta. Raises ValueError for what does not belong together."""
    missing = {"down", "up"} - tensors.keys()
    if missing:
        raise ValueError(f"its {' and '.join(sorted(missing))} weights are missing")
    down, up = tensors["down"], tensors["up"]
    if not all(t.is_floating_point() and t.dim() >= 2 and t.numel() for t in (down, up)):
        raise ValueError(f"weights of {list(down.shape)} {down.dtype} and {list(up.shape)}")
    if up.shape[1:].numel() != (rank := up.shape[1]):
        raise ValueError(f"an up weight of {list(up.shape)}: only 1 x 1 can be held")
    up = up.reshape(up.shape[0], rank)
    if "mid" in tensors:  # LoCon's: a convolution of r channels between two linear ones
        mid = tensors["mid"]
        if down.shape[1:].numel() != down.shape[1] or mid.shape[:2] != (rank, down.shape[0]):
            raise ValueError(f"a mid weight of {list(mid.shape)} between {list(down.shape)}")
        flat = down.reshape(down.shape[:2]).float()
        down = torch.einsum("rs...,si->ri...", mid.float(), flat)
    if down.shape[0] != rank:
        raise ValueError(f"is of rank {down.shape[0]} in one weight and {rank} in the other")
    magnitude = tensors.get("magnitude_vector")
    if magnitude is not None:
        magnitude = magnitude.reshape(-1)
    elif (columns := tensors.get("dora_scale")) is not None:
        by_row = columns.dim() < 2 or columns.shape[0] > 1
        magnitude = columns.reshape(-1) if by_row else columns.reshape(1, -1)
    return Delta(down, up, scale_of(module, rank, tensors.get("alpha"), config), magnitude)


def scale_of(module: str, rank: int, alpha: Tensor | None, config: Mapping | None) -> float:
    """alpha / rank: the module's own alpha, else peft's config's, else the rank."""
    if alpha is not None:
        if alpha.numel() != 1:
            raise ValueError(f"an alpha of {list(alpha.shape)}: expected one number")
        return float(alpha) / rank
    if not config:
        return 1.0
    own = config.get("alpha_pattern") or {}
    value = own.get(get_pattern_key(own, module), config["lora_alpha"])
    return value / (rank**0.5 if config.get("use_rslora") else rank)


def peft_config(
    path: Path, state: Mapping[str, Tensor], header: Mapping[str, str], named: str
) -> dict[str, dict[str, Any]]:
    """By part of the pipeline what peft's config says of its LoRA: a file's beside it, or the
    header's. Empty where there is none, or each module has its alpha."""
    beside = path.with_name(PEFT_CONFIG)
    wrapped = any(PEFT_PREFIX in key for key in state)
    if wrapped and not beside.exists():
        raise UserError(
            f"{named}: peft's weights without {PEFT_CONFIG}, which has their alpha: put it beside "
            f"{path.name}"
        )
    own_alphas = any(key.endswith(".alpha") for key in state)
    known: dict[str, dict[str, Any]] = {}
    where = "its header"
    try:
        if beside.exists() and not own_alphas and HEADER not in header:
            where = PEFT_CONFIG
            if is_pointer(beside):
                raise UserError(f"{named}: {PEFT_CONFIG} {POINTER}")
            whole = json.loads(beside.read_text(encoding="utf-8-sig"))
            known = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), whole)
        elif HEADER in header:
            for key, value in json.loads(header[HEADER]).items():
                part, _, name = key.partition(".")
                if not name:  # of a UNet by itself
                    part, name = "unet", key
                known.setdefault(part, {})[name] = value
        for config in known.values():
            check_peft(config, named)
    except (ValueError, TypeError, AttributeError, KeyError, OSError, re.error) as error:
        raise UserError(
            f"{named}: {where} does not say how the LoRA is scaled ({type(error).__name__}: "
            f"{error}): write the LoRA again, or mend it"
        ) from None
    return known


def check_peft(config: Mapping[str, Any], named: str) -> None:
    """Raise UserError for what is no plain LoRA; another error for values of other types."""
    start = config.get("init_lora_weights")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{named}: is no plain LoRA, but {kind}: merge it, or convert it")
    if str(start).lower().startswith(CHANGED_BASE):
        raise UserError(
            f"{named}: was started with init_lora_weights={start!r}, which changes the base's "
            f"weights, too: convert it by peft's save_pretrained(path_initial_model_for_...)"
        )
    patterns = config.get("alpha_pattern") or {}
    for pattern in patterns:
        re.compile(pattern)
    for alpha in (config["lora_alpha"], *patterns.values()):
        if not math.isfinite(alpha):
            raise ValueError(f"an alpha of {alpha}")
