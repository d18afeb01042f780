"""Reward networks without weights, to count what they take."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, T5Config

from rewards import DTYPES, REGISTRY, clipscore, imagereward, vqascore
from srrl.models.random_weights import RANDOM

# Tokens of a question before the picture and, for a prompt of some 15 words, behind it.
BEFORE, AFTER, ANSWER = 36, 40, 2


@dataclass(frozen=True)
class BlankReward:
    """A network on the meta device; run(network, n) puts n pictures through it, zeros all."""

    network: nn.Module
    run: Callable[[Any, int], None]
    batch_size: int


def blank_reward(name: str, options: Mapping[str, Any], dtype: str) -> BlankReward | None:
    """The network of a registered reward with these options; None for one that has none.

    Raises LookupError for a reward, or a model of one, whose architecture is not known.
    """
    if name == "shapes":
        return None
    make = {"vqascore": _vqascore, "imagereward": _imagereward, "clipscore": _clipscore}
    chosen = next((make[n] for n in make if name in (n, REGISTRY[n])), None)
    if chosen is None:
        raise LookupError(name)
    options, kind = dict(options), DTYPES[dtype]
    network, run, batch_size = chosen(options.get("model"))
    nn.Module.to(network, kind)
    return BlankReward(network, run, options.get("batch_size", batch_size))


Made = tuple[nn.Module, Callable[[Any, int], None], int]


def _vqascore(model: str | None) -> Made:
    published = {
        None: "xl",
        RANDOM: "xl",
        "zhiqiulin/clip-flant5-xl": "xl",
        "zhiqiulin/clip-flant5-xxl": "xxl",
    }
    if model in published:
        network = vqascore.blank_network(T5Config(**vqascore.FLAN_T5[published[model]]))
    elif model and Path(model).is_dir():
        tower = json.loads((Path(model) / "config.json").read_text())["mm_vision_tower"]
        if not Path(tower).is_dir():
            tower = None
        vision = CLIPVisionConfig.from_pretrained(tower) if tower else None
        network = vqascore.blank_network(T5Config.from_pretrained(model), vision)
    else:
        raise LookupError(model)
    network.tie()

    def run(network: Any, n: int) -> None:
        before, after, answer = (torch.zeros(k, dtype=torch.long) for k in (BEFORE, AFTER, ANSWER))
        network(pixels(n, network.image_size, network.t5.dtype), before, [after] * n, answer)

    return network, run, 8


def _imagereward(model: str | None) -> Made:
    sizes = imagereward.Sizes()
    if model and Path(model).is_dir():
        from rewards.checkpoints import read_weights

        files = [Path(model) / file for file in imagereward.FILES]
        present = next((file for file in files if file.exists()), files[-1])
        sizes = imagereward.Sizes.of(read_weights("imagereward", present))
    elif model not in (None, RANDOM, "THUDM/ImageReward"):
        raise LookupError(model)

    def run(network: Any, n: int) -> None:
        ids = torch.zeros(n, imagereward.MAX_TOKENS, dtype=torch.long)
        network(pixels(n, network.image_size, network.mlp["0"].weight.dtype), ids, ids + 1)

    return imagereward.blank_network(sizes), run, 32


def _clipscore(model: str | None) -> Made:
    if model not in (None, RANDOM, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"):
        raise LookupError(model)

    def run(network: Any, n: int) -> None:
        ids = torch.zeros(n, 77, dtype=torch.long)
        network(input_ids=ids, attention_mask=ids + 1, pixel_values=pixels(n, 224, network.dtype))

    return clipscore.blank_network(), run, 32


def pixels(n: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(n, 3, size, size, dtype=dtype)
