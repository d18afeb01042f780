"""What of a run's logs asks for a second look."""

import math
import os
from collections.abc import Iterable, Iterator

from srrl.report.gather import Run, number
from srrl.report.scores import difference, evaluations
from srrl.run.image_statistics import drifted

LOOKED_AT = (
    "constant rewards, stages that selected nothing, the ratio before a stage's first update, "
    "numbers that are not finite, held-out scores that fall while the trained ones rise, updates "
    "left out, evaluated pictures that no longer look like the first ones, and lines or pictures "
    "that are missing"
)
FIRST = "ratio/first_max_dev"
NEAR = 0.1  # of the deviation at which a run stops


def findings(run: Run) -> list[str]:
    """The warnings, a sentence each."""
    found = [*_rewards(run), *_updates(run), *_numbers(run), *_overfitting(run)]
    return [*found, *_pictures(run), *_files(run)]


def _rewards(run: Run) -> Iterator[str]:
    spread = "reward/std" if run.method == "rig" else "advantage/std"
    if flat := _stages(run, (v == 0 for v in run.values(spread))):
        yield f"The rewards were constant in {flat}: equal rewards teach nothing."
    if none := _stages(run, (v == 0 for v in run.values("selected"))):
        yield f"Nothing was selected in {none}: no update was made there."


def _updates(run: Run) -> Iterator[str]:
    limit = first_ratio_limit(run)
    high = [v > NEAR * limit for v in run.values(FIRST)]
    if any(high):
        worst = max(v for v in run.values(FIRST) if math.isfinite(v))
        yield (
            f"The ratio was up to {worst:.1e} away from 1 before the first update of "
            f"{_stages(run, high)}: it is 0 in exact arithmetic, and a run stops at {limit:.0e}. "
            f"Sampling and training may disagree."
        )
    skipped = [v if v > 0 else 0 for v in run.values("skipped")]
    if any(skipped):
        yield (
            f"{sum(skipped):.0f} updates were left out in {_stages(run, skipped)}: their loss or "
            f"gradient was not finite (train.max_bad_steps)."
        )


def first_ratio_limit(run: Run) -> float:
    """The |ratio - 1| before a stage's first update at which a run stops, as far as its folder
    tells: one in float32 that went on above float32's limit rounds to TF32 (srrl.learner)."""
    given = number(run.config.get("train.max_first_ratio_dev"))
    if math.isfinite(given):
        return given
    exact = run.config.get("mixed_precision") == "no"
    return 1e-4 if exact and not any(v > 1e-4 for v in run.values(FIRST)) else 2e-2


def _numbers(run: Run) -> Iterator[str]:
    for key in dict.fromkeys(key for line in run.metrics for key in line):
        lost = [key in line and line[key] is None for line in run.metrics]
        lost = [a or _infinite(line.get(key)) for a, line in zip(lost, run.metrics, strict=True)]
        if any(lost):
            yield f"{key} is not finite in {_stages(run, lost)}."
    for (split, reward, rounds), some in evaluations(run).items():
        bad = [e.stage for e in some if not e.scores.isfinite().all()]
        if bad:
            named = listed(bad)
            yield f"Scores by {reward} of {split} prompts, K = {rounds}, are not finite: {named}."


def _infinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _overfitting(run: Run) -> Iterator[str]:
    """Held-out falling from its best to the last evaluation, by more than its interval."""
    found = evaluations(run)
    for (split, reward, rounds), held in found.items():
        train = {e.stage: e for e in found.get(("train", reward, rounds), [])}
        same = [e for e in held if e.judged == held[-1].judged and e.stage in train]
        if split != "heldout" or len(same) < 2:
            continue
        best, last = max(same, key=lambda e: e.estimate.mean), same[-1]
        before, after = train[best.stage], train[last.stage]
        if before.judged != after.judged:
            continue
        fell, rose = difference(best, last), difference(before, after)
        if fell.high < 0 < rose.mean:
            yield (
                f"Held-out scores by {reward}, K = {rounds}, fell by {-fell.mean:.3f} from stage "
                f"{best.stage} to {last.stage}, while those of train prompts rose by "
                f"{rose.mean:.3f}: it may fit what it is trained on."
            )


def _pictures(run: Run) -> Iterator[str]:
    if said := drifted(run.evals):
        yield f"{said[0].upper()}{said[1:]}: look at them, for a reward may be fooled."


def _files(run: Run) -> Iterator[str]:
    if not run.config:
        yield "config.json is not there, or not what a run writes: what it would tell is left out."
    for name, count in run.unread.items():
        lines = "1 line" if count == 1 else f"{count} lines"
        yield f"{lines} of {name} cannot be used and are left out; a last one may be half written."
    kept = run.samples if run.config.get("pictures.images") else []
    named = [line["image"] for line in kept if isinstance(line.get("image"), str)]
    gone = sum(not os.path.isfile(os.path.join(run.folder, image)) for image in named)
    if gone:
        yield f"{gone} of the {len(named)} pictures that samples.jsonl names are not there."


def _stages(run: Run, which: Iterable[object]) -> str:
    """Those of a run that are marked, like "stages 1 to 3, 7"; "" for none."""
    chosen = [line["stage"] for line, yes in zip(run.metrics, which, strict=True) if yes]
    return listed(chosen)


def listed(stages: list[int]) -> str:
    """Ascending stages as they are read; "" for none."""
    spans: list[list[int]] = []
    for stage in stages:
        if spans and stage == spans[-1][1] + 1:
            spans[-1][1] = stage
        else:
            spans.append([stage, stage])
    text = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans)
    return f"{'stage' if len(stages) == 1 else 'stages'} {text}" if stages else ""
