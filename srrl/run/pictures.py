"""Pictures people look at: grids, the rounds of one sample side by side, curves."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

CELL, MARGIN, CAPTION, LINE, TITLE = 128, 8, 18, 14, 24
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


def save_with_text(picture: Image.Image, path: Path, text: dict[str, Any]) -> None:
    """Save a PNG that carries what it was drawn from, a text field for each key."""
    fields = PngInfo()
    for key, value in text.items():
        fields.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
    picture.save(path, pnginfo=fields)


def sheet(rows: list[Row], heading: str = "") -> Image.Image:
    """All rows on one page."""
    title_font, font = ImageFont.load_default(15), ImageFont.load_default(12)
    columns = max(len(row.images) for row in rows)
    width = max(
        MARGIN + columns * (CELL + MARGIN),
        *(
            2 * MARGIN + int(title_font.getlength(text))
            for text in [heading, *(r.title for r in rows)]
        ),
    )
    lines = max(caption.count("\n") for row in rows for caption in row.captions) + 1
    step = TITLE + CELL + CAPTION + (lines - 1) * LINE + MARGIN
    top = TITLE + MARGIN if heading else 0
    page = Image.new("RGB", (width, top + len(rows) * step + MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), heading, INK, title_font)
    for r, row in enumerate(rows):
        y = top + r * step + MARGIN
        draw.text((MARGIN, y), row.title, INK, title_font)
        for i, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
            x = MARGIN + i * (CELL + MARGIN)
            page.paste(to_pil(image, CELL), (x, y + TITLE - 2))
            if i == row.best:
                box = (x - 2, y + TITLE - 4, x + CELL + 1, y + TITLE + CELL - 1)
                draw.rectangle(box, outline=(20, 120, 40), width=3)
            draw.multiline_text((x, y + TITLE + CELL), caption, FAINT, font, spacing=2)
    return page


@dataclass(frozen=True)
class Images:
    """A stage's pictures of its first P prompts.

    sampled    uint8 [n, 3, H, W], in the order of the stage's lines in samples.jsonl
    reflected  for each reflecting round uint8 [P, 3, H, W]
    """

    sampled: Tensor
    reflected: list[Tensor]


def labelled(what: str, scores: dict[str, float]) -> str:
    """A caption with named scores: one reward's beside, several below."""
    named = [f"{reward.rpartition(':')[2]} {value:.2f}" for reward, value in scores.items()]
    return ": ".join([what, *named]) if len(named) < 2 else "\n".join([what, *named])


def sample_rows(
    lines: list[dict[str, Any]], images: Images, weights: dict[str, float], count: int
) -> list[Row]:
    """A row for each of the first `count` prompts: its reflected rounds, then its branches.

    lines: the stage's, of samples.jsonl. The branch of the highest weighted sum is framed.
    """
    rows = []
    last = max(line["round"] for line in lines)
    for slot in range(min(count, lines[-1]["slot"] + 1)):
        places = [i for i, x in enumerate(lines) if (x["slot"], x["round"]) == (slot, last)]
        scores = [lines[i]["scores"] for i in places]
        totals = [sum(s[name] * weight for name, weight in weights.items()) for s in scores]
        captions = [f"round {k}" for k in range(1, len(images.reflected) + 1)]
        captions += [labelled(f"branch {lines[i]['branch'] + 1}", lines[i]["scores"])
                     for i in places]  # fmt: skip
        shown = [of_round[slot] for of_round in images.reflected]
        best = len(shown) + totals.index(max(totals))
        shown += [images.sampled[i] for i in places]
        rows.append(Row(lines[places[0]]["prompt"], shown, captions, best))
    return rows


def read_jsonl(path: Path) -> list[dict]:
    """The lines of a JSONL file, none if it does not exist."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curves(run: Path) -> None:
    """Draw curves.png from a run's metrics.jsonl and eval.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics, evals = read_jsonl(run / "metrics.jsonl"), read_jsonl(run / "eval.jsonl")
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    (reward, held), (ratio, plan) = figure.subplots(2, 2)
    stages = [line["stage"] for line in metrics]
    names = [k.split("/")[1] for k in (metrics[0] if metrics else {})
             if k.startswith("reward/") and k.endswith("/mean")]  # fmt: skip
    for name in names:
        reward.plot(stages, [line[f"reward/{name}/mean"] for line in metrics], label=name)
    reward.set(title="reward of sampled images", xlabel="stage", ylabel="mean")
    if names:
        reward.legend()
    kinds: dict[tuple, list[dict]] = {}
    for line in evals:
        kinds.setdefault((line["split"], line["reward"], line["rounds"]), []).append(line)
    for (split, name, rounds), lines in kinds.items():
        error = [1.96 * _standard_error(e["scores"]) for e in lines]
        held.errorbar([e["stage"] for e in lines], [e["mean"] for e in lines], error, marker="o",
                      capsize=3, label=f"{name}, {split} prompts, K = {rounds}")  # fmt: skip
    held.set(title="evaluation at fixed seeds (95% interval)", xlabel="stage", ylabel="mean")
    if evals:
        held.legend()
    for key, label in (("ratio/max_dev", "largest in the stage"),
                       ("ratio/first_max_dev", "before the first update")):  # fmt: skip
        ratio.plot(stages, [max(line[key], 1e-8) for line in metrics], label=label)
    ratio.set(title="|ratio - 1|", xlabel="stage", yscale="log")
    if metrics:
        ratio.legend()
    plan.step(stages, [line["rounds"] for line in metrics], where="mid", label="rounds K")
    plan.step(stages, [line["trained_steps"] for line in metrics], where="mid",
              label="trained steps m")  # fmt: skip
    plan.set(title="curriculum", xlabel="stage", ylim=(0, None))
    if metrics:
        plan.legend()
    for axes in (reward, held, ratio, plan):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(run / "curves.png", dpi=110)


def _standard_error(scores: list[float]) -> float:
    n = len(scores)
    mean = sum(scores) / n
    return (sum((s - mean) ** 2 for s in scores) / max(n - 1, 1) / n) ** 0.5
