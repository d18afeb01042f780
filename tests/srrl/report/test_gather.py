"""What is read of a run's folder, whole or not."""

import json
import math

import pytest

from srrl.errors import UserError
from srrl.report.facts import facts
from srrl.report.gather import read_runs
from srrl.run.manifest import seal
from tests.conftest import PROMPTS
from tests.srrl.report.folders import eval_line, lines, metrics_line, write_run


def test_a_run_is_its_logs_its_config_and_what_made_it(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "environment.json").write_text('[{"commit": "abc", "config": {}}]')
    (run,) = read_runs(folder)
    assert (run.title, run.method, run.done, run.total) == ("run", "srrl", 3, 3)
    assert run.values("grad_norm") == [0.2] * 3 and run.sampled == [8, 8, 8]
    assert run.stage_seconds == [3.0] * 3 and run.judged("heldout") == PROMPTS
    assert run.environment == [{"commit": "abc", "config": {}}] and not run.unread
    assert dict(facts(run))["Stages"] == "3 of 3, finished"
    assert dict(facts(run))["Samples"] == "24"


def test_torn_and_foreign_lines_are_left_out_and_counted(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": 4, "lo')
    with open(folder / "eval.jsonl", "ab") as file:
        short = {**eval_line(4, "train", [0.1, 0.2]), "n": 3}
        file.write(f"{json.dumps(short)}\n".encode() + b'[1]\n"x"\n\xff\xfe\n{"stage": 4}\n')
    (run,) = read_runs(folder)
    assert run.done == 3 and len(run.evals) == 8
    assert run.unread == {"metrics.jsonl": 1, "eval.jsonl": 5}


def test_a_run_that_has_just_begun_has_a_config_only(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        (folder / name).unlink()
    (run,) = read_runs(folder)
    assert run.metrics == run.evals == run.samples == [] and run.done == 0
    assert run.seconds_left is None and dict(facts(run))["Stages"] == "0 of 3"


def test_a_lost_config_is_that_of_the_newest_checkpoint(tmp_path):
    folder = write_run(tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text("{")
    assert read_runs(folder)[0].config == {}
    checkpoint = folder / "checkpoints" / "stage_0003"
    checkpoint.mkdir(parents=True)
    seal(checkpoint, config)
    assert read_runs(folder)[0].config == config


def test_the_time_left_is_at_the_pace_of_the_last_stages(tmp_path):
    folder = write_run(tmp_path / "run", stages=5)
    slow = {"seconds/sample": 30.0}
    written = [metrics_line(1, **slow), *(metrics_line(n) for n in (2, 3, 4))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in written))
    (run,) = read_runs(folder)
    assert run.seconds_left == 3.0
    assert "about 0:00:03 left at the pace of the last 3" in dict(facts(run))["Stages"]


def test_null_and_what_is_no_number_are_not_numbers(tmp_path):
    folder = write_run(tmp_path / "run")
    odd = [metrics_line(1, loss=None), metrics_line(2, loss="x"), metrics_line(3, loss=10**400)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in odd))
    (run,) = read_runs(folder)
    assert all(map(math.isnan, run.values("loss")))
    lines(folder / "metrics.jsonl", [metrics_line(1), *({"stage": n} for n in (10**400, True))])
    assert read_runs(folder)[0].unread == {"metrics.jsonl": 2}


def test_phases_of_rl_rig_are_runs_of_their_own(tmp_path):
    for phase in ("editor", "actor"):
        write_run(tmp_path / "rig" / phase)
    runs = read_runs(tmp_path / "rig")
    assert [run.title for run in runs] == ["rig/actor", "rig/editor"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="is no run"):
        read_runs(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        read_runs(tmp_path / "nowhere")
