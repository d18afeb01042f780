"""The parts of a report, each of measurements that are written as they come.

The machine, whole stages at full size, the rewards, and tests/gpu.
"""

import gc
import json
import os
import platform
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rewards import Reward
from rewards.scoring import Scorer, rewards_of
from srrl.budget import stage_calls, stage_cost
from srrl.config import REPOSITORY, load_config
from srrl.curriculum import StagePlan
from srrl.measure.bill import GIB
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.stages import StagedRun
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer

SHAPES = "config/prompts/shapes_unconventional"
WARM_UP = StagePlan(0, 1, 1)  # every shape of the measured stage, each few times
MEASURED = StagePlan(0, 2, 2)  # K = 2 rounds, m = 2 trained steps
Row = dict[str, Any]


@dataclass
class Job:
    """device: "cuda" or "cpu"; tiny: the embedded models instead of those at full size; folder: for
    whatever is written."""

    part: str
    device: str
    tiny: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def measure(self, name: str, function: Callable[[], Row | Iterable[Row]]) -> None:
        """Write the rows of `function` as they come, and why it failed if it does."""
        try:
            rows = function()
            for row in [rows] if isinstance(rows, dict) else rows:
                self.write(name, row)
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:500]
            self.write(name, {"error": f"{type(error).__name__}: {text}"})
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def write(self, name: str, row: Row) -> None:
        line = json.dumps({"part": self.part, "name": name, **row})
        with open(self.folder / f"{self.part}.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ------------------------------------------------------------------ the machine


def machine(job: Job) -> None:
    """What it is, and how its versions differ from the pins."""
    job.measure("machine", lambda: seen(job))


def seen(job: Job) -> Row:
    row: Row = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "differs_from_pins": differing(),
    }
    if job.on_gpu:
        card = torch.cuda.get_device_properties(0)
        row |= {"gpu": card.name, "memory_gib": round(card.total_memory / GIB, 1)}
    return row


def differing() -> dict[str, str]:
    """Packages whose version is not the pinned one: "installed (pinned)"."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = dict(requirement.split("==") for requirement in project["dependencies"])
    versions = {d.name.lower().replace("-", "_"): d.version for d in distributions()}
    installed = {name: versions.get(name, "missing").split("+")[0] for name in pins}
    return {k: f"{installed[k]} ({pins[k]})" for k in pins if installed[k] != pins[k]}


# ------------------------------------------------------------------ whole stages


def presets_stages(job: Job) -> None:
    """The most telling one first: what comes last may find no time left."""
    rewards: dict[str, Reward] = {}

    def measured(name: str, *overrides: str) -> None:
        flags = stage_flags(job, job.part, *overrides)
        job.measure(name, lambda: measure_stage(job, flags, rewards))

    precision = "bf16" if job.on_gpu else "float32"
    measured(f"{precision}, a batch of prompts")
    if job.on_gpu:
        measured("fp16, a batch of prompts", "--config.mixed_precision=fp16")
    alone = ("--config.sample.batch_size=1", "--config.sample.num_batches_per_stage=2")
    measured(f"{precision}, one prompt at a time", *alone)
    checkpointing = "--config.train.gradient_checkpointing=true"
    measured(f"{precision}, gradient checkpointing", checkpointing)


sd14 = sdxl = presets_stages


def stage_flags(job: Job, preset: str, *overrides: str) -> list[str]:
    """A preset as it is, but for one stage of one batch, of which every trajectory is trained."""
    tiny = {"sd14": "tiny", "sdxl": "tiny_xl"}[preset]
    flags = [
        f"--config=config/stage_process.py:{tiny if job.tiny else preset}",
        f"--config.output_dir={job.folder}",
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
        f"--config.mixed_precision={'bf16' if job.on_gpu else 'no'}",
    ]
    if job.tiny:
        flags += ["--config.sample.batch_size=4", "--config.train.micro_batch=8"]
        flags += ["--config.sample.num_steps=5", "--config.interval.skip_last=1"]
        flags += [f"--config.interval.{end}={MEASURED.trained_steps}" for end in ("left", "right")]
    else:
        options = '{"vqascore": {"model": "random"}, "imagereward": {"model": "random"}}'
        flags += [
            f"--config.pretrained.model=random:{preset}",
            f"--config.reward.options={options}",
        ]
    return [*flags, *overrides]


class Metered(StagedRun):
    """A run that keeps each phase's highest memory; before its method among a class's bases."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.start_metering()

    def start_metering(self) -> None:
        self.seconds = dict.fromkeys(self.phases, 0.0)
        self.memory = dict.fromkeys(self.phases, 0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        on_gpu = self.trainee.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with super().timed(phase):
            yield
        if on_gpu:
            self.memory[phase] = max(self.memory[phase], torch.cuda.max_memory_allocated())


class MeteredTrainer(Metered, Trainer):
    """Which scores where it can be seen."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.scorer = Scorer(self.rewards, background=False)


def trainer_of(
    flags: list[str], accelerator: Accelerator, rewards: dict[str, Reward]
) -> MeteredTrainer:
    """rewards: the config's, made here into an empty dictionary and used again from a full one."""
    config = load_config(flags)
    policy = Policy.from_config(config, device=accelerator.device)
    make_trainable(policy.network, config)
    if not rewards:
        rewards.update(rewards_of(config, accelerator.device))
    tracker = Tracker(Path(config.output_dir) / "run", accelerator)
    return MeteredTrainer(config, policy, rewards, accelerator, tracker)


def measure_stage(job: Job, flags: list[str], rewards: dict[str, Reward]) -> Iterator[Row]:
    """A row for each phase of a stage after a short one, and one for the whole. Where the stage
    fails, the rows of the phases before it. `flags` in the last tell page.py what was run."""
    start = time.monotonic()
    trainer = trainer_of(flags, Accelerator(cpu=not job.on_gpu), rewards)
    trainer.prepare(0)
    loaded = time.monotonic()
    ratio = trainer.train(WARM_UP).metrics["ratio/first_max_dev"]
    warm = time.monotonic()
    trainer.start_metering()
    config, images = trainer.config, stage_cost(trainer.config, MEASURED).images
    calls = dict.fromkeys(Trainer.phases, 0)
    for x in stage_calls(config, MEASURED):
        calls[x.phase] += x.network_calls(config.sample.micro_batch)
    calls["update"] = -(-images * MEASURED.trained_steps // config.train.micro_batch)
    try:
        metrics = trainer.train(MEASURED).metrics
    finally:
        for phase, seconds in trainer.seconds.items():
            if seconds:
                n = calls[phase]
                yield {
                    "phase": phase,
                    "seconds": round(seconds, 3),
                    "images_per_second": round(images / seconds, 3),
                    "ms_per_unet_call": round(1e3 * seconds / n, 1) if n else None,
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


# ------------------------------------------------------------------ the rewards


def rewards(job: Job) -> None:
    """The default rewards at full size, one at a time: pictures a second and memory."""
    for name in ("vqascore", "imagereward") if not job.tiny else ("imagereward",):
        job.measure(name, partial(score_alone, job, name))


def score_alone(job: Job, name: str) -> Row:
    models = f'--config.reward.models={{"{name}": 1.0}}'
    options = f'--config.reward.options={{"{name}": {{"model": "random"}}}}'
    flags = stage_flags(job, "sd14", models, options)
    reward: Any = rewards_of(load_config(flags), job.device)[name]  # a NetworkReward
    side, n = (512, 32) if job.on_gpu else (64, 2)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    prompts = ["a red circle left of a blue square"] * n
    reward.score(images[: reward.batch_size], prompts[: reward.batch_size])
    synchronize(job.device)
    if job.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    reward.score(images, prompts)
    synchronize(job.device)
    return {
        "pictures_per_second": round(n / (time.monotonic() - start), 2),
        "gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if job.on_gpu else None,
    }


# ------------------------------------------------------------------ what must hold


def checks(job: Job) -> None:
    """tests/gpu, a row a test with the figures that it records."""

    class Outcomes:
        def pytest_runtest_logreport(self, report: Any) -> None:
            name = report.nodeid.rpartition("::")[2]
            if report.failed:
                job.write(name, {"error": " ".join(report.longreprtext.split())[-300:]})
            elif report.skipped:
                job.write(name, {"skipped": report.longrepr[2]})
            elif report.when == "call":
                job.write(
                    name,
                    {
                        "passed": True,
                        "seconds": round(report.duration, 1),
                        "figures": dict(report.user_properties),
                    },
                )

    def run() -> Iterator[Row]:
        import pytest

        command = ["-q", "--tb=short", "-p", "no:cacheprovider", str(REPOSITORY / "tests" / "gpu")]
        code = pytest.main(command, plugins=[Outcomes()])
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            yield {"error": f"pytest ended with {code!r}: see checks.log"}

    job.measure("tests/gpu", run)
