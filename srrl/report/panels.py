"""Which charts a page has: of evaluations, of training and of time; of a run, or of several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from srrl.report.charts import Chart, Line
from srrl.report.gather import Run
from srrl.report.scores import Evaluation, Key, evaluations
from srrl.run.image_statistics import MEASURES as MEASURES_OF_IMAGES
from srrl.run.image_statistics import summary_of


@dataclass(frozen=True)
class Panel:
    """Keys of metrics.jsonl with what they are called, and a scale of charts.Chart."""

    title: str
    keys: dict[str, str]
    scale: str = ""


RATIO = {
    "ratio/max_dev": "at the stage's last updates",
    "ratio/first_max_dev": "before its first update",
}
CHECKED = {"reward/checker/mean": "by the checker", "before/checker": "before the edit"}
GROUPS = {"groups": "all", "tied": "equal rewards", "hopeless": "no gain"}
MEASURES = (
    Panel("Largest |ratio - 1|, 0 shown as 1e-08", RATIO, "log"),
    Panel("Clip fraction", {"clip_fraction": "of the steps"}),
    Panel("Gradient norm, before clipping", {"grad_norm": "norm"}),
    Panel("Learning rate", {"lr": "rate"}),
    Panel("Loss", {"loss": "loss"}),
    Panel("Curriculum", {"rounds": "rounds K", "trained_steps": "trained steps m"}, "counts"),
    Panel("Share of requirements that edits pass", CHECKED, "share"),
    Panel("Groups of a stage", GROUPS, "counts"),
    Panel("Completions", {"form": "usable", "distinct": "distinct"}, "share"),
)
SELECTED = "Selected share of the samples"


def evaluation_charts(run: Run) -> list[Chart]:
    """A chart for each reward and K, a line for each split."""
    found = evaluations(run)
    kinds = dict.fromkeys((reward, rounds) for _, reward, rounds in found)
    return [
        Chart(
            f"Evaluation by {reward}, K = {rounds}",
            [evaluated(key[0], some) for key, some in found.items() if key[1:] == (reward, rounds)],
        )
        for reward, rounds in kinds
    ]


def look_charts(run: Run) -> list[Chart]:
    """How the evaluated pictures look: a chart for each measure, a line for each split and K."""
    found: dict[tuple, dict[int, dict[str, float]]] = {}
    for line in run.evals:
        means = {name: mean for name, (mean, _) in summary_of(line).items()}
        found.setdefault((line["split"], line["rounds"]), {})[line["stage"]] = means
    charts = []
    for name, title in MEASURES_OF_IMAGES.items():
        lines = [
            Line(f"{split}, K = {k}", [*stages], [m.get(name, math.nan) for m in stages.values()])
            for (split, k), stages in found.items()
        ]
        charts.append(Chart(f"Evaluated pictures: {title}", lines))
    return [chart for chart in charts if chart.seen]


def evaluated(label: str, some: Sequence[Evaluation]) -> Line:
    """An evaluation's means and intervals over the stages."""
    bounds = [e.estimate for e in some]
    means, low, high = ([getattr(e, k) for e in bounds] for k in ("mean", "low", "high"))
    return Line(label, [e.stage for e in some], means, low, high)


def training_charts(run: Run) -> list[Chart]:
    """What each stage's samples and updates measured."""
    charts = [
        Chart(f"Reward of the samples: {name}", [_line(run, f"reward/{name}/mean", "mean")])
        for name in run.rewards
    ]
    charts.append(Chart(SELECTED, [selected(run, "selected")], "share"))
    charts += [
        Chart(
            panel.title,
            [_line(run, key, label) for key, label in panel.keys.items()],
            panel.scale,
        )
        for panel in MEASURES
    ]
    return [chart for chart in charts if chart.seen]


def time_charts(run: Run) -> list[Chart]:
    """The seconds of each stage by phase."""
    lines = [Line(phase, _stages(run), seconds) for phase, seconds in run.phases.items()]
    chart = Chart("Seconds of a stage", lines)
    return [chart] if chart.seen else []


def overlaid_evaluations(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each split, reward and K, a line for each run."""
    found = [evaluations(run) for run in runs]
    keys: list[Key] = list(dict.fromkeys(key for of in found for key in of))
    charts = []
    for key in keys:
        having = [i for i, of in enumerate(found) if key in of]
        lines = [evaluated(runs[i].title, found[i][key]) for i in having]
        split, reward, rounds = key
        title = f"{split} prompts by {reward}, K = {rounds}"
        charts.append(Chart(title, lines, places=having))
    return [chart for chart in charts if chart.seen]


def overlaid_training(runs: Sequence[Run]) -> list[Chart]:
    """What stages measured, a line for each run."""
    rewards = dict.fromkeys(name for run in runs for name in run.rewards)
    shown = {f"reward/{name}/mean": (f"Reward of the samples: {name}", "") for name in rewards}
    for panel in MEASURES:
        for key, label in panel.keys.items():
            title = panel.title + (f": {label}" if len(panel.keys) > 1 else "")
            shown.setdefault(key, (title, panel.scale))
    charts = [
        Chart(title, [_line(run, key, run.title) for run in runs], scale)
        for key, (title, scale) in shown.items()
    ]
    share = Chart(SELECTED, [selected(run, run.title) for run in runs], "share")
    time = Chart(
        "Seconds of a stage", [Line(run.title, _stages(run), run.stage_seconds) for run in runs]
    )
    return [chart for chart in (*charts, share, time) if chart.seen]


def selected(run: Run, label: str) -> Line:
    """Of each stage's samples, the share that was trained on."""
    pairs = zip(run.values("selected"), run.sampled, strict=True)
    return Line(label, _stages(run), [n / all_ if all_ else float("nan") for n, all_ in pairs])


def _line(run: Run, key: str, label: str) -> Line:
    return Line(label, _stages(run), run.values(key))


def _stages(run: Run) -> list[int]:
    return [line["stage"] for line in run.metrics]
