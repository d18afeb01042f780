"""scripts/compare_runs.py finds what differs, and nothing else."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from scripts.compare_runs import differences
from srrl.errors import UserError


def make_run(folder):
    (folder / "samples").mkdir(parents=True)
    weights = folder / "checkpoints" / "stage_0001" / "lora.safetensors"
    weights.parent.mkdir(parents=True)
    for name in ("metrics.jsonl", "eval.jsonl", "samples.jsonl"):
        (folder / name).write_text('{"stage": 0, "loss": 0.1, "seconds/sample": 1.0}\n' * 2)
    Image.new("RGB", (4, 4), "red").save(folder / "samples" / "stage_0001.png")
    save_file({"a": torch.ones(3)}, weights)
    return weights


def test_each_kind_of_difference_is_found_and_times_are_not(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    make_run(one)
    shutil.copytree(one, other)
    lines = (other / "metrics.jsonl").read_text().replace("1.0}", "2.0}")
    (other / "metrics.jsonl").write_text(lines)
    assert list(differences(one, other)) == []

    (other / "metrics.jsonl").write_text(lines.replace("0.1", "0.10000001", 1))
    assert list(differences(one, other)) == ["metrics.jsonl line 1: loss"]
    (other / "metrics.jsonl").write_text(lines)

    picture = Image.open(other / "samples" / "stage_0001.png")
    picture.putpixel((0, 0), (254, 0, 0))
    picture.save(other / "samples" / "stage_0001.png")
    weights = other / "checkpoints" / "stage_0001" / "lora.safetensors"
    state = load_file(weights)
    state["a"][1] = 1 + 2**-20
    save_file(state, weights)
    (other / "eval.jsonl").write_text(json.dumps({"stage": 0}) + "\n")
    (other / "samples" / "stage_0002.png").write_bytes(b"")
    found = list(differences(one, other))
    assert found == [
        "eval.jsonl: 2 and 1 lines",
        "eval.jsonl line 1: loss",
        f"samples/stage_0002.png: only in {other}",
        "samples/stage_0001.png: differs",
        "checkpoints/stage_0001/lora.safetensors: differs",
    ]


def test_what_a_version_has_added_is_left_out_by_name(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    make_run(one)
    shutil.copytree(one, other)
    lines = (other / "metrics.jsonl").read_text().replace('"loss"', '"updates": 2, "loss"')
    (other / "metrics.jsonl").write_text(lines)
    (other / "samples.jsonl").unlink()
    assert next(differences(one, other, ["samples.jsonl"])) == "metrics.jsonl line 1: updates"
    assert list(differences(one, other, ["samples.jsonl", "updates"])) == []
    with pytest.raises(UserError, match=r"samples\.jsonl"):
        list(differences(one, other, ["updates"]))
