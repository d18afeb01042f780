"""The loop over a run's stages around a method: log, show, evaluate, save, resume, time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from srrl.advantages import ScoreHistory
from srrl.budget import evaluated_stages, shows_pictures
from srrl.models.policy import Policy
from srrl.models.start import start_from
from srrl.models.weights import trained_weights
from srrl.prompts import evenly
from srrl.run import checkpoint
from srrl.run.distributed import total_of
from srrl.run.meter import Meter
from srrl.run.pictures import Images, sample_rows
from srrl.run.tracking import Clock, Tracker

PHASES = ("reflect", "sample", "decode", "score", "update")


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves.

    plan     what it was to do and
    metrics  what it measured, for its line of metrics.jsonl; `selected` among them
    heading  what its line on the terminal says, like "K 2  m 5"
    lines    for each trajectory of all processes its line of samples.jsonl: prompt, slot, branch,
             round, scores, advantage, selected
    images   gives the pictures of the first so many prompts; every process calls it or none
    """

    plan: dict[str, int]
    metrics: dict[str, float]
    heading: str
    lines: list[dict[str, Any]]
    images: Callable[[int], Images]


class StagedRun(ABC):
    """A run of `stages.total` stages that can be killed at any moment and goes on.

    A method says what a stage is, what it costs and how the policy is judged; its `learner` and
    `history` are saved beside the weights.
    """

    learner: Any
    history: ScoreHistory

    def __init__(
        self, config: ConfigDict, policy: Policy, accelerator: Accelerator, tracker: Tracker
    ):
        self.config, self.policy = config, policy
        self.accelerator, self.tracker = accelerator, tracker
        self.folder = Path(config.output_dir) / config.run_name
        self.progress = checkpoint.Progress()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.meter = Meter(tracker.active)

    # ------------------------------------------------------------------ what a method says

    @abstractmethod
    def stage(self, stage: int) -> Outcome:
        """Run a stage, up to and including its update."""

    @abstractmethod
    def prompts_of(self, stage: int) -> list[str]:
        """The prompts that a stage needs."""

    @abstractmethod
    def splits(self) -> dict[str, list[str]]:
        """The prompts that the policy is judged on, by split."""

    @abstractmethod
    def judge(
        self, prompts: list[str], rounds: int, shown: list[int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Each reward's scores [n] of the policy's pictures of so many rounds at fixed seeds, and
        the pictures uint8 [len(shown), 3, H, W] of some of the prompts at the first of them."""

    @abstractmethod
    def stage_work(self, stage: int, selected: int | None = None) -> float:
        """A stage's work, for the time left; as far as known before it has selected."""

    @abstractmethod
    def judging_work(self, prompts: list[str]) -> float:
        """The work of judging a split with each K of eval.rounds, in the same unit."""

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run from the newest checkpoint, or from the start, to the last stage."""
        self.resume()
        total = self.config.stages.total
        for stage in range(self.progress.stage, total):
            with self.metered(f"stage {stage + 1}/{total}", self.stage_work(stage)):
                outcome = self.stage(stage)
            self.finish(stage, outcome)
        self.tracker.summary()

    def finish(self, stage: int, outcome: Outcome) -> None:
        """Log, show, evaluate and save a stage; the save comes last and makes it count."""
        c, done, metrics = self.config, stage + 1, outcome.metrics
        self.progress.stage = done
        self.progress.samples_total += len(outcome.lines)
        self.progress.nfe_total += total_of(self.accelerator, self.policy.nfe)
        line = {
            "stage": done,
            **outcome.plan,
            "samples_total": self.progress.samples_total,
            "nfe_total": self.progress.nfe_total,
            **metrics,
            **{f"seconds/{phase}": round(s, 3) for phase, s in self.seconds.items()},
        }
        self.policy.nfe, self.seconds = 0, dict.fromkeys(PHASES, 0.0)
        self.tracker.metrics(line)
        self.show(stage, outcome)
        work = self.stage_work(stage, int(metrics["selected"]))
        self.clock.advance(work, self.stage_work(stage))
        if not metrics["selected"]:
            self.tracker.say("  nothing was selected: no prompt's scores differ enough (select.*)")
        if done in evaluated_stages(c):
            self.evaluate()
        if done in evaluated_stages(c) or shows_pictures(c, stage):
            self.tracker.curves()
        if done % c.checkpoint.every == 0 or done == c.stages.total:
            self.save()
        self.tracker.say(
            f"stage {done}/{c.stages.total}  {outcome.heading}  "
            f"selected {metrics['selected']}/{len(outcome.lines)}  "
            f"ratios within {metrics['ratio/max_dev']:.1e} of 1  ETA {self.clock.eta()}"
        )

    def show(self, stage: int, outcome: Outcome) -> None:
        """Log a stage's trajectories, and save the pictures that are wanted of them."""
        c, done, lines = self.config.pictures, stage + 1, outcome.lines
        prompts = lines[-1]["slot"] + 1
        shown = min(c.prompts, prompts) if shows_pictures(self.config, stage) else 0
        images = outcome.images(prompts if c.images else shown) if c.images or shown else None
        self.tracker.trajectories(done, lines, images.sampled if c.images else None)
        if shown:
            weights = self.config.reward.models.to_dict()
            rows = sample_rows(lines, images, weights, shown)
            self.tracker.samples(done, rows, f"stage {done}")

    def evaluate(self) -> None:
        """Log the scores of every split's fixed prompts and seeds."""
        c, shown = self.config, {}
        for split, prompts in self.splits().items():
            judged = evenly(prompts, c.eval.num_prompts)
            count = min(c.pictures.prompts, len(judged))
            shown[split] = {
                i * len(judged) // count: judged[i * len(judged) // count] for i in range(count)
            }
            for rounds in c.eval.rounds:
                work = self.judging_work(prompts) / len(c.eval.rounds)
                with self.metered(f"evaluation, {split}, K {rounds}", work):
                    scores, images = self.judge(prompts, rounds, list(shown[split]))
                for name, values in scores.items():
                    self.note(split, rounds, name, values)
                self.tracker.fixed(self.progress.stage, split, rounds, images)
            self.clock.advance(self.judging_work(prompts))
        for rounds in c.eval.rounds:
            self.tracker.progress(rounds, shown)

    def note(self, split: str, rounds: int, reward: str, values: Tensor) -> None:
        """Log a split's scores [n] by a reward."""
        mean = values.double().mean().item()
        self.tracker.evaluation(
            {
                "stage": self.progress.stage,
                "split": split,
                "rounds": rounds,
                "reward": reward,
                "n": len(values),
                "seeds": self.config.eval.seeds,
                "first_seed": self.config.eval.first_seed,
                "mean": mean,
                "scores": [round(v, 6) for v in values.tolist()],
            }
        )
        self.tracker.say(
            f"  evaluation after {self.progress.stage} stages, {split}, K {rounds}: "
            f"{reward} {mean:.3f} (n {len(values)})"
        )

    # ------------------------------------------------------------------ stop and go on

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes."""
        weights, state = trained_weights(self.policy.pipe), self.learner.state_dict()
        if self.accelerator.is_main_process:
            checkpoint.save(
                self.folder, self.policy.pipe, weights, state, self.history, self.progress
            )
            checkpoint.prune(self.folder, self.progress.stage, self.config.checkpoint.keep_every)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Continue from the newest checkpoint, or evaluate the start and save it as stage 0."""
        newest = checkpoint.newest(self.folder)
        if newest:
            self.progress, state = checkpoint.load(newest, self.policy.pipe, self.history)
            self.learner.load_state_dict(state)
        done = self.progress.stage
        self.encode_ahead(done)
        planned = checkpoint.saved_config(self.folder).get("stages.total")
        self.tracker.start(self.config, done if newest else -1)
        self.clock = Clock(self.work_left(done, evaluate_now=newest is None))
        if newest:
            self.tracker.say(f"resuming {self.folder} after {done} stages")
            total = self.config.stages.total
            if planned not in (None, total):
                rate = self.learner.learning_rate(done)
                self.tracker.say(
                    f"stages.total is {total} now, not {planned}: the learning rate goes on at "
                    f"{rate:.2e} and follows the new total"
                )
        else:
            if self.config.pretrained.lora:
                start_from(self.policy.pipe, self.config.pretrained.lora)
            self.evaluate()
            self.save()

    def work_left(self, done: int, evaluate_now: bool) -> float:
        """The work after `done` stages, evaluations included."""
        times = sum(n > done for n in evaluated_stages(self.config)) + evaluate_now
        judging = sum(self.judging_work(prompts) for prompts in self.splits().values())
        stages = range(done, self.config.stages.total)
        return sum(self.stage_work(n) for n in stages) + times * judging

    def encode_ahead(self, done: int) -> None:
        """Encode every prompt that the stages left will need, and free the text encoders."""
        for stage in range(done, self.config.stages.total):
            self.policy.remember(self.prompts_of(stage))
        for split in self.splits().values():
            self.policy.remember(evenly(split, self.config.eval.num_prompts))
        self.policy.release_text_encoders()

    # ------------------------------------------------------------------ stopwatch and progress

    def metered(self, name: str, work: float) -> AbstractContextManager:
        """Show the progress of this process's share of the work inside."""
        share = work / self.accelerator.num_processes
        return self.meter.work(name, self.policy.pipe.unet, share)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the work inside to a phase's seconds."""
        start, self.meter.phase = self.now(), phase
        yield
        self.seconds[phase] += self.now() - start

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)
        return time.monotonic()
