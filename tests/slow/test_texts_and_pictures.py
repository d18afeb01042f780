"""What users give and where it is shown: photos, odd prompts, terminals of another encoding, pipes
that close. Scores and pictures reach their files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rewards.files import read_picture
from srrl.config import REPOSITORY, flatten, load_config
from srrl.errors import UserError
from srrl.shapes.scenes import parse, render
from tests.conftest import PRESET, PROMPTS, small_run
from tests.slow.commands import run

pytestmark = pytest.mark.slow
PROMPT = PROMPTS[0]
SCORE = [sys.executable, "scripts/score.py"]
SAMPLE = [sys.executable, "scripts/sample.py", "--config", "config/stage_process.py:tiny"]
# Terminals that show ASCII alone; in the second, Python takes arguments and files for ASCII, too.
TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
REWARD = """
class Bright:
    def score(self, images, prompts):
        if "fail" in prompts:
            raise ValueError("it failed")
        return images.float().mean((1, 2, 3)) / 255
"""


@pytest.fixture
def reward(tmp_path) -> str:
    (tmp_path / "bright.py").write_text(REWARD)
    return f"{tmp_path / 'bright.py'}:Bright"


def read(file: Path) -> list[dict]:
    return json.loads(file.read_text(encoding="utf-8"))


def piped(command: list, folder: Path, take: str) -> subprocess.CompletedProcess:
    """Run with stdout and stderr into a program that reads only some of it."""
    line = f'"$@" 2>&1 | {take} > {folder / "taken"}; exit ${{PIPESTATUS[0]}}'
    return run("bash", "-c", line, "bash", *command)


def test_pictures_score_as_the_same_ones_upright_in_8_bits_and_on_white(reward, tmp_path):
    picture = render([parse(PROMPT)], torch.Generator().manual_seed(0))[0]
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying = np.ascontiguousarray(np.rot90(pixels))
    clear = np.dstack([pixels, np.full((32, 32), 255, np.uint8)])
    clear[:16, 20:] = [1, 2, 3, 0]
    white = np.where(clear[..., 3:] > 0, pixels, 255)
    grey = pixels[..., 1]
    arrays = {
        "upright": (pixels, {}),
        "turned": (lying, {"exif": exif}),
        "lying": (lying, {}),
        "white": (white, {}),
        "clear": (clear, {}),
        "grey 8": (grey, {}),
        "grey 16": (grey.astype(np.uint16) * 257, {}),
    }
    for name, (array, how) in arrays.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png", **how)
    files = [tmp_path / f"{name}.png" for name in arrays]
    out = tmp_path / "scores.json"
    wanted = ["--prompt", PROMPT, "--rewards", "shapes", "judge", reward, "--json", out]
    run(*SCORE, *files, *wanted)
    keys = ("shapes", "judge", reward)
    scores = {Path(row["image"]).stem: [row[k] for k in keys] for row in read(out)}
    assert scores["turned"] == scores["upright"] and scores["upright"][0] > 0.9
    assert scores["lying"][0] < 0.5  # it matters
    assert scores["clear"] == scores["white"] != scores["upright"]
    assert scores["grey 16"] == scores["grey 8"]


def test_pictures_are_refused_before_any_is_scored_and_scores_outlive_an_error(reward, tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    Image.effect_noise((64, 64), 60).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-1000])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    out = tmp_path / "scores.json"
    for bad, said in (("b.png", "truncated"), ("huge.png", "megapixels")):
        pictures = [tmp_path / "a.png", tmp_path / bad]
        given = ["--prompt", "x", "--rewards", reward, "--json", out]
        refused = run(*SCORE, *pictures, *given, check=2)
        assert len(refused.stderr.splitlines()) == 1 and not out.exists()
        assert f"{bad}'" in refused.stderr and said in refused.stderr
    (tmp_path / "prompts.TXT").write_text("one\x85two\rfail\r\n")
    pictures = [tmp_path / "a.png"] * 2
    given = ["--prompts-file", tmp_path / "prompts.TXT", "--rewards", reward, "--json", out]
    failed = run(*SCORE, *pictures, *given, check=2, SRRL_ERROR_FOLDER=str(tmp_path))
    assert "it failed" in failed.stderr
    (row,) = read(out)
    assert (row["prompt"], row[reward]) == ("one\x85two", 1.0)


def test_score_takes_the_rewards_of_a_run_or_a_checkpoint_and_says_what_it_wants(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "stage_0003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "pytorch_lora_weights.safetensors").touch()
    settings = load_config([PRESET, '--config.reward.models={"judge": 1}'])
    (tmp_path / "run" / "config.json").write_text(json.dumps(flatten(settings)))
    Image.new("RGB", (32, 32), "white").save(tmp_path / "a.png")
    command = [*SCORE, tmp_path / "a.png", "--prompt", PROMPT, "--json", tmp_path / "out.json"]
    for given in (tmp_path / "run", checkpoint):
        run(*command, "--checkpoint", given)
        assert list(read(tmp_path / "out.json")[0]) == ["image", "prompt", "judge"]
    (tmp_path / "run" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (tmp_path / "file").touch()
    for given, said in (
        (checkpoint, "no run's config.json"),
        (tmp_path / "file", "only .safetensors files"),
        (tmp_path, "no checkpoints/stage_NNNN"),
    ):
        refused = run(*command, "--checkpoint", given, check=2)
        assert f"--checkpoint {given}: " in refused.stderr and said in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_terminal_without_letters_loses_nothing(terminal, reward, tmp_path):
    """Scores, pictures and their prompts, and a training's logs."""
    surroundings = TERMINALS[terminal]
    Image.new("RGB", (8, 8), "white").save(tmp_path / "Bär 🐻.png")
    out = tmp_path / "Ergebnis ä.json"
    given = ["--prompt", "ein Bär 🐻", "--rewards", reward, "--json", out]
    scored = run(*SCORE, tmp_path / "Bär 🐻.png", *given, **surroundings)
    assert [(row["prompt"], row[reward]) for row in read(out)] == [("ein Bär 🐻", 1.0)]
    assert r"ein B\xe4r \U0001f43b" in scored.stdout

    given = ["--prompt", "ein Bär 🐻", "--negative-prompt", "Öl", "--no-score", "--seeds", "0"]
    for folder, environment in (("here", surroundings), ("there", {})):
        run(*SAMPLE, *given, "--out", tmp_path / folder, **environment)
        assert read(tmp_path / folder / "samples.json")[0]["prompt"] == "ein Bär 🐻"
    here, there = (Image.open(tmp_path / f / "image_000.png") for f in ("here", "there"))
    assert here.info["prompt"] == "ein Bär 🐻" and here.info == there.info
    assert here.tobytes() == there.tobytes()

    (tmp_path / "prompts.txt").write_text("ein Bär 🐻\nüber\u2028all\n", encoding="utf-8")
    models = json.dumps({reward: 1.0})
    command = ["bash", "train.sh", *small_run(tmp_path, 1), "--config.eval.heldout=false"]
    command += [f"--config.prompts.train={tmp_path / 'prompts.txt'}"]
    trained = run(*command, f"--config.reward.models={models}", **surroundings)
    assert "Traceback" not in trained.stderr
    lines = (tmp_path / "run" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(x)["prompt"] for x in lines} == {"ein Bär 🐻", "über\u2028all"}


def test_a_reader_that_leaves_loses_nothing(reward, tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    out = tmp_path / "scores.json"
    given = ["--prompt", "x", "--rewards", reward, "--json", out]
    piped([*SCORE, tmp_path / "a.png", *given], tmp_path, "true")
    assert read(out)[0][reward] == 1.0
    drawn = ["--prompts", *PROMPTS, "--seeds", "0", "--batch-size", "1"]
    piped([*SAMPLE, *drawn, "--out", tmp_path / "out"], tmp_path, "head -1")
    assert len(read(tmp_path / "out" / "samples.json")) == 4
    assert (tmp_path / "out" / "grid.png").exists()
    assert "Traceback" not in (tmp_path / "taken").read_text()
    piped(["bash", "train.sh", *small_run(tmp_path, 1)], tmp_path, "head -1")
    assert (tmp_path / "run" / "checkpoints" / "stage_0001").is_dir()
    evaluate = [sys.executable, "scripts/evaluate.py", "--num-prompts", "2", "--images", "1"]
    piped([*evaluate, "--rounds", "1", "--out", tmp_path / "eval"], tmp_path, "head -1")
    assert (tmp_path / "eval" / "cells.jsonl").exists()
    assert list((tmp_path / "eval").glob("*.md")) and list((tmp_path / "eval").glob("*.csv"))


def test_a_device_that_is_full_gets_the_scores_to_their_file_first(reward, tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    out = tmp_path / "scores.json"
    command = [*SCORE, tmp_path / "a.png", "--prompt", "x", "--rewards", reward, "--json", out]
    full = run("bash", "-c", '"$@" > /dev/full', "bash", *command, check=2)
    assert "no disk space left" in full.stderr and len(full.stderr.splitlines()) == 1
    assert read(out)[0][reward] == 1.0


def test_prompts_that_cannot_be_encoded_are_named_by_every_command(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.png")
    half = tmp_path / "half.json"
    half.write_text(r'["a cat", "half a cat \ud83d"]')
    evaluate = [sys.executable, "scripts/evaluate.py", "--prompts", half, "--out", tmp_path / "e"]
    of_file = "half.json', prompt 2: character 12 is half a character (U+D83D)"
    typed = os.fsdecode(b"a cat\xff")
    for command, said in (
        (["bash", "train.sh", f"--config.prompts.train={half}"], of_file),
        (["bash", "train.sh", f"--config.prompts.heldout={half}"], of_file),
        ([*SAMPLE, "--prompts-file", half], of_file),
        ([*SCORE, tmp_path / "a.png", "--prompts-file", half], of_file),
        (evaluate, of_file),
        ([*SAMPLE, "--prompts", "a dog", typed], r"--prompt 'a cat\udcff': character 6"),
        ([*SAMPLE, "--prompt", "x", "--negative-prompt", typed], "--negative-prompt 'a cat"),
        ([*SCORE, tmp_path / "a.png", "--prompt", typed], r"--prompt 'a cat\udcff': character 6"),
    ):
        refused = subprocess.run(
            [str(part) for part in command], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert refused.returncode == 2, refused.stderr
        assert len(refused.stderr.splitlines()) == 1 and said in refused.stderr


def test_no_picture_of_any_kind_of_damage_ends_in_another_error(tmp_path):
    """2,000 files of which bytes were changed or cut."""
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "tif", "gif", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=exif)
        whole = np.frombuffer((tmp_path / f"x.{suffix}").read_bytes(), np.uint8)
        for _ in range(400):
            data = whole.copy()
            data[generator.integers(0, len(data), 3)] = generator.integers(0, 256, 3)
            file = tmp_path / f"y.{suffix}"
            file.write_bytes(data[: generator.integers(1, 3 * len(data))].tobytes())
            try:
                picture, _ = read_picture(file)
            except UserError:
                continue
            assert picture.dtype == torch.uint8 and picture.shape[0] == 3
