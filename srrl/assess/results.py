"""What a study found: its tables and plot, put between the marks of its document.

Prose stays as it is; what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is written
anew.
"""

import itertools
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from srrl.assess.arms import Run, evaluation_of
from srrl.assess.collect import asked_for, collect
from srrl.assess.records import Record, keep
from srrl.assess.report import plot as against_cost
from srrl.config import REPOSITORY
from srrl.run.statistics import half_width, spread

SPLITS = {
    "train": "train",
    "heldout": "held-out",
    "all": "all",
    "wordings": "differently worded held-out",
}


def over_seeds(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """One value, both of two, or the mean of three and more with its 95% interval (Student's t)."""
    if len(values) == 2:
        return spread(values, sign, digits)
    mean = f"{statistics.fmean(values):{sign}.{digits}f}" if values else ""
    return f"{mean} {spread(values, sign, digits)}".strip()


def label_of(study: ConfigDict, arm: str) -> str:
    """An arm's label, with a mark if it was chosen after the fact."""
    late = [name for name in study.arms if study.arms[name].get("chosen")]
    mark = f" [{late.index(arm) + 1}]" if arm in late else ""
    return study.arms[arm].label + mark


def notes(study: ConfigDict, table: str) -> str:
    """What the marks in a table say: how those arms were chosen."""
    late = [arm.chosen for arm in study.arms.values() if arm.get("chosen")]
    marked = [f"[{n}] Chosen {how}." for n, how in enumerate(late, 1) if f" [{n}]" in table]
    return "\n" + "  \n".join(marked) + "\n" if marked else ""


def heading(sampler: str) -> str:
    """K = 1, 2, 3 for what the arms differ in; another sampler's own name."""
    if sampler == "plain":
        return "K = 1"
    rounds, *more = sampler.removeprefix("reflect:rounds=").split(",")
    return f"K = {', '.join([rounds, *more])}" if rounds.isdigit() else sampler


def runs_at(records: list[Record], arm: str, budget: str) -> list[Record]:
    return [r for r in records if (r.arm, r.budget) == (arm, budget)]


def gains(
    runs: list[Record], others: list[Record], what: tuple[str, str, str]
) -> dict[int | None, float]:
    """For each seed that both have, the difference of a split's, sampler's and reward's means."""
    other = {r.seed: r.mean(*what) for r in others}
    return {r.seed: r.mean(*what) - other[r.seed] for r in runs if r.seed in other}


def gained(runs: list[Record], others: list[Record], what: tuple[str, str, str]) -> str:
    """These differences; of which seeds, where some have no other."""
    found = gains(runs, others, what)
    if not found:
        return ""
    some = f" at seed {', '.join(map(str, found))}" if len(found) < len(runs) else ""
    return over_seeds([*found.values()], sign="+") + some


def comparisons(study: ConfigDict, records: list[Record]) -> str:
    """Held-out prompts, all, and those in other words, at the last budget: the arms against each of
    `against`, seed by seed."""
    budget = study.budgets[-1]
    arms = {
        arm: runs_at(records, arm, study.budgets[0] if arm == study.reference else budget)
        for arm in study.arms
    }
    text = ""
    splits = [s for s in ("heldout", "all", "wordings") if s == "all" or s in study.splits]
    for reward, split in itertools.product(study.rewards, splits):
        rows = ""
        for number, other in enumerate(study.against):
            for arm in study.arms:
                if arm in study.against[:number]:
                    continue  # it stands there the other way round
                cells = [gained(arms[arm], arms[other], (split, s, reward)) for s in study.samplers]
                if arm != other and all(cells):
                    label, base = label_of(study, arm), label_of(study, other)
                    rows += f"| {label}, less {base} | {' | '.join(cells)} |\n"
        if rows:
            text += f"\n**{reward}, {SPLITS[split]} prompts, equal {budget}**\n\n"
            text += f"| difference | {' | '.join(heading(s) for s in study.samplers)} |\n"
            text += "|---|" + "---|" * len(study.samplers) + "\n" + rows + notes(study, rows)
    return text


def confirmation(study: ConfigDict, records: list[Record]) -> str:
    """The comparisons of the seeds that did not choose the arms, under a heading."""
    seeds = ", ".join(str(seed) for seed in study.confirm)
    chosen = [r for r in records if r.seed in study.confirm]
    tables = comparisons(study, chosen)
    return tables and f"\n### Seeds {seeds} alone, by which no arm was chosen\n" + tables


def cell_of(runs: list[Record], reference: list[Record], what: tuple[str, str, str]) -> str:
    """Means over seeds; shares of right pictures, where they are known; the difference."""
    rights = [share for r in runs if (share := r.right(*what)) is not None]
    parts = [over_seeds([r.mean(*what) for r in runs])]
    parts += [f"right {over_seeds(rights)}"] if len(rights) == len(runs) else []
    less = gained(runs, reference, what)
    return "; ".join(parts) + (f" ({less})" if less else "")


def matrix(study: ConfigDict, base: Record, records: list[Record], split: str, reward: str) -> str:
    """Training x sampling: the mean over seeds, and the difference to the reference arm by seed."""
    columns = [heading(s) for s in study.samplers]
    text = f"| trained | stages | evaluations | seeds | {' | '.join(columns)} |\n"
    text += "|---|---|---|---|" + "---|" * len(columns) + "\n"
    untrained = [cell_of([base], [], (split, s, reward)) for s in study.samplers]
    text += f"| not at all | | | | {' | '.join(untrained)} |\n"
    reference = [r for r in records if r.arm == study.reference]
    for budget in study.budgets:
        for arm in study.arms:
            runs = runs_at(records, arm, budget)
            if not runs:
                continue
            first = arm == study.reference
            others = [] if first else reference
            cells = [cell_of(runs, others, (split, s, reward)) for s in study.samplers]
            label = label_of(study, arm)
            label = f"**{label}**, the reference" if first else f"{label}, equal {budget}"
            nfe = round(statistics.fmean(r.nfe for r in runs), -3)
            text += (
                f"| {label} | {runs[0].stages} | {nfe:,.0f} | {len(runs)} | {' | '.join(cells)} |\n"
            )
    return text + notes(study, text)


def signal(study: ConfigDict, records: list[Record]) -> str:
    """What training had to learn from."""
    text = "| trained | mean score | mixed groups | selected a 1,000 evaluations |\n"
    text += "|---|---|---|---|\n"
    for budget in study.budgets:
        for arm in study.arms:
            signals = [r.signal for r in runs_at(records, arm, budget) if r.signal]
            if signals:
                mixed = [s.mixed for s in signals if s.mixed is not None]
                text += (
                    f"| {label_of(study, arm)}, equal {budget} | "
                    f"{over_seeds([s.sampled for s in signals])} | "
                    f"{'' if len(mixed) < len(signals) else over_seeds(mixed)} | "
                    f"{over_seeds([s.selected for s in signals], 2)} |\n"
                )
    return text + notes(study, text)


def plot(study: ConfigDict, base: Record, records: list[Record], path: Path) -> None:
    """The first split: a panel for each way of sampling, a line for each arm and budget with its
    mean and interval over seeds (of two seeds from one to the other) by each reward."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labelled = {}
    for budget in study.budgets:
        for arm in study.arms:
            runs = runs_at(records, arm, budget)
            if runs:
                labelled[f"{label_of(study, arm)}, equal {budget}"] = runs
    figure = Figure(
        figsize=(2.2 + 2.9 * len(study.samplers), 1.4 + 0.34 * len(labelled)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.samplers), sharey=True, sharex=True, squeeze=False)[0]
    heights = np.arange(len(labelled))[::-1]
    for axes, sampler in zip(panels, study.samplers, strict=True):
        for k, reward in enumerate(study.rewards):
            values = [
                [r.mean(study.splits[0], sampler, reward) for r in runs]
                for runs in labelled.values()
            ]
            means = [statistics.fmean(v) for v in values]
            halves = [half_width(v) if len(v) > 2 else (max(v) - min(v)) / 2 for v in values]
            axes.errorbar(
                means,
                heights + 0.12 - 0.24 * k,
                xerr=halves,
                fmt="os"[k % 2],
                color=f"C{k}",
                markersize=4,
                label=reward,
            )
            untrained = base.mean(study.splits[0], sampler, reward)
            axes.axvline(untrained, color=f"C{k}", linestyle=":")
        axes.set_yticks(heights, list(labelled))
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


def test_time(study: ConfigDict, records: list[Record], picture: Path) -> str:
    """The ways to sample from one trained policy, cheapest first, against the first of them."""
    lines = next((r.test_time() for r in records if r.test_time()), [])
    if not lines:
        return ""
    against_cost(picture, lines)
    n, policy = f"{lines[0].count} prompts x {lines[0].images} seeds", Path(lines[0].checkpoint)
    text = f"n = {n} a line, of {policy.name}.\n\n"
    titles = [title for r in study.rewards for title in (r, "difference")]
    text += f"| sampler | evaluations | {' | '.join(titles)} | diversity |\n"
    text += "|---|---|" + "---|" * len(titles) + "---|\n"
    for nfe, sampler in sorted({(line.nfe, line.sampler) for line in lines}):
        of_reward = {line.reward: line for line in lines if line.sampler == sampler}
        cells = []
        for reward in study.rewards:
            gained = of_reward[reward].difference
            cells += [str(of_reward[reward].score), gained.signed() if gained else ""]
        diversity = of_reward[study.rewards[0]].diversity
        cells.append("" if diversity is None else f"{diversity:.1f}")
        text += f"| `{sampler}` | {nfe:.0f} | {' | '.join(cells)} |\n"
    return text + f"\n![score against cost](images/{picture.name})\n"


def write_results(study: ConfigDict, runs: list[Run]) -> str:
    """Write the document, its plots and the records beside it; says what was written."""
    kept = collect(study, runs)
    records = asked_for(study, runs, kept)
    base = next((r for r in records if r.arm is None), None)
    if base is None:
        return f"nothing to write yet: {evaluation_of(study, None).folder} is not evaluated"
    keep(study, kept)
    trained = [r for r in records if r.arm is not None]
    report = REPOSITORY / study.report
    text = report.read_text(encoding="utf-8") if report.exists() else "# Results\n"
    tables = ""
    for split in study.shown:
        tables += f"\n**{study.rewards[0]}, {SPLITS[split]} prompts**\n\n"
        tables += matrix(study, base, trained, split, study.rewards[0])
    picture = report.parent / "images" / f"{study.name}.png"
    plot(study, base, trained, picture)
    tables += f"\n![every arm at every K](images/{picture.name})\n"
    text = put_between(text, f"{study.name} matrix", tables)
    if study.against:
        compared = comparisons(study, trained)
        compared += confirmation(study, trained) if study.confirm else ""
        text = put_between(text, f"{study.name} comparisons", compared)
    text = put_between(text, f"{study.name} signal", "\n" + signal(study, trained))
    if study.test_time.samplers:
        against = picture.with_name(f"{study.name}_test_time.png")
        table = test_time(study, trained, against)
        text = put_between(text, f"{study.name} test time", "\n" + table)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(text, encoding="utf-8")
    return f"{len(trained)} of {len(runs)} runs in {study.report}"
