"""The page: one self-contained HTML file of a run, or of several beside each other."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from srrl.errors import UserError, writing
from srrl.report import panels, thumbnails
from srrl.report.arms import arms_of
from srrl.report.charts import BARS, COLOURS, GRID, INK, Chart
from srrl.report.facts import costs, duration, facts, progress
from srrl.report.findings import LOOKED_AT, findings
from srrl.report.gather import Run, read_runs
from srrl.report.presets import MISSING, changes, differing, shown
from srrl.report.scores import Estimate, compared, scores, table_lines
from srrl.report.tables import arm_lines, arm_table, text_of
from srrl.run.folder import make_folder

NAME, TABLE, ARMS = "report.html", "report.csv", "arms.csv"
MOST_STARTS = 5


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write a run's page into a folder, or that of several, and then their tables, too; returns the
    page's file. Raises UserError, before anything is written, for a folder that is no run."""
    found = gather(runs)
    several = len(runs) > 1
    text = comparison(found) if several else single(found)
    make_folder(out, str(out))
    if several:
        _replace(out / TABLE, table(found, lambda runs: table_lines(compared(runs))))
        _replace(out / ARMS, table(found, arm_lines))
    _replace(out / NAME, text)
    return out / NAME


def gather(folders: Sequence[Path]) -> list[Run]:
    """All runs, and the phases of RL-RIG's, under names that tell them apart."""
    places = [folder.resolve() for folder in folders]
    twice = [folder for i, folder in enumerate(folders) if places[i] in places[:i]]
    if twice:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    found = [read_runs(folder) for folder in folders]
    names = [place.name for place in places]
    return [
        replace(run, name=str(folder)) if names.count(run.name) > 1 else run
        for folder, some in zip(folders, found, strict=True)
        for run in some
    ]


def single(runs: Sequence[Run]) -> str:
    """The page of a run, or of its phases, one after the other."""
    sections = [
        {
            "run": run,
            "facts": list(facts(run)),
            "findings": findings(run),
            "scores": scores(run),
            "evaluations": panels.evaluation_charts(run) + panels.look_charts(run),
            "training": panels.training_charts(run),
            "time": panels.time_charts(run),
            "costs": costs(run),
            "fixed": thumbnails.fixed_tables(run),
            "stories": thumbnails.stories(run),
            "sheets": thumbnails.sheets(run),
            "galleries": thumbnails.galleries(run),
            "preset": changes(run),
            "environment": made_by(run),
            "config": {k: shown(v) for k, v in run.config.items()},
        }
        for run in runs
    ]
    return _render("single.html", title=runs[0].name, sections=sections)


def made_by(run: Run) -> dict[str, list[str]]:
    """For each thing that made a run what it was at each of its last starts."""
    last = run.environment[-MOST_STARTS:]
    keys = [k for k in dict.fromkeys(k for entry in last for k in entry) if k != "config"]
    return {key: [shown(entry.get(key, MISSING)) for entry in last] for key in keys}


def comparison(runs: Sequence[Run]) -> str:
    """The page of several runs; phases of RL-RIG's are compared each with its like."""
    groups = []
    for part, own in by_part(runs).items():
        groups.append(
            {
                "part": part,
                "runs": own,
                "progress": [progress(run) for run in own],
                "findings": [findings(run) for run in own],
                "scores": compared(own),
                "arms": arm_table(own) if len(arms_of(own)) < len(own) else [],
                "evaluations": panels.overlaid_evaluations(own),
                "training": panels.overlaid_training(own),
                "pictures": thumbnails.last_tables(own),
                "differing": differing(own),
            }
        )
    names = dict.fromkeys(run.name for run in runs)
    return _render("several.html", title=", ".join(names), groups=groups)


def table(
    runs: Sequence[Run], lines_of: Callable[[Sequence[Run]], Iterable[dict[str, Any]]]
) -> str:
    """The CSV of the lines that runs give, those of each phase apart."""
    lines = [line for some in by_part(runs).values() for line in lines_of(some)]
    columns = dict.fromkeys(key for line in lines for key in line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns) or ["run"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def by_part(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs, or their phases of each name."""
    parts = dict.fromkeys(run.part for run in runs)
    return {part: [run for run in runs if run.part == part] for part in parts}


def summary(folders: Sequence[Path]) -> str:
    """The tables of the arms of several runs, for the terminal."""
    texts = [text_of(arm_table(some)) for some in by_part(gather(folders)).values()]
    return "\n\n".join(filter(None, texts)) or "nothing is evaluated yet"


def _render(name: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": score,
        "bounds": bounds,
        "signed": signed,
        "duration": duration,
        "drawn": drawn,
        "sortable": sortable,
    }
    constants = {
        "colours": COLOURS,
        "ink": INK,
        "grid": GRID,
        "bars": BARS,
        "looked_at": LOOKED_AT,
    }
    return environment.get_template(name).render(**values, **constants)


def score(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not finite"


def signed(estimate: Estimate) -> str:
    """A difference, like "+0.046"."""
    return f"{estimate.mean:+.3f}" if math.isfinite(estimate.mean) else "not finite"


def bounds(estimate: Estimate) -> str:
    """An interval, like "[0.41, 0.53]"."""
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        return f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    return "(no interval)"


def drawn(chart: Chart) -> Markup:
    """The chart's SVG, in which matplotlib has escaped every text."""
    return Markup(chart.svg)


def sortable(value: float) -> str:
    """What the page's script sorts by; empty comes last."""
    return json.dumps(value) if math.isfinite(value) else ""


def _replace(file: Path, text: str) -> None:
    """Write a file in one step: who looks at it sees the one before, or this one."""
    temporary = file.with_name(f"{file.name}.tmp")
    with writing(file):
        temporary.write_bytes(text.encode(errors="backslashreplace"))  # a path's odd bytes
        os.replace(temporary, file)
