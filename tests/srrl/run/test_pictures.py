"""Pictures are written, of the right layout, and hold the pixels they claim to show."""

import json

import numpy as np
import torch

from srrl.run.pictures import CELL, Row, curves, sheet, to_pil


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
        {"stage": n, "rounds": 1, "trained_steps": 4, "reward/shapes/mean": n / 9,
         "ratio/max_dev": 1e-3, "ratio/first_max_dev": 0.0}
        for n in range(9)
    ]  # fmt: skip
    evals = [
        {"stage": s, "split": split, "rounds": k, "reward": "shapes", "mean": 0.5,
         "scores": [0.4, 0.6]}
        for s in (0, 9) for split in ("train", "heldout") for k in (1, 2)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in metrics))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(x) + "\n" for x in evals))
    curves(tmp_path)
    assert (tmp_path / "curves.png").stat().st_size > 20_000
