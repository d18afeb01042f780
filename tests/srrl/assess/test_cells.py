"""Cells, intervals and tables, against a few independent lines."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rewards.shapes import ShapesVerifier
from srrl.assess.cells import Cell, Result, distances, finished, run_cell
from srrl.assess.report import lines_of, markdown_table, write_report
from srrl.assess.samplers import parse_sampler
from srrl.config import load_config
from srrl.rollout import rollout
from srrl.rounds import rollout_settings
from tests.conftest import PRESET, PROMPTS, load_policy

SETTINGS = rollout_settings(load_config([PRESET]), branches=1)


def cell(sampler: str = "plain", **changes) -> Cell:
    given = {
        "checkpoint": "base",
        "weights": "",
        "prompts": "p.json",
        "sampler": sampler,
        "images": 3,
        "first_seed": 5,
        "count": len(PROMPTS),
        "settings": "{}",
    }
    return Cell(**(given | changes))


@pytest.mark.slow
def test_a_cell_and_its_interval_again_from_raw_images_and_scores(tmp_path):
    policy, verifier = load_policy(), ShapesVerifier()
    result = run_cell(
        cell(),
        parse_sampler("plain"),
        policy,
        SETTINGS,
        PROMPTS,
        {"shapes": verifier},
        Accelerator(),
        chooser="shapes",
        embedding=lambda x: x.float().flatten(1),
        pictures=tmp_path,
    )
    images = [
        rollout(
            policy,
            policy.encode(PROMPTS),
            SETTINGS,
            rounds=1,
            trained_steps=0,
            seed=seed,
            stage=0,
            prompts=[0, 1, 2, 3],
        ).images
        for seed in (5, 6, 7)
    ]
    raw = np.array([verifier.score(x, PROMPTS).numpy() for x in images], np.float64).T
    np.testing.assert_allclose(result.scores["shapes"].numpy(), raw, atol=1e-6)
    assert result.nfe == 20 and len(list(tmp_path.glob("*.png"))) == len(PROMPTS)

    (line,) = lines_of([result])
    half = 3.1824 * raw.mean(1).std(ddof=1) / 2  # Student's t of four prompts
    assert line.score.mean == pytest.approx(raw.mean(), abs=1e-6)
    assert line.score.low == pytest.approx(raw.mean() - half, abs=1e-5)
    assert line.score.high == pytest.approx(raw.mean() + half, abs=1e-5)

    a, b, c = (x[0].float().flatten() for x in images)
    apart = [(a - b).norm(), (a - c).norm(), (b - c).norm()]
    assert result.diversity[0].item() == pytest.approx(float(sum(apart) / 3), rel=1e-4)


def test_differences_are_paired_and_against_the_baseline():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(40, 4, generator=generator)
    better = base + 0.1 + 0.01 * torch.randn(40, 4, generator=generator)
    results = [
        Result(cell(name), {"shapes": scores}, None, evaluations, 0.1)
        for name, scores, evaluations in (("plain", base, 20.0), ("zigzag", better, 60.0))
    ]
    plain, zigzag = lines_of(results)
    assert plain.difference is None
    assert zigzag.difference.low > 0.09 and zigzag.difference.high < 0.11  # far below the spread
    assert zigzag.score.high - zigzag.score.low > 0.05
    other = lines_of(results, ("base", "zigzag"))
    assert other[1].difference is None
    assert other[0].difference.mean == pytest.approx(-zigzag.difference.mean)


def test_what_is_finished_is_read_back_and_a_torn_line_is_not(tmp_path):
    result = Result(cell(), {"shapes": torch.rand(4, 3)}, torch.rand(4), 20.0, 0.5)
    text = json.dumps(result.line())
    (tmp_path / "cells.jsonl").write_text(text + "\n" + text[:50])
    (read,) = finished(tmp_path).values()
    assert read.cell == result.cell and read.cell.key == cell().key != cell(images=4).key
    torch.testing.assert_close(read.scores["shapes"], result.scores["shapes"], atol=1e-6, rtol=0)


def test_the_report_holds_the_same_numbers_in_every_form(tmp_path):
    results = [
        Result(cell(n), {"shapes": torch.rand(4, 3)}, None, e, 0.1)
        for n, e in (("plain", 20.0), ("best:n=2", 40.0))
    ]
    lines = lines_of(results)
    assert write_report(tmp_path, results, lines, {}) == [
        "table.md",
        "table.csv",
        "table.json",
        "scores.png",
    ]
    read = json.loads((tmp_path / "table.json").read_text())
    assert [x["mean"] for x in read] == [x.score.mean for x in lines]
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert len(rows) == 3 and str(read[1]["difference_mean"]) in rows[2]
    assert f"{lines[0].score.mean:.3f}" in markdown_table(lines)


def test_of_many_prompts_the_interval_is_bootstrapped():
    raw = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).double()
    (line,) = lines_of([Result(cell(), {"shapes": raw}, None, 20.0, 0.1)])
    draws = torch.randint(30, (2000, 30), generator=torch.Generator().manual_seed(0)).numpy()
    means = raw.numpy().mean(1)[draws].mean(1)
    assert line.score.low == pytest.approx(np.quantile(means, 0.025), abs=1e-6)
    assert line.score.high == pytest.approx(np.quantile(means, 0.975), abs=1e-6)


def test_a_single_prompt_is_reported_without_an_interval(tmp_path):
    results = [Result(cell(), {"shapes": torch.rand(1, 3)}, None, 20.0, 0.1)]
    write_report(tmp_path, results, lines_of(results), {})
    (read,) = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
    assert read["low"] is None and read["high"] is None and 0 < read["mean"] < 1


def test_distances_of_equal_pictures_are_zero():
    same = torch.ones(2, 3, 5)
    assert distances(same).abs().max() == 0
    assert distances(torch.tensor([[[0.0], [3.0]]])).item() == pytest.approx(3.0)
