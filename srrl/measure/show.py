"""A bill as text."""

import json
from collections.abc import Sequence
from typing import Any

from srrl.measure.bill import GIB, SHARE, Bill
from srrl.measure.biller import Biller
from srrl.measure.cards import CARDS, Card
from srrl.measure.fitting import CHECKPOINTING, switches

OTHERWISE = (
    "what may help: the reward models elsewhere (--config.reward.backend=worker "
    "--config.reward.device=cuda:1), --config.mixed_precision=bf16, --config.use_lora=true, or the "
    "UNet over several cards (-- --config_file config/accelerate/fsdp.yaml)"
)


def columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]


def table(bill: Bill) -> str:
    """Phases of the whole run with the peak of one process's memory, and what stays in it."""
    rows = [("phase", "evaluations", "TFLOP", "peak GiB")]
    for name, phase in bill.phases.items():
        if phase.tflop or phase.peak:
            counted = f"{phase.nfe:,}" if phase.nfe else ""
            rows.append((name, counted, tflop(phase.tflop), f"{phase.peak / GIB:.2f}"))
    name = "the run, at most" if bill.at_most else "the run"
    rows.append((name, f"{bill.nfe:,}", tflop(bill.tflop), f"{bill.peak[1] / GIB:.2f}"))
    parts = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in bill.resident.items())
    return "\n".join([*columns(rows), f"  in memory throughout: {parts}"])


def tflop(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:,.2f}"


def cards_table(biller: Biller, share: float) -> str:
    """Every known card: whether the run fits, with which overrides, and its hours."""
    bill, rows, fits = biller.bill(), [("card", "GiB", "hours")], ["fits"]
    for card in CARDS.values():
        needed = switches(biller, card)
        taken = biller.bill(True) if needed and needed.get(CHECKPOINTING) else bill
        hours = taken.hours(card, share, biller.processes)
        rows.append((card.name, f"{card.gib:.1f}", f"{hours:.1f}"))
        as_it_is = "no" if needed is None else "as it is"
        fits.append(f"with {overrides(needed)}" if needed else as_it_is)
    return "\n".join(f"{row}  {text}" for row, text in zip(columns(rows), fits, strict=True))


def advice(biller: Biller, card: Card) -> str:
    """Whether the run fits the card, and what to change if it does not."""
    needed, name = switches(biller, card), f"{card.name} ({card.gib:.1f} GiB)"
    if needed == {}:
        return f"fits {name}"
    if needed:
        return f"does not fit {name} as it is; it fits with\n  {overrides(needed)}"
    worst = max(biller.usages(), key=lambda usage: usage.fixed)
    return (
        f"does not fit {name}: {worst.phase} alone takes {worst.fixed / GIB:.1f} GiB whatever the "
        f"micro-batches\n  {OTHERWISE}"
    )


def overrides(values: dict[str, Any]) -> str:
    """As on a command line."""
    texts = {
        key: f"'{json.dumps(value)}'" if isinstance(value, dict) else str(value).lower()
        for key, value in values.items()
    }
    return " ".join(f"--config.{key}={text}" for key, text in texts.items())


def one_line(bill: Bill, card: Card | None = None, share: float = SHARE, processes: int = 1) -> str:
    """For a run's start."""
    phases = (f"{k} {tflop(p.tflop)}" for k, p in bill.phases.items() if p.tflop >= 0.005)
    where, peak = bill.peak
    most = "at most " if bill.at_most else ""
    text = (
        f"plan: {most}{bill.nfe:,} evaluations, {tflop(bill.tflop)} TFLOP ({', '.join(phases)}), "
        f"peak memory {peak / GIB:.2f} GiB in {where}"
    )
    if card:
        text += (
            f" of {card.gib:.1f}, about {bill.hours(card, share, processes):.1f} h at "
            f"{share:.0%} of {card.name}'s rate or its launches"
        )
    return text
