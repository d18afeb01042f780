"""What a run had to learn from, counted by hand; a study's tables from what is kept of its runs."""

import csv
import inspect
import json
import re
import shutil
import statistics

import pytest
import torch

from config.study import PRESETS, get_config
from rewards.shapes import ShapesVerifier
from srrl.assess.arms import Run, arm_flags, evaluations, prompt_files, runs_of
from srrl.assess.cells import Cell, Result
from srrl.assess.collect import right_from, signal_of
from srrl.assess.records import file_of, read
from srrl.assess.results import over_seeds, write_results
from srrl.assess.samplers import until
from srrl.config import REPOSITORY, load_config

ARMS = {
    "K1": {"label": "K = 1 (B2-DiffuRL)", "preset": "b2diffurl", "values": ()},
    "K1_every": {
        "label": "K = 1, every sample trained",
        "preset": "",
        "values": ("reflect.rounds=1", "select.mode=all"),
        "chosen": "later by no score",
    },
}


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
    assert signal.sampled == pytest.approx((0.1 + 0.9 + 0.2 + 0.3) / 4)
    assert signal.mixed == 0.5 and signal.selected == 1000 * 1 / 500


@pytest.mark.parametrize("arm", ["ddpo", "K1_every", "failed"])
def test_arms_without_branches_have_no_share_of_mixed_groups(arm, tmp_path):
    study = get_config("tiny")
    branches = load_config(arm_flags(study, arm, 2)).branch.count
    run = a_run(tmp_path, [0.1, 0.9] * 2 * branches, branches)
    assert (branches == 1) == (arm == "ddpo") == (signal_of(study, run).mixed is None)


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
    c.budgets, c.reference, c.test_time.arm = ("images", "evaluations"), "K1", "K1"
    c.against, c.samplers = ("K1", "K1_every"), ("plain", "reflect:rounds=2")
    c.shown = c.splits
    c.num_prompts, c.images, c.test_time.samplers = 4, 2, ("plain", "best:n=3")
    with c.unlocked():
        c.arms = ARMS
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


@pytest.mark.slow
def test_the_tables_are_the_same_from_what_is_kept_of_the_runs(study, tmp_path):
    text = tables(study)
    assert text.count("`best:n=3`") == 1 and "| 3 |" in text
    kept = (tmp_path / "study.csv").read_text()
    records = read(tmp_path / "study.csv")
    assert len(records) == 1 + len(runs_of(study))
    shutil.rmtree(study.output_dir)
    (tmp_path / "RESULTS.md").unlink()
    assert tables(study) == text and (tmp_path / "study.csv").read_text() == kept
    assert len(kept) / len(records) < 3_000  # a study of 75 runs stays small enough to commit


@pytest.mark.slow
def test_the_csv_has_a_row_for_each_run_split_way_and_reward(study, tmp_path):
    tables(study)
    with open(tmp_path / "study.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    judged = [row for row in rows if row["part"] == "judged"]
    assert len(judged) == (1 + len(runs_of(study))) * 3 * 2 * 2
    assert {(row["prompts"], row["images"]) for row in judged} == {("4", "2")}
    assert {row["right"] == "" for row in judged if row["reward"] == "judge"} == {True}
    run = next(r for r in runs_of(study) if (r.arm, r.seed) == ("K1_every", 301))
    lines = map(json.loads, (run.folder / "judged" / "cells.jsonl").read_text().splitlines())
    for line in lines:
        split = next(s for s, file in prompt_files(study).items() if file == line["prompts"])
        scores = [s for row in line["scores"]["shapes"] for s in row]
        what = {"arm": run.arm, "budget": run.budget, "seed": "301", "split": split}
        what |= {"sampler": line["sampler"], "reward": "shapes"}
        (row,) = [row for row in judged if what.items() <= row.items()]
        assert float(row["mean"]) == pytest.approx(statistics.fmean(scores), abs=1e-6)
        right = statistics.fmean(s >= ShapesVerifier.right for s in scores)
        assert float(row["right"]) == pytest.approx(right, abs=1e-6)


@pytest.mark.slow
def test_right_is_beside_the_mean_where_it_is_known(study, tmp_path):
    text = tables(study)
    rights = [r for r in read(tmp_path / "study.csv") if r.arm == "K1"]
    shown = over_seeds([r.right("heldout", "plain", "shapes") for r in rights])
    row = next(line for line in text.splitlines() if line.startswith("| **K = 1"))
    assert f"; right {shown} |" in row and "right" not in text.partition("less K = 1")[2]
    file = tmp_path / "study.csv"
    shutil.rmtree(study.output_dir)
    with open(file, newline="", encoding="utf-8") as opened:
        rows = [row | {"right": ""} for row in csv.DictReader(opened)]
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert tables(study) == re.sub(r"; right [^(|]*(?= [(|])", "", text)


def test_what_all_calls_right_is_one_score():
    assert right_from("shapes") == ShapesVerifier.right and right_from("judge") is None
    default = inspect.signature(until).parameters["threshold"].default
    trained = load_config(["--config=config/stage_process.py:tiny"]).reflect.threshold
    assert default == trained == ShapesVerifier.right


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([], ""),
        ([0.32], "0.320"),
        ([0.32, 0.35], "0.320, 0.350"),
        ([0.1, 0.2, 0.3], "0.200 +- 0.248"),
    ],
)
def test_one_seed_is_a_value_two_are_both_and_three_have_an_interval(values, shown):
    assert over_seeds(values) == shown


def test_two_seeds_differences_are_both_shown(study):
    study.seeds, study.confirm = (300, 301), ()
    row = next(x for x in tables(study).splitlines() if x.startswith("| K = 1, every"))
    assert re.search(r"\([+-]0\.\d{3}, [+-]0\.\d{3}\)", row) and "+- " not in row


def test_a_difference_of_some_seeds_only_says_which(study):
    for run in runs_of(study):
        if (run.arm, run.seed) in (("K1", 300), ("K1", 302)):
            shutil.rmtree(run.folder)
    row = next(x for x in tables(study).splitlines() if x.startswith("| K = 1, every"))
    assert re.search(r"\([+-]0\.\d{3} at seed 301\)", row)


@pytest.mark.slow
def test_an_arm_that_was_chosen_later_is_marked_and_said_under_its_tables(study):
    text = tables(study)
    assert "K = 1, every sample trained [1], equal images" in text
    note = f"[1] Chosen {study.arms.K1_every.chosen}."
    marked = [part for part in re.split(r"\n\*\*|<!-- end", text) if "trained [1]" in part]
    assert len(marked) > 4 and all(part.count(note) == 1 for part in marked)
    study.arms.K1_every.chosen = ""
    assert "[1]" not in tables(study)


@pytest.mark.slow
def test_further_ways_to_sample_stay_where_they_are_kept_only(study):
    text = tables(study)
    shutil.rmtree(runs_of(study)[0].folder / "test_time")
    assert "`best:n=3`" in text and tables(study) == text


@pytest.mark.slow
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
    mean = {
        (r.arm, r.seed): r.mean("heldout", "plain", "shapes")
        for r in read(tmp_path / "study.csv")
        if r.budget == ("images" if r.arm == "K1" else "evaluations")
    }
    gained = [mean["K1_every", seed] - mean["K1", seed] for seed in (301, 302)]
    row = next(x for x in confirmed.splitlines() if x.startswith("| K = 1, every"))
    assert re.split(r" \| ", row)[1] == f"{gained[0]:+.3f}, {gained[1]:+.3f}"


KEPT = [name for name in PRESETS if file_of(get_config(name)).exists()]


def test_some_files_are_committed():
    assert {"tiny", "sweep"} <= set(KEPT)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEPT)
def test_the_committed_tables_are_those_of_the_committed_file(name, tmp_path):
    study = get_config(name)
    text = (REPOSITORY / study.report).read_text(encoding="utf-8")
    kept = file_of(study).read_bytes()
    (tmp_path / "PAGE.md").write_text(text, encoding="utf-8")
    (tmp_path / f"{study.name}.csv").write_bytes(kept)
    study.report, study.output_dir = str(tmp_path / "PAGE.md"), str(tmp_path / "runs")
    assert "runs in" in write_results(study, runs_of(study))
    assert (tmp_path / "PAGE.md").read_text(encoding="utf-8") == text
    assert (tmp_path / f"{study.name}.csv").read_bytes() == kept
