"""RL-RIG's loop (arXiv 2602.19974): the checker judges, something is written, the picture is drawn
again; until all requirements pass or the rounds are over.

Who writes and who draws are given: the actor and an editor; the prompt itself and an editor, which
is SRRL's reflection; nobody and the diffuser, which is drawing again. So all of them are compared
under one checker and one bill.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from srrl.errors import UserError
from srrl.models.policy import Policy
from srrl.models.vlm import VLM
from srrl.rig.actor import Actor
from srrl.rig.editors import Editor
from srrl.rig.forms import Edit
from srrl.rig.graphs import Requirement
from srrl.rig.seeing import Seer
from srrl.rig.wishes import Wish
from srrl.rollout import rollout
from srrl.rounds import RolloutSettings, generator


@dataclass(frozen=True)
class Asked:
    """B pictures uint8 [B, 3, H, W] that lack something, in a round from 1 on: what they were
    drawn for, and of that what they fail."""

    images: Tensor
    wishes: list[Wish]
    failed: list[list[Requirement]]
    seed: int
    round: int

    def rows(self, index: Sequence[int]) -> "Asked":
        return replace(
            self,
            images=self.images[list(index)],
            wishes=[self.wishes[i] for i in index],
            failed=[self.failed[i] for i in index],
        )

    @property
    def prompts(self) -> list[str]:
        return [wish.prompt for wish in self.wishes]

    @property
    def numbers(self) -> list[int]:
        return [wish.number for wish in self.wishes]


Writer = Callable[[Asked], list[Edit]]
Redrawer = Callable[[Asked, list[str]], Tensor]  # pictures uint8 [B, 3, H, W] after edit prompts


def acting(actor: Actor) -> Writer:
    """The actor writes; a completion is drawn by a generator of the seed, the round and the
    wish."""

    def write(asked: Asked) -> list[Edit]:
        drawn = [
            generator(asked.seed, asked.round, number, 0, 0, "words") for number in asked.numbers
        ]
        return actor.write(asked.images, asked.prompts, asked.failed, drawn)

    return write


def repeating(asked: Asked) -> list[Edit]:
    """The prompt itself is the edit prompt, the same in each round."""
    return [Edit(prompt, None, prompt) for prompt in asked.prompts]


def editing(editor: Editor) -> Redrawer:
    def redraw(asked: Asked, texts: list[str]) -> Tensor:
        return editor.edit(
            asked.images,
            asked.prompts,
            texts,
            seed=asked.seed,
            numbers=asked.numbers,
            stage=asked.round,
        ).images

    return redraw


def draw(
    policy: Policy, settings: RolloutSettings, wishes: Sequence[Wish], seed: int, stage: int = 0
) -> Tensor:
    """The diffuser's pictures uint8 [B, 3, H, W] of wishes; stage: which try."""
    return rollout(
        policy,
        policy.encode([wish.prompt for wish in wishes]),
        settings,
        rounds=1,
        trained_steps=0,
        seed=seed,
        stage=stage,
        prompts=[wish.number for wish in wishes],
    ).images


def drawing(policy: Policy, settings: RolloutSettings) -> Redrawer:
    """The diffuser draws another picture, whatever is written."""

    def redraw(asked: Asked, texts: list[str]) -> Tensor:
        return draw(policy, settings, asked.wishes, asked.seed, asked.round)

    return redraw


# ------------------------------------------------------------------------------- the bill


@dataclass(frozen=True)
class Costs:
    """In three ledgers: evaluations of the diffuser's and the editor's network, calls of VLMs (a
    row each), and tokens that went through these, those of pictures included."""

    evaluations: float = 0
    calls: float = 0
    tokens: float = 0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(*(a + b for a, b in zip(self.all, other.all, strict=True)))

    def __mul__(self, times: float) -> "Costs":
        return Costs(*(times * value for value in self.all))

    @property
    def all(self) -> tuple[float, float, float]:
        return self.evaluations, self.calls, self.tokens


@dataclass(frozen=True)
class Meter:
    """Reads what policies and VLMs have counted."""

    policies: tuple[Policy, ...]
    vlms: tuple[VLM, ...]

    def read(self) -> Costs:
        return Costs(
            sum(policy.nfe for policy in self.policies),
            sum(vlm.nfe for vlm in self.vlms),
            sum(vlm.tokens for vlm in self.vlms),
        )


# ------------------------------------------------------------------------------- the loop


@dataclass
class Step:
    """A picture of a trail: uint8 [3, H, W], P of each requirement and which of them pass, and the
    edit that led to it (None: it was drawn)."""

    image: Tensor
    chances: Tensor
    passed: Tensor
    edit: Edit | None = None

    @property
    def count(self) -> int:
        return int(self.passed.sum())

    @property
    def whole(self) -> bool:
        return bool(self.passed.all())


@dataclass
class Trail:
    """What became of a wish: its pictures in the order in which they came, the one that is kept,
    the edits that came to nothing, and the bill."""

    wish: Wish
    steps: list[Step]
    kept: int = 0
    refused: list[Edit] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)

    @property
    def final(self) -> Step:
        return self.steps[self.kept]

    @property
    def reasons(self) -> Counter[str | None]:
        return Counter(edit.reason for edit in self.refused)


@contextmanager
def place(what: str) -> Iterator[None]:
    """An error of one of the parts says where it was."""
    try:
        yield
    except UserError as error:
        raise UserError(f"while {what}: {error}") from error
    except Exception as error:
        error.add_note(f"while {what}")
        raise


@dataclass(frozen=True)
class Loop:
    """The checker, who writes, who draws again, and for how many rounds.

    keep: "best", the picture of which most passes, of equals the last, and the next edit begins
    there; "last", the last one. always: also where all passes (best-of-N by the checker).
    """

    seer: Seer
    write: Writer | None
    redraw: Redrawer
    meter: Meter
    rounds: int
    keep: str = "best"
    always: bool = False

    def run(self, images: Tensor, wishes: Sequence[Wish], seed: int) -> list[Trail]:
        """Trails from first pictures uint8 [B, 3, H, W]."""
        trails = [Trail(wish, []) for wish in wishes]
        with self._billed(trails):
            self._look(trails, images, [None] * len(trails), "checking the first pictures")
        for number in range(1, self.rounds + 1):
            left = [t for t in trails if self.always or not t.final.whole]
            if not left:
                break
            asked = Asked(
                torch.stack([trail.final.image for trail in left]),
                [trail.wish for trail in left],
                [failed(trail) for trail in left],
                seed,
                number,
            )
            with self._billed(left):
                edits = self._write(asked)
            rows = [i for i, edit in enumerate(edits) if edit is None or edit.text]
            for trail, edit in zip(left, edits, strict=True):
                if edit is not None and not edit.text:
                    trail.refused.append(edit)
            if rows:
                self._round(asked.rows(rows), [left[i] for i in rows], [edits[i] for i in rows])
        return trails

    def _write(self, asked: Asked) -> Sequence[Edit | None]:
        if self.write is None:
            return [None] * len(asked.wishes)
        with place(f"writing the edits of round {asked.round}"):
            return self.write(asked)

    def _round(self, asked: Asked, trails: list[Trail], edits: list[Edit | None]) -> None:
        with self._billed(trails):
            with place(f"drawing again in round {asked.round}"):
                images = self.redraw(asked, [(edit and edit.text) or "" for edit in edits])
            self._look(trails, images, edits, f"checking the pictures of round {asked.round}")

    def _look(
        self, trails: list[Trail], images: Tensor, edits: Sequence[Edit | None], what: str
    ) -> None:
        """Add pictures to trails, and keep those that are to be kept."""
        with place(what):
            chances = self.seer.check(images, [t.wish.requirements for t in trails])
        for trail, image, p, edit in zip(trails, images, chances, edits, strict=True):
            trail.steps.append(Step(image, p, self.seer.passed(p), edit))
            if self.keep == "last" or trail.steps[-1].count >= trail.final.count:
                trail.kept = len(trail.steps) - 1

    @contextmanager
    def _billed(self, trails: list[Trail]) -> Iterator[None]:
        """What is spent within is added to the trails' bills, in equal parts."""
        before = self.meter.read()
        yield
        each = (self.meter.read() + before * -1) * (1 / max(len(trails), 1))
        for trail in trails:
            trail.costs = trail.costs + each


def failed(trail: Trail) -> list[Requirement]:
    """What the kept picture fails; all, where nothing does and it is drawn again all the same."""
    required = trail.wish.requirements
    lacking = [r for r, passes in zip(required, trail.final.passed, strict=True) if not passes]
    return lacking or required
