"""A bill as text and as JSON."""

from typing import Any

from srrl.measure.bill import GIB, SHARE, Bill
from srrl.measure.cards import Card


def table(bill: Bill) -> str:
    """Phases of the whole run with the peak of one process's memory, and what stays in it."""
    rows = [("phase", "evaluations", "TFLOP", "peak GiB")]
    for name, phase in bill.phases.items():
        if phase.tflop or phase.peak:
            counted = f"{phase.nfe:,}" if phase.nfe else ""
            rows.append((name, counted, tflop(phase.tflop), f"{phase.peak / GIB:.2f}"))
    rows.append(("the run", f"{bill.nfe:,}", tflop(bill.tflop), f"{bill.peak[1] / GIB:.2f}"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[k].rjust(widths[k]) for k in (1, 2, 3))])
        for row in rows
    ]
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in bill.resident.items())
    return "\n".join([*(f"  {line}" for line in lines), f"  of which stay: {parts}"])


def size_text(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size > GIB // 20 else f"{size / 2**20:.1f} MiB"


def tflop(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:,.2f}"


def one_line(bill: Bill, card: Card | None = None, share: float = SHARE, processes: int = 1) -> str:
    """For a run's start."""
    phases = ", ".join(
        f"{name} {tflop(phase.tflop)}"
        for name, phase in bill.phases.items()
        if phase.tflop >= 0.005
    )
    where, peak = bill.peak
    text = (
        f"plan: {bill.nfe:,} evaluations, {tflop(bill.tflop)} TFLOP ({phases}), "
        f"peak memory {peak / GIB:.2f} GiB in {where}"
    )
    if card:
        text += (
            f" of {card.gib:.1f}, about {bill.hours(card, share, processes):.1f} h at "
            f"{share:.0%} of {card.name}'s rate or its launches"
        )
    return text


def as_json(bill: Bill) -> dict[str, Any]:
    return {
        "phases": {
            name: {"evaluations": p.nfe, "flops": p.flops, "peak_bytes": p.peak}
            for name, p in bill.phases.items()
        },
        "resident_bytes": bill.resident,
        "peak_bytes": bill.peak[1],
        "needs_bytes": bill.needs(),
        "uncounted": bill.uncounted,
    }
