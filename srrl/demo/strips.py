"""RL-RIG on the page: a strip of what was drawn, found missing and edited, as scripts/rig.py's."""

from typing import Any

import torch
from ml_collections import ConfigDict

from srrl.checks import WAYS
from srrl.config import load_saved
from srrl.demo.answers import Answer, Card, png
from srrl.demo.fields import Field, common
from srrl.models.locate import Located, locate
from srrl.rig.loop import Trail
from srrl.rig.setup import Parts
from srrl.rig.ways import first_pictures, way_of
from srrl.rig.wishes import wish_of, wishes_of


def config_of(found: Located, named: str) -> ConfigDict:
    """The config of a phase's checkpoint, to draw with that; beside an editor, which was trained on
    its words, with the actor's newest. Raises UserError where that is not there."""
    assert found.config is not None  # of a checkpoint
    config = load_saved(found.config)
    phase = config.phases[-1]
    config[phase].lora = str(found.checkpoint)
    if phase == "editor" and "actor" in config.phases:
        actor = found.config.parent.with_name("actor")
        config.actor.lora = str(locate(actor, f"{named}: its actor {actor}").checkpoint)
    return config


class Strips:
    """A Painter of RL-RIG: a config's parts."""

    about = (
        "The diffuser draws, a checker judges each requirement of the prompt, and where some fail "
        "an actor writes an edit prompt, under which an editor draws again."
    )

    def __init__(self, config: ConfigDict, most_rounds: int):
        self.parts = Parts(config, "cuda" if torch.cuda.is_available() else "cpu")
        self.parts.check((), (), "")
        _ = self.parts.diffuser, self.parts.seer, way_of(self.parts, "actor")  # loaded now
        parts = {"Actor's LoRA": config.actor, "Editor's LoRA": config.editor}
        loras = {name: part.lora or "none" for name, part in parts.items()}
        self.name = str(config.editor.lora or config.actor.lora or config.pretrained.model)
        self.facts = {"Model": config.pretrained.model, "Checker": config.checker.model, **loras}
        heldout = config.prompts.heldout
        self.examples = [] if heldout == "none" else [str(wish) for wish in wishes_of(heldout)]
        ways = tuple(way for way in WAYS if way != "expert" or self.parts.exact)
        self.fields = common(config.loop.rounds, most_rounds, "Edits at most", config.seed)
        self.fields.append(Field("way", "Way", "actor", choices=ways, advanced=True))

    def draw(self, values: dict[str, Any]) -> Answer:
        wish = wish_of(values["prompt"], values["seed"], "Prompt")
        self.parts.check([wish], [values["way"]], "Prompt")
        self.parts.config.loop.rounds = values["rounds"]
        way = way_of(self.parts, values["way"])
        (trail,) = way.run(*first_pictures(self.parts, [wish], 0), [wish], 0)
        evaluations, calls, _ = trail.costs.all
        notes = [
            f"the checker sees {trail.final.count} of {len(wish.requirements)} requirements met",
            *(f"no edit: {reason}" for reason in trail.reasons),
            f"seed {wish.number}, {evaluations:g} network evaluations, {calls:g} VLM calls",
            self.parts.cut([wish]).strip(),
        ]
        cards = cards_of(trail, {**values, "checkpoint": self.name})
        return Answer(wish.prompt, cards, [note for note in notes if note])


def cards_of(trail: Trail, drawn_from: dict[str, Any]) -> list[Card]:
    """A card for each picture of a trail."""
    cards, required = [], [requirement.text for requirement in trail.wish.requirements]
    for number, step in enumerate(trail.steps):
        title = f"Edit {number}" if step.edit else "Drawn again" if number else "Drawn"
        edit = (step.edit and step.edit.text) or ""
        marks = list(zip(required, step.passed.tolist(), strict=True))
        text = {**drawn_from, "picture": number, "edit": edit, "checked": dict(marks)}
        file = f"seed_{trail.wish.number}_picture_{number}.png"
        kept = number == trail.kept
        cards.append(Card(title, png(step.image, text), file, {}, marks, edit, kept))
    return cards
