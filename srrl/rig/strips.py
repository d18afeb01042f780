"""Strips: each picture of a trail over its check marks, and the edit prompt that led to it."""

from srrl.rig.loop import Step, Trail
from srrl.run.pictures import Row


def marks(step: Step, trail: Trail) -> str:
    required = zip(trail.wish.requirements, step.passed.tolist(), strict=True)
    return "\n".join(f"[{'x' if passes else ' '}] {r.text}" for r, passes in required)


def strip(trail: Trail, title: str = "") -> Row:
    """A row for a sheet; the picture that is kept is framed."""
    captions = []
    for number, step in enumerate(trail.steps):
        made = (
            f"edit {number}: {step.edit.text}"
            if step.edit
            else "drawn"
            if not number
            else "drawn again"
        )
        captions.append(f"{made}\n{marks(step, trail)}")
    refused = "".join(f"; no edit: {reason}" for reason in trail.reasons)
    images = [step.image for step in trail.steps]
    return Row((title or trail.wish.prompt) + refused, images, captions, trail.kept)
