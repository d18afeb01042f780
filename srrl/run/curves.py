"""curves.png: a run's rewards, evaluations, ratio and curriculum, from its logs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from srrl.run.folder import read_lines
from srrl.run.pictures import short_name
from srrl.run.statistics import by_prompt, half_width

# A colour for each reward, a marker for each split and a line for each K, in every panel.
COLOURS = [f"C{i}" for i in range(10)]
MARKERS, LINES = {"train": "o", "heldout": "s"}, ("-", "--", ":", "-.")
FLOOR = 1e-8  # shown for a ratio that is exactly 1


@dataclass(frozen=True)
class Panel:
    """A method's own panel: a title, keys of metrics.jsonl with what they are called, and whether
    they count something."""

    title: str
    keys: dict[str, str]
    counts: bool = True


def curves(run: Path, own_panels: Sequence[Panel] = ()) -> None:
    """Draw curves.png from a run's metrics.jsonl and eval.jsonl: two panels for each reward, which
    have scales of their own, the ratio, and the method's own panels."""
    metrics, evals = read_lines(run / "metrics.jsonl"), read_lines(run / "eval.jsonl")
    rewards = [
        key.removeprefix("reward/").removesuffix("/mean")
        for key in (metrics[0] if metrics else {})
        if key.startswith("reward/") and key.endswith("/mean")
    ]
    rewards = list(dict.fromkeys([*rewards, *(line["reward"] for line in evals)]))
    lines = len(rewards) + 1 + len(own_panels) // 2
    figure = Figure(figsize=(10, 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, 2, squeeze=False)
    stages = [line["stage"] for line in metrics]
    few = "o" if len(stages) < 3 else ""  # a line of one point cannot be seen
    for i, reward in enumerate(rewards):
        colour = COLOURS[i % len(COLOURS)]
        sampled, held = panels[i]
        if metrics:
            means = [line.get(f"reward/{reward}/mean") for line in metrics]
            sampled.plot(stages, means, color=colour, marker=few)
            sampled.set_visible(any(mean is not None for mean in means))
        shown = short_name(reward)
        sampled.set(title=f"{shown}: mean of the stage's samples", ylabel="score")
        own = [line for line in evals if line["reward"] == reward]
        all_rounds = sorted({line["rounds"] for line in own})
        for split, rounds in dict.fromkeys((line["split"], line["rounds"]) for line in own):
            drawn = [e for e in own if (e["split"], e["rounds"]) == (split, rounds)]
            halves = [half_width(by_prompt(e["scores"], e["seeds"])) for e in drawn]
            error = [half if math.isfinite(half) else 0.0 for half in halves]  # of one prompt
            held.errorbar(
                [e["stage"] for e in drawn],
                [e["mean"] for e in drawn],
                error,
                capsize=3,
                color=colour,
                marker=MARKERS.get(split, "^"),
                label=f"{split}, K = {rounds}",
                linestyle=LINES[all_rounds.index(rounds) % len(LINES)],
                markerfacecolor=colour if split == "train" else "white",
            )
        held.set(ylabel="score")
        title = f"{shown}: evaluation at fixed seeds (95% over prompts)"
        held.set_title(title, fontsize="large" if len(title) < 53 else "medium")
        if own:
            low, high = held.get_ylim()
            held.set_ylim(low, high + 0.3 * (high - low))  # room above the lines
            held.legend(fontsize=8, ncols=2, loc="upper left")
    ratio, *others = panels[len(rewards) :].flat
    for axes in others[len(own_panels) :]:
        axes.set_visible(False)
    for key, label, colour in (
        ("ratio/max_dev", "at the stage's last updates: grows as the policy moves", "0.6"),
        ("ratio/first_max_dev", "before its first update: the check, 0 in exact arithmetic", "k"),
    ):
        deviations = [max(line[key], FLOOR) for line in metrics]
        ratio.plot(stages, deviations, color=colour, label=label, marker=few)
    most = max([1.0, *(2 * line["ratio/max_dev"] for line in metrics)])  # of tokens above 1
    ratio.set(title="largest |ratio - 1|", yscale="log", ylim=(FLOOR / 2, most))
    for axes, panel in zip(others, own_panels, strict=False):
        for key, label in panel.keys.items():
            axes.step(stages, [x[key] for x in metrics], where="mid", label=label, marker=few)
        axes.set(title=panel.title, ylim=(0, None))
        if panel.counts:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (ratio, *others[: len(own_panels)]):
        if metrics:
            axes.legend(fontsize=8)
    for axes in panels.flat:
        axes.set_xlabel("stage")
        axes.set_xlim(-0.5, max([1, *stages]) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(run / "curves.png", dpi=110)
