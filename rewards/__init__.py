"""Reward models: one file each, named in this registry, combined in srrl/advantages.py.

A reward is a class with

    score(images, prompts) -> B scores, higher is better

- images: uint8 [B, 3, H, W], RGB, on the CPU; its own copy, to change as it likes. B is whatever
  is at hand, one to hundreds: a network splits it by itself. prompts: B strings. No gradients.
- The scores are a tensor, array or list of B finite numbers, on any device. A picture's score must
  not depend on what else is in the batch, nor on what was scored before.
- check_prompts(prompts), if it can only score some: raises ValueError for the others.
- details, if it has more to say: after `score`, a list of B things that JSON can hold, which go
  into samples.jsonl.
- right, an attribute of the class, if it can say so: the score from which a picture is right.
- Its constructor's keywords come from `reward.options`. `device` (as "cuda:0") and `dtype` ("fp32",
  "fp16", "bf16") come from `reward.device` and `reward.dtype`, where it takes them.

`reward.models` takes registered names, and "module:Class" or "path/to/file.py:Class" for any other;
modules are also looked for in the working folder and beside train.sh. Any further name stands for
the reward that "class" in its options says, so that one reward serves twice:

    reward.models={"shapes": 1, "strict": 1}
    reward.options={"strict": {"class": "shapes", "success": 0.9}}
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rewards.faults import named_faults
from srrl.errors import UserError

REGISTRY = {
    "shapes": "rewards.shapes:ShapesVerifier",
    "judge": "rewards.judge:ShapesJudge",
    "vqascore": "rewards.vqascore:VQAScore",
    "imagereward": "rewards.imagereward:ImageReward",
    "clipscore": "rewards.clipscore:CLIPScore",
    "qwenvl": "rewards.qwenvl:QwenVLScore",
    "api": "rewards.api:APIScore",
    "checker": "rewards.checker:Checker",
    "requirements": "rewards.checker:Requirements",
    "sgiou": "rewards.sgiou:SGIoU",
}
# The authors' own packages, for backend "original", in an environment of their own.
ORIGINALS = {
    "vqascore": "rewards.originals:OriginalVQAScore",
    "imagereward": "rewards.originals:OriginalImageReward",
}
ALIAS = "class"  # in the options of a name that stands for another; no keyword can be called so
ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Reward(Protocol):
    """What a reward must offer, see the module's docstring."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor: ...


Options = Mapping[str, Mapping[str, Any]]  # keywords by reward


def stands_for(name: str, options: Options | None) -> str:
    """The reward, as REGISTRY or a path names it, that a name of reward.models stands for."""
    return (options or {}).get(name, {}).get(ALIAS, name)


def keywords(name: str, options: Options | None) -> dict[str, Any]:
    """What its options give to a reward's constructor."""
    return {k: v for k, v in (options or {}).get(name, {}).items() if k != ALIAS}


def check_names(
    names: Iterable[str], options: Options | None = None, registry: Mapping[str, str] = REGISTRY
) -> None:
    """Raise UserError for a name that is neither registered nor "module:Class", nor stands for such
    a one."""
    for name in names:
        path = stands_for(name, options)
        if type(path) is not str or (path not in registry and ":" not in path):
            raise UserError(
                f"reward.models: unknown reward {path!r}: registered are {', '.join(registry)}; "
                f"any other is given as 'module:Class' or 'path/to/file.py:Class'"
            )


def load_rewards(
    names: Iterable[str],
    options: Options | None = None,
    *,
    device: str = "cpu",
    dtype: str = "fp32",
    registry: Mapping[str, str] = REGISTRY,
) -> dict[str, Reward]:
    """Instances of the named rewards, with their options, and device and dtype if they take them.

    Raises UserError for a name that cannot be imported and for options that it does not take,
    before the first is made, and for errors in its own code.
    """
    names = list(names)
    check_names(names, options, registry)
    chosen = {}
    for name in names:
        path = stands_for(name, options)
        made = reward_class(name, registry.get(path, path))
        given = keywords(name, options)
        takes = inspect.signature(made).parameters
        shared = any(p.kind is p.VAR_KEYWORD for p in takes.values()) and path in registry
        for key, value in (("device", device), ("dtype", dtype)):
            if key in takes or shared:
                given.setdefault(key, value)
        bound_options(name, made, given)
        chosen[name] = made, given
    rewards = {}
    for name, (made, given) in chosen.items():
        with named_faults(name, "its constructor"):
            rewards[name] = made(**given)
    return rewards


def bound_options(name: str, made: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a reward's constructor, with its defaults where they are not given. Raises
    UserError for those that it does not take, or lacks; of our own rewards also for those that go
    through **settings to the class that they inherit from."""
    try:
        bound = inspect.signature(made).bind(**given)
    except TypeError as error:
        raise UserError(f"reward.options of {name!r}: {error}") from error
    bound.apply_defaults()
    passed = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    if passed and made.__module__.startswith(f"{__name__}."):
        of_whom = [base for base in made.__mro__ if "__init__" in vars(base)]
        bound_options(name, of_whom[1], bound.arguments[passed[0]])
    return bound.arguments


def reward_class(name: str, path: str) -> type:
    """The class at "module:Class" or "file.py:Class". Raises UserError."""
    module, _, attribute = path.rpartition(":")
    for folder in (os.getcwd(), str(ROOT)):
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        with named_faults(name, "its module"):
            made = getattr(imported(module), attribute, None)
    except UserError as error:
        if isinstance(error.__cause__, ModuleNotFoundError | FileNotFoundError):
            raise UserError(f"reward.models: cannot import {name!r}: {error.__cause__}") from error
        raise
    if not callable(made):
        raise UserError(f"reward.models: cannot import {name!r}: {module} has no {attribute!r}")
    if not callable(getattr(made, "score", None)):
        raise UserError(f"reward.models: {name!r} has no method score(images, prompts)")
    return made


def imported(module: str) -> Any:
    """A module by its name, or by its file's path (from here, or from beside train.sh)."""
    if not module.endswith(".py"):
        return importlib.import_module(module)
    file = Path(module) if Path(module).exists() else ROOT / module
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader  # it ends with .py
    loaded = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(file.stem, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def check_prompts(rewards: Mapping[str, Reward], prompts: list[str], where: str) -> None:
    """Raise UserError for prompts from `where` that one of the rewards cannot score."""
    for name, reward in rewards.items():
        if hasattr(reward, "check_prompts"):
            with named_faults(name, "check_prompts"):
                try:
                    reward.check_prompts(prompts)
                except ValueError as error:
                    raise UserError(f"{where}: reward {name!r} cannot judge it: {error}") from error


def score_all(
    rewards: Mapping[str, Reward], images: Tensor, prompts: list[str]
) -> dict[str, Tensor]:
    """Each reward's scores float32 [B] on the CPU; images uint8 [B, 3, H, W], on any device.

    Raises UserError, naming the reward and a prompt, for a wrong shape or a non-finite score.
    """
    scores, images = {}, images.cpu()
    for name, reward in rewards.items():
        with torch.no_grad(), named_faults(name, "score"):
            given = reward.score(images.clone(), list(prompts))
        values = as_numbers(name, given, len(prompts))
        if values.shape != (len(prompts),):
            raise UserError(
                f"reward {name!r} returned shape {list(values.shape)} for {len(prompts)} images "
                f"({brief(prompts)}): it must return one score for each"
            )
        bad = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
        if bad:
            raise UserError(
                f"reward {name!r} returned {values[bad[0]].item()} for "
                f"{brief([prompts[i] for i in bad])} ({len(bad)} of {len(prompts)} scores are not "
                f"finite): repair the reward or remove the prompt"
            )
        scores[name] = values
    return scores


def details_of(rewards: Mapping[str, Reward], count: int) -> dict[str, list]:
    """What rewards have to say besides the scores of the `count` pictures scored last.

    Raises UserError, naming the reward, for any other number of details.
    """
    told = {}
    for name, reward in rewards.items():
        details = getattr(reward, "details", None)
        if details is None:
            continue
        if len(details) != count:
            raise UserError(f"reward {name!r} has {len(details)} details of {count} images")
        told[name] = list(details)
    return told


def as_numbers(name: str, given: Any, count: int) -> Tensor:
    """What a reward returned as float32 on the CPU. Raises UserError if it is not numbers."""
    try:
        values = torch.as_tensor(given).detach().cpu()
    except Exception:  # whatever a stranger object raises
        values = None
    if values is None or values.is_complex():
        raise UserError(
            f"reward {name!r} returned a {type(given).__name__} that is not {count} real numbers: "
            f"its score(images, prompts) must return one for each image"
        )
    return values.float()


def brief(prompts: list[str]) -> str:
    """The first three prompts, quoted."""
    return ", ".join(repr(p) for p in prompts[:3]) + (", ..." if len(prompts) > 3 else "")
