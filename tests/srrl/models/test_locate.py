"""A run, a checkpoint, a folder or a file: the same weights for every command that names them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from srrl.config import flatten, load_config, load_saved
from srrl.errors import UserError
from srrl.models.locate import locate
from srrl.models.start import start_file
from srrl.models.weights import LORA_FILE, UNET_FILE
from srrl.prompts import check_files
from srrl.run.checkpoint import check_same_run, chosen_model
from tests.conftest import PRESET

BASE = "config/stage_process.py:tiny"


def weights(folder: Path, name: str = LORA_FILE) -> Path:
    (folder / name).parent.mkdir(parents=True)
    state = {f"unet.x.lora_{x}.weight": torch.zeros(1, 1) for x in "AB"}
    save_file(state, folder / name)
    return folder / name


def test_runs_and_weights_that_are_not_drawn_with_are_refused(run, tmp_path):
    (run / "config.json").write_text(
        json.dumps(flatten(load_config(["--config=config/rig.py:tiny"], methods=["rig"])))
    )
    with pytest.raises(UserError, match=r"the method 'rig', not SRRL's: scripts/rig\.py draws "):
        chosen_model(run, None)
    weights(tmp_path / "alone", UNET_FILE)
    with pytest.raises(UserError, match=r"a UNet without its run's config\.json: give the run's"):
        chosen_model(tmp_path / "alone", None)


@pytest.fixture
def run(tmp_path) -> Path:
    """With checkpoints of two numbers of digits, a newer one that is torn and one not whole."""
    for stage in ("stage_0009", "stage_9999", "stage_10000"):
        weights(tmp_path / "run" / "checkpoints" / stage)
    (tmp_path / "run" / "checkpoints" / "stage_10001").mkdir()
    weights(tmp_path / "run" / "checkpoints" / "stage_10002.tmp")
    (tmp_path / "run" / "config.json").write_text(json.dumps(flatten(load_config([PRESET]))))
    return tmp_path / "run"


def test_a_run_is_its_newest_checkpoint_by_number(run):
    newest = run / "checkpoints" / "stage_10000"
    assert start_file(str(run)) == newest / LORA_FILE
    assert chosen_model(run, None)[1] == newest
    found = locate(run, "it")
    assert (found.checkpoint, found.config) == (newest, run / "config.json")


def test_a_checkpoint_and_its_file_are_themselves(run):
    older = run / "checkpoints" / "stage_0009"
    for given in (older, older / LORA_FILE):
        assert start_file(str(given)) == older / LORA_FILE
        assert chosen_model(given, None)[1] == older


def test_a_bare_folder_or_file_is_a_lora_of_no_run(tmp_path):
    file = weights(tmp_path / "bare")
    other = weights(tmp_path / "other", "kohya.safetensors")
    for given, expected in ((tmp_path / "bare", file), (file, file), (other, other)):
        assert start_file(str(given)) == expected
        assert chosen_model(given, BASE)[1] == expected
        with pytest.raises(UserError, match=f"{given}: a LoRA without its run's config.json: give"):
            chosen_model(given, None)


def test_a_folder_with_one_file_is_that_file_and_with_several_they_are_named(tmp_path):
    file = weights(tmp_path / "kohya", "style.safetensors")
    assert locate(tmp_path / "kohya", "it").file == file
    file.with_name("b.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(
        UserError, match=r"holds 2 .*\(b.safetensors, style.safetensors\): give one"
    ):
        locate(tmp_path / "kohya", "it")
    peft = weights(tmp_path / "peft", "adapter_model.safetensors")
    assert locate(tmp_path / "peft", "it").file == peft
    peft.with_name(LORA_FILE).write_bytes(peft.read_bytes())
    with pytest.raises(UserError, match=f"holds {LORA_FILE} and adapter_model.safetensors: give"):
        locate(tmp_path / "peft", "it")


def test_a_folder_says_where_its_weights_are_and_what_is_not_read(tmp_path):
    file = weights(tmp_path / "capitals", "LORA.SAFETENSORS")
    assert locate(tmp_path / "capitals", "it").file == file
    below = weights(tmp_path / "trainer" / "checkpoint-200", LORA_FILE)
    with pytest.raises(UserError, match=f"its weights are below it: give {below.parent}"):
        locate(tmp_path / "trainer", "it")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_lora_weights.bin").touch()
    with pytest.raises(UserError, match=r"only .safetensors files are read, .*save_file\("):
        locate(tmp_path / "old", "it")
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "x.safetensors")
    (tmp_path / "odd" / "y.safetensors").mkdir()
    for given in ("odd", "odd/x.safetensors"):
        with pytest.raises(UserError, match=r"holds no|no such folder or file"):
            locate(tmp_path / given, "it")


def test_a_whole_unet_is_judged_but_is_no_lora_to_start_from(run):
    folder = run / "checkpoints" / "stage_10003"
    weights(folder, UNET_FILE)
    assert chosen_model(run, None)[1] == folder
    with pytest.raises(UserError, match=f"{run}': holds a whole UNet, not a LoRA: give a run"):
        start_file(str(run))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: None, "no such folder or file: give a run"),
        (lambda p: p.mkdir(), f"holds no {LORA_FILE}, no .* and no checkpoints/.*: give a run"),
        (lambda p: p.write_text("x"), "only .safetensors files are read, .*: convert it"),
    ],
)
def test_what_is_none_is_one_line_with_the_value_and_the_remedy(make, said, tmp_path):
    given = tmp_path / "given"
    make(given)
    for ask in (start_file, lambda g: chosen_model(Path(g), None)):
        with pytest.raises(UserError, match=said) as error:
            ask(str(given))
        assert str(given) in str(error.value) and "\n" not in str(error.value)


FOREIGN = {
    "hub": '{"_class_name": "UNet2DConditionModel", "in_channels": 4}',
    "list": '[{"run_name": 1}]',
    "torn": '{"run_name": ',
    "bytes": "\udcff",
    "deep": "[" * 100_000,
    "folder": None,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_config_json_of_something_else_makes_no_run(name, tmp_path):
    """Two folders above a LoRA, as in a hub's download."""
    file = weights(tmp_path / "models" / "style")
    config, text = tmp_path / "config.json", FOREIGN[name]
    config.mkdir() if text is None else config.write_bytes(text.encode(errors="surrogateescape"))
    for given in (file, file.parent):
        found = locate(given, "it")
        assert (found.file, found.checkpoint, found.config) == (file, None, None)
        assert chosen_model(given, BASE)[1] == file
    with pytest.raises(UserError, match=r"config\.json is not there, or not what a run writes"):
        load_saved(config)
    if text is not None:
        with pytest.raises(UserError, match=r"not what a run writes: choose another --config.run_"):
            check_same_run(tmp_path, load_config([PRESET]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "abc"}, "seed='abc'"),
        ({"seed": [1]}, r"seed=\[1\]"),
        ({"seed": {"a": 1}}, "seed="),
        ({"eval.rounds": [[1], {}]}, "eval.rounds"),
        ({"eval.rounds": None}, "eval.rounds=None: expected tuple"),
        ({"reward.models": [1]}, "reward.models"),
        ({"reward.models": {"shapes": "much"}}, "reward.models"),
        ({"run_name": 3}, "run_name=3"),
        ({"method": ["srrl"]}, "unknown method"),
        ({"seed.deep": 1}, "unknown config key 'seed.deep'"),
        ({"sample": 1}, "unknown config key 'sample'"),
        ({"_class_name": "x"}, "unknown config key '_class_name'"),
        ({"reflect.eta": 10**400}, "reflect.eta=1000.*: expected float"),
    ],
)
def test_a_runs_config_with_values_of_another_kind_is_one_line(change, said, tmp_path):
    saved = flatten(load_config([PRESET])) | change
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=said) as error:
        load_saved(tmp_path / "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".SAFETENSORS", ".SafeTensors"])
def test_a_suffix_may_be_of_either_case(suffix, tmp_path):
    file = weights(tmp_path / "bare", f"lora{suffix}")
    assert locate(file, "it").file == file
    (tmp_path / "model.CKPT").touch()
    with pytest.raises(UserError, match="may run code"):
        locate(tmp_path / "model.CKPT", "it")
    with pytest.raises(UserError, match="may run code: convert it"):
        check_files(load_config([PRESET, f"--config.pretrained.model={tmp_path}/model.CKPT"]))
