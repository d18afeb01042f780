"""Which stage is a run's best, and RUN:best, RUN:last, RUN:STAGE wherever weights are named."""

import json
from pathlib import Path

import pytest

from srrl.config import flatten, load_config, load_saved
from srrl.errors import UserError
from srrl.models.locate import locate
from srrl.models.weights import LORA_FILE
from srrl.run.best import best, latest
from tests.conftest import PRESET
from tests.srrl.models.test_locate import weights

MODELS = '--config.reward.models={"shapes": 1.0, "judge": 0.5}'


def evaluation(stage: int, reward: str, mean: float | None, **given) -> dict:
    line = {"stage": stage, "split": "heldout", "rounds": 1, "reward": reward, "mean": mean}
    return {**line, "n": 6, "seeds": 2, "first_seed": 7, **given}


def made(folder: Path, lines: list[dict], *flags: str, stages=(0, 2, 4, 6)) -> Path:
    for stage in stages:
        weights(folder / "checkpoints" / f"stage_{stage:04d}")
    (folder / "checkpoints" / "stage_0009").mkdir(parents=True)  # torn
    config = load_config([PRESET, MODELS, "--config.eval.rounds=[1, 3]", *flags])
    (folder / "config.json").write_text(json.dumps(flatten(config)))
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


LINES = [
    *(evaluation(n, "shapes", x) for n, x in zip((0, 2, 4, 6), (0.9, 0.1, 0.6, 0.3), strict=True)),
    *(evaluation(n, "judge", x) for n, x in zip((0, 2, 4, 6), (0.0, 0.9, 0.2, 0.7), strict=True)),
]


def test_it_is_the_highest_weighted_sum_of_what_is_evaluated_and_kept(tmp_path):
    assert best(made(tmp_path / "a", LINES)).stage == 0  # .9
    found = best(made(tmp_path / "b", LINES, stages=(2, 4, 6)))
    assert (found.stage, found.split, found.rounds, found.score) == (4, "heldout", 1, 0.7)
    other = [line | {"n": 12} for line in LINES if line["stage"] > 0]  # eval.num_prompts changed
    assert best(made(tmp_path / "c", [*LINES[:1], *other])).stage == 4
    assert best(made(tmp_path / "d", [*LINES, evaluation(6, "shapes", None)])).stage == 0
    assert best(made(tmp_path / "e", [])) is None
    odd = [{}, evaluation(6, "shapes", 2.0, split=""), evaluation(6, "shapes", "2")]
    assert best(made(tmp_path / "f", [*LINES, *odd])).stage == 0
    assert best(made(tmp_path / "g", odd)) is None


def test_it_is_of_the_held_out_prompts_and_the_most_rounds_or_of_what_is_asked(tmp_path):
    train = [evaluation(n, "shapes", n / 10, split="train", rounds=3) for n in (0, 2, 4, 6)]
    deep = [evaluation(n, "shapes", 1 - n / 10, rounds=3) for n in (2, 4, 6)]
    assert best(made(tmp_path / "a", [*LINES, *train])).stage == 0
    assert best(made(tmp_path / "b", [*LINES, *train, *deep])).stage == 2
    assert best(made(tmp_path / "c", train)).stage == 6
    asked = best(made(tmp_path / "d", [*LINES, *train, *deep], "--config.eval.best=train:3"))
    assert (asked.stage, asked.split, asked.rounds) == (6, "train", 3)
    for wrong in ("heldout:2", "test:1", "heldout"):
        with pytest.raises(UserError, match="one of train:1, train:3, heldout:1, heldout:3"):
            load_config([PRESET, "--config.eval.rounds=[1, 3]", f"--config.eval.best={wrong}"])


def test_what_is_watched_is_the_newest_of_them(tmp_path):
    run = made(tmp_path, LINES)
    assert latest(run, 6) == "heldout 0.650" and latest(run, 7) == "heldout 0.650 (after 6)"
    (run / "eval.jsonl").unlink()
    assert latest(run, 6) == ""


def test_an_rl_rig_run_is_judged_by_what_is_true(tmp_path):
    names = {"judge": 0.9, "checker": 0.3, "exact": 0.5}
    lines = [evaluation(0, name, x) for name, x in names.items()]
    lines += [evaluation(2, name, x) for name, x in {**names, "exact": 0.6, "judge": 0.1}.items()]
    made(tmp_path / "a", lines)
    config = flatten(load_config(["--config=config/rig.py:tiny"], methods=["rig"]))
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    assert best(tmp_path / "a").stage == 2


def test_checkpoints_have_names(tmp_path):
    run = made(tmp_path / "run", LINES, stages=(2, 4, 6))
    for name, stage in {"best": 4, "last": 6, "2": 2, "0002": 2}.items():
        found = locate(f"{run}:{name}", "it")
        assert found.file == run / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE
        assert load_saved(found.config).run_name == "tiny"
    for name in ("9", "3", "newest", ""):
        with pytest.raises(UserError, match=r"it: no checkpoint .*best, last, or one of 2, 4, 6"):
            locate(f"{run}:{name}", "it")
    empty = made(tmp_path / "empty", [], stages=())
    with pytest.raises(UserError, match=r"it: no checkpoint 'last': best, last, or one of none"):
        locate(f"{empty}:last", "it")
    (run / "eval.jsonl").unlink()
    with pytest.raises(UserError, match="no stage of it was evaluated: give RUN:last"):
        locate(f"{run}:best", "it")
    odd = weights(tmp_path / "a:best").parent
    assert locate(odd, "it").file.parent == odd  # a folder of this name
    with pytest.raises(UserError, match="no such folder"):
        locate(tmp_path / "nothing:best", "it")
