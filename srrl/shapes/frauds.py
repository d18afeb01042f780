"""Pictures that a person would reject, and that a judge may be fooled by.

Each kind draws the pictures of scenes almost as they should be: spikes at the corners, five corners
for a circle, things cut off by the border, a further thing, confetti, another paint, stripes. The
verifier is held to them, and the second judge is trained on them.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from srrl.shapes.deform import FINE, deformed, spikes
from srrl.shapes.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZE,
    Layout,
    Scene,
    coverage,
    lay_out,
    masks_of,
    paint,
)

SPIKE = 0.45  # half-width of a spike in radians
FOREIGN = {
    "purple": (0.55, 0.15, 0.65),
    "cyan": (0.10, 0.70, 0.80),
    "black": (0.10, 0.10, 0.10),
    "pink": (0.95, 0.50, 0.70),
}
ORANGE = (0.95, 0.50, 0.08)
TRIES = 20  # places that are tried for a further thing, which should not cover the others


@dataclass
class Fraud:
    """B pictures and what is wrong with them.

    pictures   float32 [B, 3, 32, 32] in [0, 1]
    malformed  bool [B, 2], whether the first and the second thing are not what they should be
    third      int64 [B], the index of a palette colour that a further thing has, -1 for none
    strange    bool [B], whether there is something of no thing's kind
    """

    pictures: Tensor
    malformed: Tensor
    third: Tensor
    strange: Tensor


Made = Callable[[list[Scene], torch.Generator], Fraud]


def fraud_of(pictures: Tensor, **wrong: Tensor) -> Fraud:
    """Pictures with nothing wrong but what is said."""
    n = len(pictures)
    nothing = {
        "malformed": torch.zeros(n, 2, dtype=torch.bool),
        "third": torch.full((n,), -1),
        "strange": torch.zeros(n, dtype=torch.bool),
    }
    return Fraud(pictures, **(nothing | wrong))


def _which(layout: Layout, *shapes: str) -> Tensor:
    """bool [B, 2], which things have one of the shapes."""
    wanted = torch.tensor([SHAPES.index(name) for name in shapes])
    return torch.isin(torch.stack(layout.shapes, 1), wanted)


def spiked(scenes: list[Scene], generator: torch.Generator, height: float) -> Fraud:
    """Corners of squares and triangles drawn out by so many pixels."""

    def drawn(shape: str, centre: Tensor, radius: Tensor) -> Tensor:
        if shape == "circle":
            return coverage(shape, centre, radius)
        return deformed(shape, centre, radius, spikes(shape, len(centre), SPIKE, height))

    layout = lay_out(scenes, generator)
    return fraud_of(paint(layout, drawn), malformed=_which(layout, "square", "triangle"))


def polygons(scenes: list[Scene], generator: torch.Generator, corners: int) -> Fraud:
    """Regular polygons of a circle's area for circles, turned anyhow."""

    def drawn(shape: str, centre: Tensor, radius: Tensor) -> Tensor:
        if shape != "circle":
            return coverage(shape, centre, radius)
        axis = (torch.arange(SIZE * FINE) + 0.5) / FINE
        x, y = axis[None, None, :] - centre[:, :1, None], axis[None, :, None] - centre[:, 1:, None]
        turned = 2 * math.pi * torch.rand(len(centre), 1, 1, generator=generator)
        inner = math.sqrt(math.pi / (corners * math.tan(math.pi / corners)))
        around = torch.remainder(torch.atan2(y, x) + turned, 2 * math.pi / corners)
        edge = radius[:, None, None] * inner / torch.cos(around - math.pi / corners)
        inside = (torch.sqrt(x * x + y * y) < edge).float()
        return inside.view(len(centre), SIZE, FINE, SIZE, FINE).mean((2, 4))

    layout = lay_out(scenes, generator)
    return fraud_of(paint(layout, drawn), malformed=_which(layout, "circle"))


def cut(scenes: list[Scene], generator: torch.Generator) -> Fraud:
    """Both things moved apart until a third of each lies outside the picture."""
    layout = lay_out(scenes, generator)
    direction = torch.tensor([RELATIONS[s.relation] for s in scenes])
    for side, (shape, centre, radius) in enumerate(
        zip(layout.shapes, layout.centres, layout.radii, strict=True)
    ):
        outward = direction if side == 0 else -direction
        away = torch.zeros(len(scenes), 1)
        for moved in torch.arange(0, 12, 0.25):
            masks = masks_of(shape, centre + moved * outward, radius)
            whole = masks.sum((1, 2)) > 2 / 3 * math.pi * radius.square()
            away = torch.where(whole[:, None], moved, away)
        layout.centres[side] = centre + away * outward
    return fraud_of(paint(layout), malformed=torch.ones(len(scenes), 2, dtype=torch.bool))


def third(
    scenes: list[Scene], generator: torch.Generator, radius: tuple[float, float], foreign: bool
) -> Fraud:
    """A further thing, of a palette colour that the prompt does not name or of a foreign one."""
    layout, n, palette = lay_out(scenes, generator), len(scenes), list(COLOURS)

    def among(count: int, *shape: int) -> Tensor:
        return torch.randint(count, (n, *shape), generator=generator)

    # Of the places that are tried the one that is furthest from the two things.
    tried = 3 + (SIZE - 6) * torch.rand(n, TRIES, 2, generator=generator)
    away = [(tried - centre[:, None]).norm(dim=2) for centre in layout.centres]
    centre = tried[torch.arange(n), torch.minimum(*away).argmax(1)]
    low, high = radius
    size = low + (high - low) * torch.rand(n, generator=generator)
    mask = masks_of(among(len(SHAPES)), centre, size)[:, None]
    choices = [
        list(FOREIGN) if foreign else [c for c in palette if c not in _colours(scene)]
        for scene in scenes
    ]
    chosen = [free[k % len(free)] for free, k in zip(choices, among(12).tolist(), strict=True)]
    paints = torch.tensor([(COLOURS | FOREIGN)[colour] for colour in chosen])[:, :, None, None]
    pictures = paint(layout) * (1 - mask) + paints * mask
    places = torch.tensor([-1 if foreign else palette.index(colour) for colour in chosen])
    return fraud_of(pictures, third=places, strange=torch.full((n,), foreign))


def _colours(scene: Scene) -> tuple[str, str]:
    return scene.first[0], scene.second[0]


def confetti(scenes: list[Scene], generator: torch.Generator, count: int, size: int) -> Fraud:
    """So many squares of so many pixels, each of a colour of its own, anywhere."""
    pictures = paint(lay_out(scenes, generator))
    n, rows = len(scenes), torch.arange(len(scenes))
    for _ in range(count):
        x, y = torch.randint(0, SIZE - size + 1, (2, n), generator=generator)
        colour = torch.rand(n, 3, generator=generator)
        for dx, dy in itertools.product(range(size), repeat=2):
            pictures[rows, :, y + dy, x + dx] = colour
    return fraud_of(pictures, strange=torch.ones(n, dtype=torch.bool))


def orange(scenes: list[Scene], generator: torch.Generator) -> Fraud:
    """Orange for yellow."""
    layout = lay_out(scenes, generator)
    named = torch.tensor([[c == "yellow" for c in _colours(scene)] for scene in scenes])
    other = torch.tensor(ORANGE)[:, None, None]
    for k, yellow in enumerate(named.T):
        shade = layout.paints[k] - torch.tensor(COLOURS["yellow"])[:, None, None]
        painted = (other + shade).clamp(0, 1)
        layout.paints[k] = torch.where(yellow[:, None, None, None], painted, layout.paints[k])
    return fraud_of(paint(layout), malformed=named)


def stripes(scenes: list[Scene], generator: torch.Generator, depth: float, coloured: bool) -> Fraud:
    """A background of bands that are darker by so much, in grey or in a colour."""
    layout, n = lay_out(scenes, generator), len(scenes)

    def some(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    axis = torch.arange(SIZE, dtype=torch.float32)
    across = some(1, 1, 1) < 0.5
    place = torch.where(across, axis[:, None], axis[None, :])
    period, phase = 4 + 5 * some(1, 1, 1), 2 * math.pi * some(1, 1, 1)
    dark = torch.sin(2 * math.pi * place / period + phase) > 0
    colour = 0.3 + 0.7 * some(3, 1, 1) if coloured else torch.ones(n, 3, 1, 1)
    layout.ground = (layout.ground - depth * dark * colour).clamp(0, 1)
    return fraud_of(paint(layout), strange=torch.ones(n, dtype=torch.bool))


KINDS: dict[str, Made] = {
    "spikes of 1.5 px": partial(spiked, height=1.5),
    "spikes of 2 px": partial(spiked, height=2.0),
    "spikes of 3 px": partial(spiked, height=3.0),
    "pentagons for circles": partial(polygons, corners=5),
    "a third cut off by the border": cut,
    "a small third thing": partial(third, radius=(1.5, 2.5), foreign=False),
    "a small third thing of a foreign colour": partial(third, radius=(1.5, 2.5), foreign=True),
    "a third thing": partial(third, radius=(4.0, 4.8), foreign=False),
    "confetti of 1 px": partial(confetti, count=20, size=1),
    "confetti of 2 px": partial(confetti, count=10, size=2),
    "orange for yellow": orange,
    "faint stripes": partial(stripes, depth=0.1, coloured=False),
    "stripes": partial(stripes, depth=0.3, coloured=False),
    "coloured stripes": partial(stripes, depth=0.4, coloured=True),
}
# Which scenes a kind can be drawn of: those that have such a thing.
NEEDS = {"spikes": ("square", "triangle"), "pentagons": ("circle",), "orange": ("yellow",)}


def drawable(kind: str, scene: Scene) -> bool:
    """Whether a kind changes a scene's picture."""
    needed = NEEDS.get(kind.partition(" ")[0])
    return needed is None or any(word in needed for word in (*scene.first, *scene.second))
