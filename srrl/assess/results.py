"""What a study found: its tables and plot, put between the marks of its document.

Prose stays as it is; what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` is written
anew.
"""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from srrl.assess.arms import Run, is_judged, is_trained, spent
from srrl.assess.cells import Result, finished
from srrl.config import REPOSITORY
from srrl.errors import UserError

# Student's t at 97.5% for n values.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # fmt: skip
SKELETON = "# Results\n\n<!-- begin matrix -->\n<!-- end matrix -->\n"


@dataclass(frozen=True)
class Judged:
    """A run (the base, if None) and its cells."""

    run: Run | None
    results: list[Result]

    def mean(self, split: str, sampler: str, reward: str) -> float | None:
        for result in self.results:
            if (Path(result.cell.prompts).stem.endswith(split)
                    and result.cell.sampler == sampler and reward in result.scores):  # fmt: skip
                return result.scores[reward].double().mean().item()
        return None


def over_seeds(values: list[float]) -> str:
    """The mean of values and, for two and more, the half-width of its 95% interval."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.3f} +- {half:.3f}"


def signed(values: list[float]) -> str:
    text = over_seeds(values)
    return text and ("+" if statistics.fmean(values) >= 0 else "") + text


def judged_runs(study: ConfigDict, runs: list[Run]) -> list[Judged]:
    done = [r for r in runs if is_trained(r) and is_judged(study, r.folder / "judged")]
    return [Judged(run, list(finished(run.folder / "judged").values())) for run in done]


def heading(sampler: str) -> str:
    return "K = 1" if sampler == "plain" else f"K = {sampler.rpartition('=')[2]}"


def matrix(study: ConfigDict, base: Judged, judged: list[Judged], split: str, reward: str) -> str:
    """Training x sampling: the mean over seeds, and the difference to the reference arm by seed."""
    columns = [heading(s) for s in study.samplers]
    text = f"| trained | stages | evaluations | seeds | {' | '.join(columns)} |\n"
    text += "|---|---|---|---|" + "---|" * len(columns) + "\n"
    row = [f"{base.mean(split, s, reward):.3f}" for s in study.samplers]
    text += f"| not at all | | | | {' | '.join(row)} |\n"
    reference = {j.run.seed: j for j in judged if j.run.arm == study.reference}
    for budget in study.budgets:
        for arm in study.arms:
            own = [j for j in judged if (j.run.arm, j.run.budget) == (arm, budget)]
            if not own:
                continue
            cells = []
            for sampler in study.samplers:
                values = [j.mean(split, sampler, reward) for j in own]
                cell = over_seeds(values)
                pairs = [j for j in own if arm != study.reference and j.run.seed in reference]
                if pairs:
                    gained = [j.mean(split, sampler, reward)
                              - reference[j.run.seed].mean(split, sampler, reward)
                              for j in pairs]  # fmt: skip
                    cell += f" ({signed(gained)})"
                cells.append(cell)
            cost = round(statistics.fmean(spent(j.run) for j in own), -3)
            label = f"{study.arms[arm].label}, equal {budget}"
            if arm == study.reference:
                label = f"**{study.arms[arm].label}**, the reference"
            text += (f"| {label} | {own[0].run.stages} | {cost:,.0f} | {len(own)} | "
                     f"{' | '.join(cells)} |\n")  # fmt: skip
    return text


def plot(study: ConfigDict, base: Judged, judged: list[Judged], path: Path) -> None:
    """For each reward, held-out: score at each sampling K, a line for each arm and budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * len(study.rewards), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(study.rewards), squeeze=False)[0]
    for axes, reward in zip(panels, study.rewards, strict=True):
        places = np.arange(len(study.samplers))
        untrained = [base.mean("heldout", s, reward) for s in study.samplers]
        axes.plot(places, untrained, "k:", label="not trained")
        for k, arm in enumerate(study.arms):
            for budget, style in zip(study.budgets, ("-o", "--s"), strict=False):
                own = [j for j in judged if (j.run.arm, j.run.budget) == (arm, budget)]
                if not own:
                    continue
                means = [statistics.fmean(j.mean("heldout", s, reward) for j in own)
                         for s in study.samplers]  # fmt: skip
                label = f"{study.arms[arm].label}, equal {budget}"
                axes.plot(places, means, style, color=f"C{k}", label=label)
        axes.set_xticks(places, [heading(s) for s in study.samplers])
        axes.set(title=f"{reward}, held-out prompts", xlabel="sampled with", ylabel="mean")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def replace_between(text: str, name: str, new: str) -> str:
    """The text with what stands between the marks of a name replaced. Raises UserError without."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise UserError(f"the report has no marks {begin} ... {end}: put them where it belongs")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}\n{new}{end}", text, flags=re.DOTALL)


def write_results(study: ConfigDict, runs: list[Run], base_folder: Path) -> str:
    """Write the document and its plot; says what was written."""
    if not is_judged(study, base_folder):
        return f"nothing to write yet: {base_folder} is not evaluated"
    base = Judged(None, list(finished(base_folder).values()))
    judged = judged_runs(study, runs)
    report = REPOSITORY / study.report
    text = report.read_text(encoding="utf-8") if report.exists() else SKELETON
    tables = ""
    for reward in study.rewards:
        for split in ("heldout", "train"):
            tables += f"\n**{reward}, {split} prompts**\n\n"
            tables += matrix(study, base, judged, split, reward)
    picture = report.parent / "images" / "study.png"
    plot(study, base, judged, picture)
    tables += f"\n![every arm at every K](images/{picture.name})\n"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(replace_between(text, "matrix", tables), encoding="utf-8")
    return f"{len(judged)} of {len(runs)} runs in {study.report}"
