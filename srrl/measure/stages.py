"""Whole stages at full size with random weights: time, memory and ratio, by phase."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from rewards import Reward
from rewards.scoring import Scorer, rewards_of
from srrl.budget import stage_calls, stage_cost
from srrl.config import load_config
from srrl.curriculum import StagePlan
from srrl.measure.bill import GIB
from srrl.measure.job import Job, Row
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer

SHAPES = "config/prompts/shapes_unconventional"
WARM_UP = StagePlan(0, 1, 1)  # every shape of the measured stage, each few times
MEASURED = StagePlan(0, 2, 2)  # K = 2 rounds, m = 2 trained steps
NO_REWARDS = ['--config.reward.models={"shapes": 1}', "--config.reward.options={}"]
ONE_AT_A_TIME = ["--config.sample.batch_size=1", "--config.sample.num_batches_per_stage=2"]


def stage_flags(job: Job, preset: str, *overrides: str) -> list[str]:
    """A preset as it is, but for one stage of one batch, of which every trajectory is trained."""
    tiny = {"sd14": "tiny", "sdxl": "tiny_xl"}[preset]
    flags = [
        f"--config=config/stage_process.py:{tiny if job.tiny else preset}",
        "--config.tracker=none",
        "--config.select.mode=all",
        "--config.stages.total=1",
        "--config.eval.every=0",
        f"--config.reflect.rounds={MEASURED.rounds}",
        f"--config.interval.steps={MEASURED.trained_steps}",
        "--config.train.num_inner_epochs=1",
        f"--config.prompts.train={SHAPES}_train.json",
        f"--config.prompts.heldout={SHAPES}_heldout.json",
        "--config.sample.num_batches_per_stage=1",
        f"--config.mixed_precision={job.half}",
    ]
    if job.tiny:
        flags += ["--config.sample.batch_size=4", "--config.train.micro_batch=8"]
    else:
        options = '{"vqascore": {"model": "random"}, "imagereward": {"model": "random"}}'
        flags += [
            f"--config.pretrained.model=random:{preset}",
            f"--config.reward.options={options}",
        ]
    return [*flags, *overrides]


class Metered(Trainer):
    """A trainer that keeps each phase's highest memory, and scores where it can be seen."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.scorer = Scorer(self.rewards, background=False)
        self.memory = dict.fromkeys(Trainer.phases, 0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        on_gpu = self.policy.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with super().timed(phase):
            yield
        if on_gpu:
            self.memory[phase] = max(self.memory[phase], torch.cuda.max_memory_allocated())


def trainer_of(
    job: Job,
    flags: list[str],
    rewards: dict[str, Reward] | None = None,
    change: Callable[[Policy], None] | None = None,
) -> Metered:
    """rewards: those of the config, where they are made already; `change` is done to the policy."""
    config = load_config([*flags, f"--config.output_dir={job.folder}"])
    accelerator = Accelerator(cpu=not job.on_gpu)
    policy = Policy.from_config(config, device=accelerator.device)
    make_trainable(policy.network, config)
    if change:
        change(policy)
    rewards = rewards or rewards_of(config, accelerator.device)
    tracker = Tracker(job.folder / "run", accelerator)
    return Metered(config, policy, rewards, accelerator, tracker)


def measure_stage(
    job: Job,
    flags: list[str],
    rewards: dict[str, Reward] | None = None,
    change: Callable[[Policy], None] | None = None,
) -> Iterator[Row]:
    """A row for each phase of a stage after a short one, and one for the whole. Where the stage
    fails, the rows of the phases before it. `flags` in the last tell page.py what was run."""
    start = time.monotonic()
    trainer = trainer_of(job, flags, rewards, change)
    trainer.prepare(0)
    loaded = time.monotonic()
    ratio = trainer.train(WARM_UP).metrics["ratio/first_max_dev"]
    warm = time.monotonic()
    trainer.seconds = dict.fromkeys(Trainer.phases, 0.0)
    trainer.memory = dict.fromkeys(Trainer.phases, 0)
    config, metrics = trainer.config, None
    try:
        metrics = trainer.train(MEASURED).metrics
    finally:
        images, calls = stage_cost(config, MEASURED).images, dict.fromkeys(Trainer.phases, 0)
        for x in stage_calls(config, MEASURED):
            calls[x.phase] += x.network_calls(config.sample.micro_batch)
        calls["update"] = -(-images * MEASURED.trained_steps // config.train.micro_batch)
        for phase in Trainer.phases:
            if seconds := trainer.seconds[phase]:
                yield {
                    "phase": phase,
                    "seconds": round(seconds, 3),
                    "images_per_second": round(images / seconds, 3),
                    "ms_per_unet_call": round(1e3 * seconds / calls[phase], 1)
                    if calls[phase]
                    else None,
                    "gib": round(trainer.memory[phase] / GIB, 3) or None,
                }
    yield {
        "images": images,
        "selected": int(metrics["selected"]),
        "ratio_first_max_dev": max(ratio, metrics["ratio/first_max_dev"]),
        "loading_seconds": round(loaded - start, 1),
        "first_stage_seconds": round(warm - loaded, 1),
        "flags": flags,
    }


# ------------------------------------------------------------------ the parts


def sd14(job: Job) -> None:
    presets_stages(job, "sd14")


def sdxl(job: Job) -> None:
    presets_stages(job, "sdxl")


def presets_stages(job: Job, preset: str) -> None:
    """The most telling one first: what comes last may find no time left."""
    rewards: dict[str, Reward] = {}

    def measured(name: str, *overrides: str) -> None:
        def run() -> Iterator[Row]:
            flags = stage_flags(job, preset, *overrides)
            if not rewards:
                rewards.update(rewards_of(load_config(flags), job.device))
            yield from measure_stage(job, flags, rewards)

        job.measure(name, run)

    first = {"no": "float32"}.get(job.half, job.half)
    measured(f"{first}, a batch of prompts")
    if job.on_gpu:
        measured("fp16, a batch of prompts", "--config.mixed_precision=fp16")
    measured(f"{first}, one prompt at a time", *ONE_AT_A_TIME)
    measured(f"{first}, gradient checkpointing", "--config.train.gradient_checkpointing=true")


def compiled(job: Job) -> None:
    """The UNet's repeated blocks through torch.compile, which takes its time first."""
    for preset in ("sd14", "sdxl"):
        flags = stage_flags(job, preset, *NO_REWARDS)
        job.measure(
            f"{preset}, compiled blocks",
            lambda flags=flags: measure_stage(
                job, flags, change=lambda policy: policy.pipe.unet.compile_repeated_blocks()
            ),
        )


def rewards(job: Job) -> None:
    """The default rewards at full size, one at a time: pictures a second and memory."""
    for name in ("vqascore", "imagereward") if not job.tiny else ("imagereward",):
        job.measure(name, lambda name=name: score_alone(job, name))


def score_alone(job: Job, name: str) -> Row:
    models = f'--config.reward.models={{"{name}": 1.0}}'
    options = f'--config.reward.options={{"{name}": {{"model": "random"}}}}'
    flags = stage_flags(job, "sd14", models, options)
    reward = rewards_of(load_config(flags), job.device)[name]
    side, n = (512, 32) if job.on_gpu else (64, 2)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    prompts = ["a red circle left of a blue square"] * n
    reward.score(images[: reward.batch_size], prompts[: reward.batch_size])
    synchronize(job.device)
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    scores = reward.score(images, prompts)
    synchronize(job.device)
    seconds = time.monotonic() - start
    return {
        "pictures_per_second": round(n / seconds, 2),
        "finite": bool(torch.isfinite(scores).all()),
        "distinct_scores": len(set(scores.tolist())),
        "gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if job.on_gpu else None,
    }


def scoring(job: Job) -> None:
    """A stage of SD v1.4 scored while the next batch is sampled, and one scored in turn."""

    def compare() -> Row:
        trainer = trainer_of(
            job, stage_flags(job, "sd14", "--config.sample.num_batches_per_stage=3")
        )
        seconds, scores = {}, {}
        for name, background in (("warm-up", False), ("in turn", False), ("beside", True)):
            trainer.scorer = Scorer(trainer.rewards, background)
            prompts = trainer.draw_prompts(WARM_UP)
            synchronize(job.device)
            start = time.monotonic()
            samples = trainer.sample(WARM_UP, prompts)
            scores[name] = trainer.score(WARM_UP, samples, prompts).scores
            synchronize(job.device)
            seconds[name] = round(time.monotonic() - start, 3)
        same = all(torch.equal(scores["in turn"][k], scores["beside"][k]) for k in trainer.rewards)
        return {
            "seconds_in_turn": seconds["in turn"],
            "seconds_beside": seconds["beside"],
            "same_scores": same,
        }

    job.measure("own stream against in turn", compare)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
