"""A run's pictures, small and inside the page: each a WebP in a data URI."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from srrl.prompts import evenly_spaced
from srrl.report.gather import Run, number
from srrl.report.scores import evaluations

SIDE, PIXELS = 160, 64  # of a thumbnail at most; pictures up to this are kept exactly
SHEET = 1400  # a sheet's width at most
MOST_STAGES, MOST_PROMPTS = 8, 6  # columns and rows of a table of fixed prompts
MOST_SHEETS, MOST_STORIES = 4, 8
FIRST_KEPT, LAST_KEPT = 240, 720  # pictures of the first stage and of the newest


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    exact   it is small, and enlarged without blurring
    values  what it can be sorted by, in the gallery's order
    """

    uri: str
    alt: str
    caption: list[str]
    title: str = ""
    exact: bool = False
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """Pictures in rows, each under a title; None where there is none."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Picture | None]]]


@dataclass(frozen=True)
class Gallery:
    """Pictures of a stage that were kept, of `kept` the first ones; keys: what sorts them."""

    stage: int
    kept: int
    keys: list[str]
    pictures: list[Picture]


def encoded(image: Image.Image, side: int = SIDE) -> str:
    """The data URI of a picture, no wider and no higher than `side`; small ones unchanged."""
    small = image.convert("RGB")
    small.thumbnail((side, side), reducing_gap=1.5)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=78, method=2, lossless=is_small(small))
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def is_small(image: Image.Image) -> bool:
    return max(image.size) <= PIXELS


def opened(file: Path) -> Image.Image | None:
    """A picture; None where it is not there, or not whole."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def cells(file: Path) -> list[Image.Image]:
    """The square pictures of an evaluation's file, which stand side by side."""
    whole = opened(file)
    if whole is None:
        return []
    whole.thumbnail((whole.width, SIDE), reducing_gap=1.5)
    side = min(whole.size)
    return [whole.crop((x, 0, x + side, side)) for x in range(0, whole.width - side + 1, side)]


def fixed_folders(run: Run) -> dict[tuple[str, int], dict[int, Path]]:
    """For each split and K that is evaluated its pictures' files by stage."""
    found = {}
    for split, rounds in dict.fromkeys((s, k) for s, _, k in evaluations(run)):
        folder = run.folder / "samples" / "fixed" / f"{split}_K{rounds}"
        files = {int(p.stem[6:]): p for p in folder.glob("stage_*.png") if _is_stage(p)}
        if files:
            found[split, rounds] = dict(sorted(files.items()))
    return found


def fixed_tables(run: Run) -> list[Table]:
    """The same prompts at the same seed through the stages, a table for each split and K."""
    tables = []
    for (split, rounds), files in fixed_folders(run).items():
        chosen = _spread([*files], MOST_STAGES)
        columns = [_evaluated(run, split, rounds, stage, files[stage]) for stage in chosen]
        rows = _rows(columns)
        if rows:
            heading = f"{split} prompts, K = {rounds}"
            tables.append(Table(heading, [f"stage {stage}" for stage in chosen], rows))
    return tables


def last_tables(runs: Sequence[Run]) -> list[Table]:
    """What each run's last evaluation drew of the prompts that the first run was shown."""
    tables = []
    folders = [fixed_folders(run) for run in runs]
    for split, rounds in folders[0]:
        columns, names = [], []
        for run, files in zip(runs, folders, strict=True):
            same = _shown_alike(runs[0], run, split)
            if same and (split, rounds) in files:
                stage, file = [*files[split, rounds].items()][-1]
                columns.append(_evaluated(run, split, rounds, stage, file))
                names.append(f"{run.title}, stage {stage}")
        rows = _rows(columns)
        if rows and len(columns) > 1:
            tables.append(Table(f"{split} prompts, K = {rounds}", names, rows))
    return tables


def _shown_alike(first: Run, run: Run, split: str) -> bool:
    keys = ("eval.first_seed", "pictures.prompts")
    same = all(first.config.get(key) == run.config.get(key) for key in keys)
    return same and first.judged(split) == run.judged(split) is not None


def _evaluated(
    run: Run, split: str, rounds: int, stage: int, file: Path
) -> list[tuple[str, Picture]]:
    """An evaluation's pictures, each with its prompt."""
    images = cells(file)
    scores = {
        reward: e
        for (of, reward, k), some in evaluations(run).items()
        for e in some
        if (of, k, e.stage) == (split, rounds, stage)
    }
    judged = run.judged(split)
    count = len(judged) if judged else max((len(e.prompts) for e in scores.values()), default=0)
    found = []
    for place, image in zip(evenly_spaced(count, len(images)), images, strict=False):
        prompt = judged[place] if judged else f"prompt {place + 1}"
        values = {k: e.scores[place].item() for k, e in scores.items() if place < len(e.scores)}
        alt = f"{prompt}, K = {rounds}, {run.title} after stage {stage}"
        found.append(
            (prompt, Picture(encoded(image), alt, labelled(values), exact=is_small(image)))
        )
    return found[:MOST_PROMPTS]


def _rows(columns: list[list[tuple[str, Picture]]]) -> list[tuple[str, list[Picture | None]]]:
    prompts = list(dict.fromkeys(prompt for column in columns for prompt, _ in column))
    return [(prompt, [dict(column).get(prompt) for column in columns]) for prompt in prompts]


def sheets(run: Run) -> list[Picture]:
    """Pages of stages as they were drawn, evenly spaced, the newest last."""
    files = sorted((run.folder / "samples").glob("stage_*.png"))
    chosen = _spread([file for file in files if _is_stage(file)], MOST_SHEETS)
    found = []
    for file in chosen:
        stage, image = int(file.stem[6:]), opened(file)
        if image:
            image.thumbnail((SHEET, 4 * SHEET))
            alt = f"Stage {stage}: pictures of its first prompts with their scores"
            found.append(Picture(encoded(image, 4 * SHEET), alt, [f"stage {stage}"]))
    return found


def kept(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The lines of samples.jsonl that name a picture, by stage."""
    found: dict[int, list[dict[str, Any]]] = {}
    for line in run.samples:
        named = all(isinstance(line.get(key), str) for key in ("image", "prompt"))
        if named and all(type(line.get(key)) is int for key in ("slot", "branch", "round")):
            found.setdefault(line["stage"], []).append(line)
    return found


def stories(run: Run) -> Table | None:
    """The rounds of single samples of the newest stage that kept several of them."""
    for stage, lines in reversed(kept(run).items()):
        rounds = _spread(sorted({line["round"] for line in lines}), MOST_STAGES)
        first = {line["slot"]: line["branch"] for line in reversed(lines)}
        samples: dict[int, dict[int, dict]] = {}
        for line in lines:
            if line["branch"] == first[line["slot"]]:
                samples.setdefault(line["slot"], {})[line["round"]] = line
        if len(rounds) > 1:
            rows = [
                (
                    next(iter(own.values()))["prompt"],
                    [_sampled(run, own[k], stage) if k in own else None for k in rounds],
                )
                for own in [*samples.values()][:MOST_STORIES]
            ]
            return Table(f"stage {stage}", [f"round {k}" for k in rounds], rows)
    return None


def galleries(run: Run) -> list[Gallery]:
    """What the first and the newest stage kept."""
    by_stage = kept(run)
    found = []
    for stage in _spread([*by_stage], 2):
        lines, most = by_stage[stage], LAST_KEPT if stage == [*by_stage][-1] else FIRST_KEPT
        keys = list(dict.fromkeys(k for line in lines for k in _scores(line)))
        sampled = (_sampled(run, line, stage, keys) for line in lines[:most])
        pictures = [picture for picture in sampled if picture]
        if pictures:
            found.append(Gallery(stage, len(lines), [*keys, "advantage"], pictures))
    return found


def _sampled(
    run: Run, line: dict[str, Any], stage: int, keys: Sequence[str] = ()
) -> Picture | None:
    image = opened(run.folder / line["image"])
    if image is None:
        return None
    scores, advantage = _scores(line), number(line.get("advantage"))
    chosen = ", trained on" if line.get("selected") is True else ""
    where = f"prompt {line['slot'] + 1}, branch {line['branch'] + 1}, round {line['round']}"
    caption = [*labelled(scores), f"advantage {advantage:+.2f}{chosen}"]
    alt = f"{line['prompt']}, stage {stage}, {where}"
    values = (*(scores.get(key, float("nan")) for key in keys), advantage)
    return Picture(encoded(image), alt, caption, line["prompt"], is_small(image), values)


def _scores(line: dict[str, Any]) -> dict[str, float]:
    scores = line.get("scores")
    return {k: number(v) for k, v in scores.items()} if isinstance(scores, dict) else {}


def labelled(scores: dict[str, float]) -> list[str]:
    """A line of a caption for each score, its reward without module or path."""
    return [f"{name.rpartition(':')[2]} {value:.2f}" for name, value in scores.items()]


def _is_stage(file: Path) -> bool:
    return re.fullmatch(r"stage_\d+", file.stem) is not None


def _spread(items: list, most: int) -> list:
    """At most so many, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
