"""Is a run on this machine right: like the CPU's, resumable, the same in several processes?"""

import json
import os
import platform
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from rewards.scoring import Scorer, rewards_of
from srrl.config import REPOSITORY, load_config
from srrl.curriculum import StagePlan
from srrl.measure.bill import GIB
from srrl.measure.job import Job
from srrl.measure.stages import stage_config, synchronize
from srrl.models.policy import Policy
from srrl.models.weights import LORA_FILE, make_trainable
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer

STAGES = 3
SMALL = [
    "--config=config/stage_process.py:tiny",
    f"--config.stages.total={STAGES}",
    "--config.stages.per_cycle=1",
    "--config.sample.batch_size=4",
    "--config.eval.num_prompts=4",
    "--config.eval.seeds=1",
    "--config.select.pos_threshold=0.1",
    "--config.select.neg_threshold=-0.1",
]


def machine(job: Job) -> None:
    """What it is, how its versions differ from the pins, and how fast a matrix product runs."""

    def seen() -> dict[str, Any]:
        row = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cores": os.cpu_count(),
            "differs_from_pins": differing(),
        }
        if job.on_gpu:
            card = torch.cuda.get_device_properties(0)
            row |= {
                "gpu": card.name,
                "gpus": torch.cuda.device_count(),
                "memory_gib": round(card.total_memory / GIB, 1),
                "bf16": torch.cuda.is_bf16_supported(),
                "tf32": torch.backends.cuda.matmul.allow_tf32,
            }
        return row

    job.measure("machine", 1, seen)
    kinds = (torch.bfloat16, torch.float16, torch.float32) if job.on_gpu else (torch.float32,)
    for kind in kinds:
        job.measure(f"matrix product, {str(kind)[6:]}", 3, lambda kind=kind: product(job, kind))


def differing() -> dict[str, str]:
    """Packages whose version is not the pinned one: "installed (pinned)"."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in project["dependencies"]:
        name, _, pinned = requirement.partition("==")
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "missing"
        if installed.split("+")[0] != pinned:
            found[name] = f"{installed} ({pinned})"
    return found


def product(job: Job, kind: torch.dtype) -> dict[str, Any]:
    n, times = (8192, 20) if job.on_gpu else (512, 4)
    a, b = (torch.randn(n, n, device=job.device).to(kind) for _ in range(2))
    a @ b
    synchronize(job.device)
    start = time.monotonic()
    for _ in range(times):
        a @ b
    synchronize(job.device)
    return {"tflops": round(2 * n**3 * times / (time.monotonic() - start) / 1e12, 2)}


# ------------------------------------------------------------------ like the CPU


def parity(job: Job) -> None:
    """The embedded models in float32: a stage on this device against the CPU's."""
    for preset in ("tiny", "tiny_xl"):
        job.measure(preset, 30, lambda preset=preset: against_cpu(job, preset))


def against_cpu(job: Job, preset: str) -> dict[str, Any]:
    ours, theirs = (one_stage(job, preset, device) for device in (job.device, "cpu"))
    levels = (ours["images"].int() - theirs["images"].int()).abs()
    return {
        "same_selection": ours["selected"] == theirs["selected"],
        "selected": len(ours["selected"]),
        "score_max_difference": (ours["scores"] - theirs["scores"]).abs().max().item(),
        "pixel_max_difference": levels.max().item(),
        "pixels_within_one_level": (levels <= 1).float().mean().item(),
        "update_difference": relative(ours["lora"], theirs["lora"]),
        "ratio_first_max_dev": ours["ratio"],
    }


def one_stage(job: Job, preset: str, device: str) -> dict[str, Any]:
    """What the stage drew, scored, selected and learned, on the CPU.

    Adam's epsilon is large, so that the update is in proportion to the gradient and not to its
    sign where that is rounding.
    """
    config = load_config(
        [
            f"--config=config/stage_process.py:{preset}",
            "--config.sample.batch_size=12",
            "--config.select.pos_threshold=0.1",
            "--config.select.neg_threshold=-0.1",
            "--config.train.adam_epsilon=0.01",
            f"--config.output_dir={job.folder}",
            "--config.allow_tf32=false",
        ]
    )
    policy = Policy.from_config(config, device=device)
    make_trainable(policy.network, config)
    before = flat_parameters(policy)
    accelerator = Accelerator(cpu=not job.on_gpu)
    tracker = Tracker(job.folder / "parity", accelerator)
    trainer = Trainer(config, policy, rewards_of(config, device), accelerator, tracker)
    plan = StagePlan(0, 2, 6)
    prompts = trainer.draw_prompts(plan)
    samples = trainer.sample(plan, prompts)
    scored = trainer.score(plan, samples, prompts)
    chosen = trainer.select(plan, scored, prompts)
    selection = trainer.selection(samples, scored, chosen, prompts)
    metrics = trainer.learner.update(plan, selection)
    chosen = selection.log_probs.sum(1).cpu()
    taken = samples.log_probs.sum(1).cpu()
    return {
        "images": samples.images.cpu(),
        "scores": scored.scores["shapes"],
        "selected": [(taken - value).abs().argmin().item() for value in chosen],
        "lora": flat_parameters(policy) - before,
        "ratio": metrics["ratio/first_max_dev"],
    }


def flat_parameters(policy: Policy) -> Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in policy.trainable()])


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


# ------------------------------------------------------------------ scoring beside sampling


def scoring(job: Job) -> None:
    """A stage of SD v1.4 scored while the next batch is sampled, and one scored in turn."""

    def compare() -> dict[str, Any]:
        kind = "bf16" if job.on_gpu else "no"
        config = stage_config(job, "sd14", f"--config.mixed_precision={kind}")
        accelerator = Accelerator(cpu=not job.on_gpu)
        policy = Policy.from_config(config, device=accelerator.device)
        make_trainable(policy.network, config)
        rewards = rewards_of(config, accelerator.device)
        trainer = Trainer(config, policy, rewards, accelerator, Tracker(job.folder, accelerator))
        plan, seconds, scores = StagePlan(0, 1, 1), {}, {}
        for name, background in (("warm-up", False), ("in turn", False), ("beside", True)):
            trainer.scorer = Scorer(rewards, background)
            prompts = trainer.draw_prompts(plan)
            synchronize(job.device)
            start = time.monotonic()
            samples = trainer.sample(plan, prompts)
            scores[name] = trainer.score(plan, samples, prompts).scores
            synchronize(job.device)
            seconds[name] = round(time.monotonic() - start, 3)
        same = all(torch.equal(scores["in turn"][k], scores["beside"][k]) for k in rewards)
        del seconds["warm-up"]
        return {"seconds": seconds, "same_scores": same}

    job.measure("own stream against in turn", 45, compare)


# ------------------------------------------------------------------ whole runs


def resume(job: Job) -> None:
    """A run of the real command killed after its second stage and resumed, and one left alone."""

    def compare() -> dict[str, Any]:
        def flags(name: str) -> list[str]:
            return [*SMALL, f"--config.output_dir={job.folder}", f"--config.run_name={name}"]

        command = [sys.executable, "scripts/train.py"]
        finish(job, [*command, *flags("whole")])
        finish(job, [*command, *flags("again")])
        killed = begin(job, [*command, *flags("killed")])
        for line in killed.stdout:
            if line.startswith("stage 2/"):
                os.kill(killed.pid, signal.SIGKILL)
        code = killed.wait()
        finish(job, [*command, *flags("killed")])
        whole, again, resumed = (run_of(job, n) for n in ("whole", "again", "killed"))
        return {
            "killed_by": -code,
            "resumed_difference": relative(resumed[0], whole[0]),
            "resumed_logs_equal": resumed[1] == whole[1],
            "two_runs_difference": relative(again[0], whole[0]),
        }

    job.measure("killed and resumed", 75, compare)


def processes(job: Job) -> None:
    """Two processes against one, with a LoRA and with the UNet sharded."""
    if job.on_gpu and torch.cuda.device_count() < 2:
        job.write("two processes", {"skipped": "one GPU"})
        job.write("FSDP", {"skipped": "one GPU"})
        return
    launcher = [sys.executable, "scripts/launch.py", "tiny", "tiny"]
    two = ["--", "--num_processes", "2"]
    sharded = ["--", "--config_file", "config/accelerate/fsdp.yaml", "--num_processes", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    unet = [
        "--config.use_lora=false",
        "--config.train.adam_epsilon=0.01",
        "--config.checkpoint.keep_every=1",
    ]

    def compare(name: str, several: list[str], *flags: str) -> dict[str, Any]:
        def of(run: str) -> list[str]:
            folder = [f"--config.output_dir={job.folder}", f"--config.run_name={name}_{run}"]
            return [*SMALL, "--config.stages.total=1", *folder, *flags]

        finish(job, [sys.executable, "scripts/train.py", *of("one")])
        split = several.index("--") if "--" in several else len(several)
        finish(job, [*several[:split], *of("two"), *several[split:]])
        one, other = (run_of(job, f"{name}_{run}", 1) for run in ("one", "two"))
        return {"weights_difference": relative(other[0], one[0])}

    job.measure("two processes", 60, lambda: compare("lora", [*launcher, *two]))
    shards = [*launcher, *sharded] if job.on_gpu else [*torchrun, "tests/slow/sharded.py"]
    job.measure("FSDP", 60, lambda: compare("fsdp", shards, *unet))


def begin(job: Job, command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    if not job.on_gpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(job: Job, command: list[str]) -> None:
    """Run a command to its end. Raises RuntimeError with its last lines if it fails."""
    process = begin(job, command)
    output, _ = process.communicate()
    if process.returncode:
        tail = " | ".join(output.strip().splitlines()[-3:])
        raise RuntimeError(f"{' '.join(command[1:3])} ended with {process.returncode}: {tail}")


def run_of(job: Job, name: str, stage: int = STAGES) -> tuple[Tensor, list[dict]]:
    """A run's last weights, flat, and its metrics without times."""
    folder = job.folder / name
    weights: Path = folder / "checkpoints" / f"stage_{stage:04d}" / LORA_FILE
    if not weights.exists():
        weights = weights.parent / "unet" / "diffusion_pytorch_model.safetensors"
    flat = torch.cat([t.double().flatten() for _, t in sorted(load_file(weights).items())])
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return flat, [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]
