"""Reward models: one file each, named in this registry, combined in srrl/advantages.py.

A reward is a class with

    score(images: uint8 [B, 3, H, W], prompts: list[str]) -> float32 [B]     higher is better

and, if it can only judge some prompts, check_prompts(prompts), which raises ValueError for the
others. `reward.models` takes registered names and "module:Class" for any other; the keywords of
its constructor come from `reward.options`.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from srrl.errors import UserError

REGISTRY = {
    "shapes": "rewards.shapes:ShapesVerifier",
    "judge": "rewards.judge:ShapesJudge",
    "vqascore": "rewards.vqascore:VQAScore",
    "imagereward": "rewards.imagereward:ImageReward",
    "clipscore": "rewards.clipscore:CLIPScore",
    "qwenvl": "rewards.qwenvl:QwenVLScore",
}
# The authors' own packages, for backend "original", in an environment of their own.
ORIGINALS = {
    "vqascore": "rewards.originals:OriginalVQAScore",
    "imagereward": "rewards.originals:OriginalImageReward",
}
NETWORKS = ("vqascore", "imagereward", "clipscore", "qwenvl")  # they take device and dtype
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Reward(Protocol):
    """What a reward must offer, see the module's docstring."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor: ...


def check_names(names: Iterable[str], registry: Mapping[str, str] = REGISTRY) -> None:
    """Raise UserError for a name that is neither registered nor "module:Class"."""
    for name in names:
        if name not in registry and ":" not in name:
            raise UserError(
                f"reward.models: unknown reward {name!r}: registered are {', '.join(registry)}; "
                f"any other is given as 'module:Class'"
            )


def load_rewards(
    names: Iterable[str],
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "fp32",
    registry: Mapping[str, str] = REGISTRY,
) -> dict[str, Reward]:
    """Instances of the named rewards, with their options; networks also get device and dtype.

    Raises UserError for a name that cannot be imported or options that it does not take.
    """
    names = list(names)
    check_names(names, registry)
    rewards = {}
    for name in names:
        module, _, attribute = registry.get(name, name).partition(":")
        given = dict((options or {}).get(name, {}))
        if name in NETWORKS:
            given = {"device": device, "dtype": dtype, **given}
        try:
            made = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"reward.models: cannot import {name!r}: {error}") from error
        try:
            rewards[name] = made(**given)
        except TypeError as error:
            raise UserError(f"reward.options of {name!r}: {error}") from error
    return rewards


def check_prompts(rewards: Mapping[str, Reward], prompts: list[str], where: str) -> None:
    """Raise UserError for prompts from `where` that one of the rewards cannot judge."""
    for name, reward in rewards.items():
        if hasattr(reward, "check_prompts"):
            try:
                reward.check_prompts(prompts)
            except ValueError as error:
                raise UserError(f"{where}: reward {name!r} cannot judge it: {error}") from error


def score_all(
    rewards: Mapping[str, Reward], images: Tensor, prompts: list[str]
) -> dict[str, Tensor]:
    """Each reward's scores float32 [B] on the CPU; images uint8 [B, 3, H, W].

    Raises UserError, naming the reward and a prompt, for a wrong shape or a non-finite score.
    """
    scores = {}
    for name, reward in rewards.items():
        values = torch.as_tensor(reward.score(images, prompts)).detach().float().cpu()
        if values.shape != (len(prompts),):
            raise UserError(
                f"reward {name!r} returned shape {list(values.shape)} for {len(prompts)} images "
                f"({shown(prompts)}): it must return one score for each"
            )
        bad = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
        if bad:
            raise UserError(
                f"reward {name!r} returned {values[bad[0]].item()} for "
                f"{shown([prompts[i] for i in bad])} ({len(bad)} of {len(prompts)} scores are not "
                f"finite): nothing was updated; repair the reward or remove the prompt"
            )
        scores[name] = values
    return scores


def shown(prompts: list[str]) -> str:
    """The first three prompts, quoted."""
    return ", ".join(repr(p) for p in prompts[:3]) + (", ..." if len(prompts) > 3 else "")
