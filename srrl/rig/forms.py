"""What RL-RIG's actor is asked and how its answer is read (arXiv 2602.19974): pure text.

An answer has the form <think>...</think><edit>...</edit>. What has another form, or asks for
nothing, is no edit: the picture stays, and the reason is counted.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from srrl.rig.graphs import Requirement

FORM = re.compile(r"\s*<think>(.*?)</think>\s*<edit>(.*?)</edit>\s*", re.DOTALL)
REASONS = ("malformed", "empty", "unchanged", "template")
# What stands where an edit prompt should: dots, brackets to fill in, the name of the thing itself.
HOLES = re.compile(r"\.\.\.|\u2026|\[[^\]]*\]|\{[^}]*\}|<[^>]*>")
NAMES = re.compile(
    r"(?:(?:the|an?|your) )?(?:edit(?:ing)?(?: prompt| instruction)?|prompt|instruction)(?: here)?"
)
# How the embedded VLM is taught and asked; and how others are, by the kind of their editor.
EMBEDDED_REQUEST = "prompt: {prompt}. failed: {failed} write an edit."
REQUEST = (
    'The picture was drawn for the prompt "{prompt}". A check of it failed at: {failed} '
    "Look at what the picture shows, then write {what}. Answer in this form and nothing else: "
    "<think>what is wrong in the picture</think><edit>{named}</edit>"
)
WHAT = {
    "instruct": (
        "one short instruction to an image editor that mends all of it and leaves the rest as it "
        'is, such as "move the cat to the left of the chair and make it black"',
        "the instruction",
    ),
    "inversion": (
        "a prompt from which the picture is drawn again, one sentence that describes all that it "
        "must show and stresses what is missing",
        "the prompt",
    ),
}


@dataclass(frozen=True)
class Edit:
    """What an actor wrote: the edit prompt, None where there is none for a reason of REASONS; and
    the whole completion."""

    text: str | None
    reason: str | None
    completion: str


def embedded_request(prompt: str, failed: Iterable[str]) -> str:
    """Of the embedded VLM, with the questions that failed."""
    return EMBEDDED_REQUEST.format(prompt=prompt, failed=" ".join(failed))


def request(prompt: str, failed: Sequence[Requirement], editor: str) -> str:
    """Of any other VLM, for an editor of the kind "instruct" or "inversion"."""
    what, named = WHAT[editor]
    asked = " ".join(r.question for r in failed)
    return REQUEST.format(prompt=prompt, failed=asked, what=what, named=named)


def answer(think: str, edit: str) -> str:
    return f"<think>{think}</think><edit>{edit}</edit>"


def read_edit(completion: str, prompt: str) -> Edit:
    """The edit prompt of a completion; none where it has not the form, is empty, says the prompt
    again, or is a template."""
    match = FORM.fullmatch(completion)
    if not match or any("<think>" in part or "<edit>" in part for part in match.groups()):
        return Edit(None, "malformed", completion)
    text = " ".join(match[2].split())
    reason = None
    if HOLES.search(text) or NAMES.fullmatch(bare(text)):
        reason = "template"
    elif not bare(text):
        reason = "empty"
    elif bare(text) == bare(prompt):
        reason = "unchanged"
    return Edit(None if reason else text, reason, completion)


def bare(text: str) -> str:
    """Its words alone, to compare by."""
    return " ".join(re.findall(r"\w+", text.casefold()))
