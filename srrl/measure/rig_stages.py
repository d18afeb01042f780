"""RL-RIG in a report: a stage of each of its phases, at full size with random weights.

Random networks write no edits and see nothing fail: every answer gets an edit prompt, every picture
fails, and the rewards are drawn. What is computed is the same.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor

from srrl.checks import PHASES
from srrl.config import load_config
from srrl.measure.bill import GIB
from srrl.measure.parts import Job, Metered, Row
from srrl.models.conversations import Completions
from srrl.rig.actor import Actor
from srrl.rig.editors import Editor
from srrl.rig.phases import ActorRun, EditorRun
from srrl.rig.setup import Parts
from srrl.rig.training import Phases
from srrl.rig.walk import States

PROMPTS = 2  # of a stage, each with a picture that fails
# Of the preset's 256 tokens, which no answer fills, and of its 20 trained steps.
MAX_TOKENS, TRAINED_STEPS = 64, 4


def rig(job: Job) -> None:
    """Both phases of one config, their parts loaded once."""
    flags = rig_flags(job)
    config, accelerator = load_config(flags, methods=["rig"]), Accelerator(cpu=not job.on_gpu)
    phases = MeteredPhases(config, accelerator, Scripted(config, accelerator.device, PHASES), {})
    for phase in PHASES:
        job.measure(f"{config.mixed_precision}, the {phase}", partial(stages, phases, phase))


def rig_flags(job: Job) -> list[str]:
    flags = [
        f"--config=config/rig.py:{'tiny' if job.tiny else 'sd14'}",
        f"--config.output_dir={job.folder}",
        "--config.tracker=none",
        "--config.eval.every=0",
        "--config.checker.threshold=0.99999",
        "--config.train.need_gain=false",
        "--config.sample.num_batches_per_stage=1",
        f"--config.sample.batch_size={PROMPTS}",
        *(f"--config.phase.{phase}.rounds=1" for phase in PHASES),
        f"--config.actor.max_tokens={MAX_TOKENS}",
        f"--config.phase.editor.trained_steps={TRAINED_STEPS}",
        f"--config.mixed_precision={'bf16' if job.on_gpu else 'no'}",
    ]
    if job.tiny:
        return flags
    return [
        *flags,
        *(f"--config.{part}.model=random:sd14" for part in ("pretrained", "editor")),
        *(f"--config.{part}.model=random:Qwen2.5-VL-7B" for part in ("checker", "actor")),
    ]


class ScriptedActor(Actor):
    """Writes as it does, and is read as if it had written an edit prompt."""

    def complete(
        self, images: Tensor, requests: Sequence[str], generators: Sequence[torch.Generator]
    ) -> list[Completions]:
        answer = "<think>it is amiss</think><edit>move the red circle left by {}</edit>"
        parts = super().complete(images, requests, generators)
        return [replace(p, texts=[answer.format(i) for i in range(len(p))]) for p in parts]


class Scripted(Parts):
    def actor_for(self, editor: Editor) -> Actor:
        return ScriptedActor(**vars(super().actor_for(editor)))


class DrawnRewards:
    def rewarded(self, states: States) -> Tensor:
        return torch.rand(states.share.shape, generator=torch.Generator().manual_seed(0))


class MeteredActor(Metered, DrawnRewards, ActorRun):
    """Phase 1, with each of its steps' highest memory."""


class MeteredEditor(Metered, DrawnRewards, EditorRun):
    """Phase 2, likewise."""


class MeteredPhases(Phases):
    kinds: ClassVar = {"actor": MeteredActor, "editor": MeteredEditor}


def stages(phases: Phases, phase: str) -> Iterator[Row]:
    """A row for each step of a phase's second stage, and one for the whole."""
    start = time.monotonic()
    run: Any = phases.of(phase)  # a MeteredActor or MeteredEditor
    loaded = time.monotonic()
    first = run.stage(0).metrics
    warm = time.monotonic()
    run.start_metering()
    metrics = run.stage(1).metrics
    attempts = PROMPTS * run.settings.group
    counts = {
        "draw": (PROMPTS, "pictures"),
        "write": (
            attempts if phase == "actor" else PROMPTS,
            f"answers of at most {MAX_TOKENS} tokens",
        ),
        "edit": (attempts, "edits"),
        "check": (PROMPTS + attempts, "pictures"),
        "update": (int(metrics["selected"]), "attempts"),
    }
    for name, seconds in run.seconds.items():
        count, what = counts[name]
        yield {
            "step": name,
            "of": f"{count} {what}",
            "seconds": round(seconds, 3),
            "per_second": round(count / seconds, 3),
            "gib": round(run.memory[name] / GIB, 3) or None,
        }
    kept = ("evaluations", "vlm_calls", "vlm_tokens", "selected")
    yield {
        **{name: metrics[name] for name in kept},
        "ratio_first_max_dev": max(m["ratio/first_max_dev"] for m in (first, metrics)),
        "loading_seconds": round(loaded - start, 1),
        "first_stage_seconds": round(warm - loaded, 1),
    }
