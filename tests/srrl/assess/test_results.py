"""What a run had to learn from, counted by hand."""

import json

import pytest

from config.study import get_config
from srrl.assess.arms import Run
from srrl.assess.results import learned_from


def a_run(folder, scores: list[float | None], branches: int) -> Run:
    """Two rounds of two prompts; the last one's scores, and None before it."""
    lines = [
        {
            "stage": 1,
            "slot": n // branches // 2,
            "branch": n % branches,
            "round": 1 + n // branches % 2,
            "scores": None if s is None else {"shapes": s},
            "selected": s is not None and s > 0.5,
        }
        for n, s in enumerate(scores)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "metrics.jsonl").write_text(json.dumps({"stage": 1, "nfe_total": 500}) + "\n")
    return Run("K1", "images", 300, 1, folder)


def test_rounds_that_share_the_last_ones_score_do_not_count(tmp_path):
    run = a_run(tmp_path, [None, None, 0.1, 0.9, None, None, 0.2, 0.3], branches=2)
    mean, mixed, selected = learned_from(get_config("tiny"), run)
    assert mean == pytest.approx((0.1 + 0.9 + 0.2 + 0.3) / 4)
    assert mixed == 0.5 and selected == 1000 * 1 / 500


def test_groups_of_one_picture_are_not_said_to_be_mixed(tmp_path):
    run = a_run(tmp_path, [0.1, 0.9, 0.2, 0.3], branches=1)
    assert learned_from(get_config("tiny"), run)[1] is None
