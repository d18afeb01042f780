"""What a drawing comes back as, and who makes it."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from srrl.demo.fields import Field
from srrl.run.pictures import save_with_text, short_name, to_pil


@dataclass(frozen=True)
class Card:
    """A picture: its PNG and that file's name, scores by reward, each requirement and whether it
    is met, the edit prompt that led to it, and whether it is the one that is kept."""

    title: str
    png: bytes
    file: str
    scores: Mapping[str, float]
    marks: Sequence[tuple[str, bool]] = ()
    edit: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Answer:
    """The pictures of one drawing in their order, and lines about it."""

    title: str
    cards: list[Card]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """The same for JSON: PNGs in base64, rewards by their short names."""
        cards = [
            {
                **vars(card),
                "png": base64.b64encode(card.png).decode(),
                "scores": {short_name(name): value for name, value in card.scores.items()},
            }
            for card in self.cards
        ]
        return {"title": self.title, "cards": cards, "notes": self.notes}


class Painter(Protocol):
    """Who draws. name: the checkpoint or model; facts: about it, by name; about: a sentence on what
    is drawn; examples: prompts."""

    name: str
    about: str
    facts: dict[str, str]
    fields: list[Field]
    examples: list[str]

    def draw(self, values: dict[str, Any]) -> Answer:
        """Draw by the values of all fields. Raises UserError."""
        ...


def png(image: Tensor, text: dict[str, Any]) -> bytes:
    """A picture uint8 [3, H, W] as a PNG that carries what it was drawn from."""
    file = io.BytesIO()
    save_with_text(to_pil(image), file, text)
    return file.getvalue()
