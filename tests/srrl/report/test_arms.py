"""Runs that differ only in their seed are one arm: means, pairs by seed and prompt, both tables."""

import csv

import pytest
import torch

from scripts import report
from srrl.report.arms import arms_of
from srrl.report.gather import Run, read_runs
from srrl.report.page import write_report
from srrl.report.scores import arm_scores, compared
from srrl.report.tables import arm_table
from srrl.run.statistics import half_width
from tests.conftest import PROMPTS
from tests.srrl.report.folders import eval_line, lines, write_run

SCORES = {
    ("1e-4", 300): [0.1, 0.2, 0.3, 0.4],
    ("3e-4", 300): [0.2, 0.4, 0.3, 0.5],
    ("1e-4", 301): [0.3, 0.1, 0.2, 0.6],
    ("3e-4", 301): [0.5, 0.3, 0.1, 0.7],
    ("1e-4", 302): [0.0, 0.1, 0.1, 0.2],
    ("3e-4", 302): [0.4, 0.3, 0.1, 0.2],
}


def swept(folder, seeds: tuple[int, ...]) -> list[Run]:
    """Runs of two rates at these seeds, judged on the same prompts with the scores above."""
    prompts = folder / "prompts.json"
    prompts.write_text(str(PROMPTS).replace("'", '"'))
    found = []
    for (rate, seed), scores in SCORES.items():
        if seed in seeds:
            flags = [f"--config.train.learning_rate={rate}", f"--config.seed={seed}"]
            run = write_run(folder / f"{rate}_{seed}", *flags)
            text = (run / "config.json").read_text()
            for split in ("train", "heldout"):
                text = text.replace(str(run / f"{split}_prompts.json"), str(prompts))
            (run / "config.json").write_text(text)
            lines(run / "eval.jsonl", [eval_line(3, "heldout", scores)])
            found += read_runs(run)
    return found


def rows(file) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def test_runs_that_differ_only_in_their_seed_are_one_arm(tmp_path):
    runs = swept(tmp_path, (300, 301))
    arms = arms_of(runs)
    assert [[run.name for run in arm.runs] for arm in arms] == [
        ["1e-4_300", "1e-4_301"],
        ["3e-4_300", "3e-4_301"],
    ]
    assert [arm.values for arm in arms] == [
        {"train.learning_rate": "0.0001"},
        {"train.learning_rate": "0.0003"},
    ]


def test_arms_that_differ_in_many_keys_are_told_apart_by_their_runs(tmp_path):
    runs = swept(tmp_path, (300,))
    flags = ["lora.rank=8", "branch.count=4", "sample.eta=0.5", "train.clip_range=0.2", "seed=300"]
    runs += read_runs(write_run(tmp_path / "other", *(f"--config.{flag}" for flag in flags)))
    assert arm_table(runs)[0][:2] == ["judged", "run"]
    assert {row[1] for row in arm_table(runs)[1:]} == {"1e-4_300", "3e-4_300", "other"}


def test_a_run_whose_config_is_lost_is_an_arm_by_itself(tmp_path):
    runs = swept(tmp_path, (300, 301))
    for run in runs[:2]:
        (run.folder / "config.json").unlink()
        for checkpoint in (run.folder / "checkpoints").glob("*/manifest.json"):
            checkpoint.unlink()
    assert len(arms_of([read_runs(run.folder)[0] for run in runs])) == 4


def test_each_run_is_paired_with_the_first_value_of_its_own_seed(tmp_path):
    runs = swept(tmp_path, (300, 301))
    found = {score.run.name: score for score in compared(runs)}
    assert found["3e-4_301"].beside.name == "1e-4_301" and found["1e-4_300"].beside is None
    for seed in (300, 301):
        gain = torch.tensor(SCORES["3e-4", seed]) - torch.tensor(SCORES["1e-4", seed])
        assert found[f"3e-4_{seed}"].than[0].mean == pytest.approx(gain.mean().item())
    assert found["1e-4_301"].beside.name == "1e-4_300"


def test_an_arm_has_its_mean_over_seeds_and_its_paired_difference(tmp_path):
    first, second = arm_scores(swept(tmp_path, (300, 301)))
    assert first.values == pytest.approx([0.25, 0.3]) and first.gains == []
    assert second.values == pytest.approx([0.35, 0.4]) and second.gains == pytest.approx([0.1, 0.1])
    by_prompt = [0.15, 0.2, -0.05, 0.1]  # of each prompt over both seeds
    assert second.gained.mean == pytest.approx(0.1)
    assert second.gained.high - 0.1 == pytest.approx(half_width(by_prompt))


@pytest.mark.slow
def test_two_seeds_show_both_values_and_three_an_interval(tmp_path, capsys):
    for seeds in ((300,), (300, 301), (300, 301, 302)):
        folder = tmp_path / str(len(seeds))
        folder.mkdir()
        folders = [run.folder for run in swept(folder, seeds)]
        report.main([*map(str, folders), "--out", str(folder)])
        head, _, second, _ = capsys.readouterr().out.splitlines()
        assert head.split()[:3] == ["judged", "train.learning_rate", "runs"]
        gains = [sum(SCORES["3e-4", s]) / 4 - sum(SCORES["1e-4", s]) / 4 for s in seeds]
        shown = {1: "+0.100", 2: "+0.100 +0.100, +0.100"}
        interval = f"+0.117 +- {half_width(gains):.3f}"
        assert f" {shown.get(len(seeds), interval)} [" in " ".join(second.split())
        table = rows(folder / "arms.csv")
        assert [row["train.learning_rate"] for row in table] == ["0.0001", "0.0003"]
        assert float(table[1]["difference"]) == pytest.approx(sum(gains) / len(gains), abs=1e-6)
        assert len(table[1]["by_seed"].split()) == len(seeds)
        assert len(rows(folder / "report.csv")) == 2 * len(seeds)
        page = (folder / "report.html").read_text()
        assert ("are one arm" in page) is (len(seeds) > 1)


@pytest.mark.slow
def test_the_pages_own_files_are_no_runs_given_by_mistake(tmp_path, capsys):
    runs = [run.folder for run in swept(tmp_path, (300,))]
    (tmp_path / "prompts.json").rename(tmp_path.parent / "prompts.json")
    write_report(runs, tmp_path)
    report.main([*map(str, sorted(tmp_path.iterdir())), "--out", str(tmp_path)])
    assert "wrote" in capsys.readouterr().out
