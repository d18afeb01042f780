"""The parts of RL-RIG as a config names them: diffuser, editors, checker, actor; and the ways of
drawing that are made of them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from srrl.budget import nfe_per_step
from srrl.config import resolve
from srrl.errors import UserError
from srrl.models.instruct import InstructPolicy
from srrl.models.loading import set_arithmetic
from srrl.models.policy import DTYPES, Policy
from srrl.models.vlm import VLM
from srrl.prompts import load_prompts
from srrl.rig.actor import Actor
from srrl.rig.editors import Editor
from srrl.rig.forms import Edit
from srrl.rig.graphs import load_rows, parse_graph
from srrl.rig.loop import (
    Asked,
    Costs,
    Loop,
    Meter,
    Trail,
    Wish,
    Writer,
    acting,
    draw,
    drawing,
    editing,
    repeating,
)
from srrl.rig.seeing import EMBEDDED, TINY_VLM, Seer
from srrl.rollout import RolloutSettings
from srrl.shapes.edits import expert
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from srrl.shapes.reader import read
from srrl.shapes.scenes import parse


def wishes_of(file: str) -> list[Wish]:
    """The prompts of a file of them, or of LAION-SG's rows, with their scene graphs. Raises
    UserError."""
    path = Path(resolve(file))
    try:
        first = json.loads(path.read_text(encoding="utf-8-sig"))[0]
    except (OSError, ValueError, LookupError, TypeError):
        first = None
    if isinstance(first, dict) or path.suffix.lower() == ".jsonl":
        graphs = load_rows(path)
        return [Wish(str(graph), graph, i) for i, graph in enumerate(graphs)]
    return [wish_of(prompt, i, file) for i, prompt in enumerate(load_prompts(str(path)))]


def wish_of(prompt: str, number: int, where: str) -> Wish:
    try:
        return Wish(prompt, parse_graph(prompt), number)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Parts:
    """What a config names, loaded when it is first needed.

    device: of all of it.
    """

    config: ConfigDict
    device: torch.device | str

    @property
    def dtype(self) -> torch.dtype:
        on_cpu = torch.device(self.device).type == "cpu"
        return torch.float32 if on_cpu else DTYPES[self.config.mixed_precision]

    @cached_property
    def settings(self) -> RolloutSettings:
        s = self.config.sample
        return RolloutSettings(1, s.guidance_scale, s.eta, 1.0, 1.0, 0.0, "last", 0)

    @cached_property
    def diffuser(self) -> Policy:
        p, s = self.config.pretrained, self.config.sample
        set_arithmetic(self.config.allow_tf32, self.config.deterministic, self.device)
        return Policy.load(
            resolve(p.model),
            **self._sampling(s),
            revision=p.revision,
            variant=p.variant,
            vae=p.vae and resolve(p.vae),
            single_file_config=p.single_file_config and resolve(p.single_file_config),
        )

    def _sampling(self, steps: ConfigDict) -> dict:
        s = self.config.sample
        return {
            "num_steps": steps.num_steps,
            "eta": steps.eta,
            "micro_batch": s.micro_batch,
            "decode_batch": s.decode_batch,
            "resolution": s.resolution,
            "device": self.device,
            "dtype": self.dtype,
        }

    @cached_property
    def editor(self) -> Editor:
        """The editor that the config names."""
        return self.instruct if self.config.editor.kind == "instruct" else self.inversion

    @cached_property
    def instruct(self) -> Editor:
        e = self.config.editor
        given = {**self._sampling(e), "image_guidance": e.image_guidance}
        policy = InstructPolicy.load(resolve(e.model), **given)
        if policy.image_size != self.diffuser.image_size:
            raise UserError(
                f"editor.model={e.model!r} edits pictures of {policy.image_size}, the diffuser's "
                f"are of {self.diffuser.image_size}: set sample.resolution"
            )
        return Editor(policy, self._editing(e))

    @cached_property
    def inversion(self) -> Editor:
        """By inversion: the config's editor, or beside another one the diffuser as it draws."""
        e, own = self.config.editor, self.config.editor.kind == "inversion"
        model = (own and e.model) or self.config.pretrained.model
        steps = e if own else self.config.sample
        return Editor(Policy.load(resolve(model), **self._sampling(steps)), self._editing(steps))

    def _editing(self, steps: ConfigDict) -> RolloutSettings:
        weak, depth = self.config.editor.inversion_guidance, self.config.editor.depth
        scale = steps.guidance_scale
        return RolloutSettings(1, scale, steps.eta, 1.0, weak, 0.0, "last", 0, depth)

    @cached_property
    def seer(self) -> Seer:
        k = self.config.checker
        vlm = self._vlm(k)
        return Seer(vlm, k.model == EMBEDDED, form=k.form, threshold=k.threshold)

    @cached_property
    def _vlms(self) -> dict[tuple, VLM]:
        return {}

    def _vlm(self, c: ConfigDict) -> VLM:
        """Loaded once for checker and actor, where both are the same."""
        key = (c.model, c.side)
        if key not in self._vlms:
            model = TINY_VLM if c.model == EMBEDDED else resolve(c.model)
            given = {"batch_size": c.batch_size, "side": c.side}
            self._vlms[key] = VLM.load(model, dtype=self.dtype, device=self.device, **given)
        return self._vlms[key]

    def actor_for(self, editor: Editor) -> Actor:
        a = self.config.actor
        embedded = a.model == EMBEDDED
        return Actor(self._vlm(a), editor.kind, embedded, a.temperature, a.max_tokens)

    @property
    def meter(self) -> Meter:
        """Of all that is loaded."""
        loaded = self.__dict__
        policies = [loaded["diffuser"]] if "diffuser" in loaded else []
        policies += [loaded[name].policy for name in ("instruct", "inversion") if name in loaded]
        return Meter(tuple(policies), tuple(loaded.get("_vlms", {}).values()))

    # ------------------------------------------------------------------ ways of drawing

    def way(self, name: str) -> "Way":
        """One of srrl.checks.WAYS, by its name."""
        return Way(name, self, *WAYS[name](self))

    @property
    def exact(self) -> bool:
        """Is it the shapes world, where the truth can be read off a picture?"""
        return Path(resolve(self.config.pretrained.model)).resolve() in (TINY_SD, TINY_SDXL)

    def check_prompts(self, wishes: Sequence[Wish], ways: Sequence[str]) -> None:
        """Raise UserError for a prompt that the embedded parts do not know."""
        c = self.config
        if self.exact or EMBEDDED in (c.checker.model, c.actor.model) or "expert" in ways:
            for wish in wishes:
                try:
                    parse(wish.prompt)
                except ValueError as error:
                    raise UserError(f"{c.prompts.heldout}: {error}") from None


def experts(asked: Asked) -> list[Edit]:
    """What an expert who sees the shapes world exactly would write."""
    scenes = [parse(prompt) for prompt in asked.prompts]
    texts = [expert(s, seen) for s, seen in zip(scenes, read(asked.images), strict=True)]
    return [Edit(text or None, None if text else "empty", text) for text in texts]


def _again(parts: Parts, always: bool = False) -> tuple:
    p = parts.diffuser
    return None, drawing(p, parts.settings), first_evaluations(parts), always


def first_evaluations(parts: Parts) -> int:
    s = parts.config.sample
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


@dataclass(frozen=True)
class Way:
    """A way of drawing: a loop, and what its rounds cost at most."""

    name: str
    parts: Parts
    write: Writer | None
    redraw: Callable[[Asked, list[str]], Tensor]
    evaluations: int
    always: bool

    @property
    def rounds(self) -> int:
        return 0 if self.name == "once" else self.parts.config.loop.rounds

    def run(self, images: Tensor, wishes: Sequence[Wish], seed: int, first: Costs) -> list[Trail]:
        """Trails from first pictures, of which each cost `first`."""
        c = self.parts.config
        loop = Loop(
            self.parts.seer,
            self.write,
            self.redraw,
            self.parts.meter,
            self.rounds,
            c.loop.keep,
            self.always,
        )
        trails = loop.run(images, wishes, seed)
        for trail in trails:
            trail.costs = trail.costs + first
        return trails

    def most(self, first: Costs) -> tuple[float, float]:
        """Network evaluations and VLM calls of a picture that takes every round."""
        writes = self.write not in (None, repeating, experts)
        return (
            first.evaluations + self.rounds * self.evaluations,
            1 + self.rounds * (1 + writes),
        )


def first_pictures(parts: Parts, wishes: Sequence[Wish], seed: int) -> tuple[Tensor, Costs]:
    """The diffuser's pictures uint8 [B, 3, H, W], and what each cost."""
    before = parts.diffuser.nfe
    images = draw(parts.diffuser, parts.settings, wishes, seed)
    return images, Costs((parts.diffuser.nfe - before) / max(len(wishes), 1))
