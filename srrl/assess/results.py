"""What a study found: its tables and plot, put between the marks of its document.

Prose stays as it is; what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is written
anew.
"""

import itertools
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from srrl.assess.arms import Run, at_test_time, is_trained, judging, spent
from srrl.assess.cells import Result
from srrl.assess.report import lines_of
from srrl.assess.report import plot as against_cost
from srrl.config import REPOSITORY
from srrl.run.pictures import read_jsonl
from srrl.run.statistics import half_width

SPLITS = {"train": "train", "heldout": "held-out", "all": "all"}


@dataclass(frozen=True)
class Judged:
    """A run (the base, if None) and its cells."""

    run: Run | None
    results: list[Result]

    def mean(self, split: str, sampler: str, reward: str) -> float | None:
        """Over the prompts of the split "train" or "heldout", or of "all"."""
        found = [
            result.scores[reward].double().flatten()
            for result in self.results
            if split in ("all", Path(result.cell.prompts).stem.rpartition("_")[2])
            and result.cell.sampler == sampler
            and reward in result.scores
        ]
        return torch.cat(found).mean().item() if found else None


def over_seeds(values: Sequence[float], digits: int = 3) -> str:
    """The mean of values and, for two and more, the half-width of its 95% interval."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} +- {half_width(values):.{digits}f}"


def signed(values: Sequence[float]) -> str:
    text = over_seeds(values)
    return text and ("+" if statistics.fmean(values) >= 0 else "") + text


def judged_runs(study: ConfigDict, runs: list[Run]) -> list[Judged]:
    done = [run for run in runs if is_trained(run) and judging(study, run).done()]
    return [Judged(run, judging(study, run).results()) for run in done]


def heading(sampler: str) -> str:
    """K = 1, 2, 3 for what the arms differ in; another sampler's own name."""
    if sampler == "plain":
        return "K = 1"
    rounds, *more = sampler.removeprefix("reflect:rounds=").split(",")
    return f"K = {', '.join([rounds, *more])}" if rounds.isdigit() else sampler


def runs_at(judged: list[Judged], arm: str, budget: str) -> list[Judged]:
    return [j for j in judged if (j.run.arm, j.run.budget) == (arm, budget)]


def gains(own: list[Judged], others: list[Judged], what: tuple[str, str, str]) -> list[float]:
    """Differences of a split's, sampler's and reward's means, seed by seed."""
    other = {j.run.seed: j.mean(*what) for j in others}
    return [j.mean(*what) - other[j.run.seed] for j in own if j.run.seed in other]


def comparisons(study: ConfigDict, judged: list[Judged]) -> str:
    """Held-out prompts and all, at the last budget: the arms against each of `against`, seed by
    seed."""
    budget = study.budgets[-1]
    arms = {
        arm: runs_at(judged, arm, study.budgets[0] if arm == study.reference else budget)
        for arm in study.arms
    }
    text = ""
    for reward, split in itertools.product(study.rewards, ("heldout", "all")):
        text += f"\n**{reward}, {SPLITS[split]} prompts, equal {budget}**\n\n"
        text += f"| difference | {' | '.join(heading(s) for s in study.samplers)} |\n"
        text += "|---|" + "---|" * len(study.samplers) + "\n"
        for place, other in enumerate(study.against):
            for arm in study.arms:
                if arm in study.against[:place]:
                    continue  # it stands there the other way round
                cells = [
                    signed(gains(arms[arm], arms[other], (split, s, reward)))
                    for s in study.samplers
                ]
                if arm != other and all(cells):
                    label, base = study.arms[arm].label, study.arms[other].label
                    text += f"| {label}, less {base} | {' | '.join(cells)} |\n"
    return text


def matrix(study: ConfigDict, base: Judged, judged: list[Judged], split: str, reward: str) -> str:
    """Training x sampling: the mean over seeds, and the difference to the reference arm by seed."""
    columns = [heading(s) for s in study.samplers]
    text = f"| trained | stages | evaluations | seeds | {' | '.join(columns)} |\n"
    text += "|---|---|---|---|" + "---|" * len(columns) + "\n"
    row = [f"{base.mean(split, s, reward):.3f}" for s in study.samplers]
    text += f"| not at all | | | | {' | '.join(row)} |\n"
    reference = [j for j in judged if j.run.arm == study.reference]
    for budget in study.budgets:
        for arm in study.arms:
            own = runs_at(judged, arm, budget)
            if not own:
                continue
            cells = []
            for sampler in study.samplers:
                cell = over_seeds([j.mean(split, sampler, reward) for j in own])
                gained = gains(own, reference, (split, sampler, reward))
                if gained and arm != study.reference:
                    cell += f" ({signed(gained)})"
                cells.append(cell)
            cost = round(statistics.fmean(spent(j.run) for j in own), -3)
            label = f"{study.arms[arm].label}, equal {budget}"
            if arm == study.reference:
                label = f"**{study.arms[arm].label}**, the reference"
            text += (
                f"| {label} | {own[0].run.stages} | {cost:,.0f} | {len(own)} | "
                f"{' | '.join(cells)} |\n"
            )
    return text


def signal(study: ConfigDict, judged: list[Judged]) -> str:
    """What training had to learn from. A group is the branches of a prompt in a stage and round; it
    is mixed where their scores lie more than 0.5 apart."""
    text = "| trained | mean score | mixed groups | selected a 1,000 evaluations |\n"
    text += "|---|---|---|---|\n"
    for budget in study.budgets:
        for arm in study.arms:
            rows = [learned_from(study, j.run) for j in runs_at(judged, arm, budget)]
            if rows:
                score, mixed, selected = zip(*rows, strict=True)
                told = "" if None in mixed else over_seeds(mixed)
                text += (
                    f"| {study.arms[arm].label}, equal {budget} | {over_seeds(score)} | "
                    f"{told} | {over_seeds(selected, 2)} |\n"
                )
    return text


def learned_from(study: ConfigDict, run: Run) -> tuple[float, float | None, float]:
    """A run's mean score, share of mixed groups (None where a group is one picture), and
    trajectories selected a 1,000 network evaluations."""
    lines = read_jsonl(run.folder / "samples.jsonl")
    groups: dict[tuple, list[float]] = {}
    for line in lines:
        if line["scores"] is None:  # a round that shares the last one's
            continue
        key = (line["stage"], line["slot"], line["round"])
        groups.setdefault(key, []).append(line["scores"][study.rewards[0]])
    alone = all(len(g) == 1 for g in groups.values())
    mixed = None if alone else statistics.fmean(max(g) - min(g) > 0.5 for g in groups.values())
    chosen = sum(line["selected"] for line in lines)
    return (
        statistics.fmean(s for g in groups.values() for s in g),
        mixed,
        1000 * chosen / spent(run),
    )


def plot(study: ConfigDict, base: Judged, judged: list[Judged], path: Path) -> None:
    """The first split: a panel for each way of sampling, a line for each arm and budget with its
    mean and interval over seeds by each reward."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {}
    for budget in study.budgets:
        for arm in study.arms:
            own = runs_at(judged, arm, budget)
            if own:
                rows[f"{study.arms[arm].label}, equal {budget}"] = own
    figure = Figure(
        figsize=(2.2 + 2.9 * len(study.samplers), 1.4 + 0.34 * len(rows)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.samplers), sharey=True, sharex=True, squeeze=False)[0]
    places = np.arange(len(rows))[::-1]
    for axes, sampler in zip(panels, study.samplers, strict=True):
        for k, reward in enumerate(study.rewards):
            values = [
                [j.mean(study.splits[0], sampler, reward) for j in own] for own in rows.values()
            ]
            means = [statistics.fmean(v) for v in values]
            halves = [half_width(v) if len(v) > 1 else 0.0 for v in values]
            axes.errorbar(
                means,
                places + 0.12 - 0.24 * k,
                xerr=halves,
                fmt="os"[k % 2],
                color=f"C{k}",
                markersize=4,
                label=reward,
            )
            untrained = base.mean(study.splits[0], sampler, reward)
            axes.axvline(untrained, color=f"C{k}", linestyle=":")
        axes.set_yticks(places, list(rows))
        axes.set(title=f"sampled with {heading(sampler)}", xlabel="mean score")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(
        handles,
        [f"{x} (dotted: not trained)" for x in labels],
        fontsize=8,
        ncols=4,
        loc="outside lower center",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def put_between(text: str, name: str, new: str) -> str:
    """The text with `new` between the marks of a name, which are put at its end if it has none."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        text += f"\n{begin}\n{end}\n"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{new}{end}", text, flags=re.DOTALL)


def test_time(study: ConfigDict, runs: list[Run], picture: Path) -> str:
    """The ways to sample from one trained policy, cheapest first, against the first of them."""
    found = [e for run in runs if (e := at_test_time(study, run)) and e.done()]
    if not found:
        return ""
    lines = lines_of(found[0].results())
    against_cost(picture, lines)
    n = f"{lines[0].count} prompts x {lines[0].images} seeds"
    text = f"n = {n} a line, of {found[0].run.name}.\n\n"
    titles = [title for r in study.rewards for title in (r, "difference")]
    text += f"| sampler | evaluations | {' | '.join(titles)} | diversity |\n"
    text += "|---|---|" + "---|" * len(titles) + "---|\n"
    samplers = sorted({(line.evaluations, line.sampler) for line in lines})
    for evaluations, sampler in samplers:
        own = {line.reward: line for line in lines if line.sampler == sampler}
        cells = []
        for reward in study.rewards:
            gained = own[reward].difference
            cells += [str(own[reward].score), gained.signed() if gained else ""]
        spread = own[study.rewards[0]].diversity
        cells.append("" if spread is None else f"{spread:.1f}")
        text += f"| `{sampler}` | {evaluations:.0f} | {' | '.join(cells)} |\n"
    return text + f"\n![score against cost](images/{picture.name})\n"


def write_results(study: ConfigDict, runs: list[Run]) -> str:
    """Write the document and its plots; says what was written."""
    untrained = judging(study, None)
    if not untrained.done():
        return f"nothing to write yet: {untrained.folder} is not evaluated"
    base = Judged(None, untrained.results())
    judged = judged_runs(study, runs)
    report = REPOSITORY / study.report
    text = report.read_text(encoding="utf-8") if report.exists() else "# Results\n"
    tables = ""
    for reward in study.rewards:
        for split in study.splits:
            tables += f"\n**{reward}, {SPLITS[split]} prompts**\n\n"
            tables += matrix(study, base, judged, split, reward)
    picture = report.parent / "images" / f"{study.name}.png"
    plot(study, base, judged, picture)
    tables += f"\n![every arm at every K](images/{picture.name})\n"
    text = put_between(text, f"{study.name} matrix", tables)
    if study.against:
        text = put_between(text, f"{study.name} comparisons", comparisons(study, judged))
    text = put_between(text, f"{study.name} signal", "\n" + signal(study, judged))
    if study.test_time.samplers:
        shown = picture.with_name(f"{study.name}_test_time.png")
        text = put_between(text, f"{study.name} test time", "\n" + test_time(study, runs, shown))
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(text, encoding="utf-8")
    return f"{len(judged)} of {len(runs)} runs in {study.report}"
