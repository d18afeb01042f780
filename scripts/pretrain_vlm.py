"""Train the embedded VLMs from nothing, on 2 CPU cores in half an hour or, the actor, an hour.

    python scripts/pretrain_tiny.py vlm
    python scripts/pretrain_tiny.py actor

make srrl/shapes/tiny_vlm (the checker) and srrl/shapes/tiny_actor again: first the vision tower by
itself, then all of it on questions about renders and about pictures that the embedded diffuser
drew; for the actor also about such as the embedded editor edited, and on edit prompts, as a warm
start: an expert's at first, then more and more of what is merely plausible. Scenes of held-out
prompts are in none of it. Then it says how often it is right, by kind of question, and how its edit
prompts are.
"""

import srrl  # noqa: F401, I001  first: it quiets what importing transformers would log

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srrl.models.vlm import VLM
from srrl.prompts import evenly, load_prompts
from srrl.rig.actor import TINY_ACTOR
from srrl.shapes.edits import JOINT, MOST, actor_lesson, repairs
from srrl.shapes.lessons import (
    COLOUR_NAMES,
    HELDOUT,
    RELATION_NAMES,
    draw,
    heldout,
    lesson,
    questions,
    scene_near,
    shows_any,
    some_things,
)
from srrl.shapes.pretraining import Source, Training, drawn, edited, prompts_without
from srrl.shapes.reader import Seen, is_there, read, truths
from srrl.shapes.scenes import SHAPES, Scene, all_scenes, parse, render
from srrl.rig.forms import embedded_request, read_edit
from srrl.rig.graphs import parse_graph
from srrl.rig.seeing import TINY_VLM, Seer
from srrl.shapes.vlm import WIDTH, build_vlm

ROUGH, SOFT = 0.3, 0.5
ALONE = 0.7  # of the pictures with several of an actor's lessons: no other questions
BATCH, WARM_UP, BETAS = 32, 100, (0.9, 0.98)
TOWER_BATCH, NEAR = 64, 6.5  # pixels from a token's centre within which a thing lies on it


@dataclass(frozen=True)
class Cycle:
    """Of the training: steps and peak rate; renders, pictures of the diffuser, and of these after
    an edit; the shares of the three in a batch; an actor's lessons about a picture (below 1: how
    often it is one), and the share of these in which an expert writes, at first and at last."""

    steps: int
    rate: float
    renders: int
    drawn: int
    edited: int
    shares: tuple[float, ...]
    acting: float = 0.0
    expert: tuple[float, float] = (0.2, 0.2)


# The checker; and the actor, which is warmed up in what is more.
RECIPES = {
    "vlm": (
        Cycle(2_000, 1.5e-3, 16_000, 3_040, 0, (0.55, 0.45)),
        Cycle(1_500, 1e-3, 16_000, 6_080, 0, (0.4, 0.6)),
    ),
    "actor": (
        Cycle(1_800, 1.5e-3, 16_000, 6_080, 0, (0.45, 0.55)),
        Cycle(1_400, 1e-3, 16_000, 6_080, 1_520, (0.3, 0.5, 0.2), 0.35),
        Cycle(900, 1e-3, 8_000, 3_040, 1_520, (0.15, 0.55, 0.3), 3, (1.0, 0.3)),
    ),
}


def sources(seed: int, cycle: Cycle, avoid: frozenset[Scene]) -> list[Source]:
    """Renders, pictures of the diffuser, and some of these edited, without held-out scenes."""
    rng = random.Random(seed)
    renders = draw([some_things(rng, ROUGH) for _ in range(cycle.renders)], seed, SOFT)
    prompts = prompts_without(avoid, cycle.drawn)
    found = [Source.without(avoid, renders), Source.without(avoid, drawn(prompts, seed), prompts)]
    if cycle.edited:
        found.append(Source.without(avoid, *edited(found[1], cycle.edited, seed)))
    return found


def train_tower(vlm: VLM, parts: list[Source], cycle: Cycle, steps: int, seed: int) -> None:
    """The vision tower by itself, under a head that all its tokens share and that is thrown away:
    of each colour, what lies on a token (nothing, a shape, something malformed)? The language model
    can then look it up; end to end from nothing the tower does not find the shapes."""
    tower, rng = vlm.network.model.visual, random.Random(seed)
    head = nn.Linear(WIDTH, len(COLOUR_NAMES) * (len(SHAPES) + 2))
    both = [*tower.parameters(), *head.parameters()]
    training = Training("tower", both, steps, cycle.rate, WARM_UP, BETAS)
    middle = torch.arange(4) * 8 + 4.0
    centres = torch.cartesian_prod(middle, middle).flip(1)  # (x, y) of the tokens
    weight = torch.tensor([0.15, *[1.0] * (len(SHAPES) + 1)])
    for _ in range(steps):
        images, kinds, where = [], [], []
        for _ in range(TOWER_BATCH):
            image, seen, _ = rng.choices(parts, cycle.shares)[0].take(rng)
            images.append(image)
            kinds.append([kind_of(seen, c) for c in COLOUR_NAMES])
            at = [(seen[c].x, seen[c].y) if c in seen else (-99.0, -99.0) for c in COLOUR_NAMES]
            where.append(at)
        said = head(tower(*vlm.look(torch.stack(images)).values()).pooler_output)
        on = torch.cdist(centres.expand(TOWER_BATCH, -1, -1), torch.tensor(where)) < NEAR
        label = torch.where(on, torch.tensor(kinds)[:, None, :], 0)
        said = said.view(-1, len(SHAPES) + 2)
        loss = F.cross_entropy(said, label.flatten(), weight=weight)
        training.step(loss)
        training.say(loss=loss.item())


def kind_of(seen: Seen, colour: str) -> int:
    if colour not in seen:
        return 0
    shape = seen[colour].shape
    return 1 + SHAPES.index(shape) if shape else len(SHAPES) + 1


def train_vlm(
    vlm: VLM,
    parts: list[Source],
    avoid: frozenset[Scene],
    cycle: Cycle,
    seed: int,
    inverse: bool,
    watch: Callable[[], None],
) -> None:
    """All of it, on lessons about pictures: packed rows, the loss on the answers' tokens."""
    rng, parameters = random.Random(seed), list(vlm.network.parameters())
    training = Training("vlm", parameters, cycle.steps, cycle.rate, WARM_UP, BETAS)
    for step in range(cycle.steps):
        images, rows = [], []
        first, last = cycle.expert
        expert = first + (last - first) * step / cycle.steps
        while len(rows) < BATCH:
            image, seen, prompt = rng.choices(parts, cycle.shares)[0].take(rng)
            own = prompt and rng.random() < 0.6
            scene = parse(prompt) if own else scene_near(seen, rng)
            if scene in avoid or shows_any(seen, avoid):  # moved or mirrored into one
                continue
            alone = cycle.acting > 1 and rng.random() < ALONE
            asked = [] if alone else lesson(seen, scene, avoid, rng, inverse)
            count = cycle.acting if cycle.acting >= 1 else rng.random() < cycle.acting
            for number in range(int(count)):
                wanted = scene if number == 0 else some_scene(seen, rng)
                if wanted not in avoid and (acted := actor_lesson(seen, wanted, rng, expert)):
                    asked.append(acted)
            if not asked:
                continue
            rows.append([(q, answer_tokens(vlm, a)) for q, a in asked])
            images.append(image)
        vision = vlm.look(torch.stack(images))
        packed = vlm.pack(rows, vision)
        logits = vlm.logits(packed.ids, packed.mask, packed.positions, vision)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), packed.labels[:, 1:].flatten())
        training.step(loss)
        training.say(loss=loss.item())
        if (step + 1) % 300 == 0:
            watch()


def some_scene(seen: Seen, rng: random.Random) -> Scene:
    """A scene of mostly the colours that are seen; a picture lacks much of it."""
    near = scene_near(seen, rng)
    first, second = ((colour, rng.choice(SHAPES)) for colour, _ in (near.first, near.second))
    return Scene(first, rng.choice(RELATION_NAMES), second)


def answer_tokens(vlm: VLM, text: str) -> list[int]:
    return [*vlm.talk.tokens(text), vlm.talk.end]


# ------------------------------------------------------------------------------- what it knows


@torch.no_grad()
def accuracy(vlm: VLM, images: Tensor, scenes: list[Scene], rng: random.Random) -> dict:
    """Shares of right verdicts by kind of question, yes and no apart, over a picture's own scene
    and one with a change; and P(yes) of the right minus that of a wrong shape."""
    counts: dict[str, list[bool]] = {}
    seen, margins = read(images), []
    asked, right = [], []
    for what, scene in zip(seen, scenes, strict=True):
        other = scene_near(what, rng)
        asked.append(questions(scene) + questions(other))
        right.append(truths(what, scene) + truths(what, other))
    for p, true in zip(vlm.p_yes(images, asked), right, strict=True):
        for k, (chance, holds) in enumerate(zip(p.tolist(), true, strict=True)):
            kind = "relation" if k % 3 == 2 else "entity"
            for name in (kind, f"{kind} {'yes' if holds else 'no'}"):
                counts.setdefault(name, []).append((chance > 0.5) == holds)
    pairs = [(i, c) for i, what in enumerate(seen) for c in what if what[c].shape][:400]
    if pairs:
        shapes = [[f"is there a {c} {s}?" for s in SHAPES] for _, c in pairs]
        for (i, c), p in zip(pairs, vlm.p_yes(images[[i for i, _ in pairs]], shapes), strict=True):
            which = [is_there(seen[i], (c, s)) for s in SHAPES].index(True)
            margins.append(float(p[which] - (p.sum() - p[which]) / 2))
    known = {name: sum(v) / len(v) for name, v in sorted(counts.items())}
    return {**known, "margin": sum(margins) / len(margins)}


def exams(seed: int, most: int | None) -> dict[str, tuple[Tensor, list[Scene]]]:
    """Renders of all scenes, and pictures that the diffuser drew for held-out prompts; so many of
    each at most."""
    count, scenes = most or 384, all_scenes()
    scenes = evenly(scenes, most or len(scenes))
    generator = torch.Generator().manual_seed(seed)
    shown = (render(scenes, generator) * 255).round().to(torch.uint8)
    prompts = (load_prompts(HELDOUT) * (count // 100 + 1))[:count]
    return {
        "renders": (shown, scenes),
        "drawn for held-out prompts": (drawn(prompts, seed), [parse(p) for p in prompts]),
    }


def report(vlm: VLM, known: dict, seed: int) -> None:
    vlm.network.eval()
    for name, (images, scenes) in known.items():
        found = accuracy(vlm, images, scenes, random.Random(seed))
        shown = ", ".join(f"{k} {v:.3f}" for k, v in found.items())
        print(f"{name} (n {len(images)}): {shown}", flush=True)


def report_forms(vlm: VLM, known: dict) -> None:
    """What it is right about by look-up; and as an actor, about failed pictures, how often its
    answer has the form, and is an expert's edit prompt or the first half of it."""
    seer = Seer(vlm, embedded=True, form="lookup")
    for name, (images, scenes) in known.items():
        seen, required = read(images), [parse_graph(s.prompt).requirements() for s in scenes]
        found = [p > 0.5 for p in seer.check(images, required)]
        right = [truths(what, scene) for what, scene in zip(seen, scenes, strict=True)]
        same = torch.stack(found) == torch.tensor(right)
        entity, relation = same[:, :2].float().mean(), same[:, 2].float().mean()
        print(f"{name}, looked up: entity {entity:.3f}, relation {relation:.3f}", flush=True)
    failed = [i for i, held in enumerate(right) if not all(held)]
    requests = [
        embedded_request(
            scenes[i].prompt,
            [r.question for r, h in zip(required[i], right[i], strict=True) if not h],
        )
        for i in failed
    ]
    generators = [torch.Generator().manual_seed(i) for i in failed]
    written = vlm.write(images[failed], requests, max_tokens=64, generators=generators)
    edits = [read_edit(t, scenes[i].prompt) for t, i in zip(written.texts, failed, strict=True)]
    share = sum(e.text is not None for e in edits) / len(edits)
    wanted = [repairs(scenes[i], seen[i]) for i in failed]
    whole = sum(e.text == JOINT.join(w[:MOST]) for e, w in zip(edits, wanted, strict=True))
    first = sum(e.text == w[0] for e, w in zip(edits, wanted, strict=True))
    print(
        f"as an actor (n {len(failed)}): form {share:.3f}, the expert's edit "
        f"{whole / len(edits):.3f}, its first change alone {first / len(edits):.3f}; such as "
        f"{edits[0].completion!r}",
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """A role's cycles, each on pictures of its own; between them the weights are rounded as they
    are kept, so that the last may begin from a folder (--last-from)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("role", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="folder to write; the committed one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=900, help="of its vision tower alone")
    parser.add_argument("--vlm-steps", type=int, help="of all of it, at first")
    parser.add_argument("--polish-steps", type=int, help="and on new pictures")
    parser.add_argument("--acting-steps", type=int, help="and an actor's, mostly on edit prompts")
    parser.add_argument("--drawn", type=int, help="renders and pictures of the diffuser, a cycle")
    parser.add_argument("--exam", type=int, help="pictures to be judged by, of each kind")
    parser.add_argument("--last-from", type=Path, help="a folder to begin the last cycle from")
    args = parser.parse_args(argv)
    start, avoid = time.monotonic(), heldout()
    out = args.out or {"vlm": TINY_VLM, "actor": TINY_ACTOR}[args.role]
    known = exams(args.seed + 1, args.exam)
    steps = (args.vlm_steps, args.polish_steps, args.acting_steps)
    cycles = [
        replace(cycle, steps=cycle.steps if given is None else given)
        for cycle, given in zip(RECIPES[args.role], steps, strict=False)
    ]
    if args.drawn:
        cycles = [
            replace(c, renders=args.drawn, drawn=args.drawn, edited=c.edited and args.drawn // 4)
            for c in cycles
        ]
    vlm = VLM(*build_vlm(args.seed), batch_size=64)
    for number, cycle in enumerate(cycles):
        last = number == len(cycles) - 1
        if args.last_from and not last:
            continue
        if number:
            vlm = VLM.load(args.last_from or out, batch_size=64)
        vlm.network.requires_grad_(True)
        parts = sources(args.seed + number, cycle, avoid)
        if number == 0:
            train_tower(vlm, parts, cycle, args.tower_steps, args.seed)
        watch = partial(report, vlm, known, args.seed)
        train_vlm(vlm, parts, avoid, cycle, args.seed + number, number > 0, watch)
        vlm.network.half().save_pretrained(out)
        vlm.talk.tokenizer.save_pretrained(out)
        vlm.pictures.save_pretrained(out)
    vlm = VLM.load(out, batch_size=64)
    report(vlm, known, args.seed)
    report_forms(vlm, known)
    size = sum(f.stat().st_size for f in Path(out).iterdir()) / 1e6
    print(f"wrote {out} ({size:.2f} MB) after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
