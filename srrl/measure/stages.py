"""Whole stages at full size with random weights: time, memory and ratio, beside the bill."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict

from rewards import Reward
from rewards.scoring import Scorer, rewards_of
from srrl.budget import stage_cost
from srrl.config import load_config
from srrl.curriculum import StagePlan
from srrl.measure.bill import GIB, Bill
from srrl.measure.biller import Biller
from srrl.measure.cards import Card, card_of
from srrl.measure.job import Job
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.stages import PHASES
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer

SHAPES = "config/prompts/shapes_unconventional"
ROUNDS, TRAINED = 2, 5  # K and m of the measured stage
NAMES = {"no": "float32", "fp16": "fp16", "bf16": "bf16"}


def stage_config(job: Job, preset: str, *overrides: str) -> ConfigDict:
    """A preset as it is, but for one small stage of which every trajectory is trained once."""
    flags = [
        "--config.tracker=none",
        "--config.select.mode=all",
        "--config.stages.total=1",
        f"--config.reflect.rounds={ROUNDS}",
        f"--config.interval.steps={TRAINED}",
        "--config.train.num_inner_epochs=1",
        f"--config.output_dir={job.folder}",
        f"--config.prompts.train={SHAPES}_train.json",
        f"--config.prompts.heldout={SHAPES}_heldout.json",
    ]
    if job.tiny:
        preset = {"sd14": "tiny", "sdxl": "tiny_xl"}[preset]
        flags += ["--config.sample.batch_size=4", "--config.train.micro_batch=8"]
    else:
        options = '{"vqascore": {"model": "random"}, "imagereward": {"model": "random"}}'
        prompts = {"sd14": 8, "sdxl": 4}[preset]
        flags += [
            f"--config.pretrained.model=random:{preset}",
            f"--config.reward.options={options}",
            f"--config.sample.num_batches_per_stage={prompts}",
        ]
    return load_config([f"--config=config/stage_process.py:{preset}", *flags, *overrides])


class Metered(Trainer):
    """A trainer that keeps each phase's highest memory, and scores where it can be seen."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.scorer = Scorer(self.rewards, background=False)
        self.memory = dict.fromkeys(PHASES, 0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        on_gpu = self.policy.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with super().timed(phase):
            yield
        if on_gpu:
            self.memory[phase] = max(self.memory[phase], torch.cuda.max_memory_allocated())


def card(device: torch.device) -> Card | None:
    if device.type != "cuda":
        return None
    seen = torch.cuda.get_device_properties(device)
    return card_of(seen.name, seen.total_memory / GIB)


def measure_stage(
    job: Job,
    config: ConfigDict,
    rewards: dict[str, Reward] | None = None,
    change: Callable[[Policy], None] | None = None,
    bill: Bill | None = None,
) -> dict[str, Any]:
    """Run a stage twice and say what the second one took, by phase, and what the bill says.

    rewards and bill: those of the config, where they are made already; `change` is done to the
    policy before it runs.
    """
    accelerator = Accelerator(cpu=not job.on_gpu)
    start = time.monotonic()
    policy = Policy.from_config(config, device=accelerator.device)
    make_trainable(policy.network, config)
    if change:
        change(policy)
    rewards = rewards or rewards_of(config, accelerator.device)
    tracker = Tracker(job.folder / "run", accelerator)
    trainer = Metered(config, policy, rewards, accelerator, tracker)
    loaded = time.monotonic() - start
    trainer.encode_ahead(0)
    plan = StagePlan(0, ROUNDS, TRAINED)
    start = time.monotonic()
    metrics = trainer.follow(plan).metrics
    first = time.monotonic() - start
    first_ratio = metrics["ratio/first_max_dev"]
    trainer.seconds = dict.fromkeys(PHASES, 0.0)
    trainer.memory = dict.fromkeys(PHASES, 0)
    metrics = trainer.follow(plan).metrics
    bill, seen = bill or Biller(config, job.on_gpu, scored_beside=False).bill(), card(policy.device)
    images = stage_cost(config, plan).images
    phases = {}
    for phase in PHASES:
        seconds, counted = trainer.seconds[phase], bill.stages[0][phase]
        rate = sum(counted.flops.values()) / 1e12 / seconds if seconds else 0.0
        phases[phase] = {
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 3) if seconds else None,
            "tflops": round(rate, 2),
            "mfu": round(rate / peak_rate(seen, counted.flops), 4) if seen and rate else None,
            "peak_gib": round(trainer.memory[phase] / GIB, 3) or None,
            "planned_gib": round(bill.phases[phase].peak / GIB, 3),
        }
    return {
        "model": config.pretrained.model,
        "precision": config.mixed_precision if job.on_gpu else "no",
        "images": images,
        "selected": metrics["selected"],
        "ratio_first_max_dev": max(first_ratio, metrics["ratio/first_max_dev"]),
        "loading_seconds": round(loaded, 1),
        "first_stage_seconds": round(first, 2),
        "phases": phases,
    }


def peak_rate(seen: Card, flops: dict[str, int]) -> float:
    """The card's rate in TFLOP/s for operations of these precisions."""
    total = sum(flops.values())
    return total / sum(n / {"half": seen.half, "single": seen.single}[k] for k, n in flops.items())


# ------------------------------------------------------------------ the parts


def sd14(job: Job) -> None:
    model(job, "sd14", 1)
    job.measure("every weight, 8-bit Adam", 20, lambda: with_8bit_adam(job))


def sdxl(job: Job) -> None:
    model(job, "sdxl", 3)


def model(job: Job, preset: str, slow: int) -> None:
    """Both precisions as the preset is, then the first with one thing changed at a time.

    slow: how much longer it takes than SD v1.4.
    """
    kinds = ("bf16", "fp16") if job.on_gpu else ("no",)
    made: dict[str, Any] = {}

    def measured(name: str, seconds: int, *overrides: str, change=None, same_bill=False) -> None:
        def run() -> dict[str, Any]:
            config = stage_config(job, preset, f"--config.mixed_precision={kinds[0]}", *overrides)
            if "rewards" not in made:
                made["rewards"] = rewards_of(config, job.device)
            if not same_bill:
                made["bill"] = Biller(config, job.on_gpu, scored_beside=False).bill()
            return measure_stage(job, config, made["rewards"], change, made["bill"])

        job.measure(name, seconds * slow, run)

    at_once = {"sd14": 8, "sdxl": 4}[preset]
    measured(f"{NAMES[kinds[0]]}, as the preset is", 15)
    measured("without channels_last", 10, change=contiguous, same_bill=True)
    measured("gradient checkpointing", 12, "--config.train.gradient_checkpointing=true")
    measured(
        f"{at_once} prompts at once",
        12,
        f"--config.sample.batch_size={at_once}",
        "--config.sample.num_batches_per_stage=1",
    )
    if len(kinds) > 1:
        measured(f"{NAMES[kinds[1]]}, as the preset is", 15, f"--config.mixed_precision={kinds[1]}")


def compiled(job: Job) -> None:
    """The UNet's repeated blocks through torch.compile, which takes its time first."""
    for preset in ("sd14", "sdxl"):
        config = stage_config(
            job,
            preset,
            f"--config.mixed_precision={'bf16' if job.on_gpu else 'no'}",
            '--config.reward.models={"shapes": 1}',
            "--config.reward.options={}",
        )
        run = partial(measure_stage, job, config, change=compile_blocks)
        job.measure(f"{preset}, compiled blocks", 60, run)


def compile_blocks(policy: Policy) -> None:
    policy.pipe.unet.compile_repeated_blocks()


def with_8bit_adam(job: Job) -> dict[str, Any]:
    if find_spec("bitsandbytes") is None:
        return {"skipped": "the package bitsandbytes is not there"}
    config = stage_config(
        job,
        "sd14",
        "--config.use_lora=false",
        "--config.train.use_8bit_adam=true",
        f"--config.mixed_precision={'bf16' if job.on_gpu else 'no'}",
    )
    return measure_stage(job, config)


def contiguous(policy: Policy) -> None:
    for module in (policy.pipe.unet, policy.pipe.vae):
        module.to(memory_format=torch.contiguous_format)


def rewards(job: Job) -> None:
    """The default rewards at full size, one at a time: pictures a second and memory."""
    for name in ("vqascore", "imagereward") if not job.tiny else ("imagereward",):
        job.measure(name, 25, lambda name=name: score_alone(job, name))


def score_alone(job: Job, name: str) -> dict[str, Any]:
    config = stage_config(
        job,
        "sd14",
        f'--config.reward.models={{"{name}": 1.0}}',
        f'--config.reward.options={{"{name}": {{"model": "random"}}}}',
    )
    reward = rewards_of(config, job.device)[name]
    side, n = (512, 32) if job.on_gpu else (64, 2)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    prompts = ["a red circle left of a blue square"] * n
    reward.score(images, prompts)
    synchronize(job.device)
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    scores = reward.score(images, prompts)
    synchronize(job.device)
    seconds = time.monotonic() - start
    counted = Biller(config, job.on_gpu).imagined.score(name, min(n, reward.batch_size))
    weights = sum(p.numel() * p.element_size() for p in reward.network.parameters())
    tflops = counted.flops / min(n, reward.batch_size) * n / seconds / 1e12
    return {
        "pictures_per_second": round(n / seconds, 2),
        "tflops": round(tflops, 2),
        "finite": bool(torch.isfinite(scores).all()),
        "distinct_scores": len(set(scores.tolist())),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if job.on_gpu else None,
        "planned_gib": round((weights + counted.peak) / GIB, 3),
    }


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
