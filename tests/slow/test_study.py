"""scripts/study.py on two small arms: stopped, gone on with, and its document."""

import json
import re
import shutil
import signal
import statistics
import sys

import pytest

from scripts import study as driver
from srrl.assess.arms import expected, runs_of
from srrl.assess.records import read
from srrl.config import REPOSITORY, load_study
from srrl.errors import UserError
from tests.slow.commands import run, warm

pytestmark = pytest.mark.slow


@pytest.fixture
def study(monkeypatch, capsys):
    """scripts/study.py in this process; its commands are processes that have imported already.
    Gives what it prints."""
    monkeypatch.setattr(sys, "executable", warm())

    def main(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
        handler = signal.getsignal(signal.SIGTERM)
        driver.main()
        signal.signal(signal.SIGTERM, handler)
        return capsys.readouterr().out

    return main


SMALL = """
from config.study import tiny

def small():
    c = tiny()
    c.output_dir, c.report = {folder!r}, {folder!r} + "/RESULTS.md"
    c.overrides = ("eval.every=0", "sample.batch_size=3", "branch.count=3", "tracker=none")
    c.overrides += ("sample.num_steps=5", "interval.skip_last=1")
    c.overrides += ("interval.left=3", "interval.right=3")
    c.seeds, c.stages, c.max_rounds, c.parallel = (300, 301), 2, 2, 1
    c.against, c.confirm, c.shown = ("K1",), (301,), ("heldout",)
    with c.unlocked():
        c.arms = {{
            "K1": {{"label": "K = 1", "preset": "b2diffurl", "values": ()}},
            "K2": {{"label": "K = 2", "preset": "", "values": ("reflect.rounds=2",)}},
        }}
    c.budgets, c.reference, c.test_time.arm = ("images", "evaluations"), "K1", "K1"
    c.samplers, c.num_prompts, c.images = ("plain", "reflect:rounds=2"), 2, 1
    c.test_time.samplers, c.test_time.images = ("plain", "best:n=2"), 1
    return c

PRESETS = {{"small": small}}

def get_config(name):
    return PRESETS[name]()
"""


def test_arms_meet_their_budgets():
    study = load_study("config/study.py:tiny")
    for budget in study.budgets:
        wanted = expected(study, study.reference, study.stages, budget)
        for one in (r for r in runs_of(study) if r.seed == study.seeds[0] and r.budget == budget):
            assert expected(study, one.arm, one.stages, budget) == pytest.approx(wanted, rel=0.08)


def test_a_study_stops_goes_on_and_writes_what_it_found(study, tmp_path):
    (tmp_path / "study.py").write_text(SMALL.format(folder=str(tmp_path / "out")))
    command = [sys.executable, "scripts/study.py", "--config", f"{tmp_path}/study.py:small"]
    first = run(*command, "--budget-minutes", "0.4", PYTHONPATH=".")
    assert "runs, 0 done" in first.stdout
    study(*command[2:])
    out = tmp_path / "out"
    text = (out / "RESULTS.md").read_text()
    assert (out / "images" / "study.png").stat().st_size > 10_000
    found = {}
    for name in ("K1_images", "K2_images", "K2_evaluations"):
        means = []
        for seed in (300, 301):
            lines = (out / f"{name}_{seed}" / "judged" / "cells.jsonl").read_text().splitlines()
            cell = next(
                c
                for c in map(json.loads, lines)
                if "heldout" in c["prompts"] and c["sampler"] == "plain"
            )
            scores = [v for row in cell["scores"]["shapes"] for v in row]
            means.append(round(statistics.fmean(scores), 6))  # as it is kept
        assert f"| {means[0]:.3f}, {means[1]:.3f}; right " in text
        found[name] = means
    gained = [k2 - k1 for k2, k1 in zip(found["K2_evaluations"], found["K1_images"], strict=True)]
    assert f"{gained[0]:+.3f}, {gained[1]:+.3f}" in text.partition("less K = 1")[2]
    assert len(read(out / "study.csv")) == 7 and "### Seeds 301 alone" in text
    (out / "RESULTS.md").write_text("Prose.\n" + text.replace("K = 2", "changed"))
    assert "6 of 6 runs" in run(*command, "--report", PYTHONPATH=".").stdout
    assert (out / "RESULTS.md").read_text() == "Prose.\n" + text


def test_a_study_whose_runs_fail_says_where_they_tell_why(study, tmp_path):
    text = SMALL.format(folder=str(tmp_path / "out")).replace(
        "=none", '=none", "pretrained.model=/no'
    )
    (tmp_path / "study.py").write_text(text)
    with pytest.raises(UserError, match=r"^7 of 7 failed: base: see .*/base/output\.log; K1_imag"):
        study("--config", f"{tmp_path}/study.py:small")
    log = (tmp_path / "out" / "base" / "output.log").read_text()
    assert "error: cannot load config.pretrained.model='/no'" in log


RIG = """
from config.study import rig

def small():
    c = rig()
    c.output_dir, c.report = {folder!r}, {folder!r} + "/RIG.md"
    c.overrides += (
        "stages.total=1",
        "sample.batch_size=4",
        "phase.actor.group=2",
        "phase.editor.group=2",
        "loop.rounds=1",
        "evaluate.batch_size=8",
    )
    c.seeds, c.ways, c.num_prompts, c.images = (300, 301), ("once", "actor"), 3, 2
    c.parallel = 1
    return c

PRESETS = {{"small": small}}

def get_config(name):
    return PRESETS[name]()
"""


def test_the_study_of_rl_rigs_phases(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "RIG.md").write_text("Prose.\n")
    (tmp_path / "rig.py").write_text(RIG.format(folder=str(out)))
    command = [sys.executable, "scripts/study.py", "--config", f"{tmp_path}/rig.py:small"]
    said = study(*command[2:])
    assert "5 runs, 0 done" in said and "editor_301: done" in said
    text = (out / "RIG.md").read_text()
    assert text.startswith("Prose.\n") and text.count("<!-- begin rig -->") == 1

    def share(folder: str) -> float:
        lines = (out / folder / "pictures.jsonl").read_text().splitlines()
        actor = [x for x in map(json.loads, lines) if x["way"] == "actor"]
        assert len(actor) == 6
        return statistics.fmean(line["exact/all"] for line in actor)

    for title, folder in (
        ("phase 1: the actor", "both_{}/drawn_actor"),
        ("phase 2 alone: the editor", "editor_{}/drawn_editor"),
        ("phase 1, then 2: both", "both_{}/drawn_both"),
    ):
        means = [share(folder.format(seed)) for seed in (300, 301)]
        row = next(line for line in text.splitlines() if line.startswith(f"| {title} "))
        assert f"{means[0]:.3f}, {means[1]:.3f}" in row and "of 2 |" in row
    assert f"| `actor` | {share('base'):.3f} [" in text
    shutil.rmtree(out / "both_300")  # its lines are kept
    shutil.rmtree(out / "base")
    again = run(*command, "--report", PYTHONPATH=".").stdout
    assert "phase 1: the actor" in again and (out / "RIG.md").read_text() == text
    assert len((out / "rig.jsonl").read_text().splitlines()) == 2 + 3 * 2


PAGE = (REPOSITORY / "docs" / "RESULTS.md").read_text(encoding="utf-8")


def test_the_study_that_the_page_shows_runs_as_printed(study, tmp_path):
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "my_study.py"
    file.write_text(text)
    commands = re.findall(
        r"\npython (scripts/study\.py --config my_study\.py:rank( --report)?)", PAGE
    )
    assert len(commands) == 2
    script = REPOSITORY / "scripts" / "study.py"
    command = [sys.executable, script, *commands[1][0].split()[1:]]
    said = run(*command, folder=tmp_path).stdout
    assert said == "nothing to write yet: runs/rank/base is not evaluated\n"
    assert [path.name for path in tmp_path.iterdir()] == ["my_study.py"]

    own = load_study(f"{file}:rank")
    (low, high) = (r for r in runs_of(own) if r.seed == 300)
    wanted = expected(own, "r4", own.stages, "evaluations")
    assert expected(own, "r16", high.stages, "evaluations") == wanted and low.stages == 8
    small = f"""    c.output_dir = {str(tmp_path / "out")!r}
    c.report, c.seeds, c.stages, c.max_rounds = c.output_dir + "/RESULTS.md", (300,), 1, 1
    c.overrides += ("sample.batch_size=2", "branch.count=2", "tracker=none", "sample.num_steps=5")
    c.overrides += ("interval.skip_last=1", "interval.left=3", "interval.right=3")
    c.samplers, c.num_prompts, c.images, c.parallel = ("plain",), 2, 1, 1
    return c
"""
    file.write_text(text.replace("    return c\n", small))
    assert "2 of 2 runs in" in study("--config", f"{file}:rank")
    written = (tmp_path / "out" / "RESULTS.md").read_text()
    assert "| **rank 4**, the reference |" in written and "| rank 16, less rank 4 |" in written
