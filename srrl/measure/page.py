"""A report's rows beside what the plan says, and as a markdown page."""

from collections.abc import Iterable
from typing import Any

from srrl.config import load_config
from srrl.measure.bill import GIB
from srrl.measure.biller import Biller
from srrl.measure.cards import card_of

Row = dict[str, Any]

INTRODUCTION = """# On a GPU

Written by `python scripts/gpu_report.py`: full-size architectures with random weights, a stage of
one batch of prompts (or two of one), K = 2 rounds, m = 2 trained steps of T = 20, G = 5 branches,
the default rewards, after a stage of K = m = 1 as warm-up. gib is the most that tensors took
(torch's allocator adds its slack, CUDA its context), planned is what `scripts/plan.py` says, mfu
the plan's operations over the card's data-sheet rate. What failed or was left out is said.
"""
TRIAL = """# A trial of the report

On the embedded models (32 px, T = 5, the exact verifier as reward): it shows that every part runs,
and says nothing about full size.
"""


def add_planned(rows: list[Row]) -> None:
    """Give every measured phase what the plan says: planned_gib, tflops and mfu. Needs no GPU."""
    seen = next((r for r in rows if "gpu" in r), None)
    card = card_of(seen["gpu"], seen["memory_gib"]) if seen else None
    for whole in [row for row in rows if "flags" in row]:
        own = [r for r in rows if (r["part"], r["name"]) == (whole["part"], whole["name"])]
        phases = [row for row in own if "phase" in row and "planned_gib" not in row]
        if not phases:
            continue
        bill = Biller(load_config(whole["flags"]), seen is not None, scored_beside=False).bill()
        for row in phases:
            flops = bill.stages[0][row["phase"]].flops
            row["planned_gib"] = round(bill.phases[row["phase"]].peak / GIB, 3)
            row["tflops"] = round(sum(flops.values()) / 1e12 / row["seconds"], 2)
            if card and row["tflops"]:
                row["mfu"] = round(card.seconds(flops) / row["seconds"], 4)


def page(rows: list[Row], command: str, trial: bool) -> str:
    """The whole page. rows: as Job.write writes them; trial: on the embedded models."""
    failed, left_out = (sum(key in row for row in rows) for key in ("error", "skipped"))
    lines = [TRIAL if trial else INTRODUCTION, f"    {command}\n"]
    lines.append(f"{failed} failed, {left_out} left out.\n")
    for part in dict.fromkeys(row["part"] for row in rows):
        lines += [f"## {part}\n", *section([row for row in rows if row["part"] == part]), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(rows: list[Row]) -> Iterable[str]:
    """A table of each kind of rows, and a line for each measurement that is missing."""
    tables: dict[str, list[Row]] = {}
    for row in rows:
        if not {"error", "skipped"} & row.keys():
            kind = str(sorted(row.keys() - {"mfu"}))
            tables.setdefault(kind, []).append(row)
    for alike in tables.values():
        keys = [k for k in dict.fromkeys(k for r in alike for k in r) if k not in HIDDEN]
        yield from table(
            [[k.replace("_", " ") for k in keys]] + [[text(r.get(k)) for k in keys] for r in alike]
        )
        yield ""
    for row in rows:
        if "error" in row:
            yield f"- **{row['name']} failed**: {row['error']}"
        elif "skipped" in row:
            yield f"- {row['name']} left out: {row['skipped']}"


HIDDEN = ("part", "flags")


def table(rows: list[list[str]]) -> list[str]:
    """Markdown of a heading and its rows."""
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} {text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
