"""The real commands on small budgets: train, kill, resume, sample, bench, pretrain."""

import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from srrl.models.weights import LORA_FILE
from srrl.run.image_statistics import MEASURES
from srrl.shapes.pipeline import TINY_SD
from tests.conftest import PRESET, PROMPTS, small_run
from tests.slow.commands import flat, logged, lora, run

pytestmark = pytest.mark.slow
STAGES = 3


def train(folder: Path, *extra: str) -> list[str]:
    return ["scripts/train.py", PRESET, *small_run(folder, STAGES), *extra]


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


def final_lora(folder: Path) -> dict[str, torch.Tensor]:
    return lora(folder / "run", STAGES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A whole small run by `bash train.sh`."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run("bash", "train.sh", *small_run(folder, STAGES), "--config.report=true")
    assert "no GPU found" in result.stdout or torch.cuda.is_available()
    assert "ETA" in result.stdout and "plan:" not in result.stdout  # as small_run asks
    (folder / "said.txt").write_text(result.stdout)
    return folder


def test_a_run_leaves_everything_the_readme_promises(undisturbed):
    folder = undisturbed / "run"
    keys = {
        "stage",
        "rounds",
        "trained_steps",
        "samples_total",
        "nfe_total",
        "selected",
        "updates",
        "reward/shapes/mean",
        "reward/shapes/std",
        "reward/shapes/tied",
        "advantage/std",
        "ratio/first_max_dev",
        "ratio/max_dev",
        "clip_fraction",
        "loss",
        "grad_norm",
        "lr",
    }
    metrics = logged(folder, "metrics.jsonl")
    assert [line["stage"] for line in metrics] == list(range(1, STAGES + 1))
    assert [line["rounds"] for line in metrics] == [1, 2, 3]
    assert all(set(line) == keys for line in metrics)
    assert all(line["ratio/first_max_dev"] <= 1e-5 for line in metrics)
    evals = logged(folder, "eval.jsonl")
    assert [(e["stage"], e["split"]) for e in evals] == [
        (s, split) for s in range(STAGES + 1) for split in ("train", "heldout")
    ]
    assert all(len(e["scores"]) == e["n"] == 3 for e in evals)
    assert all(set(e["pictures"]) == set(MEASURES) for e in evals)
    assert json.loads((folder / "config.json").read_text())["stages.total"] == STAGES
    (made,) = json.loads((folder / "environment.json").read_text())
    typed = ["bash", "train.sh", *small_run(undisturbed, STAGES), "--config.report=true"]
    last = (undisturbed / "said.txt").read_text().splitlines()[-1]
    assert last == f"open {folder / 'report.html'}: all of it on one page"
    assert "<title>" in (folder / "report.html").read_text()
    assert shlex.split(made["command"]) == typed and made["processes"] == 1
    assert made["torch"] == torch.__version__ and made["config"]["stages.total"] == STAGES
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True)
    assert made["commit"] == (head.stdout.decode().strip() or None)
    for picture in ("curves.png", "samples/stage_0001.png", f"samples/stage_{STAGES:04d}.png"):
        assert Image.open(folder / picture).width > 300
    assert final_lora(undisturbed)


def test_the_same_command_twice_gives_the_same_logs_and_weights(undisturbed, tmp_path):
    run(sys.executable, *train(tmp_path))
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert logged(tmp_path / "run", name) == logged(undisturbed / "run", name)
    files = [
        f / "run" / "checkpoints" / f"stage_{STAGES:04d}" / LORA_FILE
        for f in (tmp_path, undisturbed)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_is_not_touched_again(undisturbed):
    before = (undisturbed / "run" / "metrics.jsonl").read_bytes()
    run(sys.executable, *train(undisturbed))
    assert (undisturbed / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("where", "count"), [("sample", 2), ("update", 1), ("update", 4), ("save", 1), ("save", 3)]
)
def test_killed_and_resumed_ends_like_a_run_never_killed(undisturbed, tmp_path, where, count):
    command = train(tmp_path)
    killed = run(sys.executable, "tests/slow/kill_at.py", where, count, *command[1:], check=None)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    run(sys.executable, *command)
    for name in ("metrics.jsonl", "eval.jsonl"):
        assert logged(tmp_path / "run", name) == logged(undisturbed / "run", name)
    one, other = final_lora(tmp_path), final_lora(undisturbed)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_another_batch_size_gives_the_same_training(undisturbed, tmp_path):
    """[speed] keys change nothing but rounding: the same prompts, selected and trained alike."""
    split = [
        "--config.sample.batch_size=1",
        "--config.sample.num_batches_per_stage=3",
        "--config.sample.micro_batch=4",
        "--config.train.micro_batch=5",
    ]
    run(sys.executable, *train(tmp_path, *split))
    ours, theirs = (logged(f / "run", "metrics.jsonl") for f in (tmp_path, undisturbed))
    for one, other in zip(ours, theirs, strict=True):
        assert one["samples_total"] == other["samples_total"]
        assert one["reward/shapes/mean"] == pytest.approx(other["reward/shapes/mean"], abs=5e-3)
    assert ours[0]["selected"] == theirs[0]["selected"]
    one, other = (flat(final_lora(f)) for f in (tmp_path, undisturbed))
    assert (one - other).norm() <= 0.05 * other.norm()  # Adam turns rounding into small steps


def test_sample_draws_strips_and_plain_diffusers_draws_the_same(undisturbed, tmp_path):
    run(
        sys.executable,
        "scripts/sample.py",
        "--checkpoint",
        undisturbed / "run",
        "--prompts",
        *PROMPTS[:2],
        "--seeds",
        3,
        8,
        "--rounds",
        3,
        "--out",
        tmp_path / "rounds",
    )
    records = json.loads((tmp_path / "rounds" / "samples.json").read_text())
    assert len(records) == 4 and all(len(r["scores"]) == 3 for r in records)
    assert Image.open(tmp_path / "rounds" / "strip_003.png").width > 3 * 128
    assert Image.open(tmp_path / "rounds" / "grid.png").width > 2 * 128

    run(
        sys.executable,
        "scripts/sample.py",
        "--checkpoint",
        undisturbed / "run",
        "--prompts",
        PROMPTS[0],
        "--seeds",
        3,
        "--rounds",
        1,
        "--eta",
        0,
        "--out",
        tmp_path / "plain",
    )
    ours = Image.open(tmp_path / "plain" / "image_000.png")
    pipe = StableDiffusionPipeline.from_pretrained(TINY_SD, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.load_lora_weights(
        undisturbed / "run" / "checkpoints" / f"stage_{STAGES:04d}", weight_name=LORA_FILE
    )
    theirs = pipe(
        PROMPTS[0],
        num_inference_steps=5,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    difference = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
    assert max(difference) <= 1


def test_the_best_stage_is_named_at_the_end_and_kept(undisturbed, tmp_path):
    means = {e["stage"]: e["mean"] for e in logged(undisturbed / "run", "eval.jsonl")[1::2]}
    assert [*means] == [*range(STAGES + 1)]  # of heldout, every stage
    first = max(means, key=means.get)
    said = (undisturbed / "said.txt").read_text()
    named = f"best on heldout prompts, K 1: {means[first]:.3f} after {first} stages"
    assert f"{named}: --checkpoint {undisturbed / 'run'}:best\n" in said
    kept = {p.name for p in (undisturbed / "run" / "checkpoints").iterdir()}
    assert kept == {f"stage_{n:04d}" for n in means}
    for name in ("best", str(first)):
        drawn = ["--checkpoint", f"{undisturbed / 'run'}:{name}", "--prompt", PROMPTS[0]]
        run(sys.executable, "scripts/sample.py", *drawn, "--out", tmp_path / name)
    one, other = ((tmp_path / n / "image_000.png").read_bytes() for n in ("best", str(first)))
    assert pixels(one) == pixels(other)


def test_sampling_in_batches_with_all_its_options(undisturbed, tmp_path):
    checkpoint = undisturbed / "run" / "checkpoints" / f"stage_{STAGES:04d}"
    sample = [sys.executable, "scripts/sample.py", "--out", tmp_path / "out"]
    prompts = tmp_path / "my prompts.txt"
    prompts.write_text(f"{PROMPTS[0]}\n\n{PROMPTS[1]}\n")
    run(
        *sample,
        "--checkpoint",
        checkpoint,
        "--prompts-file",
        prompts,
        "--seeds",
        "0-2",
        7,
        "--batch-size",
        3,
    )
    first = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert len([name for name in first if name.startswith("image_")]) == 8
    picture = Image.open(tmp_path / "out" / "image_007.png")
    told = {k: picture.text[k] for k in ("prompt", "seed", "rounds", "checkpoint")}
    assert told == {"prompt": PROMPTS[1], "seed": "7", "rounds": "2", "checkpoint": str(checkpoint)}

    lone = tmp_path / "lone.safetensors"
    shutil.copy(checkpoint / LORA_FILE, lone)
    preset = "config/stage_process.py:tiny"
    run(
        *sample,
        "--checkpoint",
        lone,
        "--config",
        preset,
        "--prompt",
        PROMPTS[0],
        "--seeds",
        "0-2",
        "--negative-prompt",
        "",
        "--num-steps",  # the run's
        5,
        "--no-score",
    )
    again = {p.name for p in (tmp_path / "out").iterdir()}
    assert len([name for name in again if name.startswith("image_")]) == 3  # the old ones are gone
    for name in ("image_000.png", "image_002.png"):  # the LoRA by itself, and another batch size
        ours, before = (
            np.asarray(Image.open(io.BytesIO(data)), np.int16)
            for data in ((tmp_path / "out" / name).read_bytes(), first[name])
        )
        assert abs(ours - before).max() <= 1
    refused = run(*sample, "--checkpoint", lone, "--prompt", "x", check=2)
    assert "give its model by --config" in refused.stderr
    run(
        *sample,
        "--checkpoint",
        checkpoint,
        "--prompt",
        PROMPTS[0],
        "--seeds",
        0,
        "--negative-prompt",
        "a red circle",
    )
    assert (tmp_path / "out" / "image_000.png").read_bytes() != first["image_000.png"]


def test_many_samples_come_in_pages_of_a_size_that_viewers_open(undisturbed, tmp_path):
    said = run(
        sys.executable,
        "scripts/sample.py",
        "--checkpoint",
        undisturbed / "run",
        "--seeds",
        "0-31",
        "--prompt",
        *PROMPTS * 2,
        "--rounds",
        1,
        "--num-steps",
        1,
        "--no-score",
        "--batch-size",
        64,
        "--out",
        tmp_path,
    ).stdout
    lines = said.splitlines()
    assert lines[0].startswith("256 samples: 8 prompts x 32 seeds") and "256/256" in said
    pages = [Image.open(p).size for p in sorted(tmp_path.glob("grid_*.png"))]
    assert len(pages) == 2 and max(max(size) for size in pages) < 3000


def test_bench_times_every_phase(tmp_path):
    run(
        sys.executable,
        "scripts/bench.py",
        "--model",
        "tiny",
        "--json",
        tmp_path / "bench.json",
        "--repeats",
        2,
        "--batch-sizes",
        8,
        16,
        "--config.sample.batch_size=4",
    )
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert all(figures["overhead"][phase] > 0 for phase in ("reflect", "sample", "update"))
    assert all(figures["seconds"].values())


def test_the_committed_base_needs_guidance_and_gains_from_reflection(tmp_path):
    """One image of 80 prompts to stay short; docs/LOG.md has the intervals at n = 576."""
    run(
        sys.executable,
        "scripts/evaluate.py",
        "--images",
        1,
        "--num-prompts",
        40,
        "--rounds",
        1,
        3,
        "--guidance",
        1,
        "--out",
        tmp_path,
    )
    means: dict[str, float] = {}
    for line in json.loads((tmp_path / "table.json").read_text()):
        means[line["sampler"]] = means.get(line["sampler"], 0.0) + line["n"] * line["mean"] / 80
    assert means["plain"] - means["plain:guidance=1"] >= 0.15
    assert means["reflect:rounds=3"] > means["plain"]


@pytest.mark.parametrize(
    ("model", "flags", "file"),
    [
        (
            "editor",
            "--steps 3 --lessons 150 --drawn 48 --failed 8",
            "unet/diffusion_pytorch_model.safetensors",
        ),
        (
            "actor",
            "--tower-steps 2 --vlm-steps 2 --polish-steps 2 --acting-steps 2 --drawn 16 --exam 8",
            "model.safetensors",
        ),
    ],
)
def test_pretraining_of_rl_rigs_parts_gives_the_same_twice(model, flags, file, tmp_path):
    for name in ("one", "two"):
        command = [sys.executable, "scripts/pretrain_tiny.py", model, *flags.split()]
        said = run(*command, "--out", tmp_path / name).stdout
        assert f"wrote {tmp_path / name}" in said
    one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("model", ["sd", "sdxl"])
def test_pretraining_runs_from_nothing_and_writes_a_loadable_pipeline(model, tmp_path):
    """A few steps; the whole 15 minutes are in docs/LOG.md."""
    command = [
        sys.executable,
        "scripts/pretrain_tiny.py",
        model,
        "--vae-steps",
        4,
        "--unet-steps",
        4,
        "--latents",
        500,
    ]
    for name in ("one", "two"):
        run(*command, "--out", tmp_path / name)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "one", torch_dtype=torch.float32)
    assert pipe(PROMPTS[0], num_inference_steps=2).images[0].size == (32, 32)
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        assert all(torch.equal(one[k], two[k]) for k in one)
