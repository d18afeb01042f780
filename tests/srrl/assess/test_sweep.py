"""A sweep's values, their combinations, its folders, and what it refuses before anything runs."""

import json

import pytest

from srrl.assess.sweep import check, trials, values_of
from srrl.config import flatten
from srrl.errors import UserError
from srrl.run.folder import stage_folder
from tests.conftest import small_run

TINY = "config/stage_process.py:tiny"


@pytest.mark.parametrize(
    ("text", "like", "values"),
    [
        ("1e-4,3e-4", 0.1, ["1e-4", "3e-4"]),
        ("1e-4, 3e-4", 0.1, ["1e-4", "3e-4"]),
        ("7", 1, ["7"]),
        ("", 1, [""]),
        ("a.json,b.json", "", ["a.json", "b.json"]),
        ('"a,b.json",c.json', "", ["a,b.json", "c.json"]),
        ('"a,b', "", ['"a,b']),
        ("[1,2]", (1,), ["[1, 2]"]),
        ("[1],[1,2]", (1,), ["[1]", "[1, 2]"]),
        ("1,2", (1,), ["1", "2"]),
        ("[1", (1,), ["[1"]),
        ('{"a":1,"b":2},{"a":1}', {}, ['{"a": 1, "b": 2}', '{"a": 1}']),
    ],
)
def test_values_stand_between_commas_and_lists_and_objects_stay_whole(text, like, values):
    assert values_of(text, like) == values


def test_several_keys_give_their_product_seed_by_seed_and_the_rest_goes_to_all():
    flags = [
        "--config.seed=300,301",
        "--config.reflect.rounds",
        "1,2",
        "--config.eval.rounds=[1],[1,2]",
        "--config.stages.total=3",
    ]
    some = trials(TINY, flags, "k")
    values = [flatten(trial.config) for trial in some]
    assert [(v["seed"], v["reflect.rounds"], v["eval.rounds"]) for v in values] == [
        (seed, rounds, judged)
        for seed in (300, 301)
        for rounds in (1, 2)
        for judged in ((1,), (1, 2))
    ]
    assert {v["stages.total"] for v in values} == {3} and {v["output_dir"] for v in values} == {
        "runs/k"
    }
    names = [v["run_name"] for v in values]
    assert len(set(names)) == 8
    assert names[0].startswith("reflect.rounds=1,eval.rounds=1-") and names[0].endswith(",seed=300")


def test_a_value_has_the_same_folder_however_it_is_written_and_what_else_is_tried():
    few = trials(TINY, ["--config.train.learning_rate=1e-4,3e-4"], "lr")
    more = trials(TINY, ["--config.train.learning_rate=3e-3,0.0001", "--config.seed=300,7"], "lr")
    assert few[0].folder == more[1].folder
    assert few[0].folder.name == "train.learning_rate=0.0001,seed=300"


def test_texts_that_no_folder_can_be_called_have_one_each():
    models = ["a/b", "a-b", "x" * 90 + "1", "x" * 90 + "2"]
    some = trials(TINY, [f"--config.pretrained.model={','.join(models)}"], "m")
    names = {trial.folder.name for trial in some}
    assert len(names) == 4 and max(map(len, names)) < 90 and not any("/" in name for name in names)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.train.learning_rate=1e-4,fast"], r"^--config\.train\.learning_rate=fast: exp"),
        (["--config.train.learning_rate=1e-4,"], r"^--config\.train\.learning_rate=: expected fl"),
        (["--config.train.learning_rate=1e-4,-1"], r"^config\.train\.learning_rate=-1\.0 is out"),
        (["--config.eval.rounds=[1],[1"], r"^--config\.eval\.rounds=\[1\],\[1: expected JSON list"),
        (["--config.nope=1,2"], r"^unknown config key 'nope'"),
        (["--config.seed=300,301,300"], r"^seed=300 is asked for twice: give each value once"),
        (["--config.seed=300"], r"^nothing is varied: give a key several values, as"),
        ([], r"^nothing is varied"),
        (["--config.seed"], r"^--config\.seed needs a value: --config\.seed=VALUE"),
        (["--config.run_name=a,b"], r"^--config\.run_name: a sweep names its runs: leave it out"),
    ],
)
def test_what_the_config_refuses_is_one_line_before_anything_runs(flags, said):
    with pytest.raises(UserError, match=said) as refused:
        trials(TINY, flags, "lr")
    assert "\n" not in str(refused.value)


def test_prompts_rewards_and_other_runs_are_looked_at_before_anything_runs(tmp_path):
    def sweep(*flags: str) -> list:
        small = [flag for flag in small_run(tmp_path) if "run_name" not in flag]
        return trials(TINY, [*small, "--config.train.learning_rate=1e-4,3e-4", *flags], "lr")

    check(sweep())
    for flag, said in (
        ("--config.prompts.train=/nowhere.json", r"/nowhere\.json"),
        ('--config.reward.models={"nope": 1}', "unknown reward 'nope'"),
    ):
        with pytest.raises(UserError, match=said):
            check(sweep(flag))
    second = sweep()[1]
    second.folder.mkdir(parents=True)
    (second.folder / "config.json").write_text(json.dumps(flatten(second.config)))
    check(sweep())
    with pytest.raises(
        UserError, match=r"learning_rate=0\.0003,seed=300 holds a run with config\.b"
    ):
        check(sweep("--config.branch.count=4"))


def test_a_run_is_done_when_its_last_stage_is_there(tmp_path):
    flags = [f"--config.output_dir={tmp_path}", "--config.stages.total=2", "--config.seed=1,2"]
    first, second = trials(TINY, flags, "s")
    stage_folder(first.folder, 2).mkdir(parents=True)
    stage_folder(second.folder, 1).mkdir(parents=True)
    assert first.job.todo() == [] and second.job.todo() == [second.command]
    assert first.folder == tmp_path / "s" / "seed=1" and first.job.work == second.job.work > 0
