"""What came of trails: against the truth where it can be read, through the checker's eyes, by a
judge; with the bill. A line of JSON for each picture, and the table that is made of them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ml_collections import ConfigDict

from rewards import REGISTRY, Reward, reward_class, score_all, stands_for
from srrl.rig.graphs import SceneGraph, similarities
from srrl.rig.loop import Trail
from srrl.rig.seeing import Seer, within
from srrl.run.statistics import by_prompt, interval, paired_difference
from srrl.shapes.reader import graph_of, read, truths
from srrl.shapes.scenes import parse


def records(
    trails: Sequence[Trail],
    *,
    exact: bool,
    seer: Seer | None,
    judges: Mapping[str, Reward],
) -> list[dict[str, Any]]:
    """A record for each trail's kept picture.

    exact: the shapes world, where the truth is read off the pixels; seer: extracts scene graphs,
    within the truth's vocabulary and without; judges: rewards that score.
    """
    images = torch.stack([trail.final.image for trail in trails])
    wishes = [trail.wish for trail in trails]
    lines = [told(trail) for trail in trails]
    for name, scores in score_all(judges, images, [wish.prompt for wish in wishes]).items():
        for line, score in zip(lines, scores.tolist(), strict=True):
            line[f"judge/{name}"] = round(score, 6)
    if exact:
        for line, trail, seen in zip(lines, trails, read(images), strict=True):
            held = truths(seen, parse(trail.wish.prompt))
            line["exact/all"], line["exact/share"] = float(all(held)), sum(held) / len(held)
            line |= compared("exact", graph_of(seen), trail.wish.graph)
            verdicts = zip(held, trail.final.passed.tolist(), strict=True)
            line["verdicts_right"] = sum(a == b for a, b in verdicts) / len(held)
    if seer:
        truth = [wish.graph for wish in wishes]
        found = {"open": seer.describe(images)}
        # The embedded VLM is asked the same in both cases.
        asked = found["open"] if seer.embedded else seer.describe(images, truth)
        found["bound"] = [g and within(g, t) for g, t in zip(asked, truth, strict=True)]
        for name, graphs in found.items():
            for line, graph, wanted in zip(lines, graphs, truth, strict=True):
                line[f"{name}/failed"] = float(graph is None)
                line |= compared(name, graph or SceneGraph(), wanted)
    return lines


def told(trail: Trail) -> dict[str, Any]:
    """What a trail knows of itself."""
    evaluations, calls, tokens = trail.costs.all
    return {
        "number": trail.wish.number,
        "prompt": trail.wish.prompt,
        "pictures": len(trail.steps),
        "edits": [step.edit.text for step in trail.steps if step.edit],
        "refused": dict(trail.reasons),
        "checker": trail.final.count / len(trail.final.passed),
        "checker_all": float(trail.final.whole),
        "checker_first": trail.steps[0].count / len(trail.final.passed),
        "evaluations": evaluations,
        "calls": calls,
        "tokens": tokens,
    }


def compared(name: str, graph: SceneGraph, truth: SceneGraph) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in similarities(graph, truth).items()}


def judged_by(c: ConfigDict, model: str) -> list[str]:
    """The judges whose model is the checker's."""
    found = []
    options = c.reward.options.to_dict()
    for name in c.reward.models:
        path = stands_for(name, options)
        path = REGISTRY.get(path, path)
        takes = inspect.signature(reward_class(name, path)).parameters
        own = takes["model"].default if "model" in takes else None
        if options.get(name, {}).get("model", own) == model:
            found.append(name)
    return found


# ------------------------------------------------------------------------------- the table


def column(lines: Sequence[Mapping[str, Any]], key: str, images: int) -> torch.Tensor | None:
    """The mean of each prompt's pictures, float64 [P], in the order of the prompts."""
    if any(key not in line for line in lines):
        return None
    ordered = sorted(lines, key=lambda line: (line["image"], line["number"]))
    return by_prompt([line[key] for line in ordered], images)


def summary(
    ways: Mapping[str, Sequence[Mapping[str, Any]]], images: int, baseline: str
) -> list[dict[str, Any]]:
    """A row for each way: its means, their 95% intervals over prompts, and the paired difference
    to the baseline in what matters most."""
    rows = []
    main = "exact/all" if all("exact/all" in x for x in ways[baseline]) else "checker_all"
    for way, lines in ways.items():
        row: dict[str, Any] = {"way": way, "n": len(lines), "prompts": len(lines) // images}
        keys = [k for k, v in lines[0].items() if isinstance(v, float) and k != "seconds"]
        for key in [*keys, "evaluations", "calls", "tokens", "seconds"]:
            values = column(lines, key, images)
            if values is None:
                continue
            found = map(finite, interval(values))
            row[key], row[f"{key}/low"], row[f"{key}/high"] = found
        ours, theirs = column(lines, main, images), column(ways[baseline], main, images)
        assert ours is not None and theirs is not None  # what every way has
        row["difference"], row["difference/half"] = map(finite, paired_difference(theirs, ours))
        row["refused"] = sum(sum(line["refused"].values()) for line in lines) / len(lines)
        rows.append(row)
    return rows


def finite(value: float) -> float | None:
    """None for what has no bound, as the interval of a single prompt's mean."""
    return value if math.isfinite(value) else None


SHOWN = {
    "exact/all": "all",
    "exact/share": "share",
    "exact/sg_iou": "SG-IoU",
    "checker_all": "checker: all",
    "verdicts_right": "verdicts right",
}
# In a table of their own.
BESIDE = {
    "exact/entity_iou": "entity IoU",
    "exact/relation_iou": "relation IoU",
    "exact/f1": "F1",
    "checker": "checker: share",
}
SEEN = {"bound": "as the VLM describes it", "open": "open vocabulary"}


def table(rows: Sequence[Mapping[str, Any]], most: Mapping[str, tuple[float, float]]) -> str:
    """Three tables of markdown: what the kept pictures show, with 95% intervals over prompts; the
    same by other measures; and what one costs, realised and at most. `most`: evaluations and calls,
    by way."""
    judges = [key for key in rows[0] if key.startswith("judge/") and key.count("/") == 1]
    shown, beside = ({k: v for k, v in x.items() if k in rows[0]} for x in (SHOWN, BESIDE))
    for name, title in SEEN.items():
        if f"{name}/sg_iou" in rows[0]:
            beside |= {f"{name}/sg_iou": f"SG-IoU {title}", f"{name}/failed": "of it unreadable"}
    shown |= {key: f"judge {key.partition('/')[2]}" for key in judges}
    first, *_ = shown
    head = ["way", *shown.values(), f"{shown[first]}, less `{rows[0]['way']}`"]
    quality = [head]
    for row in rows:
        cells = [f"{row[key]:.3f}" for key in shown]
        if row[first + "/low"] is not None:
            cells[0] += f" [{row[first + '/low']:.3f}, {row[first + '/high']:.3f}]"
        difference = f"{row['difference']:+.3f}"
        if row["difference/half"] is not None:
            difference += f" ± {row['difference/half']:.3f}"
        quality.append([f"`{row['way']}`", *cells, difference])
    head = ["way", "evaluations", "at most", "VLM calls", "at most", "tokens", "at most, about"]
    costs = [[*head, "seconds", "no edit"]]
    for row in rows:
        evaluations, calls = most[row["way"]]
        cells = [f"{row['evaluations']:.0f}", f"{evaluations:.0f}"]
        cells += [f"{row['calls']:.1f}", f"{calls:.0f}"]
        cells += [f"{row['tokens']:.0f}", f"{row['tokens'] / row['calls'] * calls:.0f}"]
        costs.append([f"`{row['way']}`", *cells, f"{row['seconds']:.2f}", f"{row['refused']:.2f}"])
    others = [["way", *beside.values()]]
    others += [[f"`{row['way']}`", *(f"{row[key]:.3f}" for key in beside)] for row in rows]
    return "\n\n".join(map(markdown, (quality, others, costs)))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *others])
