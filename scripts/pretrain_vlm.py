"""Train the embedded VLM from nothing, on 2 CPU cores in under half an hour.

    python scripts/pretrain_tiny.py vlm

makes srrl/shapes/tiny_vlm again: first its vision tower by itself, then all of it on questions
about renders and about pictures that the embedded diffuser drew. Scenes of held-out prompts are in
neither. Then it says how often it is right, by kind of question.
"""

import srrl  # noqa: F401, I001  first: it quiets what importing transformers would log

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srrl.config import load_config
from srrl.models.policy import Policy
from srrl.models.vlm import VLM
from srrl.prompts import load_prompts
from srrl.rollout import rollout, rollout_settings
from srrl.shapes.lessons import (
    COLOUR_NAMES,
    HELDOUT,
    draw,
    heldout,
    lesson,
    moved,
    questions,
    scene_near,
    shows_any,
    some_things,
)
from srrl.shapes.pipeline import TINY_SD
from srrl.shapes.reader import Seen, is_there, read, truths
from srrl.shapes.scenes import SHAPES, Scene, all_scenes, parse, render
from srrl.rig.seeing import TINY_VLM
from srrl.shapes.vlm import WIDTH, build_vlm

RENDERS, ROUGH, SOFT = 16_000, 0.3, 0.5
BATCH, WARM_UP = 32, 100
TOWER_BATCH, NEAR = 64, 6.5  # pixels from a token's centre within which a thing lies on it


@dataclass(frozen=True)
class Cycle:
    """Of the training: steps, peak rate, pictures of the diffuser, and the renders in a batch."""

    steps: int
    rate: float
    drawn: int
    rendered: float


@dataclass
class Source:
    """Pictures uint8 [N, 3, 32, 32], what is seen in each, and the prompts of those that have."""

    pictures: Tensor
    seen: list[Seen]
    prompts: list[str] | None = None

    def take(self, rng: random.Random) -> tuple[Tensor, Seen, str | None]:
        i = rng.randrange(len(self.pictures))
        return *moved(self.pictures[i], self.seen[i], rng), self.prompts and self.prompts[i]


def drawn(prompts: list[str], seed: int) -> Tensor:
    """The embedded diffuser's pictures, one of each prompt."""
    policy = Policy.load(str(TINY_SD), num_steps=10, eta=1.0, micro_batch=64)
    settings = rollout_settings(load_config(["--config=config/stage_process.py:tiny"]), branches=1)
    parts = []
    for start in range(0, len(prompts), 96):
        some = prompts[start : start + 96]
        given = {"rounds": 1, "trained_steps": 0, "seed": seed, "stage": start}
        shown = rollout(policy, policy.encode(some), settings, prompts=[*range(len(some))], **given)
        parts.append(shown.images)
        print(f"drawn {start + len(some)}/{len(prompts)}", flush=True)
    return torch.cat(parts)


def sources(seed: int, count: int, avoid: frozenset[Scene]) -> list[Source]:
    """Renders, and pictures of the diffuser, without held-out scenes."""
    rng = random.Random(seed)
    renders = draw([some_things(rng, ROUGH) for _ in range(RENDERS)], seed, SOFT)
    prompts = [s.prompt for s in all_scenes() if s not in avoid]
    prompts = (prompts * (count // len(prompts) + 1))[:count]
    found = []
    for pictures, named in ((renders, None), (drawn(prompts, seed), prompts)):
        seen = read(pictures)
        kept = [i for i, s in enumerate(seen) if not shows_any(s, avoid)]
        kept_names = named and [named[i] for i in kept]
        found.append(Source(pictures[kept], [seen[i] for i in kept], kept_names))
    return found


class Training:
    """AdamW with a warm-up and a cosine to zero, and a line now and then with the time left."""

    def __init__(self, name: str, parameters: Sequence[nn.Parameter], steps: int, rate: float):
        self.name, self.parameters, self.steps, self.rate = name, list(parameters), steps, rate
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98))
        self.start = time.monotonic()

    def step(self, number: int, loss: Tensor) -> None:
        past = 0.5 * (1 + math.cos(math.pi * number / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, (number + 1) / WARM_UP) * past
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        if (number + 1) % 50 == 0 or number + 1 == self.steps:
            left = (time.monotonic() - self.start) / (number + 1) * (self.steps - number - 1)
            done = f"{self.name} {number + 1}/{self.steps}"
            print(f"{done} loss {loss.item():.4f} ETA {left:.0f} s", flush=True)


def train_tower(vlm: VLM, parts: list[Source], cycle: Cycle, steps: int, seed: int) -> None:
    """The vision tower by itself, under a head that all its tokens share and that is thrown away:
    of each colour, what lies on a token (nothing, a shape, something malformed)? The language model
    can then look it up; end to end from nothing the tower does not find the shapes."""
    tower, rng = vlm.network.model.visual, random.Random(seed)
    head = nn.Linear(WIDTH, len(COLOUR_NAMES) * (len(SHAPES) + 2))
    training = Training("tower", [*tower.parameters(), *head.parameters()], steps, cycle.rate)
    middle = torch.arange(4) * 8 + 4.0
    centres = torch.cartesian_prod(middle, middle).flip(1)  # (x, y) of the tokens
    weight = torch.tensor([0.15, *[1.0] * (len(SHAPES) + 1)])
    for step in range(steps):
        images, kinds, where = [], [], []
        for _ in range(TOWER_BATCH):
            image, seen, _ = rng.choices(parts, (cycle.rendered, 1 - cycle.rendered))[0].take(rng)
            images.append(image)
            kinds.append([kind_of(seen, c) for c in COLOUR_NAMES])
            at = [(seen[c].x, seen[c].y) if c in seen else (-99.0, -99.0) for c in COLOUR_NAMES]
            where.append(at)
        said = head(tower(*vlm.look(torch.stack(images)).values()).pooler_output)
        on = torch.cdist(centres.expand(TOWER_BATCH, -1, -1), torch.tensor(where)) < NEAR
        label = torch.where(on, torch.tensor(kinds)[:, None, :], 0)
        said = said.view(-1, len(SHAPES) + 2)
        training.step(step, F.cross_entropy(said, label.flatten(), weight=weight))


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
    training = Training("vlm", parameters, cycle.steps, cycle.rate)
    for step in range(cycle.steps):
        images, rows = [], []
        while len(rows) < BATCH:
            image, seen, prompt = rng.choices(parts, (cycle.rendered, 1 - cycle.rendered))[0].take(
                rng
            )
            own = prompt and rng.random() < 0.6
            scene = parse(prompt) if own else scene_near(seen, rng)
            if scene in avoid or shows_any(seen, avoid):  # moved or mirrored into one
                continue
            asked = lesson(seen, scene, avoid, rng, inverse)
            rows.append([(q, answer_tokens(vlm, a)) for q, a in asked])
            images.append(image)
        vision = vlm.look(torch.stack(images))
        packed = vlm.pack(rows, vision)
        logits = vlm.logits(packed.ids, packed.mask, packed.positions, vision)
        training.step(
            step, F.cross_entropy(logits[:, :-1].flatten(0, 1), packed.labels[:, 1:].flatten())
        )
        if (step + 1) % 300 == 0:
            watch()


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


def exams(seed: int, count: int) -> dict[str, tuple[Tensor, list[Scene]]]:
    """Renders of all scenes, and pictures that the diffuser drew for held-out prompts."""
    scenes = all_scenes()
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


def main(argv: Sequence[str] | None = None) -> None:
    """Two cycles, each on pictures of its own; between them the weights are rounded as they are
    kept, so that the second may begin from a folder (--second-from)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder to write; the committed one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=900, help="of its vision tower alone")
    parser.add_argument("--vlm-steps", type=int, default=2000, help="of all of it, at first")
    parser.add_argument("--polish-steps", type=int, default=1500, help="and on new pictures")
    parser.add_argument("--second-from", type=Path, help="a folder to begin the latter from")
    args = parser.parse_args(argv)
    start, avoid, out = time.monotonic(), heldout(), args.out or TINY_VLM
    known = exams(args.seed + 1, 384)
    cycles = (
        Cycle(args.vlm_steps, 1.5e-3, 3_040, 0.55),
        Cycle(args.polish_steps, 1e-3, 6_080, 0.4),
    )
    vlm = VLM(*build_vlm(args.seed), batch_size=64)
    for number, cycle in enumerate(cycles):
        if number == 0 and args.second_from:
            continue
        if number == 1:
            vlm = VLM.load(args.second_from or out, batch_size=64)
        vlm.network.requires_grad_(True)
        parts = sources(args.seed + number, cycle.drawn, avoid)
        if number == 0:
            train_tower(vlm, parts, cycle, args.tower_steps, args.seed)
        watch = partial(report, vlm, known, args.seed)
        train_vlm(vlm, parts, avoid, cycle, args.seed + number, number > 0, watch)
        vlm.network.half().save_pretrained(out)
        vlm.talk.tokenizer.save_pretrained(out)
        vlm.pictures.save_pretrained(out)
    report(VLM.load(out, batch_size=64), known, args.seed)
    size = sum(f.stat().st_size for f in Path(out).iterdir()) / 1e6
    print(f"wrote {out} ({size:.2f} MB) after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
