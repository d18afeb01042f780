"""Pictures people look at: grids, the rounds of one sample side by side, progress."""

import itertools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from srrl.advantages import with_total
from srrl.run.folder import read_lines

CELL, MARGIN, LINE, TITLE, WIDEST_TITLE = 128, 8, 15, 24, 640
ABREAST, MOST_STAGES = 8, 12  # pictures in a row of single ones; columns of progress
MOST_TEXT = 1000  # characters of a title or caption
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (110, 110, 110)


@dataclass
class Row:
    """One line of a sheet: a title over captioned images uint8 [3, H, W]."""

    title: str
    images: list[Tensor]
    captions: list[str]  # of one line or several
    best: int | None = None  # the cell to frame


def to_pil(image: Tensor, size: int | None = None) -> Image.Image:
    """A PIL image of uint8 [3, H, W]; small pictures are enlarged without blurring."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    if size is None or picture.width == size:
        return picture
    how = Image.Resampling.NEAREST if picture.width < size else Image.Resampling.LANCZOS
    return picture.resize((size, size * picture.height // picture.width), how)


def thumbnail(image: Tensor, size: int) -> Tensor:
    """uint8 [3, h, size] of uint8 [3, H, W]."""
    return torch.from_numpy(np.array(to_pil(image, size))).permute(2, 0, 1)


def save_with_text(picture: Image.Image, file: Path | IO[bytes], text: dict[str, Any]) -> None:
    """Save a PNG that carries what it was drawn from, a text field for each key."""
    fields = PngInfo()
    for key, value in text.items():
        told = value if isinstance(value, str) else json.dumps(value)
        fields.add_itxt(key, told.encode(errors="backslashreplace").decode())  # a path's odd bytes
    picture.save(file, "PNG", pnginfo=fields)


def clear(folder: Path, *patterns: str) -> None:
    """Remove the pictures of an earlier call, which wrote samples.json, and say so."""
    if (folder / "samples.json").exists():
        old = [file for pattern in patterns for file in folder.glob(pattern)]
        print(f"removing {len(old)} pictures of an earlier call from {folder}", flush=True)
        for file in old:
            file.unlink()


def fitted(text: str, font: Any, width: int) -> list[str]:
    """The text's lines, broken after spaces and commas to be at most so many pixels wide; what
    cannot be broken is cut, and what is longer than anybody reads."""
    lines, text = [], text if len(text) <= MOST_TEXT else text[:MOST_TEXT] + "…"
    for line in text.split("\n"):
        lines.append("")
        for piece in re.split(r"(?<=[ ,])", line):
            if lines[-1] and font.getlength((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    for i, line in enumerate(lines):
        while font.getlength(line.rstrip()) > width and len(line) > 2:
            line = line.rstrip("…")[:-1] + "…"
        lines[i] = line.rstrip()
    return lines


def sheet(rows: list[Row], heading: str = "") -> Image.Image:
    """All rows on one page, as wide as its pictures, or as its titles up to a limit."""
    title_font, font = ImageFont.load_default(15), ImageFont.load_default(12)
    titles = [heading, *(row.title for row in rows)]
    wanted = min(max(map(title_font.getlength, titles)), WIDEST_TITLE) + 1
    columns = max(len(row.images) for row in rows)
    width = max(MARGIN + columns * (CELL + MARGIN), 2 * MARGIN + int(wanted))
    texts = [fitted(title, title_font, width - 2 * MARGIN) if title else [] for title in titles]
    captions = [[fitted(caption, font, CELL) for caption in row.captions] for row in rows]
    deepest = [max(map(len, row)) for row in captions]
    heights = [
        MARGIN + len(title) * (TITLE - 4) + 2 + CELL + LINE * lines + 4
        for title, lines in zip(texts[1:], deepest, strict=True)
    ]
    top = len(texts[0]) * TITLE + MARGIN if heading else 0
    page = Image.new("RGB", (width, top + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.multiline_text((MARGIN, MARGIN), "\n".join(texts[0]), INK, title_font)
    y = top
    for row, title, below, height in zip(rows, texts[1:], captions, heights, strict=True):
        draw.multiline_text((MARGIN, y + MARGIN), "\n".join(title), INK, title_font)
        first = y + MARGIN + len(title) * (TITLE - 4) + 2
        for i, (image, caption) in enumerate(zip(row.images, below, strict=True)):
            x = MARGIN + i * (CELL + MARGIN)
            page.paste(to_pil(image, CELL), (x, first))
            if i == row.best:
                box = (x - 2, first - 2, x + CELL + 1, first + CELL + 1)
                draw.rectangle(box, outline=(20, 120, 40), width=3)
            at = (x, first + CELL + 2)
            draw.multiline_text(at, "\n".join(caption), FAINT, font, spacing=2)
        y += height
    return page


@dataclass(frozen=True)
class Images:
    """A stage's pictures of its first P prompts.

    sampled    uint8 [n, 3, H, W], in the order of the stage's lines in samples.jsonl
    reflected  for each reflecting round uint8 [P, 3, H, W]
    scores     and its scores by each reward, float32 [P] or fewer; only the main process has them
    """

    sampled: Tensor
    reflected: list[Tensor]
    scores: list[dict[str, Tensor]] = field(default_factory=list)


def short_name(reward: str) -> str:
    """A reward's name without the module or path that it comes from."""
    return reward.rpartition(":")[2]


def labelled(what: str, scores: dict[str, float]) -> str:
    """A caption with named scores: one reward's beside, several below."""
    named = [f"{short_name(reward)} {value:.2f}" for reward, value in scores.items()]
    return ": ".join([what, *named]) if len(named) < 2 else "\n".join([what, *named])


def sample_rows(
    lines: list[dict[str, Any]], images: Images, weights: dict[str, float], count: int
) -> list[Row]:
    """Rows for the first `count` prompts: a prompt's reflected rounds, then its branches, a row for
    each round that was sampled. Prompts of a single branch and round stand side by side.

    lines: the stage's, of samples.jsonl. The branch of the highest weighted sum is framed, and
    those that were trained on say their advantage A. What was good enough not to be reflected has
    the picture of its first round in the others' place.
    """
    lines = [{**x, "scores": with_total(x["scores"] or {}, weights)} for x in lines]
    shown = [i for i, line in enumerate(lines) if line["slot"] < count]
    rounds = sorted({lines[i]["round"] for i in shown})
    if len(shown) == min(count, lines[-1]["slot"] + 1) and not images.reflected:
        own = [lines[i] for i in shown]
        names = [f"prompt {line['slot'] + 1}{trained(line)}" for line in own]
        scores, prompts = ([line[key] for line in own] for key in ("scores", "prompt"))
        return side_by_side(list(images.sampled[: len(own)]), names, scores, prompts)
    rows, with_totals = [], [with_total(scores, weights) for scores in images.scores]
    for slot in range(min(count, lines[-1]["slot"] + 1)):
        for k in rounds:
            places = [i for i in shown if (lines[i]["slot"], lines[i]["round"]) == (slot, k)]
            scores = [lines[i]["scores"] for i in places]
            totals = [
                sum(s.get(name, 0) * weight for name, weight in weights.items()) for s in scores
            ]
            captions = [
                labelled(f"round {n}", {name: v[slot].item() for name, v in of_round.items()})
                for n, of_round in enumerate(with_totals, 1)
            ]
            captions += [
                labelled(f"branch {lines[i]['branch'] + 1}{trained(lines[i])}", s)
                for i, s in zip(places, scores, strict=True)
            ]
            pictures = [of_round[slot] for of_round in images.reflected]
            for n, (before, now) in enumerate(itertools.pairwise(pictures), 1):
                if before.equal(now):
                    captions[n] = f"round {n + 1}: not reflected"
            best = len(pictures) + totals.index(max(totals)) if all(scores) else None
            pictures += [images.sampled[i] for i in places]
            title = lines[places[0]]["prompt"] + (f", round {k}" if len(rounds) > 1 else "")
            rows.append(Row(title, pictures, captions, best))
    return rows


def trained(line: dict[str, Any]) -> str:
    """The advantage of a line of samples.jsonl that was trained on; "" of another."""
    return f", A {line['advantage']:+.1f}" if line["selected"] else ""


def side_by_side(
    images: list[Tensor], names: list[str], scores: list[dict[str, float]], prompts: list[str]
) -> list[Row]:
    """Rows of single pictures, each over its name, scores and prompt."""
    captions = [
        f"{labelled(name, values)}\n{prompt}"
        for name, values, prompt in zip(names, scores, prompts, strict=True)
    ]
    parts = [slice(n, n + ABREAST) for n in range(0, len(images), ABREAST)]
    return [Row("", images[part], captions[part]) for part in parts]


def save_fixed(images: Tensor, path: Path) -> None:
    """Pictures uint8 [n, 3, H, W] side by side, as fixed_images reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(torch.cat(list(images), 2)).save(path)


def fixed_images(path: Path, n: int) -> list[Tensor]:
    """The n pictures of a file of save_fixed."""
    whole = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    return list(whole.chunk(n, 2))


def progress(run: Path, rounds: int, prompts: dict[str, dict[int, str]]) -> Image.Image | None:
    """The same prompts at the same seed through the evaluations with K rounds, a column each.

    prompts: those that are shown of each split, by their place among the judged ones.
    """
    rows = []
    evals = [e for e in read_lines(run / "eval.jsonl") if e["rounds"] == rounds]
    for split, shown in prompts.items():
        folder = run / "samples" / "fixed" / f"{split}_K{rounds}"
        scores: dict[int, dict[str, list[float]]] = {}
        for e in evals:
            if e["split"] == split and (folder / f"stage_{e['stage']:04d}.png").exists():
                scores.setdefault(e["stage"], {})[e["reward"]] = e["scores"]
        stages = sorted(scores)
        if len(stages) > MOST_STAGES:
            places = np.linspace(0, len(stages) - 1, MOST_STAGES).round().astype(int)
            stages = [stages[i] for i in places]
        drawn = {n: fixed_images(folder / f"stage_{n:04d}.png", len(shown)) for n in stages}
        for i, (place, prompt) in enumerate(shown.items() if stages else ()):
            captions = [
                labelled(f"stage {n}", {k: v[place] for k, v in scores[n].items()}) for n in stages
            ]
            rows.append(Row(f"{prompt} ({split})", [drawn[n][i] for n in stages], captions))
    heading = f"{run.name}: the same seed through training, K = {rounds}"
    return sheet(rows, heading) if rows else None
