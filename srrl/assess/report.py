"""An evaluation's cells as a table (terminal, markdown, CSV, JSON), plots and a grid."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from srrl.assess.cells import GRID_PROMPTS, Result, picture_file
from srrl.run.pictures import Row, labelled, sheet
from srrl.run.statistics import interval
from srrl.run.tracking import to_json


@dataclass(frozen=True)
class Figure:
    """A mean with its 95% interval over prompts."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Line:
    """A cell and a reward: the score of `images` pictures of each of `count` prompts, and its
    paired difference to the baseline's."""

    checkpoint: str
    prompts: str
    sampler: str
    reward: str
    count: int
    images: int
    score: Figure
    difference: Figure | None
    diversity: float | None
    nfe: float  # network evaluations a picture
    seconds: float


def lines_of(results: list[Result], baseline: tuple[str, str] | None = None) -> list[Line]:
    """The table's lines; baseline: checkpoint and sampler that the others are compared with on the
    same prompts (the first cell's, if None)."""
    first = results[0].cell
    checkpoint, sampler = baseline or (first.checkpoint, first.sampler)
    lines = []
    for result in results:
        cell = result.cell
        wanted = (cell.prompts, checkpoint, sampler)
        base = next((r for r in results if r.cell.combination == wanted), None)
        for reward, scores in result.scores.items():
            difference = None
            if base and base is not result:
                paired = (scores.double() - base.scores[reward].double()).mean(1)
                difference = Figure(*interval(paired))
            spread = None if result.diversity is None else result.diversity.mean().item()
            lines.append(
                Line(
                    cell.checkpoint,
                    Path(cell.prompts).stem,
                    cell.sampler,
                    reward,
                    *scores.shape,
                    Figure(*interval(scores.double().mean(1))),
                    difference,
                    spread,
                    result.nfe,
                    result.seconds,
                )
            )
    return lines


HEADER = (
    "checkpoint",
    "prompts",
    "sampler",
    "reward",
    "prompts x images",
    "mean [95%]",
    "to baseline [95%]",
    "diversity",
    "evaluations",
    "seconds",
)


def cells_of(line: Line) -> list[str]:
    return [
        line.checkpoint,
        line.prompts,
        line.sampler,
        line.reward,
        f"{line.count} x {line.images}",
        str(line.score),
        line.difference.signed() if line.difference else "",
        "" if line.diversity is None else f"{line.diversity:.3f}",
        f"{line.nfe:.0f}",
        f"{line.seconds:.3f}",
    ]


def text_table(lines: list[Line]) -> str:
    """For the terminal."""
    rows = [list(HEADER), *(cells_of(line) for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown_table(lines: list[Line]) -> str:
    rows = [HEADER, ["---"] * len(HEADER), *(cells_of(line) for line in lines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def write_report(
    folder: Path, results: list[Result], lines: list[Line], prompts: dict[str, list[str]]
) -> list[str]:
    """table.md, table.csv, table.json, scores.png and grid.png; returns their names. prompts: those
    of each file that the cells name."""
    (folder / "table.md").write_text(markdown_table(lines), encoding="utf-8")
    plain = [
        {
            "checkpoint": x.checkpoint,
            "prompts": x.prompts,
            "sampler": x.sampler,
            "reward": x.reward,
            "n": x.count * x.images,
            "mean": x.score.mean,
            "low": x.score.low,
            "high": x.score.high,
            **(
                {f"difference_{k}": v for k, v in vars(x.difference).items()}
                if x.difference
                else {f"difference_{k}": None for k in ("mean", "low", "high")}
            ),
            "diversity": x.diversity,
            "evaluations": x.nfe,
            "seconds": x.seconds,
        }
        for x in lines
    ]
    (folder / "table.json").write_text(to_json(plain, indent=1) + "\n", encoding="utf-8")
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, plain[0])
        writer.writeheader()
        writer.writerows(plain)
    plot(folder / "scores.png", lines)
    names = ["table.md", "table.csv", "table.json", "scores.png"]
    return [*names, "grid.png"] if grid(folder, results, prompts) else names


def plot(path: Path, lines: list[Line]) -> None:
    """For each reward: scores against network evaluations a picture, and bars with their intervals.

    A colour for each family of samplers, a marker for each checkpoint and prompt file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rewards = list(dict.fromkeys(line.reward for line in lines))
    groups = list(dict.fromkeys((line.checkpoint, line.prompts) for line in lines))
    families = list(dict.fromkeys(line.sampler.partition(":")[0] for line in lines))
    bars_high = len(lines) // len(rewards) + len(groups)
    figure = Canvas(
        figsize=(12, len(rewards) * (1.2 + 0.24 * max(bars_high, 12))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    for (cost, bars), reward in zip(
        figure.subplots(len(rewards), 2, squeeze=False), rewards, strict=True
    ):
        names, height = {}, 0
        for k, group in enumerate(groups):
            names[height] = ", ".join(group)
            of_group = [
                x for x in lines if x.reward == reward and (x.checkpoint, x.prompts) == group
            ]
            for x in sorted(of_group, key=lambda x: (x.nfe, x.sampler)):
                height -= 1
                family = x.sampler.partition(":")[0]
                colour = f"C{families.index(family) % 10}"
                known = math.isfinite(x.score.low)  # not of a single prompt
                spread = [[x.score.mean - x.score.low], [x.score.high - x.score.mean]]
                spread = spread if known else None
                cost.errorbar(
                    [x.nfe],
                    [x.score.mean],
                    spread,
                    marker="osD^v*P"[k % 7],
                    color=colour,
                    capsize=2,
                    markersize=5,
                )
                bars.barh(
                    [height], [x.score.mean], xerr=spread, color=colour, alpha=0.75, capsize=2
                )
                names[height] = f"{x.sampler}   {x.nfe:.0f}"
            height -= 1
        bars.set_yticks(list(names), list(names.values()), fontsize=8)
        bars.set(
            title=f"{reward}, and network evaluations a picture", xlabel="mean (95% over prompts)"
        )
        cost.set(
            title=f"{reward} against cost",
            xlabel="network evaluations a picture",
            ylabel="mean (95% over prompts)",
        )
        for k, family in enumerate(families):
            cost.plot([], [], "o", color=f"C{k % 10}", label=family)
        cost.legend(fontsize=8)
        for axes in (cost, bars):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def grid(folder: Path, results: list[Result], texts: dict[str, list[str]]) -> bool:
    """grid.png: the first prompts' pictures at the first seed, a column for each cell."""
    rows, pictures = [], folder / "pictures"
    for prompts in dict.fromkeys(r.cell.prompts for r in results):
        cells = [r for r in results if r.cell.prompts == prompts]
        for prompt_index in range(GRID_PROMPTS):
            files = [picture_file(pictures, r.cell, prompt_index) for r in cells]
            if not all(file.exists() for file in files):
                continue
            images = [
                torch.from_numpy(np.asarray(Image.open(f).convert("RGB")).copy()).permute(2, 0, 1)
                for f in files
            ]
            names = [f"{Path(r.cell.checkpoint).name} {r.cell.sampler}" for r in cells]
            captions = [
                labelled(name, {k: v[prompt_index, 0].item() for k, v in r.scores.items()})
                for name, r in zip(names, cells, strict=True)
            ]
            rows.append(Row(texts[prompts][prompt_index], images, captions))
    if rows:
        sheet(rows, "the same seed in each column").save(folder / "grid.png")
    return bool(rows)
