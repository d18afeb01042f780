"""Which micro-batches fit a card, and the switches that make a run fit."""

import json
from typing import Any

from srrl.config import flatten
from srrl.measure.bill import GIB, REWARD, Usage, room
from srrl.measure.biller import Biller
from srrl.measure.cards import CARDS, Card

CHECKPOINTING = "train.gradient_checkpointing"


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


def cards_table(biller: Biller, share: float) -> str:
    """Every known card: whether the run fits, with which overrides, and its hours."""
    bill, rows = biller.bill(), [("card", "GiB", "hours", "fits")]
    for card in CARDS.values():
        needed = switches(biller, card)
        text = {True: "no", False: "as it is"}[needed is None]
        if needed:
            text = "with " + " ".join(override(key, value) for key, value in needed.items())
        taken = biller.bill(True) if needed and needed.get(CHECKPOINTING) else bill
        hours = taken.hours(card, share, biller.processes)
        rows.append((card.name, f"{card.gib:.1f}", f"{hours:.1f}", text))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    return "\n".join(
        f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
        for row in rows
    )


def advice(biller: Biller, card: Card) -> list[str]:
    """What to change, as lines to print."""
    needed = switches(biller, card)
    if needed == {}:
        return [f"fits {card.name} ({card.gib:.1f} GiB)"]
    if needed is None:
        worst = max(biller.usages(), key=lambda usage: usage.fixed)
        return [f"does not fit {card.name} ({card.gib:.1f} GiB): {text(worst)}", *remedies(biller)]
    overrides = " ".join(override(key, value) for key, value in needed.items())
    return [
        f"does not fit {card.name} ({card.gib:.1f} GiB) as it is; it fits with",
        f"  {overrides}",
    ]


def text(usage: Usage) -> str:
    return f"{usage.phase} alone takes {usage.fixed / GIB:.1f} GiB whatever the micro-batches"


def remedies(biller: Biller) -> list[str]:
    """For a run whose weights alone are too much."""
    c, lines = biller.config, []
    if biller.rewards_here and biller.scored:
        lines.append(
            "  the reward models elsewhere: --config.reward.backend=worker "
            "--config.reward.device=cuda:1 (or another host)"
        )
    if not c.use_lora:
        lines.append("  the UNet over several cards: -- --config_file config/accelerate/fsdp.yaml")
        lines.append(
            "  a LoRA: --config.use_lora=true; 8-bit states: --config.train.use_8bit_adam=true"
        )
    if biller.kinds["network"] == "single" and biller.cuda:
        lines.append("  half precision: --config.mixed_precision=bf16")
    return lines


def override(key: str, value: Any) -> str:
    """As on a command line."""
    if isinstance(value, dict):
        return f"--config.{key}='{json.dumps(value)}'"
    return f"--config.{key}={str(value).lower()}"
