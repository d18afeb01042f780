"""What a run had to learn from, counted by hand; a study's tables from what is kept of its runs."""

import json
import re
import shutil

import pytest
import torch

from config.study import get_config
from srrl.assess.arms import Run, evaluations, runs_of
from srrl.assess.cells import Cell, Result
from srrl.assess.records import signal_of
from srrl.assess.results import write_results


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
    signal = signal_of(get_config("tiny"), run)
    assert signal.score == pytest.approx((0.1 + 0.9 + 0.2 + 0.3) / 4)
    assert signal.mixed == 0.5 and signal.selected == 1000 * 1 / 500


def test_groups_of_one_picture_are_not_said_to_be_mixed(tmp_path):
    run = a_run(tmp_path, [0.1, 0.9, 0.2, 0.3], branches=1)
    assert signal_of(get_config("tiny"), run).mixed is None


@pytest.fixture
def study(tmp_path):
    """Two arms, three seeds, four prompts a split; the runs and all they are judged by are made up,
    seed 300 first."""
    c = get_config("tiny")
    c.output_dir, c.report = str(tmp_path / "runs"), str(tmp_path / "RESULTS.md")
    c.seeds, c.stages, c.confirm = (300, 301, 302), 2, (301, 302)
    c.against, c.samplers = ("K1", "K1_every"), ("plain", "reflect:rounds=2")
    c.num_prompts, c.images, c.test_time.samplers = 4, 2, ("plain", "best:n=3")
    with c.unlocked():
        c.arms = {name: c.arms[name] for name in ("K1", "K1_every")}
    for number, run in enumerate([None, *runs_of(c)]):
        made_up(c, run, number)
    return c


def made_up(study, run: Run | None, number: int) -> None:
    """A run's logs and scores, drawn at random."""
    generator = torch.Generator().manual_seed(number)
    if run:
        (run.folder / "checkpoints" / f"stage_{run.stages:04d}").mkdir(parents=True)
        scores = torch.rand(8, generator=generator).tolist()
        a_run(run.folder, scores, branches=2)
    for judged in evaluations(study, run):
        judged.folder.mkdir(parents=True)
        lines = []
        for prompts in judged.prompts:
            for sampler in judged.samplers:
                cell = Cell(str(judged.run), "", prompts, sampler, judged.images, 0, 4, "")
                scores = {
                    reward: torch.rand(4, judged.images, generator=generator)
                    for reward in study.rewards
                }
                lines.append(Result(cell, scores, torch.rand(4), 20.0, 0.1).line())
        (judged.folder / "cells.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def tables(study) -> str:
    write_results(study, runs_of(study))
    with open(study.report, encoding="utf-8") as file:
        return file.read()


def test_the_tables_are_the_same_from_what_is_kept_of_the_runs(study, tmp_path):
    text = tables(study)
    assert text.count("`best:n=3`") == 1 and "| 3 |" in text
    kept = (tmp_path / "study.jsonl").read_text()
    lines = [json.loads(x) for x in kept.splitlines()]
    assert len(lines) == 1 + len(runs_of(study))
    shutil.rmtree(study.output_dir)
    (tmp_path / "RESULTS.md").unlink()
    assert tables(study) == text and (tmp_path / "study.jsonl").read_text() == kept
    plain = [x for x, line in zip(kept.splitlines(), lines, strict=True) if not line["test_time"]]
    assert max(map(len, plain)) < 3_000  # a study of 75 runs stays small enough to commit


def test_a_new_run_replaces_its_line_and_the_other_arms_stay(study, tmp_path):
    before = tables(study)
    shutil.rmtree(study.output_dir)
    again = next(r for r in runs_of(study) if (r.arm, r.seed) == ("K1_every", 301))
    made_up(study, again, number=99)
    after = tables(study)
    rows = [
        [line for line in text.splitlines() if line.startswith(("| K", "| **K"))]
        for text in (before, after)
    ]
    assert len(rows[0]) == len(rows[1]) > 8
    for old, new in zip(*rows, strict=True):
        about_it = (again.budget in old and "every" in old) or "less" in old
        assert about_it or old == new
    assert rows[0] != rows[1]


def test_comparisons_are_made_again_for_the_seeds_that_chose_no_arm(study, tmp_path):
    every, _, confirmed = tables(study).partition("### Seeds 301, 302 alone")
    assert "less K = 1" in every and "less K = 1" in confirmed
    records = [json.loads(x) for x in (tmp_path / "study.jsonl").read_text().splitlines()]
    mean = {
        (r["arm"], r["seed"]): r["means"]["heldout"]["plain"]["shapes"]
        for r in records
        if r["budget"] == ("images" if r["arm"] == "K1" else "evaluations")
    }
    gained = [mean["K1_every", seed] - mean["K1", seed] for seed in (301, 302)]
    row = next(x for x in confirmed.splitlines() if x.startswith("| K = 1, every"))
    half = 12.7062 * abs(gained[0] - gained[1]) / 2
    assert re.split(r" \| ", row)[1] == f"{sum(gained) / 2:+.3f} +- {half:.3f}"
