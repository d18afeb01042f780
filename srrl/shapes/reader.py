"""What a picture of the shapes world shows, read exactly: each colour's shape and place.

A pixel is softly assigned to one of the four colours, the background, or none of them; a colour's
mask has an area, a centroid and an outline. Two things stand in a relation when their centroids
are apart along it, and more so than across it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from srrl.rig.graphs import Entity, Relation, SceneGraph
from srrl.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    RADIUS,
    RELATIONS,
    SHAPES,
    Scene,
    coverage,
    pixels_of,
)

COLOUR_SPREAD = 0.14  # RGB distance at which a pixel half leaves its colour
NO_COLOUR = 0.38  # RGB distance from which a pixel belongs to no colour of the world
MIN_AREA, MAX_AREA = math.pi * RADIUS[0] ** 2, math.pi * RADIUS[1] ** 2
THERE = 20.0  # pixels of a colour from which there is a thing of it
WHOLE = 0.78  # IoU with its nearest shape from which a thing is that shape
APART = 2.0  # pixels by which a relation's axis leads
MALFORMED = "blob"


@dataclass(frozen=True)
class Thing:
    """Of a colour: its shape, None where it is malformed; the nearest one; centroid, area."""

    shape: str | None
    nearest: str
    x: float
    y: float
    area: float


Seen = Mapping[str, Thing]  # by colour


def assign(pixels: Tensor) -> Tensor:
    """Soft membership [B, 6, H, W] of pixels [B, 3, H, W]: colours, background, none."""
    palette = torch.tensor([*COLOURS.values(), (BACKGROUND,) * 3])
    squared = ((pixels[:, None] - palette[None, :, :, None, None]) ** 2).sum(2)
    none = torch.full_like(squared[:, :1], NO_COLOUR**2)
    return torch.softmax(-torch.cat([squared, none], 1) / (2 * COLOUR_SPREAD**2), 1)


def place(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Area [B] and centroid [B, 2] (x, y) of soft masks [B, H, W]."""
    area = mask.sum((1, 2))
    axis = torch.arange(mask.shape[-1]) + 0.5
    x = (mask.sum(1) * axis).sum(1) / area.clamp(min=1e-6)
    y = (mask.sum(2) * axis).sum(1) / area.clamp(min=1e-6)
    return area, torch.stack([x, y], 1)


@torch.no_grad()
def read(images: Tensor) -> list[dict[str, Thing]]:
    """What is seen in pictures uint8 [B, 3, 32, 32]."""
    found: list[dict[str, Thing]] = []
    for part in images.split(500):
        assigned = assign(pixels_of(part))
        rows: list[dict[str, Thing]] = [{} for _ in part]
        for c, colour in enumerate(COLOURS):
            mask = assigned[:, c]
            area, centre = place(mask)
            radius = (area / math.pi).sqrt()
            iou = torch.stack([overlap(mask, coverage(s, centre, radius)) for s in SHAPES], 1)
            iou, best = iou.max(1)
            whole = (iou >= WHOLE) & (area > 0.7 * MIN_AREA) & (area < 1.5 * MAX_AREA)
            for i in (area >= THERE).nonzero()[:, 0].tolist():
                nearest = SHAPES[best[i]]
                shape = nearest if whole[i] else None
                x, y = centre[i].tolist()
                rows[i][colour] = Thing(shape, nearest, x, y, area[i].item())
        found += rows
    return found


def overlap(mask: Tensor, template: Tensor) -> Tensor:
    """IoU [B] of soft masks [B, H, W]."""
    union = torch.maximum(mask, template).sum((1, 2)).clamp(min=1e-6)
    return torch.minimum(mask, template).sum((1, 2)) / union


def is_there(seen: Seen, thing: tuple[str, str]) -> bool:
    """Is there a whole thing of this (colour, shape)?"""
    colour, shape = thing
    return colour in seen and seen[colour].shape == shape


def stands(seen: Seen, first: str, relation: str, second: str) -> bool:
    """Does what has the first colour stand so to what has the second?"""
    if first not in seen or second not in seen or first == second:
        return False
    dx, dy = seen[first].x - seen[second].x, seen[first].y - seen[second].y
    ux, uy = RELATIONS[relation]
    return dx * ux + dy * uy - abs(dx * uy + dy * ux) > APART


def truths(seen: Seen, scene: Scene) -> list[bool]:
    """Of a scene's requirements (the first, the second, their relation) those that hold."""
    one, two = is_there(seen, scene.first), is_there(seen, scene.second)
    return [one, two, one and two and stands(seen, scene.first[0], scene.relation, scene.second[0])]


def entity_of(colour: str, thing: Thing) -> Entity:
    return Entity(thing.shape or MALFORMED, (colour,))


def graph_of(seen: Seen) -> SceneGraph:
    """The scene graph of what is seen: all things, and between any two how they stand."""
    things = {colour: entity_of(colour, thing) for colour, thing in seen.items()}
    relations = [
        Relation(things[a], relation, things[b])
        for a, b in combinations(things, 2)
        for relation in RELATIONS
        if stands(seen, a, relation, b)
    ]
    related = {e for r in relations for e in (r.subject, r.object)}
    return SceneGraph(tuple(relations), tuple(e for e in things.values() if e not in related))
