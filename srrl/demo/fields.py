"""What the page asks for: each value's label, default and bounds, from which its form is made and
by which what comes back is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srrl.errors import UserError
from srrl.prompts import check_text

MOST_SEED = 2**32 - 1
LONGEST = 1000  # characters of a prompt


@dataclass(frozen=True)
class Field:
    """A value of the form, of its default's type.

    low, high  bounds of a number; of a text, high is the most characters, and with a low it may
               not be empty
    choices    what a text is one of, if not any
    advanced   whether it stands in the fold
    """

    name: str
    label: str
    default: str | int | float
    low: float = 0
    high: float = LONGEST
    choices: tuple[str, ...] = ()
    advanced: bool = False

    @property
    def kind(self) -> str:
        """Of its control: choice, text or number."""
        return "choice" if self.choices else "text" if isinstance(self.default, str) else "number"

    def read(self, given: Any) -> str | int | float:
        """The value that was typed. Raises UserError."""
        return self._text(given) if isinstance(self.default, str) else self._number(given)

    def _text(self, given: Any) -> str:
        text = given if isinstance(given, str) else ""
        if self.choices and text not in self.choices:
            raise UserError(f"{self.label}: one of {', '.join(self.choices)}")
        if self.low and not text.strip():
            raise UserError(f"{self.label}: empty: write one")
        if len(text) > self.high:
            raise UserError(f"{self.label}: {len(text)} characters: at most {self.high}")
        check_text(text, self.label)
        return text

    def _number(self, given: Any) -> int | float:
        kind = int if isinstance(self.default, int) else float
        value: float | None
        try:
            value = kind(str(given))
        except ValueError:
            value = None
        if value is None or not self.low <= value <= self.high:
            what = "a whole number" if kind is int else "a number"
            raise UserError(
                f"{self.label}: {str(given)[:20]!r}: expected {what} of {self.low} to {self.high}"
            )
        return value


def read(fields: Sequence[Field], given: Any) -> dict[str, str | int | float]:
    """Every field's value by its name; what was not given is the default. Raises UserError."""
    if not isinstance(given, dict):
        raise UserError("expected a JSON object with the form's values")
    unknown = given.keys() - {field.name for field in fields}
    if unknown:
        raise UserError(
            f"unknown value {min(unknown)!r}: known are {', '.join(field.name for field in fields)}"
        )
    return {field.name: field.read(given.get(field.name, field.default)) for field in fields}


def common(rounds: int, most_rounds: int, label: str, seed: int = 0) -> list[Field]:
    """The fields of any method: a prompt, a seed, and rounds (`label`) up to a maximum."""
    return [
        Field("prompt", "Prompt", "", low=1),
        Field("seed", "Seed", seed, high=MOST_SEED),
        Field("rounds", label, min(rounds, most_rounds), low=1, high=most_rounds),
    ]
