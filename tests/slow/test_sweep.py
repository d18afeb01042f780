"""scripts/sweep.py as a user does it: two rates, two seeds, a table; stopped, and gone on with."""

import csv
import json
import shutil
import sys

import pytest

from scripts import report, sweep
from srrl.budget import run_evaluations
from srrl.config import load_config
from srrl.errors import UserError
from srrl.run.folder import stage_folder
from tests.conftest import PRESET, small_run
from tests.slow.commands import run, warm

pytestmark = pytest.mark.slow


def command(folder, *more: str) -> list[str]:
    small = [flag for flag in small_run(folder) if "run_name" not in flag]
    rates = "--config.train.learning_rate=1e-4,1e-3"
    return [PRESET, "--name", "lr", *small, rates, "--seeds", "300,301", *more]


def test_two_rates_at_two_seeds_from_one_command_to_the_table(tmp_path, monkeypatch, capsys):
    dry = run(sys.executable, "scripts/sweep.py", *command(tmp_path, "--dry-run")).stdout
    of_one = run_evaluations(load_config([PRESET, *small_run(tmp_path)]))
    assert dry.count("scripts/train.py") == 4 and f"in all {4 * of_one:,} network eval" in dry
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(sys, "executable", warm())
    sweep.main(command(tmp_path, "--budget-minutes", "1e-9"))
    said = capsys.readouterr().out
    assert "no table yet: 0 of 4" in said and "4 of 4 runs are not finished: the same" in said
    sweep.main(command(tmp_path))
    said = capsys.readouterr().out
    assert "4 runs, 0 done, 1 at once" in said and said.count(": done  ETA") == 4
    out = tmp_path / "lr"
    table = [line for line in said.splitlines() if line.startswith(("train,", "heldout,"))]
    assert [line.split()[5:7] for line in table] == [["0.0001", "2"], ["0.001", "2"]] * 2
    with open(out / "arms.csv", newline="", encoding="utf-8") as file:
        arms = list(csv.DictReader(file))
    for arm in arms:
        own = []
        for seed in (300, 301):
            name = f"train.learning_rate={arm['arm']},seed={seed}"
            lines = map(json.loads, (out / name / "eval.jsonl").read_text().splitlines())
            own.append([x for x in lines if x["split"] == arm["split"]][-1]["mean"])
        assert float(arm["mean"]) == pytest.approx(sum(own) / 2, abs=2e-6)

    again = said.splitlines()[-1].partition("again: python scripts/report.py ")[2].split()
    report.main(again)
    assert capsys.readouterr().out.splitlines()[:-1] == said.splitlines()[-len(table) - 2 : -1]

    stopped = out / "train.learning_rate=0.001,seed=301"
    shutil.rmtree(stage_folder(stopped, 2))
    sweep.main(command(tmp_path))
    assert "4 runs, 3 done" in capsys.readouterr().out
    assert len(json.loads((stopped / "environment.json").read_text())) == 2
    other = out / "train.learning_rate=0.001,seed=300"
    assert len(json.loads((other / "environment.json").read_text())) == 1


def test_runs_that_fail_are_named_and_what_is_refused_stops_all(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", warm())
    prompts = tmp_path / "walrus.json"
    prompts.write_text('["a walrus"]')
    with pytest.raises(UserError, match=r"^2 of 2 failed: seed=300: see .*/seed=300/output\.log; "):
        flags = [f"--config.prompts.train={prompts}", f"--config.output_dir={tmp_path / 'out'}"]
        sweep.main([PRESET, "--name", "s", *flags, "--seeds", "300,301"])
    assert "a walrus" in (tmp_path / "out" / "s" / "seed=300" / "output.log").read_text()
    wrong = command(tmp_path, "--seeds", "300,x")
    refused = run(sys.executable, "scripts/sweep.py", *wrong, check=2)
    assert refused.stderr == "error: --config.seed=x: expected int\n"
