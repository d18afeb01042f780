"""LoRA files as people have them, through the commands: the right pictures, or one line, exit 2."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from srrl.models.lora_file import Delta
from srrl.shapes.pipeline import TINY_SD
from tests.conftest import load_policy, small_run
from tests.loras import (
    PEFT,
    attention_processors,
    diffusers,
    kohya,
    layers,
    merged,
    random_delta,
    write,
    write_peft,
)
from tests.slow.commands import run

pytestmark = pytest.mark.slow
PYTHON = sys.executable
PRESET = "config/stage_process.py:tiny"
PROMPT = "a blue circle above a red square"
PIPE = load_policy("sd").pipe
ATTENTION = {
    n: w for n, w in layers(PIPE).items() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))
}


def deltas(ranks=(4,), alphas=(4,)) -> dict[str, Delta]:
    return {
        n: random_delta(w, ranks[i % len(ranks)], alphas[i % len(alphas)], i)
        for i, (n, w) in enumerate(ATTENTION.items())
    }


def of_text_encoder() -> dict[str, Delta]:
    known = {n: w for n, w in layers(PIPE, "text_encoder").items() if "self_attn" in n}
    return {n: random_delta(w, 4, 4, i) for i, (n, w) in enumerate(known.items())}


def dora(weights: dict) -> dict[str, Delta]:
    lengths = {n: ATTENTION[n].detach().norm(dim=1) * 1.5 for n in weights}
    return {n: Delta(d.down, d.up, d.scale, lengths[n]) for n, d in weights.items()}


def dora_names(form, suffix: str, of_name, shape, parts: dict, file: Path) -> Path:
    state = form(parts)
    for n, d in parts["unet"].items():
        state[of_name(n) + suffix] = d.magnitude.view(shape)
    return write(state, file)


def kohya_key(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


# name: (deltas by part, what writes them to a file)
READ = {
    "alpha by module": ({"unet": deltas(alphas=(1, 2, 4, 8))}, lambda p, f: write(kohya(p), f)),
    "resized": ({"unet": deltas((1, 2, 4, 3), (1, 2, 4, 3))}, lambda p, f: write(kohya(p), f)),
    "peft's folder": (
        {"unet": deltas((2, 4), (8, 1))},
        lambda p, f: write_peft(p["unet"], f.parent),
    ),
    "no prefix": ({"unet": deltas()}, lambda p, f: write(diffusers(p, lambda part: ""), f)),
    "attention processors": ({"unet": deltas()}, lambda p, f: write(attention_processors(p), f)),
    "dora": (
        {"unet": dora(deltas())},
        partial(dora_names, diffusers, ".lora_magnitude_vector", "unet.{}".format, (-1,)),
    ),
    "dora_scale": (
        {"unet": dora(deltas())},
        partial(dora_names, kohya, ".dora_scale", kohya_key, (-1, 1)),
    ),
    "mixed ranks": ({"unet": deltas((1, 2, 4, 3))}, lambda p, f: write(diffusers(p), f)),
    "with a text encoder": (
        {"unet": deltas(), "text_encoder": of_text_encoder()},
        lambda p, f: write(kohya(p), f),
    ),
    "adapter's name": ({"unet": deltas()}, lambda p, f: write(diffusers(p, adapter="default."), f)),
}


def not_finite() -> dict:
    state = diffusers({"unet": deltas()})
    state[next(iter(state))][0, 0] = float("nan")
    return state


REFUSED = {
    "peft without its config": (
        lambda: diffusers({"unet": deltas()}, lambda _: PEFT),
        "peft's weights without adapter_config.json",
    ),
    "empty": (dict, "holds no tensor at all"),
    "lokr": (
        lambda: {f"unet.{n}.lokr_w{i}": torch.ones(4, 4) for n in ATTENTION for i in (1, 2)},
        "is no plain LoRA, but LoKr",
    ),
    "nan": (not_finite, "not finite in 'unet.down_blocks.0."),
}


@pytest.fixture(scope="module", params=READ)
def case(request, tmp_path_factory):
    """(name, deltas, the LoRA's file, a folder with the model into which it was merged by hand)."""
    parts, writer = READ[request.param]
    folder = tmp_path_factory.mktemp("case")
    file = writer(parts, folder / "lora.safetensors")
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD, safety_checker=None)
    with torch.no_grad():
        for part, some in parts.items():
            for name, d in some.items():
                weight = getattr(pipe, part).get_submodule(name).weight
                whole = merged(weight, d)
                if d.magnitude is not None:
                    whole = whole * (d.magnitude / whole.norm(dim=1))[:, None]
                weight.copy_(whole)
    pipe.save_pretrained(folder / "merged")
    return request.param, parts, file, folder / "merged"


def pictures(out: Path) -> np.ndarray:
    files = sorted(out.glob("image_*.png"))
    return np.stack([np.asarray(Image.open(f)).astype(int) for f in files])


def sample(out: Path, *given: str, check: int = 0):
    ways = ["--config", PRESET, "--num-steps", "4", "--rounds", "1", "--no-score", "--seeds", "0-1"]
    command = [PYTHON, "scripts/sample.py", *ways, "--out", str(out)]
    return run(*command, *given, check=check)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> np.ndarray:
    out = tmp_path_factory.mktemp("base")
    sample(out, "--prompt", PROMPT)
    return pictures(out)


def test_sample_draws_what_the_merged_model_draws_and_exports_all_of_it(case, base, tmp_path):
    name, parts, file, model = case
    given = ["--checkpoint", str(file), "--export", "kohya"]
    said = sample(tmp_path / "lora", "--prompt", PROMPT, *given).stdout
    count = len(parts["unet"])
    assert said.count(f"{count} modules of rank") == 2  # what was taken, and what was written
    assert ("DoRA" in said) == ("dora" in name)
    assert ("text encoders" in said) == ("text_encoder" in parts)
    sample(tmp_path / "merged", "--prompt", PROMPT, f"--config.pretrained.model={model}")
    ours, right = (pictures(tmp_path / n) for n in ("lora", "merged"))
    assert np.abs(ours - right).max() <= 1
    assert np.abs(right - base).max() > 20
    state = load_file(tmp_path / "lora" / "lora_kohya.safetensors")
    for module, d in parts["unet"].items():
        key = kohya_key(module)
        scale = float(state[f"{key}.alpha"]) / d.rank
        written = scale * state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        torch.testing.assert_close(written, d.scale * d.up @ d.down, atol=1e-5, rtol=1e-5)
        if d.magnitude is not None:
            assert torch.equal(state[f"{key}.dora_scale"].flatten(), d.magnitude)
    assert any(k.startswith("lora_te_") for k in state) == ("text_encoder" in parts)


def test_a_run_starts_from_it_or_says_why_not(case, tmp_path):
    name, _, file, model = case
    command = [PYTHON, "scripts/train.py", f"--config={PRESET}"]
    small = [*small_run(tmp_path, stages=1), "--config.checkpoint.every=9"]
    given = [*small, "--config.run_name=lora", f"--config.pretrained.lora={file}"]
    if name in ("dora", "dora_scale", "with a text encoder"):
        said = run(*command, *given, check=2).stderr.strip()
        assert len(said.splitlines()) == 1
        assert ("is a DoRA" in said) or ("of its text_encoder" in said)
        return
    if name != "alpha by module":  # the others: tests of srrl.models.start
        return
    assert "56 modules of rank" in run(*command, *given).stdout
    run(*command, *small, "--config.run_name=merged", f"--config.pretrained.model={model}")
    first = [
        json.loads((tmp_path / n / "eval.jsonl").read_text().splitlines()[0])
        for n in ("lora", "merged")
    ]
    assert first[0]["stage"] == first[1]["stage"] == 0
    np.testing.assert_allclose(first[0]["scores"], first[1]["scores"], atol=2e-2)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_is_one_line(kind, tmp_path):
    state, why = REFUSED[kind]
    file = write(state(), tmp_path / "lora.safetensors")
    evaluate = [PYTHON, "scripts/evaluate.py", "--config", PRESET, "--out", str(tmp_path / "e")]
    start = [PYTHON, "scripts/train.py", f"--config={PRESET}", *small_run(tmp_path)]
    for said in (
        sample(tmp_path / "s", "--prompt", PROMPT, "--checkpoint", str(file), check=2),
        run(*evaluate, "--checkpoints", str(file), check=2),
        run(*start, f"--config.pretrained.lora={file}", check=2),
    ):
        lines = said.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and why in lines[0]
        assert str(file) in lines[0]
    assert not (tmp_path / "run").exists()


def test_evaluate_compares_a_file_with_its_base_as_the_merged_model_would(tmp_path):
    parts = {"unet": deltas(alphas=(1, 2, 4, 8))}
    file = write(kohya(parts), tmp_path / "lora.safetensors")
    model = shutil.copytree(TINY_SD, tmp_path / "merged")
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    with torch.no_grad():
        for name, d in parts["unet"].items():
            weight = pipe.unet.get_submodule(name).weight
            weight.copy_(merged(weight, d))
    pipe.unet.save_pretrained(model / "unet")
    shared = ["--config", PRESET, "--samplers", "plain:steps=4", "--images", "1"]
    shared += ["--num-prompts", "4", "--rewards", "shapes"]
    means = []
    for name, given in (
        ("lora", ["--checkpoints", str(file)]),
        ("merged", [f"--config.pretrained.model={model}"]),
    ):
        out = tmp_path / "out" / name
        run(PYTHON, "scripts/evaluate.py", *shared, "--out", str(out), *given)
        lines = (out / "cells.jsonl").read_text().splitlines()
        means.append([json.loads(line)["scores"]["shapes"] for line in lines])
    np.testing.assert_allclose(means[0], means[1], atol=2e-2)
