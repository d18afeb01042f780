"""What the machine is, and whether a run on it is right: like the CPU's, and resumable."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from rewards.scoring import rewards_of
from srrl.config import REPOSITORY, load_config
from srrl.curriculum import StagePlan
from srrl.measure.bill import GIB
from srrl.measure.job import Job, Row
from srrl.measure.stages import synchronize
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

    def seen() -> Row:
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

    job.measure("machine", seen)
    kinds = (torch.bfloat16, torch.float16, torch.float32) if job.on_gpu else (torch.float32,)
    for kind in kinds:
        job.measure(f"matrix product, {str(kind)[6:]}", lambda kind=kind: product(job, kind))


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


def product(job: Job, kind: torch.dtype) -> Row:
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
        job.measure(preset, lambda preset=preset: against_cpu(job, preset))


def against_cpu(job: Job, preset: str) -> Row:
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


def one_stage(job: Job, preset: str, device: str) -> Row:
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
    batch = trainer.batch(samples, scored, chosen, prompts)
    metrics = trainer.update(plan, batch)
    chosen = batch.log_probs.sum(1).cpu()
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


# ------------------------------------------------------------------ killed and resumed


def resume(job: Job) -> None:
    """A deterministic run of the real command killed after its second stage and resumed, beside two
    left alone."""

    def compare() -> Row:
        runs = {name: begin(job, name) for name in ("whole", "again", "killed")}
        try:
            for line in runs["killed"].stdout:
                if line.startswith("stage 2/"):
                    os.kill(runs["killed"].pid, signal.SIGKILL)
            code = runs["killed"].wait()
            runs["killed"] = begin(job, "killed")
            for process in runs.values():
                finish(process)
        finally:
            for process in runs.values():
                process.kill()
        whole, again, resumed = (run_of(job, name) for name in runs)
        return {
            "killed_by": -code,
            "resumed_difference": relative(resumed[0], whole[0]),
            "resumed_logs_equal": resumed[1] == whole[1],
            "two_runs_difference": relative(again[0], whole[0]),
        }

    job.measure("killed and resumed", compare)


def begin(job: Job, name: str) -> subprocess.Popen:
    """Start, or resume, a run of the real command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    if not job.on_gpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        [
            sys.executable,
            "scripts/train.py",
            *SMALL,
            f"--config.output_dir={job.folder}",
            f"--config.run_name={name}",
            "--config.deterministic=true",
        ],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen) -> None:
    """Wait for a command. Raises RuntimeError with its last lines if it fails."""
    output, _ = process.communicate()
    if process.returncode:
        print(output)
        tail = " | ".join(output.strip().splitlines()[-3:])
        raise RuntimeError(f"train.py ended with {process.returncode}: {tail}")


def run_of(job: Job, name: str) -> tuple[Tensor, list[dict]]:
    """A run's last weights, flat, and its metrics without times."""
    folder = job.folder / name
    weights = load_file(folder / "checkpoints" / f"stage_{STAGES:04d}" / LORA_FILE)
    flat = torch.cat([t.double().flatten() for _, t in sorted(weights.items())])
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return flat, [{k: v for k, v in x.items() if not k.startswith("seconds/")} for x in lines]
