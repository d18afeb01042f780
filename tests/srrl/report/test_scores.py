"""Scores, what pairs with what, differences and what is said of a run."""

import json
import math
import re

import pytest
import torch

from srrl.config import flatten, load_config
from srrl.report.findings import findings, listed
from srrl.report.gather import Run, read_runs
from srrl.report.panels import look_charts
from srrl.report.presets import changes, differing
from srrl.report.scores import compared, scores, table_lines
from srrl.run.statistics import half_width
from tests.conftest import PROMPTS
from tests.srrl.report.folders import eval_line, lines, metrics_line, write_run


def read(folder) -> Run:
    return read_runs(folder)[0]


def test_the_gain_is_paired_prompt_by_prompt(tmp_path):
    folder = write_run(tmp_path / "run")
    first, last = [0.0, 0.5, 1.0, 0.2], [0.3, 0.6, 0.9, 0.4]
    lines(folder / "eval.jsonl", [eval_line(0, "train", first), eval_line(3, "train", last)])
    (score,) = scores(read(folder))
    half = half_width([0.3, 0.1, -0.1, 0.2])
    assert score.gain.mean == pytest.approx(0.125)
    assert score.gain.high - score.gain.mean == pytest.approx(half)
    assert score.last.estimate.mean == pytest.approx(0.55) and score.best.stage == 3
    assert half < half_width(last)  # or pairing would be for nothing


def test_pictures_of_one_prompt_are_one_value(tmp_path):
    folder = write_run(tmp_path / "run")
    two = eval_line(3, "train", [0.0, 0.4, 0.2, 0.8], seeds=2)
    lines(folder / "eval.jsonl", [two])
    (score,) = scores(read(folder))
    assert score.last.prompts.tolist() == pytest.approx([0.1, 0.6])


def test_evaluations_of_other_pictures_do_not_pair_within_a_run(tmp_path):
    folder = write_run(tmp_path / "run")
    before = eval_line(0, "train", [1.0, 1.0], first_seed=5)
    own = [eval_line(n, "train", [0.1 * n, 0.2 * n]) for n in (1, 2)]
    lines(folder / "eval.jsonl", [before, *own])
    (score,) = scores(read(folder))
    assert (score.first.stage, score.best.stage, score.last.stage) == (1, 2, 2)


def test_runs_of_the_same_prompts_and_seeds_are_paired_with_the_first(tmp_path):
    runs = [read(write_run(tmp_path / name, gain=g)) for name, g in (("a", 0.1), ("b", 0.15))]
    table = compared(runs)
    assert [(s.run.name, s.split) for s in table] == [
        ("a", "train"),
        ("b", "train"),
        ("a", "heldout"),
        ("b", "heldout"),
    ]
    assert table[0].than is None and not table[0].apart
    last, best = table[1].than
    assert last.mean == pytest.approx(0.15) == best.mean
    assert last.low == pytest.approx(0.15) == last.high  # the same for every prompt
    first, second = list(table_lines(table))[:2]
    assert first["last_minus_first_run_mean"] is None and first["last_mean"] == 0.45
    assert second["last_minus_first_run_mean"] == 0.15 and second["gain_mean"] == 0.45


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first_seed": 7}, "other seeds: from 7, not 1000000"),
        ({"seeds": 2}, "other prompts or seeds: 2 x 2, not 4 x 1"),
        ({"rounds": 2}, "the first run has no such evaluation"),
    ],
)
def test_runs_that_are_judged_otherwise_say_so(tmp_path, change, said):
    first, other = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    changed = [eval_line(3, "train", [0.1, 0.2, 0.3, 0.4], **change)]
    lines(other / "eval.jsonl", changed)
    score = compared([read(first), read(other)])[-1 if "rounds" in change else 1]
    assert score.than is None and score.apart == said


def test_runs_of_other_prompts_say_so(tmp_path):
    first = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", prompts=PROMPTS[::-1])
    score = compared([read(first), read(other)])[1]
    assert score.than is None and score.apart.startswith("other prompts: of ")
    for folder in (first, other):
        (folder / "train_prompts.json").unlink()
    unknown = compared([read(first), read(other)])[1]
    assert unknown.apart == "whether the prompts are the same is not known"


def test_a_score_that_is_lost_is_not_finite_and_nothing_breaks(tmp_path):
    folder = write_run(tmp_path / "run")
    lines(folder / "eval.jsonl", [eval_line(3, "train", [0.1, None]), eval_line(3, "heldout", [1])])
    lost, single = scores(read(folder))
    assert math.isnan(lost.last.estimate.mean) and math.isinf(single.last.estimate.high)
    (line, _) = table_lines([lost, single])
    assert line["last_mean"] is None
    assert any("not finite: stage 3" in text for text in findings(read(folder)))


def test_many_prompts_have_a_bootstrapped_interval(tmp_path):
    folder = write_run(tmp_path / "run")
    some = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    lines(folder / "eval.jsonl", [eval_line(3, "train", some)])
    estimate = scores(read(folder))[0].last.estimate
    assert estimate.low < estimate.mean < estimate.high
    assert estimate.high - estimate.mean != pytest.approx(estimate.mean - estimate.low)


def test_a_good_run_has_no_warnings(tmp_path):
    assert findings(read(write_run(tmp_path / "run", kept=[3]))) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"advantage/std": 0.0}, "rewards were constant in stages 2 to 3"),
        ({"selected": 0}, "Nothing was selected in stages 2 to 3"),
        ({"ratio/first_max_dev": 5e-5}, "up to 5.0e-05 away from 1"),
        ({"loss": None}, "loss is not finite in stages 2 to 3"),
        ({"skipped": 2}, "4 updates were left out in stages 2 to 3"),
    ],
)
def test_each_warning_of_the_metrics(tmp_path, changes, said):
    folder = write_run(tmp_path / "run")
    bad = [metrics_line(1), *(metrics_line(n, **changes) for n in (2, 3))]
    lines(folder / "metrics.jsonl", bad)
    (found,) = findings(read(folder))
    assert said in found


def test_the_rounding_of_tf32_is_no_warning(tmp_path):
    folder = write_run(tmp_path / "run")
    for deviation, warns in ((2.6e-4, False), (5e-3, True)):
        lines(folder / "metrics.jsonl", [metrics_line(1, **{"ratio/first_max_dev": deviation})])
        assert any("stops at 2e-02" in text for text in findings(read(folder))) is warns


def test_held_out_falling_while_train_rises_is_a_warning(tmp_path):
    folder = write_run(tmp_path / "run")
    held = {0: [0.5, 0.6, 0.4, 0.5], 3: [0.2, 0.3, 0.15, 0.2]}
    train = {n: [0.1 * n + 0.1 * i for i in range(4)] for n in held}
    both = [eval_line(n, "train", train[n]) for n in held]
    lines(folder / "eval.jsonl", [*both, *(eval_line(n, "heldout", held[n]) for n in held)])
    (found,) = findings(read(folder))
    assert "fell by 0.287 from stage 0 to 3" in found and "rose by 0.300" in found
    noisy = [eval_line(0, "heldout", [0.5, 0.6, 0.1]), eval_line(3, "heldout", [0.2, 0.2, 0.6])]
    lines(folder / "eval.jsonl", [*both, *noisy])
    assert findings(read(folder)) == []


def test_pictures_that_no_longer_look_like_the_first_ones_are_a_warning(tmp_path):
    looks = [{"dark": [0.1, 0.05]}, {"dark": [0.8, 0.05]}]
    evals = [eval_line(n, "train", [0.5, 0.6], pictures=look) for n, look in enumerate(looks)]
    folder = write_run(tmp_path / "run")
    lines(folder / "eval.jsonl", evals)
    run = read(folder)
    assert any("dark pixels 0.10 to 0.80 (train, K 1)" in text for text in findings(run))
    assert [chart.told for chart in look_charts(run)] == [
        "Evaluated pictures: dark pixels. train, K = 1: 0.1 at stage 0, 0.8 at 1."
    ]


def test_missing_pictures_and_torn_lines_are_warnings(tmp_path):
    folder = write_run(tmp_path / "run", "--config.pictures.images=true", kept=[3])
    (folder / "images" / "stage_0003" / "0001_00_01.png").unlink()
    with open(folder / "eval.jsonl", "a") as file:
        file.write('{"st')
    found = findings(read(folder))
    assert [re.sub(r"[^\d]", "", text) for text in found] == ["1", "14"] and len(found) == 2


def test_stages_are_read_as_spans():
    assert listed([4]) == "stage 4" and listed([]) == ""
    assert listed([1, 2, 3, 7, 9, 10]) == "stages 1 to 3, 7, 9 to 10"


def test_the_nearest_preset_is_found_and_what_differs(tmp_path):
    folder = write_run(tmp_path / "run")
    file = folder / "config.json"
    for preset, flag in (("tiny", ""), ("tiny+ddpo", ""), ("sdxl", "--config.seed=5")):
        flags = [f"--config=config/stage_process.py:{preset}", *([flag] if flag else [])]
        file.write_text(json.dumps(flatten(load_config(flags))))
        name, found = changes(read(folder))
        assert name == f"config/stage_process.py:{preset}"
        assert [(c.key, c.preset, c.run) for c in found] == ([("seed", "300", "5")] if flag else [])


def test_the_keys_in_which_runs_differ(tmp_path):
    flags = ("--config.seed=1", "--config.train.learning_rate=0.5")
    runs = [read(write_run(tmp_path / "a")), read(write_run(tmp_path / "b", *flags))]
    found = differing(runs)
    assert found["seed"] == ["300", "1"] and found["train.learning_rate"][1] == "0.5"
    assert set(found) == {"seed", "train.learning_rate", "prompts.train", "prompts.heldout"}
