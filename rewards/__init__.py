"""Reward models: one file each, named in this registry, combined in srrl/advantages.py.

A reward is a class with

    score(images: uint8 [B, 3, H, W], prompts: list[str]) -> float32 [B]     higher is better

and, if it can only judge some prompts, check_prompts(prompts), which raises ValueError for the
others. `reward.models` takes registered names and "module:Class" for any other.
"""

import importlib
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from srrl.errors import UserError

REGISTRY = {"shapes": "rewards.shapes:ShapesVerifier"}


class Reward(Protocol):
    """What a reward must offer, see the module's docstring."""

    def score(self, images: Tensor, prompts: list[str]) -> Tensor: ...


def load_rewards(names: Iterable[str]) -> dict[str, Reward]:
    """Instances of the named rewards. Raises UserError for a name that cannot be imported."""
    rewards = {}
    for name in names:
        if name not in REGISTRY and ":" not in name:
            raise UserError(
                f"reward.models: unknown reward {name!r}: registered are {', '.join(REGISTRY)}; "
                f"any other is given as 'module:Class'"
            )
        module, _, attribute = REGISTRY.get(name, name).partition(":")
        try:
            rewards[name] = getattr(importlib.import_module(module), attribute)()
        except (ImportError, AttributeError) as error:
            raise UserError(f"reward.models: cannot import {name!r}: {error}") from error
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
                f"reward {name!r} returned shape {list(values.shape)} for {len(prompts)} images: "
                f"it must return one score for each"
            )
        bad = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
        if bad:
            raise UserError(
                f"reward {name!r} returned {values[bad[0]].item()} for prompt "
                f"{prompts[bad[0]]!r} ({len(bad)} of {len(prompts)} scores are not finite): "
                f"nothing was updated; repair the reward or remove the prompt"
            )
        scores[name] = values
    return scores
