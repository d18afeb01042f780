"""Grammar and renderer of the embedded world.

A scene is two differently coloured shapes in a relation, and its prompt is its full
description: "a red circle left of a blue square". Pictures are 32 x 32 RGB. The same
coverage function draws the shapes and serves the verifier as its template.
"""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
COLOURS = {
    "red": (0.85, 0.13, 0.13),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.95, 0.78, 0.08),
}
SHAPES = ("circle", "square", "triangle")
# Unit vector from the second shape to the first, in picture axes (x right, y down).
RELATIONS = {
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}
BACKGROUND = 0.93
RADIUS = (4.0, 5.0)  # of the circle with the shape's area, pixels
CONVENTIONAL = {"red": "circle", "green": "triangle", "blue": "square", "yellow": "circle"}

# How a scene is described: in the grammar, which everything is trained in, and in other words,
# which nothing is.
GRAMMAR = "a {first} {relation} a {second}"
WORDINGS = (
    "a {first}, {relation} a {second}",
    "a {first} is {relation} a {second}",
    "{first} {relation} {second}",
    "{relation} a {second} a {first}",
)


def _pattern(wording: str) -> re.Pattern[str]:
    thing = rf"(?P<{{0}}_colour>{'|'.join(COLOURS)}) (?P<{{0}}_shape>{'|'.join(SHAPES)})"
    relation = rf"(?P<relation>{'|'.join(RELATIONS)})"
    named = {name: thing.format(name) for name in ("first", "second")}
    return re.compile(wording.format(relation=relation, **named))


_PATTERNS = tuple(_pattern(wording) for wording in (GRAMMAR, *WORDINGS))


@dataclass(frozen=True)
class Scene:
    """What a prompt says: `first` stands in `relation` to `second`, each (colour, shape)."""

    first: tuple[str, str]
    relation: str
    second: tuple[str, str]

    @property
    def prompt(self) -> str:
        return self.worded(GRAMMAR)

    def worded(self, wording: str) -> str:
        """The scene in one of WORDINGS."""
        first, second = " ".join(self.first), " ".join(self.second)
        return wording.format(first=first, relation=self.relation, second=second)

    @property
    def unconventional(self) -> int:
        """How many of the two shapes (0, 1, 2) have a colour that is unusual for them."""
        return sum(CONVENTIONAL[colour] != shape for colour, shape in (self.first, self.second))


def parse(prompt: str) -> Scene:
    """The scene a prompt describes, in the grammar or in one of WORDINGS. Raises ValueError for any
    other prompt."""
    match = next(filter(None, (pattern.fullmatch(prompt) for pattern in _PATTERNS)), None)
    if not match or match["first_colour"] == match["second_colour"]:
        raise ValueError(
            f"not a prompt of the shapes world: {prompt!r} (expected two different colours of "
            f"{', '.join(COLOURS)}, shapes {', '.join(SHAPES)} and {', '.join(RELATIONS)}, as in "
            f"'a red circle left of a blue square')"
        )
    first, second = (
        (match[f"{name}_colour"], match[f"{name}_shape"]) for name in ("first", "second")
    )
    return Scene(first, match["relation"], second)


def all_scenes() -> list[Scene]:
    """The 432 scenes of the grammar, in a fixed order."""
    things = list(itertools.product(COLOURS, SHAPES))
    return [
        Scene(first, relation, second)
        for first, relation, second in itertools.product(things, RELATIONS, things)
        if first[0] != second[0]
    ]


def coverage(shape: str, centre: Tensor, radius: Tensor, size: int = SIZE) -> Tensor:
    """Antialiased masks [B, size, size] in [0, 1] of shapes of area pi * radius^2.

    `centre` [B, 2] is the centroid (x, y) and `radius` [B] is in pixels. Coverage is one minus
    the signed distance to the outline, clamped over one pixel.
    """
    axis = torch.arange(size, dtype=centre.dtype) + 0.5
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    r = radius[:, None, None]
    if shape == "circle":
        distance = torch.sqrt(x * x + y * y) - r
    elif shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - r * math.sqrt(math.pi) / 2
    else:  # equilateral triangle, apex up: distance to its three sides from the centroid
        inradius = r * math.sqrt(math.pi / (3 * math.sqrt(3)))
        slanted = math.sqrt(3) / 2 * x.abs() - y / 2
        distance = torch.maximum(y, slanted) - inradius
    return (0.5 - distance).clamp(0, 1)


# Masks [B, 32, 32] of a shape by its name, at centres [B, 2], of radii [B].
Drawn = Callable[[str, Tensor, Tensor], Tensor]


def pixels_of(images: Tensor) -> Tensor:
    """float32 [B, 3, 32, 32] in [0, 1] of uint8 [B, 3, H, W]."""
    pixels = images.cpu().float() / 255
    if pixels.shape[-2:] != (SIZE, SIZE):
        pixels = F.interpolate(pixels, (SIZE, SIZE), mode="area")
    return pixels


@dataclass
class Layout:
    """Where the two things of each of B scenes stand, and in which paint.

    ground   [B, 3, 32, 32], the picture without them
    shapes, centres, radii, paints  of the first things, and of the second ones: int64 [B] (an index
             of SHAPES), [B, 2], [B] and [B, 3, 1, 1]
    """

    ground: Tensor
    shapes: list[Tensor]
    centres: list[Tensor]
    radii: list[Tensor]
    paints: list[Tensor]


def lay_out(scenes: list[Scene], generator: torch.Generator) -> Layout:
    """The scenes with jittered place, size and shade."""
    n = len(scenes)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    direction = torch.tensor([RELATIONS[s.relation] for s in scenes])
    across = direction.flip(1).abs()
    middle = torch.full((n, 2), SIZE / 2)
    ground = BACKGROUND + uniform(-0.04, 0.04, 1, 1, 1).expand(n, 3, SIZE, SIZE)
    found = Layout(ground, [], [], [], [])
    for side, things in ((1.0, [s.first for s in scenes]), (-1.0, [s.second for s in scenes])):
        along = side * uniform(7.0, 9.0, 1) * direction
        found.centres.append(middle + along + uniform(-3.0, 3.0, 1) * across)
        found.radii.append(uniform(*RADIUS))
        paint = torch.tensor([COLOURS[colour] for colour, _ in things])[:, :, None, None]
        found.paints.append((paint + uniform(-0.04, 0.04, 3, 1, 1)).clamp(0, 1))
        found.shapes.append(torch.tensor([SHAPES.index(shape) for _, shape in things]))
    return found


def masks_of(shape: Tensor, centre: Tensor, radius: Tensor, drawn: Drawn = coverage) -> Tensor:
    """Masks [B, 32, 32] of shapes, given by their index [B], each drawn by `drawn`."""
    masks = torch.zeros(len(shape), SIZE, SIZE)
    for k, name in enumerate(SHAPES):
        rows = (shape == k).nonzero()[:, 0]
        masks[rows] = drawn(name, centre[rows], radius[rows])
    return masks


def paint(layout: Layout, drawn: Drawn = coverage) -> Tensor:
    """Pictures [B, 3, 32, 32] in [0, 1] of a layout, its shapes drawn by `drawn`."""
    pictures = layout.ground
    things = (layout.shapes, layout.centres, layout.radii, layout.paints)
    for shape, centre, radius, colour in zip(*things, strict=True):
        mask = masks_of(shape, centre, radius, drawn)[:, None]
        pictures = pictures * (1 - mask) + colour * mask
    return pictures


def render(scenes: list[Scene], generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 32, 32] in [0, 1] of the scenes, with jittered place, size and shade."""
    return paint(lay_out(scenes, generator))
