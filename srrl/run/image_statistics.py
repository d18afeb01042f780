"""How an evaluation's pictures look, whatever their rewards say of them: a reward that is fooled
trains pictures that grow dark, flat, noisy or all alike, while its own curve only rises."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# Of a picture, and of a prompt's pictures, with what they are called.
MEASURES = {
    "dark": "dark pixels",
    "edges": "edge density",
    "entropy": "colour entropy",
    "diversity": "diversity",
}
DARK, EDGE = 0.1, 0.1  # luma of a pixel, and its difference to a neighbour's, both of 1
LEVELS = 4  # of each channel in the histogram of colours
SIDE = 8  # of the thumbnails whose distance is the diversity
DRIFT, NARROW = 1.0, 0.5  # standard deviations of the first pictures; share of their diversity

Summary = dict[str, tuple[float, float]]  # a measure's mean and standard deviation


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of P prompts found.

    scores    for each reward float32 [seeds * P], seeds outermost
    pictures  how they look
    shown     uint8 [n, 3, H, W], the first seed's pictures of the n prompts that were asked for
    """

    scores: dict[str, Tensor]
    pictures: Summary
    shown: Tensor


def measured(images: Tensor) -> Tensor:
    """float32 [B, 3 + 3 * SIDE * SIDE] of images uint8 [B, 3, H, W]: the share of dark pixels, that
    of pixels at an edge, the entropy of the colours in bits, and a thumbnail in [0, 1]."""
    pixels = images.float() / 255
    luma = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    across = (luma[:, 1:, 1:] - luma[:, 1:, :-1]).abs()
    down = (luma[:, 1:, 1:] - luma[:, :-1, 1:]).abs()
    levels = images.long() * LEVELS // 256
    colours = (levels * torch.tensor([LEVELS**2, LEVELS, 1])[:, None, None]).sum(1).flatten(1)
    counts = torch.zeros(len(images), LEVELS**3).scatter_add_(1, colours, torch.ones(colours.shape))
    measures = [
        (luma < DARK).float().mean((1, 2)),
        (torch.maximum(across, down) > EDGE).float().mean((1, 2)),
        torch.special.entr(counts / colours.shape[1]).sum(1) / math.log(2),
    ]
    thumbnails = adaptive_avg_pool2d(pixels, SIDE).flatten(1)
    return torch.cat([torch.stack(measures, 1), thumbnails], 1)


def summary(rows: Tensor, seeds: int) -> Summary:
    """Of `measured` rows [seeds * P], seeds outermost, what eval.jsonl says. Diversity is the mean
    root mean square distance of a prompt's thumbnails at two seeds, or of one seed that of a prompt
    and the next; left out where there is a single picture."""
    found = dict(zip(MEASURES, rows[:, :3].T, strict=False))
    thumbnails = rows[:, 3:].view(seeds, -1, rows.shape[1] - 3)
    if seeds == 1:
        thumbnails = thumbnails.transpose(0, 1)
        pairs = [(i, i + 1) for i in range(len(thumbnails) - 1)]
    else:
        pairs = [(i, j) for i in range(seeds) for j in range(i)]
    if pairs:
        apart = [(thumbnails[i] - thumbnails[j]).square().mean(1).sqrt() for i, j in pairs]
        found["diversity"] = torch.stack(apart).flatten()
    return {
        name: (round(v.mean().item(), 6), round(v.std(unbiased=False).item(), 6))
        for name, v in found.items()
    }


def drifted(lines: Iterable[Mapping[str, Any]]) -> str:
    """What has become of the last evaluation's pictures since the first of the same prompts and
    seeds, of eval.jsonl's lines: a mean further away than the first pictures' standard deviation,
    or less than half of their diversity. "" for nothing."""
    kinds: dict[tuple, list[tuple[int, Summary]]] = {}
    for x in lines:
        if look := summary_of(x):
            judged = (x["split"], x["rounds"], x["n"], x["seeds"], x["first_seed"])
            kinds.setdefault(judged, []).append((x["stage"], look))
    last = max((some[-1][0] for some in kinds.values()), default=0)
    far: dict[str, tuple[float, str]] = {}
    for (split, rounds, *_), some in kinds.items():
        (_, first), (stage, now) = some[0], some[-1]
        for name in first.keys() & now.keys() if stage == last else ():
            (before, spread), (after, _) = first[name], now[name]
            away = abs(after - before) / max(spread, 1e-6) / DRIFT
            if name == "diversity":
                away = NARROW * before / max(after, 1e-6)
            if away > max(1.0, far.get(name, (0.0,))[0]):
                far[name] = away, f"{before:.2f} to {after:.2f} ({split}, K {rounds})"
    found = [f"{MEASURES[name]} {far[name][1]}" for name in MEASURES if name in far]
    return f"the pictures have changed since the start: {'; '.join(found)}" if found else ""


def summary_of(line: Mapping[str, Any]) -> Summary:
    """What a line of eval.jsonl says of its pictures; what is no number is left out."""
    given = line.get("pictures")
    given = given if isinstance(given, Mapping) else {}
    return {
        name: (float(pair[0]), float(pair[1]))
        for name, pair in given.items()
        if name in MEASURES and isinstance(pair, list | tuple) and _numbers(pair)
    }


def _numbers(pair: Sequence[Any]) -> bool:
    return len(pair) == 2 and all(type(x) in (int, float) and abs(x) < 1e9 for x in pair)
