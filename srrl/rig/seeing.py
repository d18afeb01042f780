"""What a VLM says of a picture: whether it meets requirements, and its scene graph (RL-RIG's
Checker, arXiv 2602.19974; extraction as LAION-SG's, arXiv 2412.08580)."""

import contextlib
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srrl.errors import UserError
from srrl.models.vlm import VLM
from srrl.rig.graphs import DESCRIBE, Entity, Requirement, SceneGraph, parse_graph

TINY_VLM = Path(__file__).parents[1] / "shapes" / "tiny_vlm"
EMBEDDED = "embedded"  # the name of the model that is there
FORMS = ("yesno", "lookup")
INSTRUCTION = " Answer yes or no."
DESCRIBE_AS_GRAPH = (
    "List what the picture shows as a scene graph: one relation between two things a line, each "
    'like "stone tall tower attached to stone bridge": attributes, thing, relation, attributes, '
    "thing. A thing of no relation has a line of its own. Write nothing else."
)
LIST_MARK = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+")
ONLY = " Use only these things: {}. Use only these relations: {}."


class Seer:
    """A VLM that checks and describes.

    form: "yesno", by the probability of yes to each question; "lookup", by whether the scene graph
    that it describes has what is required. threshold: of P(yes), from which a requirement passes.
    """

    def __init__(self, vlm: VLM, embedded: bool, *, form: str = "yesno", threshold: float = 0.5):
        if form not in FORMS or not 0 < threshold < 1:
            raise ValueError(f"form {form!r}, threshold {threshold}: {' or '.join(FORMS)}; 0 to 1")
        self.vlm, self.embedded, self.form, self.threshold = vlm, embedded, form, threshold

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        side: int | None = None,
        **settings: Any,
    ) -> "Seer":
        """model: "embedded", or a folder or hub name of a Qwen VLM. Raises UserError."""
        embedded = model == EMBEDDED
        source = TINY_VLM if embedded else model
        vlm = VLM.load(source, dtype=dtype, device=device, batch_size=batch_size, side=side)
        return cls(vlm, embedded, **settings)

    def check(self, images: Tensor, required: Sequence[Sequence[Requirement]]) -> list[Tensor]:
        """Of pictures uint8 [B, 3, H, W] how sure each's requirements are met: B tensors float32
        [requirements], P(yes), or 1 and 0 by look-up."""
        if self.form == "lookup":
            graphs = self.describe(images)
            return [
                torch.tensor([float(has(graph, r)) for r in some])
                for graph, some in zip(graphs, required, strict=True)
            ]
        end = "" if self.embedded else INSTRUCTION
        chances = self.vlm.p_yes(images, [[r.question + end for r in some] for some in required])
        if not all(p.isfinite().all() for p in chances):
            raise UserError(
                f"the checker's P(yes) is not finite in {self.vlm.dtype}: mixed_precision=bf16 (or "
                f"reward.dtype=bf16) has the range that its model needs"
            )
        return chances

    def passed(self, chances: Tensor) -> Tensor:
        """bool, which requirements are met."""
        return chances > self.threshold

    def describe(
        self, images: Tensor, bound: Sequence[SceneGraph] | None = None, max_tokens: int = 256
    ) -> list[SceneGraph | None]:
        """The scene graphs that the VLM sees; None where it writes none.

        bound: of each picture a graph whose things and relations alone may be used (LAION-SG's
        way; entity and relation IoU then say what of it was found). Without it anything is said.
        """
        found: list[SceneGraph | None] = []
        size = self.vlm.batch_size
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            requests = [DESCRIBE if self.embedded else DESCRIBE_AS_GRAPH] * len(images[part])
            if bound and not self.embedded:
                requests = [r + only(g) for r, g in zip(requests, bound[part], strict=True)]
            written = self.vlm.write(images[part], requests, max_tokens=max_tokens)
            found += map(graph_or_none, written.texts)
        if bound:
            found = [g and within(g, b) for g, b in zip(found, bound, strict=True)]
        return found


def graph_or_none(text: str) -> SceneGraph | None:
    """A description's graph: of the lines that say something, whatever marks them as a list's.
    "nothing" is a graph of nothing."""
    if text.strip(" .").lower() == "nothing":
        return SceneGraph()
    said = []
    for line in re.split(r"[;\n]", text):
        with contextlib.suppress(ValueError):
            said.append(parse_graph(LIST_MARK.sub("", line)))
    if not said:
        return None
    relations, alone = (tuple(chain(*parts)) for parts in zip(*map(_parts, said), strict=True))
    return SceneGraph(relations, alone)


def _parts(graph: SceneGraph) -> tuple[tuple, tuple]:
    return graph.relations, graph.alone


def only(graph: SceneGraph) -> str:
    predicates = dict.fromkeys(r.predicate for r in graph.relations)
    return ONLY.format(named(graph.entities), named(predicates) or "none")


def named(things: Iterable) -> str:
    return ", ".join(map(str, things))


def within(graph: SceneGraph, bound: SceneGraph) -> SceneGraph:
    """What of a graph is of another's vocabulary."""
    things, predicates = set(bound.entities), {t[1] for t in bound.triples}
    relations = tuple(
        r for r in graph.relations if {r.subject, r.object} <= things and r.triple[1] in predicates
    )
    related = {e for r in relations for e in (r.subject, r.object)}
    alone = [e for e in graph.entities if e in things and e not in related]
    return SceneGraph(relations, tuple(alone))


def has(graph: SceneGraph | None, required: Requirement) -> bool:
    """Does a graph have a requirement's entity, or its relation?"""
    if graph is None:
        return False
    wanted = required.wanted
    if isinstance(wanted, Entity):
        return wanted in graph.entities
    return wanted.triple in graph.triples
