"""What the embedded VLM learns from: pictures of things, whole and malformed, and what to ask.

Scenes of held-out prompts are left out of pictures and questions; their colours, shapes and
relations come in other company.
"""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from srrl.config import REPOSITORY
from srrl.rig.graphs import DESCRIBE, parse_graph
from srrl.shapes.reader import (
    MALFORMED,
    Seen,
    Thing,
    graph_of,
    is_there,
    stands,
    truths,
)
from srrl.shapes.scenes import BACKGROUND, COLOURS, RADIUS, RELATIONS, SHAPES, SIZE, Scene, parse

HELDOUT = REPOSITORY / "config" / "prompts" / "shapes_unconventional_heldout.json"
COLOUR_NAMES, RELATION_NAMES = list(COLOURS), list(RELATIONS)
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SHIFT = 2  # pixels by which a picture is moved


@dataclass(frozen=True)
class Drawn:
    """A thing to be drawn: between its shape and another, by `mix`."""

    colour: str
    shape: str
    other: str
    mix: float
    x: float
    y: float
    radius: float


def heldout() -> frozenset[Scene]:
    """The scenes of the held-out prompts, in both their wordings."""
    scenes = [parse(prompt) for prompt in json.loads(HELDOUT.read_text(encoding="utf-8"))]
    return frozenset(scenes + [flipped(scene) for scene in scenes])


def flipped(scene: Scene) -> Scene:
    return Scene(scene.second, INVERSE[scene.relation], scene.first)


def shows_any(seen: Seen, scenes: frozenset[Scene]) -> bool:
    return any(
        Scene((a, seen[a].shape or ""), r, (b, seen[b].shape or "")) in scenes
        for a in seen
        for b in seen
        for r in RELATION_NAMES
        if stands(seen, a, r, b)
    )


# ------------------------------------------------------------------------------- pictures


def spots(relation: str, rng: random.Random) -> list[tuple[float, float]]:
    """Two places that stand in a relation."""
    dx, dy = RELATIONS[relation]
    apart = [(side * rng.uniform(7, 9), rng.uniform(-3, 3)) for side in (1, -1)]
    return [(16 + u * dx + v * abs(dy), 16 + u * dy + v * abs(dx)) for u, v in apart]


def some_things(rng: random.Random, rough: float) -> list[Drawn]:
    """One to three things, mostly two, in colours of their own; a share `rough` malformed."""
    count = rng.choices((1, 2, 3), (0.1, 0.75, 0.15))[0]
    places = spots(rng.choice(RELATION_NAMES), rng)
    corners = [(8, 8), (24, 8), (8, 24), (24, 24)]
    away = [min(math.dist(p, q) for q in places) + rng.random() for p in corners]
    places.append(corners[away.index(max(away))])
    things = []
    for colour, (x, y) in zip(rng.sample(COLOUR_NAMES, count), places, strict=False):
        shape, malformed = rng.choice(SHAPES), rng.random() < rough
        other = rng.choice(SHAPES) if malformed else shape
        mix = rng.uniform(0.2, 0.8) if malformed else 0.0
        things.append(Drawn(colour, shape, other, mix, x, y, rng.uniform(*RADIUS)))
    return things


def distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distances [3, B, H, W] from the outlines of SHAPES, of one area, at x, y [B, 1, 1]."""
    axis = torch.arange(SIZE) + 0.5
    dx, dy = axis[None, None, :] - x, axis[None, :, None] - y
    triangle = torch.maximum(dy, math.sqrt(3) / 2 * dx.abs() - dy / 2)
    return torch.stack(
        [
            (dx * dx + dy * dy).sqrt() - radius,
            torch.maximum(dx.abs(), dy.abs()) - radius * math.sqrt(math.pi) / 2,
            triangle - radius * math.sqrt(math.pi / 27**0.5),
        ]
    )


def draw(pictures: Sequence[Sequence[Drawn]], seed: int, soft: float = 0.0) -> Tensor:
    """uint8 [B, 3, 32, 32] of lists of things; a share `soft` of them blurred and noisy."""
    g, n = torch.Generator().manual_seed(seed), len(pictures)
    page = (BACKGROUND + (torch.rand(n, 1, 1, 1, generator=g) - 0.5) * 0.08).expand(
        n, 3, SIZE, SIZE
    )
    nothing, every = Drawn("red", "circle", "circle", 0.0, -99.0, -99.0, 4.0), torch.arange(n)
    for k in range(max(map(len, pictures))):
        row = [things[k] if k < len(things) else nothing for things in pictures]
        mix, x, y, radius = (
            torch.tensor([getattr(t, name) for t in row])[:, None, None]
            for name in ("mix", "x", "y", "radius")
        )
        apart = distances(x, y, radius)
        one, other = (
            torch.tensor([SHAPES.index(getattr(t, name)) for t in row])
            for name in ("shape", "other")
        )
        outline = (1 - mix) * apart[one, every] + mix * apart[other, every]
        mask = (0.5 - outline).clamp(0, 1)[:, None]
        paint = torch.tensor([COLOURS[t.colour] for t in row])[:, :, None, None]
        paint = (paint + (torch.rand(n, 3, 1, 1, generator=g) - 0.5) * 0.08).clamp(0, 1)
        page = page * (1 - mask) + paint * mask
    if soft:
        blurred = F.avg_pool2d(F.pad(page, (1, 1, 1, 1), mode="replicate"), 3, 1)
        weight = torch.rand(n, 1, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < soft)
        page = page * (1 - weight) + blurred * weight
        page = page + 0.03 * torch.randn(page.shape, generator=g) * (weight > 0)
    return (page.clamp(0, 1) * 255).round().to(torch.uint8)


def moved(image: Tensor, seen: Seen, rng: random.Random) -> tuple[Tensor, dict[str, Thing]]:
    """A picture shifted a little and maybe mirrored, and what is then seen."""
    dx, dy = rng.randint(-SHIFT, SHIFT), rng.randint(-SHIFT, SHIFT)
    mirrored, edge = rng.random() < 0.5, (SHIFT,) * 4
    wide = F.pad(image[None].float(), edge, mode="replicate")[0].to(torch.uint8)
    image = wide[:, SHIFT - dy : SHIFT - dy + SIZE, SHIFT - dx : SHIFT - dx + SIZE]
    things = {}
    for colour, t in seen.items():
        x = SIZE - t.x - dx if mirrored else t.x + dx
        things[colour] = Thing(t.shape, t.nearest, x, t.y + dy, t.area)
    return (image.flip(-1) if mirrored else image), things


# ------------------------------------------------------------------------------- questions


def questions(scene: Scene) -> list[str]:
    """Of the first, of the second, of their relation."""
    return [r.question for r in parse_graph(scene.prompt).requirements()]


def caption(seen: Seen) -> str:
    """What is seen, as a scene graph: "red circle left of blue square"; "nothing"."""
    return str(graph_of(seen)) or "nothing"


def scene_near(seen: Seen, rng: random.Random, change: float = 0.6) -> Scene:
    """A scene about what is seen, with one thing about it changed in a share `change`."""
    absent = [c for c in COLOUR_NAMES if c not in seen]
    first, second = (rng.sample(list(seen), len(seen)) + rng.sample(absent, len(absent)))[:2]
    things = {c: seen[c].nearest if c in seen else rng.choice(SHAPES) for c in (first, second)}
    holding = [r for r in RELATION_NAMES if stands(seen, first, r, second)]
    relation = holding[0] if holding else rng.choice(RELATION_NAMES)
    what, which = rng.choice(("shape", "shape", "colour", "relation", "relation")), rng.randrange(2)
    names = [first, second]
    if rng.random() >= change:
        pass
    elif what == "shape":
        changed = names[which]
        things[changed] = rng.choice([s for s in SHAPES if s != things[changed]])
    elif what == "colour":
        other = rng.choice([c for c in COLOUR_NAMES if c not in names])
        things[other] = things.pop(names[which])
        names[which] = other
    else:
        relation = rng.choice([r for r in RELATION_NAMES if r != relation])
    return Scene((names[0], things[names[0]]), relation, (names[1], things[names[1]]))


def lesson(
    seen: Seen, scene: Scene, avoid: frozenset, rng: random.Random, inverse: bool = False
) -> list[tuple[str, str]]:
    """Questions about a picture, with their answers: a scene's requirements, a colour with every
    shape (else the shape would be read off the colour), how two things stand and how they do not,
    each colour looked up, and a description. inverse: also whether they stand the other way."""

    def yes(true: bool) -> str:
        return "yes" if true else "no"

    asked = [*zip(questions(scene), map(yes, truths(seen, scene)), strict=True)]
    colour = rng.choice(list(seen) or COLOUR_NAMES)
    for shape in rng.sample(SHAPES, 3):
        asked.append((f"is there a {colour} {shape}?", yes(is_there(seen, (colour, shape)))))
    pair = scene_near(seen, rng, change=0.0)
    relations = [pair.relation, rng.choice([r for r in RELATION_NAMES if r != pair.relation])]
    for relation in relations + [INVERSE[pair.relation]] * inverse:
        other = Scene(pair.first, relation, pair.second)
        if other not in avoid:
            asked.append((questions(other)[2], yes(truths(seen, other)[2])))
    asked += [(f"what is {c}?", f"a {c} {t.shape or MALFORMED}") for c, t in seen.items()]
    return [*asked, (DESCRIBE, caption(seen))]
