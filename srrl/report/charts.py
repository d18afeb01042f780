"""Line charts as SVG that a page shows inside itself, in its own colours, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

# Each line's colour on a light page and on a dark one, and its dashes; both start again.
COLOURS = [
    ("#0b62a4", "#6db3f2"),
    ("#b8500a", "#ff9e57"),
    ("#1a7a4a", "#5fd19a"),
    ("#8a3ea8", "#cf9bea"),
    ("#7a6000", "#e0c050"),
    ("#b0306a", "#ff8fbd"),
    ("#2f6f73", "#7fd0d0"),
]
DASHES = [(), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2)]
INK, GRID = "#010203", "#040506"  # for which the page puts its own
BARS = 3  # lines at most that have an interval at every stage, else at the last alone
FLOOR = 1e-8  # shown on a logarithmic scale for 0
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "srrl",
    "text.parse_math": False,  # names may have a $
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
}


@dataclass(frozen=True)
class Line:
    """Values by stage, NaN where there is none; low and high: of their intervals."""

    label: str
    stages: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @property
    def seen(self) -> bool:
        return any(map(math.isfinite, self.values))


@dataclass(frozen=True)
class Chart:
    """Lines over stages.

    scale   "" as it comes, "log", "counts" from 0 on, or "share" from 0 to 1
    places  each line's colour and dashes, by default in their order
    """

    title: str
    lines: list[Line]
    scale: str = ""
    places: list[int] = field(default_factory=list)

    @property
    def seen(self) -> bool:
        return any(line.seen for line in self.lines)

    @property
    def legend(self) -> list[tuple[int, str, str]]:
        """For each line that is seen its colour's place, its dashes and its label."""
        return [
            (place % len(COLOURS), " ".join(map(str, DASHES[place % len(DASHES)])), line.label)
            for place, line in self._placed()
        ]

    @property
    def told(self) -> str:
        """What the chart shows, for those who do not see it."""
        parts = []
        for _, line in self._placed():
            good = [(s, v) for s, v in zip(line.stages, line.values, strict=True) if v == v]
            (first, before), (last, after) = good[0], good[-1]
            parts.append(f"{line.label}: {before:.4g} at stage {first}, {after:.4g} at {last}")
        return f"{self.title}. {'; '.join(parts)}."

    def _placed(self) -> list[tuple[int, Line]]:
        places = self.places or range(len(self.lines))
        return [(p, line) for p, line in zip(places, self.lines, strict=True) if line.seen]

    @property
    def svg(self) -> str:
        """The drawing, without its title and legend."""
        with matplotlib.rc_context(STYLE):
            return self._drawn()

    def _drawn(self) -> str:
        figure = Figure(figsize=(4.6, 2.6), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        placed = self._placed()
        stages = [stage for _, line in placed for stage in line.stages]
        apart = 0.008 * (max(stages) - min(stages))  # intervals at one stage stand side by side
        for number, (place, line) in enumerate(placed):
            colour = COLOURS[place % len(COLOURS)][0]
            values = [max(v, FLOOR) if self.scale == "log" else v for v in line.values]
            marker = "o" if line.low or len(line.stages) < 3 else ""
            (drawn,) = axes.plot(
                line.stages, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6
            )
            if line.low:
                shift = (number - (len(placed) - 1) / 2) * apart
                some = slice(None) if len(placed) <= BARS else slice(-1, None)
                x, error = [n + shift for n in line.stages[some]], _lengths(line, some)
                axes.errorbar(
                    x, values[some], error, fmt="none", ecolor=colour, elinewidth=1, capsize=2
                )
            if DASHES[place % len(DASHES)]:
                drawn.set_dashes(DASHES[place % len(DASHES)])
        if self.scale == "log":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:.0e}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            low, high = map(math.log10, axes.get_ylim())
            axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))  # or few have a number
        if self.scale == "counts":
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(bottom=0)
        if self.scale == "share":
            axes.set_ylim(-0.03, 1.05)
        margin = 0.3 + len(placed) * apart / 2
        axes.set_xlim(min(stages) - margin, max([1, *stages]) + margin)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("stage")
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        text = file.getvalue()
        return text[text.index("<svg") :]


def _lengths(line: Line, some: slice) -> list[list[float]]:
    """Of some error bars, below and above; 0 where the interval is not finite."""
    triples = list(zip(line.values, line.low, line.high, strict=True))[some]
    lengths = [(mean - low, high - mean) for mean, low, high in triples]
    finite = [[x if math.isfinite(x) else 0.0 for x in pair] for pair in lengths]
    return [list(side) for side in zip(*finite, strict=True)]
