"""A report's rows as a markdown page."""

from typing import Any

Row = dict[str, Any]
TITLES = {
    "machine": "The machine",
    "sd14": "SD v1.4 at 512 px",
    "sdxl": "SDXL at 1024 px",
    "rewards": "Rewards",
    "parity": "Against the CPU",
    "resume": "Killed and resumed",
    "scoring": "Scoring beside sampling",
    "processes": "Several processes",
    "compiled": "Compiled blocks",
}
TRIAL = {"sd14": "The embedded SD in its place", "sdxl": "The embedded SDXL in its place"}
INTRODUCTION = """# On a GPU

Written by `python scripts/gpu_report.py`: full-size architectures with random weights, a stage of
K = 2 rounds, m = 5 trained steps of T = 20, G = 5 branches, the default rewards. Seconds are of the
second of two stages, memory is the most that tensors took (torch's allocator adds its slack, CUDA
its context), planned is what `scripts/plan.py` says, MFU is the plan's operations over the card's
data-sheet rate. What failed or was left out is said in its place.
"""
TRIAL_INTRODUCTION = """# A trial of the report

On the embedded models (32 px, T = 10, the exact verifier as reward): it shows that every part runs,
and says nothing about full size.
"""


def page(rows: list[Row], command: str, minutes: float, trial: bool) -> str:
    """The whole page. rows: as Job.write writes them; trial: on the embedded models."""
    failed = [row for row in rows if "error" in row]
    left_out = [row for row in rows if "skipped" in row]
    done = len(rows) - len(failed) - len(left_out)
    titles = TITLES | (TRIAL if trial else {})
    lines = [TRIAL_INTRODUCTION if trial else INTRODUCTION, f"    {command}\n"]
    lines.append(
        f"{done} measurements in {minutes:.1f} minutes, {len(failed)} failed, "
        f"{len(left_out)} left out.\n"
    )
    for part, title in titles.items():
        own = [row for row in rows if row["part"] == part]
        if own:
            lines += [f"## {title}\n", *section(own), ""]
    return "\n".join(lines).rstrip() + "\n"


def section(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    staged = [row for row in rows if "phases" in row]
    if staged:
        lines += [*stages(staged), "", *memory(staged), ""]
    for row in rows:
        if "error" in row:
            lines.append(f"- **{row['name']} failed**: {row['error']} ({row.get('at', '')})")
        elif "skipped" in row:
            lines.append(f"- {row['name']} left out: {row['skipped']}")
        elif "phases" not in row:
            lines.append(f"- {row['name']}: {facts(row)}")
    return lines


def facts(row: Row) -> str:
    left = {k: v for k, v in row.items() if k not in ("part", "name", "took")}
    return ", ".join(f"{key.replace('_', ' ')} {value_text(value)}" for key, value in left.items())


def value_text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{k} {value_text(v)}" for k, v in value.items()) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stages(rows: list[Row]) -> list[str]:
    """Images a second and MFU by phase."""
    phases = list(rows[0]["phases"])
    head = ["images a second (MFU)", *phases, "ratio - 1 at first", "first stage"]
    table = [head, ["---"] * len(head)]
    for row in rows:
        cells = [speed(row["phases"][phase]) for phase in phases]
        ratio, first = row["ratio_first_max_dev"], row["first_stage_seconds"]
        table.append([row["name"], *cells, f"{ratio:.1e}", f"{first:.1f} s"])
    return [f"| {' | '.join(cells)} |" for cells in table]


def speed(phase: Row) -> str:
    if not phase["images_per_second"]:
        return "-"
    share = f" ({phase['mfu']:.0%})" if phase["mfu"] else ""
    return f"{phase['images_per_second']:.3g}{share}"


def memory(rows: list[Row]) -> list[str]:
    """Measured and planned GiB by phase."""
    phases = list(rows[0]["phases"])
    head = ["GiB, planned to measured", *phases]
    table = [head, ["---"] * len(head)]
    for row in rows:
        cells = []
        for phase in phases:
            planned, peak = row["phases"][phase]["planned_gib"], row["phases"][phase]["peak_gib"]
            over = f" ({planned / peak - 1:+.0%})" if peak else ""
            cells.append(f"{planned:.2f} to {f'{peak:.2f}' if peak else '-'}{over}")
        table.append([row["name"], *cells])
    return [f"| {' | '.join(cells)} |" for cells in table]
