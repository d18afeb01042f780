"""Which micro-batches fit a card, and the switches that make a run fit."""

from typing import Any

from srrl.config import flatten
from srrl.measure.bill import CONTEXT, GIB, REWARD, SLACK
from srrl.measure.biller import Biller
from srrl.measure.cards import Card

CHECKPOINTING = "train.gradient_checkpointing"


def room(card: Card) -> float:
    """Bytes of a card that tensors can take."""
    return (card.gib * GIB - CONTEXT) / (1 + SLACK)


def largest(biller: Biller, card: Card, checkpointing: bool) -> dict[str, int]:
    """By key of the config, how many at once fit the card; 0 if not even one does.

    A call's memory grows in proportion to what goes through at once.
    """
    found: dict[str, int] = {}
    for usage in biller.usages(checkpointing):
        if usage.key:
            fits = max(0, int((room(card) - usage.fixed) / usage.each))
            found[usage.key] = min(found.get(usage.key, fits), fits)
    return found


def switches(biller: Biller, card: Card) -> dict[str, Any] | None:
    """Overrides with which the run fits the card; {} if it does as it is, None if none helps.

    First smaller calls, which cost little; then gradient checkpointing, a third more of the
    update's time.
    """
    values, limit = flatten(biller.config), room(card)
    if all(usage.peak <= limit for usage in biller.usages()):
        return {}
    for checkpointing in dict.fromkeys((values[CHECKPOINTING], True)):
        usages = biller.usages(checkpointing)
        if any(usage.fixed > limit for usage in usages if not usage.key):
            return None
        found = largest(biller, card, checkpointing)
        if all(found.values()):
            smaller = {x.key: found[x.key] for x in usages if x.key and found[x.key] < x.n}
            extra = {CHECKPOINTING: True} if checkpointing != values[CHECKPOINTING] else {}
            return with_options(smaller | extra, values["reward.options"])
    return None


def with_options(overrides: dict[str, Any], options: dict[str, dict]) -> dict[str, Any]:
    """The rewards' batch sizes among the overrides as one value of reward.options."""
    merged = {name: dict(given) for name, given in options.items()}
    for key in [key for key in overrides if key.startswith(REWARD)]:
        merged.setdefault(key.removeprefix(REWARD), {})["batch_size"] = overrides.pop(key)
    return overrides if merged == options else overrides | {"reward.options": merged}
