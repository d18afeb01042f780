"""Ways of drawing, made of RL-RIG's parts: one picture, another one where the checker fails it, the
best of several, and loops of those who write and those who edit."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict
from torch import Tensor

from srrl.budget import nfe_per_step
from srrl.config import flatten, resolve
from srrl.models.locate import locate
from srrl.rig.actor import TINY_ACTOR
from srrl.rig.editors import Editor
from srrl.rig.forms import Edit
from srrl.rig.loop import (
    Asked,
    Costs,
    Loop,
    Redrawer,
    Trail,
    Writer,
    acting,
    draw,
    drawing,
    editing,
    repeating,
)
from srrl.rig.seeing import EMBEDDED, TINY_VLM
from srrl.rig.setup import Parts
from srrl.rig.wishes import Wish
from srrl.shapes.edits import expert
from srrl.shapes.reader import read
from srrl.shapes.scenes import parse

# What an evaluation's pictures do not depend on, beyond rounding.
FREE = (
    "run_name",
    "output_dir",
    "seed",
    "allow_tf32",
    "deterministic",
    "process_timeout",
    "report",
    "evaluate",
    "sample.micro_batch",
    "sample.decode_batch",
    "checker.batch_size",
    "actor.batch_size",
    "prompts",
    "reward.backend",
    "reward.device",
    "reward.worker",
    # Of training alone.
    "phase",
    "train.",
    "stages.",
    "lora.",
    "eval.",
    "checkpoint.",
    "pictures.",
    "tracker",
    "sample.num_batches_per_stage",
    "sample.batch_size",
)


def experts(asked: Asked) -> list[Edit]:
    """What an expert who sees the shapes world exactly would write."""
    scenes = [parse(prompt) for prompt in asked.prompts]
    texts = [expert(s, seen) for s, seen in zip(scenes, read(asked.images), strict=True)]
    return [Edit(text or None, None if text else "empty", text) for text in texts]


def _again(parts: Parts, always: bool = False) -> tuple:
    p = parts.diffuser
    return None, drawing(p, parts.settings), first_evaluations(parts.config), always


def first_evaluations(c: ConfigDict) -> int:
    """Of the network, for the Diffuser's picture."""
    s = c.sample
    return s.num_steps * nfe_per_step(s.guidance_scale)


def _edited(parts: Parts, editor: Editor, writer: Writer) -> tuple:
    return writer, editing(editor), editor.evaluations, False


# Each: who writes, who draws again, the network evaluations of that, and whether also where all
# passes.
WAYS: dict[str, Callable[[Parts], tuple]] = {
    "once": lambda p: (None, drawing(p.diffuser, p.settings), 0, False),
    "again": _again,
    "best": lambda p: _again(p, always=True),
    "plain": lambda p: _edited(p, p.editor, repeating),
    "actor": lambda p: _edited(p, p.editor, acting(p.actor_for(p.editor))),
    "expert": lambda p: _edited(p, p.editor, experts),
    "inversion": lambda p: _edited(p, p.inversion, repeating),
    "inversion_actor": lambda p: _edited(p, p.inversion, acting(p.actor_for(p.inversion))),
}


def way_of(parts: Parts, name: str) -> "Way":
    """One of srrl.checks.WAYS, by its name."""
    return Way(name, parts, *WAYS[name](parts))


@dataclass(frozen=True)
class Way:
    """A way of drawing: a loop, and what its rounds cost at most."""

    name: str
    parts: Parts
    write: Writer | None
    redraw: Redrawer
    evaluations: int
    always: bool

    @property
    def rounds(self) -> int:
        return 0 if self.name == "once" else self.parts.config.loop.rounds

    def run(self, images: Tensor, first: Costs, wishes: Sequence[Wish], seed: int) -> list[Trail]:
        """Trails from first pictures uint8 [B, 3, H, W], of which each cost `first`."""
        c = self.parts.config
        loop = Loop(
            self.parts.seer,
            self.write,
            self.redraw,
            self.parts.meter,
            self.rounds,
            "best" if self.always else c.loop.keep,
            self.always,
        )
        trails = loop.run(images, wishes, seed)
        for trail in trails:
            trail.costs = trail.costs + first
        return trails

    def most(self, questions: float = 1.0) -> tuple[float, float]:
        """Network evaluations and VLM calls of a picture that takes every round; of a VLM that
        cannot share a row among questions, with so many requirements each."""
        writes = self.write not in (None, repeating, experts)
        seer = self.parts.seer
        looks = 1 if seer.vlm.packs or seer.form == "lookup" else questions
        return (
            first_evaluations(self.parts.config) + self.rounds * self.evaluations,
            looks + self.rounds * (looks + writes),
        )


def first_pictures(parts: Parts, wishes: Sequence[Wish], seed: int) -> tuple[Tensor, Costs]:
    """The diffuser's pictures uint8 [B, 3, H, W], and what each cost."""
    before = parts.diffuser.nfe
    images = draw(parts.diffuser, parts.settings, wishes, seed)
    return images, Costs((parts.diffuser.nfe - before) / max(len(wishes), 1))


def settings_key(c: ConfigDict, wishes: Sequence[Wish]) -> str:
    """Of all that an evaluation's pictures depend on: values, prompts, and the files of models that
    are folders; not of what only makes it faster or says where it is written."""
    values = {k: v for k, v in flatten(c).items() if not k.startswith(FREE)}
    drawn = [(wish.number, wish.prompt, [r.text for r in wish.requirements]) for wish in wishes]
    models = (c.pretrained.model, c.editor.model, c.checker.model, c.actor.model)
    folders = [TINY_VLM, TINY_ACTOR, *(Path(resolve(m)) for m in models if m != EMBEDDED)]
    folders += [locate(x.lora, x.lora).file.parent for x in (c.actor, c.editor) if x.lora]
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for folder in folders
        for file in sorted(folder.rglob("*.safetensors") if folder.is_dir() else ())
    ]
    told = json.dumps([values, c.evaluate.first_seed, c.evaluate.extract, drawn, files])
    return hashlib.sha256(told.encode()).hexdigest()[:16]
