"""Strips: each picture of a trail over its check marks, and the edit prompt that led to it."""

from collections.abc import Sequence
from typing import Any

from srrl.rig.loop import Trail
from srrl.run.pictures import Row


def marks(required: Sequence[str], passed: Sequence[bool]) -> str:
    """A line for each requirement, ticked where it passes."""
    pairs = zip(required, passed, strict=True)
    return "\n".join(f"[{'x' if passes else ' '}] {text}" for text, passes in pairs)


def strip(trail: Trail, title: str = "") -> Row:
    """A row for a sheet; the picture that is kept is framed."""
    captions, required = [], [r.text for r in trail.wish.requirements]
    for number, step in enumerate(trail.steps):
        made = (
            f"edit {number}: {step.edit.text}"
            if step.edit
            else "drawn"
            if not number
            else "drawn again"
        )
        captions.append(f"{made}\n{marks(required, step.passed.tolist())}")
    refused = "".join(f"; no edit: {reason}" for reason in trail.reasons)
    images = [step.image for step in trail.steps]
    return Row((title or trail.wish.prompt) + refused, images, captions, trail.kept)


def told(trail: Trail) -> dict[str, Any]:
    """What samples.json says of a picture: each step's edit prompt and completion, what the checker
    saw, and the bill."""
    evaluations, calls, tokens = trail.costs.all
    steps = []
    for step in trail.steps:
        sure = zip(trail.wish.requirements, step.chances.tolist(), strict=True)
        edit = {"edit": step.edit.text, "completion": step.edit.completion} if step.edit else {}
        steps.append({**edit, "checked": {r.text: round(p, 4) for r, p in sure}})
    return {
        "prompt": trail.wish.prompt,
        "seed": trail.wish.number,
        "steps": steps,
        "kept": trail.kept,
        "whole_at_first": trail.steps[0].whole,
        "whole": trail.final.whole,
        "refused": [
            {"reason": edit.reason, "completion": edit.completion} for edit in trail.refused
        ],
        "evaluations": evaluations,
        "vlm_calls": calls,
        "vlm_tokens": tokens,
    }
