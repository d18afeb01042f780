"""Pictures are written, of the right layout, and hold the pixels they claim to show."""

import json

import numpy as np
import torch
from PIL import ImageFont

from srrl.run.curves import curves
from srrl.run.pictures import CELL, Images, Row, fitted, sample_rows, sheet, to_pil


def test_a_sheet_shows_the_pixels_enlarged_without_blur():
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    image = image.to(torch.uint8)
    page = np.asarray(sheet([Row("title", [image, image], ["one", "two"], best=1)]))
    enlarged = (
        image.permute(1, 2, 0).repeat_interleave(CELL // 32, 0).repeat_interleave(CELL // 32, 1)
    )
    where = np.lib.stride_tricks.sliding_window_view(page[:, 8 : 8 + CELL], (CELL, CELL, 3))
    assert any((window[0, 0] == enlarged.numpy()).all() for window in where)


def test_large_images_shrink_and_small_ones_keep_their_size_alone():
    large = torch.zeros(3, 512, 512, dtype=torch.uint8)
    assert to_pil(large, CELL).size == (CELL, CELL) and to_pil(large).size == (512, 512)


def test_curves_are_drawn_from_the_logs(tmp_path):
    curves(tmp_path)  # nothing logged yet
    metrics = [
        {
            "stage": n,
            "rounds": 1,
            "trained_steps": 4,
            "reward/shapes/mean": n / 9,
            "ratio/max_dev": 1e-3,
            "ratio/first_max_dev": 0.0,
        }
        for n in range(9)
    ]
    evals = [
        {
            "stage": s,
            "split": split,
            "rounds": k,
            "reward": "shapes",
            "mean": 0.5,
            "seeds": 1,
            "scores": [0.4, 0.6],
        }
        for s in (0, 9)
        for split in ("train", "heldout")
        for k in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in metrics))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(x) + "\n" for x in evals))
    curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 20_000


def lines_of(prompts: int, branches: int, rounds: tuple[int, ...]) -> list[dict]:
    return [
        {
            "prompt": f"prompt number {p}",
            "slot": p,
            "branch": b,
            "round": k,
            "scores": {"good": b / 10, "my/file.py:Other": 1 - k / 10},
            "advantage": 0.5 - b,
            "selected": b == 1,
        }
        for p in range(prompts)
        for b in range(branches)
        for k in rounds
    ]


def test_every_sampled_round_of_a_prompt_has_its_row():
    lines = lines_of(3, 4, (1, 2))
    images = Images(torch.zeros(len(lines), 3, 8, 8, dtype=torch.uint8), [])
    rows = sample_rows(lines, images, {"good": 1.0}, 2)
    assert [row.title for row in rows] == [
        f"prompt number {p}, round {k}" for p in range(2) for k in (1, 2)
    ]
    assert [len(row.images) for row in rows] == [4] * 4 and rows[0].best == 3
    assert rows[1].captions[2] == "branch 3\ngood 0.20\nOther 0.80"


def test_single_pictures_of_many_prompts_stand_side_by_side():
    lines = lines_of(10, 1, (1,))
    images = Images(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), [])
    rows = sample_rows(lines, images, {"good": 1.0}, 10)
    assert [len(row.images) for row in rows] == [8, 2]
    assert rows[1].captions[1].endswith("prompt number 9")
    assert sheet(rows).height < 8 * CELL


def test_no_text_is_wider_than_its_place():
    font = ImageFont.load_default(12)
    for text in ("branch 1: MyOwnBrightness 0.85", "until:rounds=3,threshold=0.9", "x" * 99):
        lines = fitted(text, font, CELL)
        assert all(font.getlength(line) <= CELL for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "") or lines[0].endswith("…")
    long = Row("a very long prompt " * 40, [torch.zeros(3, 8, 8, dtype=torch.uint8)], ["seed 1"])
    assert sheet([long]).width < 700


def test_a_reflecting_rounds_pictures_come_first():
    lines = lines_of(2, 2, (2,))
    reflected = [torch.full((2, 3, 8, 8), 9, dtype=torch.uint8)]
    scores = [{"good": torch.tensor([0.25, 0.5])}]
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), reflected, scores)
    (first, second) = sample_rows(lines, images, {"good": 1.0}, 2)
    assert first.captions[0] == "round 1: good 0.25" and second.captions[0] == "round 1: good 0.50"
    assert first.images[0].max() == 9 and first.best == 2
    # What was trained on says its advantage.
    titles = [caption.partition("\n")[0] for caption in first.captions[1:]]
    assert titles == ["branch 1", "branch 2, A -0.5"]


def test_what_was_not_reflected_says_so():
    first = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    second = torch.stack([first[0], 255 - first[1]])  # the first prompt passed
    scores = [{"good": torch.tensor([0.9, 0.1])}, {"good": torch.tensor([0.9, 0.6])}]
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [first, second], scores)
    passed, failed = sample_rows(lines_of(2, 2, (3,)), images, {"good": 1.0}, 2)
    assert passed.captions[:2] == ["round 1: good 0.90", "round 2: not reflected"]
    assert failed.captions[:2] == ["round 1: good 0.10", "round 2: good 0.60"]
