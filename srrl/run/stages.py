"""The loop over a run's stages around a method: log, show, evaluate, save, resume, time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict

from srrl.advantages import with_total
from srrl.curriculum import evaluated_stages, shows_pictures
from srrl.errors import UserError
from srrl.learner import Learner
from srrl.models.trainee import Trainee
from srrl.prompts import evenly, evenly_spaced
from srrl.run import checkpoint
from srrl.run.curves import Panel
from srrl.run.distributed import all_sum, differing, since
from srrl.run.folder import check_space
from srrl.run.image_statistics import Evaluated
from srrl.run.meter import Meter
from srrl.run.pictures import Images, Row, sample_rows
from srrl.run.recovery import go_on_from
from srrl.run.tracking import Clock, Tracker


@dataclass(frozen=True)
class Outcome:
    """What a stage leaves.

    plan     what it was to do and
    metrics  what it measured, for its line of metrics.jsonl: `selected`, and what the learner gave,
             are among them
    heading  what its line on the terminal says, like "K 2  m 5"
    records  for each sample of all processes its line of samples.jsonl
    images   where the samples are pictures: gives those of the first so many prompts; every process
             calls it or none. The records then say prompt, slot (its index), branch, round, scores.
    rows     or gives the rows of the stage's page itself, of so many prompts; on the same terms
    """

    plan: dict[str, int]
    metrics: dict[str, float]
    heading: str
    records: list[dict[str, Any]]
    images: Callable[[int], Images] | None = None
    rows: Callable[[int], list[Row]] | None = None


class StagedRun(ABC):
    """A run of `stages.total` stages that can be killed at any moment and goes on.

    A method says what a stage is (`stage`) and sets its `learner`; the rest it says where it has
    something to say: what of its own is saved beside the weights, the phases that are timed, the
    panels of curves.png, what it costs, and how the trainee is evaluated.
    """

    phases: ClassVar[tuple[str, ...]] = ("sample", "score", "update")
    unselected: str = "no prompt's scores differ enough (select.*)"
    panels: ClassVar[tuple[Panel, ...]] = ()
    # Keys, besides those that no run's results depend on, on which this one's do not.
    free: tuple[str, ...] = ()
    learner: Learner

    def __init__(
        self, config: ConfigDict, trainee: Trainee, accelerator: Accelerator, tracker: Tracker
    ):
        self.config, self.trainee = config, trainee
        self.accelerator, self.tracker = accelerator, tracker
        self.folder = Path(config.output_dir) / config.run_name
        self.progress = checkpoint.Progress()
        self.seconds = dict.fromkeys(self.phases, 0.0)
        self.meter = Meter(tracker.active)
        self.counted: dict[str, int] = {}

    # ------------------------------------------------------------------ what a method says

    @abstractmethod
    def stage(self, stage: int) -> Outcome:
        """Run a stage, up to and including its update."""

    def state(self) -> dict[str, Any]:
        """What of the method's own a checkpoint keeps beside the weights, for JSON."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        return None

    def describe(self) -> str:
        """What the run will do, to print at its start."""
        return f"  stages  {self.config.stages.total}"

    def begin(self) -> None:
        """Done once, where a run begins and does not go on."""
        return None

    def over(self) -> bool:
        """Whether it ends before its last stage."""
        return False

    def prompts_of(self, stage: int) -> list[str]:
        """The prompts that a stage needs."""
        return []

    def counts(self) -> dict[str, int]:
        """What has been counted on this process since it began, the same keys on each."""
        return {}

    def splits(self) -> dict[str, list[Any]]:
        """The prompts, or what has them, that the trainee is evaluated on, by split."""
        return {}

    def evaluate_split(self, prompts: list[Any], rounds: int, shown: list[int]) -> Evaluated:
        """Pictures of so many rounds at fixed seeds. A method whose `splits` gives any has it."""
        raise NotImplementedError

    def stage_work(self, stage: int, selected: int | None = None) -> float:
        """A stage's work, for the time left; as far as known before it has selected."""
        return 1.0

    def evaluation_work(self, prompts: list[Any]) -> float:
        """The work of evaluating a split with each K of eval.rounds, in the same unit."""
        return 0.0

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Run from the newest checkpoint, or from the start, to the last stage."""
        self.resume()
        while self.progress.stage < self.config.stages.total and not self.over():
            self.run_stage(self.progress.stage)
        last = checkpoint.stage_folder(self.folder, self.progress.stage)
        if self.over() and checkpoint.newest(self.folder) != last:
            self.save()
        self.tracker.summary()

    def run_stage(self, stage: int) -> None:
        """One stage and all that follows it; nothing of it outlives the call but its logs."""
        name, begun = f"stage {stage + 1}/{self.config.stages.total}", time.monotonic()
        with self.metered(name, self.stage_work(stage)):
            outcome = self.stage(stage)
        self.log(stage, outcome)
        heading, metrics, sampled = outcome.heading, outcome.metrics, len(outcome.records)
        del outcome
        self.finish(stage, metrics)
        heading = f"{name}  {heading}  selected {metrics['selected']}/{sampled}"
        seconds = time.monotonic() - begun
        self.tracker.stage(stage + 1, heading, metrics, seconds, self.clock.eta())

    def log(self, stage: int, outcome: Outcome) -> None:
        """Log a stage, and save the pictures that are wanted of it."""
        self.progress.stage = stage + 1
        self.progress.samples_total += len(outcome.records)
        self.progress.nfe_total += all_sum(self.accelerator, self.trainee.nfe)
        counts = self.counts()
        line = {
            "stage": stage + 1,
            **outcome.plan,
            "samples_total": self.progress.samples_total,
            "nfe_total": self.progress.nfe_total,
            **outcome.metrics,
            **{k: all_sum(self.accelerator, n) for k, n in since(self.counted, counts).items()},
            **{f"seconds/{phase}": round(s, 3) for phase, s in self.seconds.items()},
        }
        self.trainee.nfe, self.seconds, self.counted = 0, dict.fromkeys(self.phases, 0.0), counts
        self.tracker.metrics(line)
        self.show(stage, outcome)

    def finish(self, stage: int, metrics: dict[str, float]) -> None:
        """Evaluate and save a stage; the save comes last and makes it count."""
        c, done, selected = self.config, stage + 1, metrics["selected"]
        self.clock.advance(self.stage_work(stage, int(selected)), self.stage_work(stage))
        if not selected:
            self.tracker.say(f"  nothing was selected: {self.unselected}")
        if done in evaluated_stages(c):
            self.evaluate()
        if done in evaluated_stages(c) or shows_pictures(c, stage):
            self.tracker.curves(self.panels, last=done == c.stages.total)
        if done % c.checkpoint.every == 0 or done == c.stages.total:
            self.save()

    def show(self, stage: int, outcome: Outcome) -> None:
        """Log a stage's samples, and save the pictures that are wanted of them."""
        c, done, records = self.config.pictures, stage + 1, outcome.records
        if outcome.images is None:
            self.tracker.samples(done, records)
            shows = outcome.rows if shows_pictures(self.config, stage) else None
            if shows and (rows := shows(c.prompts)):
                self.tracker.page(done, rows, f"stage {done}")
            return
        prompts = records[-1]["slot"] + 1
        shown = min(c.prompts, prompts) if shows_pictures(self.config, stage) else 0
        images = outcome.images(prompts if c.images else shown) if c.images or shown else None
        self.tracker.samples(done, records, images.sampled if images and c.images else None)
        if images and shown:
            weights = self.config.reward.models.to_dict()
            rows = sample_rows(records, images, weights, shown)
            self.tracker.page(done, rows, f"stage {done} (A: advantages that were trained on)")

    def evaluate(self) -> None:
        """Log the scores of every split's fixed prompts and seeds."""
        c, shown = self.config, {}
        for split, prompts in self.splits().items():
            evaluated = evenly(prompts, c.eval.num_prompts)
            places = evenly_spaced(len(evaluated), c.pictures.prompts)
            shown[split] = {place: evaluated[place] for place in places}
            for rounds in c.eval.rounds:
                work = self.evaluation_work(prompts) / len(c.eval.rounds)
                with self.metered(f"evaluation, {split}, K {rounds}", work):
                    found = self.evaluate_split(prompts, rounds, list(shown[split]))
                scores = with_total(found.scores, c.reward.models.to_dict())
                for name in scores:
                    self.log_evaluation(split, rounds, name, replace(found, scores=scores))
                self.tracker.fixed(self.progress.stage, split, rounds, found)
            self.clock.advance(self.evaluation_work(prompts))
        self.tracker.drift()
        for rounds in c.eval.rounds:
            self.tracker.progress(rounds, shown)

    def log_evaluation(self, split: str, rounds: int, reward: str, found: Evaluated) -> None:
        """Log a split's scores by a reward, and how its pictures look."""
        values = found.scores[reward]
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
                "pictures": found.pictures,
                "scores": [round(v, 6) for v in values.tolist()],
            }
        )
        self.tracker.say(
            f"  evaluation after {self.progress.stage} stages, {split}, K {rounds}: "
            f"{reward} {mean:.3f} (n {len(values)})"
        )

    # ------------------------------------------------------------------ stop and go on

    def save(self) -> None:
        """Write a checkpoint; every process takes part, the main one writes.

        Raises UserError where the processes' weights, which are always the same, are not.
        """
        weights, learner = self.trainee.weights(), self.learner.state_dict()
        if not self.learner.sharded and (apart := differing(self.accelerator, weights)):
            raise UserError(
                f"the processes' weights have come apart, at {apart[0]} and {len(apart) - 1} "
                f"more: not saved; start the same command again"
            )
        bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
        if bad:
            raise UserError(f"{bad[0]} and {len(bad) - 1} more weights are not finite: not saved")
        if self.accelerator.is_main_process:
            given = self.config, self.trainee, weights, learner, self.state(), self.progress
            checkpoint.save(self.folder, *given)
            checkpoint.prune(self.folder, self.config.checkpoint.keep_every)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Continue from the newest checkpoint that can be trusted, or evaluate the start and save
        it as stage 0."""
        given = self.config, self.free, self.accelerator, self.tracker.say
        newest = go_on_from(self.folder, *given)
        if newest:
            self.progress, state, learner = checkpoint.load(newest, self.trainee)
            self.load_state(state)
            self.learner.load_state_dict(learner)
        done = self.progress.stage
        self.prepare(done)
        planned = checkpoint.saved_config(self.folder).get("stages.total")
        self.tracker.start(self.config, done if newest else -1)
        if self.accelerator.is_main_process and done < self.config.stages.total:
            check_space(self.folder, self.space(done if newest else -1))
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
            self.begin()
            self.evaluate()
            self.save()

    def space(self, done: int) -> float:
        """Bytes by which the folder will grow after `done` stages (-1: before the start), about."""
        return checkpoint.growth(self.config, self.trainee, done)

    def work_left(self, done: int, evaluate_now: bool) -> float:
        """The work after `done` stages, evaluations included."""
        times = sum(n > done for n in evaluated_stages(self.config)) + evaluate_now
        judging = sum(self.evaluation_work(prompts) for prompts in self.splits().values())
        stages = range(done, self.config.stages.total)
        return sum(self.stage_work(n) for n in stages) + times * judging

    def prepare(self, done: int) -> None:
        """Tell the trainee every prompt that the stages left and the evaluations will need."""
        stages = range(done, self.config.stages.total)
        drawn = chain.from_iterable(map(self.prompts_of, stages))
        splits = self.splits().values()
        evaluated = chain.from_iterable(evenly(s, self.config.eval.num_prompts) for s in splits)
        if said := self.trainee.prepare(chain(drawn, evaluated)):
            self.tracker.say(said)

    # ------------------------------------------------------------------ stopwatch and progress

    def metered(self, name: str, work: float) -> AbstractContextManager:
        """Show the progress of this process's share of the work inside."""
        share = work / self.accelerator.num_processes
        return self.meter.work(name, self.trainee.network, share)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the work inside to a phase's seconds."""
        start, self.meter.phase = self.now(), phase
        yield
        self.seconds[phase] += self.now() - start

    def now(self) -> float:
        """Seconds, once the device has done what it was given here; scoring, which has a stream of
        its own, goes on beside."""
        if self.trainee.device.type == "cuda":
            torch.cuda.current_stream(self.trainee.device).synchronize()
        return time.monotonic()
