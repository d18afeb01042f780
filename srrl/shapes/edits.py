"""Edit prompts of the shapes world: what they make of a picture, and which an expert would write.

One change, or two joined by "; ", of these:

    make the red shape a circle                 move the red shape left of the blue shape
    make the red shape blue                     add a red circle left of the blue shape
    remove the red shape                        add a red circle
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from srrl.rig.forms import answer, embedded_request
from srrl.shapes.lessons import (
    COLOUR_NAMES,
    INVERSE,
    RELATION_NAMES,
    Drawn,
    caption,
    draw,
    questions,
    scene_near,
    shows_any,
    some_things,
    spots,
)
from srrl.shapes.reader import Seen, Thing, is_there, stands, truths
from srrl.shapes.scenes import RADIUS, SHAPES, SIZE, Scene, parse

JOINT = "; "
MOST = 2  # changes in one prompt
ROUGH, SOFT = 0.35, 0.5  # shares of malformed things, and of pictures that are blurred and noisy
CAPTIONS = 0.22  # of the lessons: texts that ask for no change
CROWDED = 10.0  # pixels within which a thing would cover another


# ------------------------------------------------------------------------------- what it makes


def whole(things: Sequence[Drawn]) -> dict[str, Drawn]:
    """Things by colour, as they would be drawn well."""
    low, high = RADIUS
    return {
        t.colour: replace(t, other=t.shape, mix=0.0, radius=min(max(t.radius, low), high))
        for t in things
    }


def apply(text: str, things: Sequence[Drawn], rng: random.Random) -> list[Drawn] | None:
    """The things after an edit prompt, all of them whole; None where it means nothing here."""
    now: dict[str, Drawn] | None = whole(things)
    for change in text.split(JOINT):
        now = changed(change.split(), now, rng) if now else None
    return list(now.values()) if now else None


def changed(words: list[str], now: dict[str, Drawn], rng: random.Random) -> dict[str, Drawn] | None:
    now, what, colour = dict(now), words[0], words[2]
    if what == "add":
        if colour in now or len(now) > 2:
            return None
        thing = Drawn(colour, words[3], words[3], 0.0, *free_spot(now, rng), rng.uniform(*RADIUS))
        now[colour] = thing
        return placed(now, colour, words[4:], rng) if len(words) > 4 else now
    if colour not in now:
        return None
    if what == "remove":
        del now[colour]
    elif what == "move":
        return placed(now, colour, words[4:], rng)
    elif words[4] == "a":
        now[colour] = replace(now[colour], shape=words[5], other=words[5])
    elif words[4] in now:
        return None
    else:
        now[words[4]] = replace(now.pop(colour), colour=words[4])
    return now


def free_spot(now: dict[str, Drawn], rng: random.Random) -> tuple[float, float]:
    """The place in a picture that is farthest from its things, about."""
    places = [(x, y) for x in (8.0, 16.0, 24.0) for y in (8.0, 16.0, 24.0)]
    others = [(t.x, t.y) for t in now.values()] or [(rng.uniform(0, 32), rng.uniform(0, 32))]
    return max(places, key=lambda p: min(math.dist(p, o) for o in others) + rng.random())


def placed(
    now: dict[str, Drawn], colour: str, words: list[str], rng: random.Random
) -> dict[str, Drawn] | None:
    """With a thing where the words put it, as ["left", "of", "the", "blue", "shape"]."""
    relation, other = " ".join(words[:-3]), words[-2]
    if other not in now or other == colour:
        return None
    pair, places = (colour, other), spots(relation, rng)
    thirds = [(t.x, t.y) for c, t in now.items() if c not in pair]
    if any(math.dist(p, third) < CROWDED for third in thirds for p in places):
        return None
    for name, (x, y) in zip(pair, places, strict=True):
        now[name] = replace(now[name], x=x, y=y)
    return now


# ------------------------------------------------------------------------------- what is written


def named(change: str, colour: str) -> str:
    return f"{change} the {colour} shape"


def moving(first: str, relation: str, second: str) -> str:
    return f"move the {first} shape {relation} the {second} shape"


def adding(thing: tuple[str, str], relation: str, other: str) -> str:
    return f"add a {' '.join(thing)} {relation} the {other} shape"


def repairs(scene: Scene, seen: Seen) -> list[str]:
    """What an expert who sees exactly would write: each change that the picture lacks, in order;
    nothing where it shows the scene."""
    now, written, related = dict(seen), [], False
    a, b = scene.first[0], scene.second[0]
    for thing, other, relation in (
        (scene.first, b, scene.relation),
        (scene.second, a, INVERSE[scene.relation]),
    ):
        colour = thing[0]
        if colour in now:
            continue
        stray = [c for c in now if c not in (a, b)]
        if stray and (other not in now or len(now) == 2):
            written.append(f"{named('make', stray[0])} {colour}")
            now[colour] = now.pop(stray[0])
            continue
        there, related = other in now, other in now
        written.append(adding(thing, relation, other) if there else f"add a {' '.join(thing)}")
        now[colour] = Thing(thing[1], thing[1], SIZE / 2, SIZE / 2, 0.0)
    written += [
        f"{named('make', colour)} a {shape}"
        for colour, shape in (scene.first, scene.second)
        if not is_there(now, (colour, shape))
    ]
    if not related and not stands(now, a, scene.relation, b):
        written.append(moving(a, scene.relation, b))
    return written


def expert(scene: Scene, seen: Seen) -> str:
    """The edit prompt of an expert, of MOST changes; empty where nothing is lacking."""
    return JOINT.join(repairs(scene, seen)[:MOST])


def plausible(scene: Scene, seen: Seen) -> list[str]:
    """Single changes that one might write for a scene, seeing these colours: about one in six is
    right."""
    a, b = scene.first[0], scene.second[0]
    stray = [c for c in seen if c not in (a, b)]
    return [
        *(f"{named('make', c)} a {shape}" for c, shape in (scene.first, scene.second)),
        moving(a, scene.relation, b),
        adding(scene.first, scene.relation, b),
        adding(scene.second, INVERSE[scene.relation], a),
        *(named("remove", c) for c in stray or (a, b)),
        *(f"{named('make', c)} {wanted}" for c in stray for wanted in (a, b)),
    ]


def naive(scene: Scene, seen: Seen, rng: random.Random) -> str:
    """One of the plausible changes, or two."""
    options = plausible(scene, seen)
    return JOINT.join(rng.sample(options, rng.randint(1, MOST)))


def some_change(colours: Sequence[str], rng: random.Random) -> str:
    """Some change that is about these colours."""
    colour, other = rng.choice(colours), rng.choice(colours)
    new, shape = rng.choice([c for c in COLOUR_NAMES if c not in colours]), rng.choice(SHAPES)
    relation = rng.choice(RELATION_NAMES)
    reshape, move = f"{named('make', colour)} a {shape}", moving(colour, relation, other)
    add = adding((new, shape), relation, colour)
    recolour, remove = f"{named('make', colour)} {new}", named("remove", colour)
    options = [reshape] * 2 + [move] * 3 + [add] * 2 + [recolour, remove, f"add a {new} {shape}"]
    return rng.choice(options)


# ------------------------------------------------------------------------------- lessons


def actor_lesson(
    seen: Seen, scene: Scene, rng: random.Random, right: float
) -> tuple[str, str] | None:
    """A request about a picture that lacks something, and an answer of the right form: what is
    seen, and an edit prompt that is an expert's in a share `right`. None where nothing is lacking.

    It is a warm start: the form right, the content often wrong, with enough right edits that a
    group of answers has better and worse ones.
    """
    held = truths(seen, scene)
    if all(held):
        return None
    failed = [q for q, holds in zip(questions(scene), held, strict=True) if not holds]
    edit = expert(scene, seen) if rng.random() < right else naive(scene, seen, rng)
    return embedded_request(scene.prompt, failed), answer(caption(seen), edit)


def seen_of(things: Sequence[Drawn]) -> dict[str, Thing]:
    """What is seen in a picture of whole things."""
    return {t.colour: Thing(t.shape, t.shape, t.x, t.y, math.pi * t.radius**2) for t in things}


def things_of(seen: Seen) -> list[Drawn]:
    """The things that are seen in a picture, each as the shape that it is nearest to."""
    return [
        Drawn(c, t.nearest, t.nearest, 0.0, t.x, t.y, math.sqrt(t.area / math.pi))
        for c, t in seen.items()
    ]


def edit_lessons(
    count: int,
    pictures: Tensor,
    seen: Sequence[Seen],
    prompts: Sequence[str],
    avoid: frozenset[Scene],
    rng: random.Random,
) -> tuple[Tensor, list[str], Tensor]:
    """Sources uint8 [N, 3, 32, 32], edit prompts and targets: half about renders, half about the
    given pictures, which were drawn for prompts. A share CAPTIONS of the texts is the prompt of a
    scene near what is seen, which asks for no change: else an editor redraws what it is told. What
    shows one of the scenes in `avoid` is left out."""
    renders = [some_things(rng, ROUGH) for _ in range(count)]
    drawn = draw(renders, rng.randrange(2**31), SOFT)
    told: list[tuple[Tensor, Sequence[Drawn], Scene | None]] = [
        (source, things, None) for source, things in zip(drawn, renders, strict=True)
    ]
    for i in rng.choices(range(len(seen)), k=count):
        if 1 <= len(seen[i]) <= 3:
            told.append((pictures[i], things_of(seen[i]), parse(prompts[i])))
    rng.shuffle(told)
    lessons = []
    for source, things, scene in told:
        if shows_any(seen_of(things), avoid):
            continue
        text, target = some_edit(things, scene, avoid, rng)
        if target and not shows_any(seen_of(target), avoid):
            lessons.append((source, text, target))
    lessons = lessons[:count]
    targets = [
        draw([target for *_, target in lessons[i : i + 500]], i)
        for i in range(0, len(lessons), 500)
    ]
    return torch.stack([s for s, *_ in lessons]), [t for _, t, _ in lessons], torch.cat(targets)


def some_edit(
    things: Sequence[Drawn], scene: Scene | None, avoid: frozenset[Scene], rng: random.Random
) -> tuple[str, list[Drawn] | None]:
    """An edit prompt about things, and what it makes of them."""
    seen = seen_of(things)
    if rng.random() < CAPTIONS:
        near = scene_near(seen, rng)
        return near.prompt, None if near in avoid else list(whole(things).values())
    if scene and rng.random() < 0.5:
        wanted = repairs(scene, seen)
        right = wanted and rng.random() < 0.5
        text = JOINT.join(wanted[: rng.randint(1, MOST)]) if right else naive(scene, seen, rng)
    else:
        count = rng.choice((1, 1, MOST))
        text = JOINT.join(some_change(list(seen), rng) for _ in range(count))
    return text, apply(text, things, rng)
