"""A picture of the embedded world explained: a scene's two things, fitted to its pixels.

For each thing the centre and radius are sought at which its shape, in the mean paint of its colour
on the picture's own background, is nearest to the pixels about it. What no such two things explain
is left over, wherever it is: spikes, a third thing, another shape, confetti, stripes, wrong paint.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from srrl.shapes.reader import assign, place
from srrl.shapes.scenes import BACKGROUND, COLOURS, SHAPES, SIZE, Scene, masks_of

# How far paint and background may be from the palette's, in each channel; renders are within .04.
PAINT, GREY = 0.07, 0.06
SMALLEST, LARGEST = 2.5, 7.0  # radius that is sought
# The search: the steps of the centre in pixels, and of the radius relative to it.
STEPS = ((0.7, 0.08), (0.7, 0.08), (0.3, 0.035), (0.12, 0.015), (0.05, 0.006))
FAR = 11.0  # pixels from its centre at which nothing belongs to a thing
FAINT = 0.1  # RGB distance from which a pixel that is not explained counts more than its square
BATCH = 256


@dataclass(frozen=True)
class Fit:
    """Of B pictures the scene's first and second thing.

    centre    [B, 2, 2], x and y in pixels; radius [B, 2], of the circle of its area
    seen      [B, 2], the share of it that lies in the picture
    left      [B, 2], of the pixels nearer to it than to the other what is not explained: the sum of
              the squares of their RGB distances, and of 0.6 of what of these is above FAINT
    """

    centre: Tensor
    radius: Tensor
    seen: Tensor
    left: Tensor


def _apart(centre: Tensor) -> Tensor:
    """Squared distance [N, 32, 32] of each pixel to a centre [N, 2]."""
    axis = torch.arange(SIZE) + 0.5
    x = (axis - centre[:, :1]).square()
    y = (axis - centre[:, 1:]).square()
    return x[:, None, :] + y[:, :, None]


def _search(shape: Tensor, wanted: Tensor, near: Tensor, centre: Tensor, radius: Tensor) -> tuple:
    """The centre and radius near the given ones at which a shape is nearest to the `wanted`
    coverage [N, 32, 32] of the pixels in `near`."""
    for move, grow in STEPS:
        least = torch.full_like(radius, math.inf)
        best_centre, best_radius = centre, radius
        for dx in (-move, 0.0, move):
            for dy in (-move, 0.0, move):
                for factor in (1 - grow, 1.0, 1 + grow):
                    moved = centre + torch.tensor([dx, dy])
                    grown = (radius * factor).clamp(SMALLEST, LARGEST)
                    apart = (masks_of(shape, moved, grown) - wanted).square()
                    error = torch.where(near, apart, 0.0).sum((1, 2))
                    better = error < least
                    least = torch.where(better, error, least)
                    best_centre = torch.where(better[:, None], moved, best_centre)
                    best_radius = torch.where(better, grown, best_radius)
        centre, radius = best_centre, best_radius
    return centre, radius


@torch.no_grad()
def fit(pixels: Tensor, scenes: list[Scene]) -> Fit:
    """The things of each picture's scene in pixels float32 [B, 3, 32, 32]."""
    parts = [
        _fit(part, scenes[n * BATCH : (n + 1) * BATCH])
        for n, part in enumerate(pixels.split(BATCH))
    ]
    return Fit(*(torch.cat([getattr(p, k) for p in parts]) for k in Fit.__dataclass_fields__))


def _fit(pixels: Tensor, scenes: list[Scene]) -> Fit:
    n, colours = len(scenes), list(COLOURS)
    assigned = assign(pixels)
    background = assigned[:, len(colours), None] ** 4
    grey = (pixels * background).sum((1, 2, 3)) / (3 * background.sum((1, 2, 3))).clamp(min=1e-6)
    grey = grey.clamp(BACKGROUND - GREY, BACKGROUND + GREY)[:, None]
    # All first things, then all second ones: 2B rows.
    things = [scene.first for scene in scenes] + [scene.second for scene in scenes]
    colour = torch.tensor([colours.index(c) for c, _ in things]).long()
    shape = torch.tensor([SHAPES.index(s) for _, s in things]).long()
    rows = torch.arange(n).repeat(2)
    mask, pixels, grey = assigned[rows, colour], pixels[rows], grey[rows]
    inner = mask[:, None] ** 4
    paint = (pixels * inner).sum((2, 3)) / inner.sum((2, 3)).clamp(min=1e-6)
    named = torch.tensor(list(COLOURS.values()))[colour]
    paint = torch.minimum(torch.maximum(paint, named - PAINT), named + PAINT)
    area, centre = place(mask)
    from_here = _apart(centre)
    near = (from_here < from_here.roll(n, 0)) & (from_here < FAR**2)
    # A pixel between background and paint is covered by so much.
    line = (paint - grey)[:, :, None, None]
    along = ((pixels - grey[:, :, None, None]) * line).sum(1) / line.square().sum(1)
    radius = (area / math.pi).sqrt().clamp(SMALLEST, LARGEST)
    centre, radius = _search(shape, along.clamp(-0.3, 1.3), near, centre, radius)
    covered = masks_of(shape, centre, radius)
    lines = covered[:, None] * line
    apart = (pixels - grey[:, :, None, None] - lines - lines.roll(n, 0)).square().sum(1)
    strange = apart + 0.6 * (apart.sqrt() - FAINT).clamp(min=0)
    from_here = _apart(centre)
    mine = from_here < from_here.roll(n, 0)
    mine[:n] |= from_here[:n] == from_here[n:]
    left = torch.where(mine, strange, 0.0).sum((1, 2))
    seen = covered.sum((1, 2)) / (math.pi * radius.square())
    return Fit(*(torch.stack([x[:n], x[n:]], 1) for x in (centre, radius, seen, left)))
