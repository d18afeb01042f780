"""A stage of Reflection-GRPO (arXiv 2602.19974): pictures that fail are edited several times, and
what was tried is judged.

It walks through the rounds of the loop with the first attempt at each state, so that later rounds'
states are the actor's own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from srrl.rig.forms import REASONS, Edit
from srrl.rig.loop import Asked, draw
from srrl.rig.setup import Parts
from srrl.rig.wishes import Wish
from srrl.run.distributed import all_sum, gather_objects, gather_rows
from srrl.shapes.reader import read, truths
from srrl.shapes.scenes import parse


@dataclass(frozen=True)
class Tried:
    """G attempts at each of some states, a state's together.

    rows    of the states asked about, the n that there are attempts at
    asked   what the actor was asked about each of the n; none where it is not trained
    images  uint8 [n * G, 3, H, W]
    edits   of n * G
    same    of n * G the first one with the same picture
    own     the phase's tensors [n, G, ...], which its update needs
    refused the reasons for which there are no attempts at the other states
    """

    rows: list[int]
    asked: list[str]
    images: Tensor
    edits: list[Edit]
    same: list[int]
    own: dict[str, Tensor]
    refused: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class States:
    """A stage's S states of all processes, the same on each of them, in the order of the prompts
    and the rounds.

    prompt, round  int64 [S]: index of the stage's prompt, round from 1
    images         uint8 [S, 3, H, W], what is to be edited
    told           of each: prompt, failed requirements, the G edits, verdicts before and after
    before, share  float32 [S] and [S, G], of the requirements that the checker passes
    exact          the same in truth: float32 [S, G], None where it cannot be read
    own            the phase's tensors [S, G, ...]
    local          int64 [S], where the state is among this process's; -1: elsewhere
    tried          uint8 [n, G, 3, H, W], the pictures of this process's attempts
    refused        how many states, of all processes, were not tried, by the reason
    """

    prompt: Tensor
    round: Tensor
    images: Tensor
    told: list[dict[str, Any]]
    before: Tensor
    share: Tensor
    exact: Tensor | None
    own: dict[str, Tensor]
    local: Tensor
    tried: Tensor
    refused: Counter[str]

    def __len__(self) -> int:
        return len(self.prompt)


def verdicts(parts: Parts, images: Tensor, wishes: Sequence[Wish]) -> list[list[bool]]:
    """Which requirements the checker passes, of each picture."""
    chances = parts.seer.check(images, [wish.requirements for wish in wishes])
    return [parts.seer.passed(p).tolist() for p in chances]


def true_shares(images: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """Of the requirements that hold in truth, in the shapes world: float32 [B]."""
    held = [truths(seen, parse(w.prompt)) for seen, w in zip(read(images), wishes, strict=True)]
    return torch.tensor([sum(h) / len(h) for h in held])


def of(passed: Sequence[Sequence[bool]]) -> Tensor:
    """Shares float32 [B] of verdicts."""
    return torch.tensor([sum(p) / len(p) for p in passed])


def walk(
    parts: Parts,
    wishes: Sequence[Wish],
    *,
    total: int,
    stage: int,
    rounds: int,
    group: int,
    attempt: Callable[[Asked], Tried],
    timed: Callable[[str], AbstractContextManager],
    accelerator: Accelerator,
    nothing: dict[str, Tensor],
) -> States:
    """Draw this process's wishes, of `total` that all have, and try edits of what fails for so many
    rounds; the states of all processes.

    The wishes' numbers, with the config's seed and the stage, decide all noise and all words.
    nothing: what attempts at no state have as `own`.
    """
    seed, first = parts.config.seed, stage * (rounds + 1)
    found: dict[str, list] = {name: [] for name in ("slot", "image", "told", "before", "share")}
    found |= {"exact": [], "tried": [], "refused": []}
    own = {name: [values] for name, values in nothing.items()}
    images, passed = torch.zeros(0), []
    if wishes:
        with timed("draw"):
            images = draw(parts.diffuser, parts.settings, wishes, seed, first)
        with timed("check"):
            passed = verdicts(parts, images, wishes)
    for number in range(1, rounds + 1):
        left = [i for i, p in enumerate(passed) if not all(p)]
        if not left:
            break
        asked = Asked(
            images[left],
            [wishes[i] for i in left],
            [lacking(wishes[i], passed[i]) for i in left],
            seed,
            first + number,
        )
        tried = attempt(asked)
        found["refused"] += tried.refused
        states = [left[row] for row in tried.rows]
        owners = [wishes[i] for i in states for _ in range(group)]
        with timed("check"):
            after = judged(parts, tried, owners, [passed[i] for i in states], group)
        share = of(after).view(-1, group) if states else torch.zeros(0, group)
        if parts.exact and states:
            found["exact"] += true_shares(tried.images, owners).view(-1, group)
        for n, i in enumerate(states):
            these = slice(n * group, (n + 1) * group)
            found["slot"].append(wishes[i].number * rounds + number - 1)
            found["image"].append(images[i])
            found["before"].append(of([passed[i]])[0])
            found["share"].append(share[n])
            found["tried"].append(tried.images[these])
            failed = [r.question for r in lacking(wishes[i], passed[i])]
            edits = [[e.text, e.reason, e.completion] for e in tried.edits[these]]
            found["told"].append(
                {
                    "prompt": wishes[i].prompt,
                    "failed": failed,
                    "request": tried.asked[n] if tried.asked else "",
                    "edits": edits,
                    "required": [r.text for r in wishes[i].requirements],
                    "passed": passed[i],
                    "after": after[these],
                }
            )
        for name, values in tried.own.items():
            own[name].append(values)
        images = images.clone()
        for n, i in enumerate(states):  # the next round begins with the first attempt, if no worse
            if sum(after[n * group]) >= sum(passed[i]):
                images[i], passed[i] = tried.images[n * group], after[n * group]
    return together(parts, found, own, total * rounds, rounds, group, accelerator)


def lacking(wish: Wish, passed: Sequence[bool]) -> list:
    return [r for r, passes in zip(wish.requirements, passed, strict=True) if not passes]


def judged(
    parts: Parts,
    tried: Tried,
    owners: Sequence[Wish],
    before: Sequence[Sequence[bool]],
    group: int,
) -> list[list[bool]]:
    """The checker's verdicts of attempts. A picture that was not edited keeps its own; of equal
    pictures one is looked at."""
    found = [list(before[n // group]) for n in range(len(owners))]
    rows = [n for n, edit in enumerate(tried.edits) if edit.text and tried.same[n] == n]
    if rows:
        seen = verdicts(parts, tried.images[rows], [owners[row] for row in rows])
        for row, verdict in zip(rows, seen, strict=True):
            found[row] = verdict
    return [found[first] for first in tried.same]


def together(
    parts: Parts,
    found: dict[str, list],
    own: dict[str, list[Tensor]],
    slots: int,
    rounds: int,
    group: int,
    accelerator: Accelerator,
) -> States:
    """Every process's states, in the order of their slots."""
    index = torch.tensor(found["slot"], dtype=torch.int64)
    count = len(index)
    there = gather_rows(accelerator, torch.ones(count, dtype=torch.int64), index, slots)
    at = there.nonzero()[:, 0]

    def all_of(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.stack(found[name]) if count else torch.zeros(0, *shape, dtype=dtype)
        return gather_rows(accelerator, values, index, slots)[at]

    told = gather_objects(accelerator, found["told"], index, slots)
    local = torch.full((slots,), -1)
    local[index] = torch.arange(count)
    tried = torch.stack(found["tried"]) if count else torch.zeros(0, dtype=torch.uint8)
    size = (3, *parts.diffuser.image_size)
    return States(
        prompt=at // rounds,
        round=at % rounds + 1,
        images=all_of("image", size, torch.uint8),
        told=[told[i] for i in at.tolist()],
        before=all_of("before", ()),
        share=all_of("share", (group,)),
        exact=all_of("exact", (group,)) if parts.exact else None,
        own={k: gather_rows(accelerator, torch.cat(v), index, slots)[at] for k, v in own.items()},
        local=local[at],
        tried=tried,
        refused=Counter({r: all_sum(accelerator, found["refused"].count(r)) for r in REASONS}),
    )
