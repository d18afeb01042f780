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

MARKERS = "osD^v*P"


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
    most: float = math.nan  # network evaluations of any picture
    calls: float = math.nan  # pictures that a sampler chose from, a picture


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
                    scores.shape[0],
                    scores.shape[1],
                    Figure(*interval(scores.double().mean(1))),
                    difference,
                    spread,
                    result.nfe,
                    result.seconds,
                    result.most,
                    result.calls,
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
    "at most",
    "scored",
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
        f"{line.most:.0f}",
        f"{line.calls:.1f}",
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
            "at_most": x.most,
            "scored": x.calls,
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

    A colour for each checkpoint and prompt file, a marker for each family of samplers; those of one
    cost stand side by side.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    rewards = list(dict.fromkeys(line.reward for line in lines))
    groups = list(dict.fromkeys((line.checkpoint, line.prompts) for line in lines))
    families = list(dict.fromkeys(family_of(line) for line in lines))
    markers = {family: MARKERS[k % len(MARKERS)] for k, family in enumerate(families)}
    coloured = groups if len(groups) > 1 else families
    palette = colormaps["tab10" if len(coloured) <= 10 else "tab20"]
    colours = {name: palette(k % 20) for k, name in enumerate(coloured)}
    several = len({prompts for _, prompts in groups}) > 1
    names = {g: f"{g[0]}, {Path(g[1]).stem}" if several else g[0] for g in groups}
    bars_high = len(lines) // len(rewards) + len(groups)
    legend = 0.22 * (len(groups) + len(families)) / 3
    figure = Canvas(
        figsize=(13, len(rewards) * (1.2 + 0.24 * max(bars_high, 12)) + legend),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    every = figure.subplots(len(rewards), 2, squeeze=False)
    for (cost, bars), reward in zip(every, rewards, strict=True):
        ticks, height = {}, 0
        for k, group in enumerate(groups):
            ticks[height] = names[group]
            of_group = [
                x for x in lines if x.reward == reward and (x.checkpoint, x.prompts) == group
            ]
            aside = 1 + 0.025 * (k - (len(groups) - 1) / 2)
            for x in sorted(of_group, key=lambda x: (x.nfe, x.sampler)):
                height -= 1
                known = math.isfinite(x.score.low)  # not of a single prompt
                spread = [[x.score.mean - x.score.low], [x.score.high - x.score.mean]]
                colour = colours.get(group) or colours[family_of(x)]
                look = {"color": colour, "capsize": 2}
                cost.errorbar(
                    [x.nfe * aside],
                    [x.score.mean],
                    spread if known else None,
                    marker=markers[family_of(x)],
                    markersize=6,
                    elinewidth=1,
                    **look,
                )
                bars.barh(
                    [height], [x.score.mean], xerr=spread if known else None, alpha=0.75, **look
                )
                ticks[height] = f"{x.sampler}   {x.nfe:.0f}"
            height -= 1
        bars.set_yticks(list(ticks), list(ticks.values()), fontsize=8)
        for label, text in zip(bars.get_yticklabels(), ticks.values(), strict=True):
            label.set_weight("bold" if text in names.values() else "normal")
        bars.set(
            title=f"{reward}, and network evaluations a picture", xlabel="mean (95% over prompts)"
        )
        cost.set(
            title=f"{reward} against cost",
            xscale="log",
            xlabel="network evaluations a picture",
            ylabel="mean (95% over prompts)",
        )
        costs = sorted({round(line.nfe) for line in lines})
        cost.set_xticks(costs, [str(n) for n in costs])
        cost.minorticks_off()
        for axes in (cost, bars):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    cost = every[0, 0]
    shown = [
        cost.plot([], [], "s", color=colours[group], label=names[group])[0]
        for group in (groups if coloured is groups else ())
    ]
    shown += [
        cost.plot([], [], markers[f], color=colours.get(f, "0.3"), linestyle="", label=f)[0]
        for f in families
    ]
    figure.legend(handles=shown, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def family_of(line: Line) -> str:
    """The sampler's name without its keywords."""
    return line.sampler.partition(":")[0]


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
