"""One trainer for every model: sample, score, select, update, stage after stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, check_prompts
from rewards.scoring import Scorer
from srrl import checkpoint
from srrl.advantages import ScoreHistory, select, stage_advantages
from srrl.budget import (
    evaluated_stages,
    evaluation_cost,
    plan_for,
    shows_pictures,
    stage_work,
    work_left,
)
from srrl.config import resolve
from srrl.curriculum import StagePlan
from srrl.distributed import own_part, share, total_of
from srrl.evaluation import evaluate
from srrl.learner import Learner, Selection
from srrl.pictures import Row, sample_rows
from srrl.policy import Policy
from srrl.prompts import evenly, load_prompts, stage_prompts
from srrl.rollout import Rollout, rollout, rollout_settings
from srrl.tracking import Clock, Tracker, mean_text
from srrl.weights import trained_weights

PHASES = ("reflect", "sample", "decode", "score", "update")


@dataclass(frozen=True)
class Scored:
    """A stage's N trajectories in the order (slot, branch, round), the same on every process.

    slot, round  int64 [N]
    scores       for each reward float32 [N], 0 where the image was not judged
    own          int64 [N], the place in this process's Rollout; -1 for another process's
    """

    slot: Tensor
    round: Tensor
    scores: dict[str, Tensor]
    own: Tensor


class Trainer:
    """Trains the policy's LoRA; `run` is the method."""

    def __init__(
        self,
        config: ConfigDict,
        policy: Policy,
        rewards: dict[str, Reward],
        accelerator: Accelerator,
        tracker: Tracker,
    ):
        self.config, self.policy, self.rewards = config, policy, rewards
        self.accelerator, self.tracker = accelerator, tracker
        self.folder = Path(config.output_dir) / config.run_name
        self.prompts = load_prompts(resolve(config.prompts.train))
        self.heldout = load_prompts(resolve(config.prompts.heldout))
        check_prompts(rewards, self.prompts, config.prompts.train)
        check_prompts(rewards, self.heldout, config.prompts.heldout)
        background = config.reward.backend != "local" or policy.device.type == "cuda"
        self.scorer = Scorer(rewards, background)
        self.learner = Learner(config, policy, accelerator)
        self.history = ScoreHistory(config.reward.history)
        self.progress = checkpoint.Progress()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    # ------------------------------------------------------------------ the method

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last stage."""
        self.resume()
        for stage in range(self.progress.stage, self.config.stages.total):
            plan = plan_for(self.config, stage)
            prompts = self.draw_prompts(plan)
            samples = self.sample(plan, prompts)
            scored = self.score(plan, samples, prompts)
            selection, metrics = self.select(plan, samples, scored, prompts)
            with self.timed("update"):
                metrics |= self.learner.update(plan, selection)
            self.finish(plan, samples, scored, prompts, metrics)
        self.tracker.summary()

    # ------------------------------------------------------------------ sample

    def draw_prompts(self, plan: StagePlan) -> list[str]:
        """The stage's prompts; a trajectory's `slot` is its prompt's place in this list."""
        s = self.config.sample
        count = s.num_batches_per_stage * s.batch_size
        return stage_prompts(self.prompts, plan.stage, count, self.config.seed)

    def sample(self, plan: StagePlan, prompts: list[str]) -> Rollout:
        """Reflect and sample: K-round trajectories of this process's share of the prompts.

        A batch's images begin to be scored as soon as they are there.
        """
        c, settings = self.config, rollout_settings(self.config)
        own, parts = list(own_part(self.accelerator, len(prompts))), []
        for start in range(0, len(own), c.sample.batch_size):
            slots = own[start : start + c.sample.batch_size]
            part = rollout(
                self.policy,
                self.policy.encode([prompts[i] for i in slots]),
                settings,
                rounds=plan.rounds,
                trained_steps=plan.trained_steps,
                seed=c.seed,
                stage=plan.stage,
                slots=slots,
                keep_reflected=shows_pictures(self.config, plan.stage),
                timed=self.timed,
            )
            rows = self.judged(plan, part.round)
            with self.timed("score"):
                of_image = [prompts[i] for i in part.slot[rows].tolist()]
                self.scorer.submit(part.images[rows.to(part.images.device)], of_image)
            parts.append(part)
        return Rollout.cat(parts)

    # ------------------------------------------------------------------ score

    def score(self, plan: StagePlan, samples: Rollout, prompts: list[str]) -> Scored:
        """Each reward's scores of the final images, of every process."""
        with self.timed("score"):
            scores = self.scorer.collect()
        branches, kept = self.config.branch.count, self.sampled_rounds(plan)
        first = plan.rounds - kept + 1
        places = (samples.slot * branches + samples.branch) * kept + samples.round - first
        n = len(prompts) * branches * kept
        own = torch.full((n,), -1)
        own[places] = torch.arange(len(places))
        judged = places[self.judged(plan, samples.round)]
        every = torch.arange(n)
        return Scored(
            slot=every // (branches * kept),
            round=every % kept + first,
            scores={k: share(self.accelerator, v, judged, n) for k, v in scores.items()},
            own=own,
        )

    def judged(self, plan: StagePlan, rounds: Tensor) -> Tensor:
        """Which trajectories' images are scored, bool [N] for their rounds: all of them, or with
        reward.rounds "last" those of the last round, whose scores the others share."""
        return (rounds == plan.rounds) | (self.config.reward.rounds == "all")

    def sampled_rounds(self, plan: StagePlan) -> int:
        """The rounds of a trajectory that are sampled, scored and trained."""
        return plan.rounds if self.config.reflect.train_rounds == "all" else 1

    # ------------------------------------------------------------------ select

    def select(
        self, plan: StagePlan, samples: Rollout, scored: Scored, prompts: list[str]
    ) -> tuple[Selection, dict[str, float]]:
        """Advantages over the prompts' history, and the trajectories worth training on."""
        c, limit = self.config.select, self.config.train.adv_clip_max
        every_round = self.config.reflect.train_rounds == "all"
        by_round = self.config.reward.rounds == "all" and every_round
        judged = self.judged(plan, scored.round)
        slots, rounds = scored.slot[judged].tolist(), scored.round[judged].tolist()
        keys = [
            f"{prompts[slot]} (round {k})" if by_round else prompts[slot]
            for slot, k in zip(slots, rounds, strict=True)
        ]
        scores = {name: values[judged] for name, values in scored.scores.items()}
        weights = self.config.reward.models.to_dict()
        advantages = stage_advantages(keys, scores, weights, self.history, plan.stage)
        advantages = advantages.repeat_interleave(len(scored.slot) // len(advantages))
        groups = scored.slot * (plan.rounds + 1) + scored.round
        rows = select(advantages, groups, c.pos_threshold, c.neg_threshold, c.mode)
        metrics = {"advantage/std": advantages.std().item(), "selected": len(rows)}
        for name, values in scores.items():
            metrics[f"reward/{name}/mean"] = values.mean().item()
            metrics[f"reward/{name}/std"] = values.std().item()
        own = scored.own[rows]
        places = (own >= 0).nonzero()[:, 0]
        latents, log_probs = (
            share(self.accelerator, of_own[own[places].to(of_own.device)], places, len(rows))
            for of_own in (samples.latents, samples.log_probs)
        )
        selection = Selection(
            latents,
            log_probs,
            advantages[rows].clamp(-limit, limit).to(self.policy.device),
            self.policy.encode(prompts).rows(scored.slot[rows].to(self.policy.device)),
        )
        return selection, metrics

    # ------------------------------------------------------------------ finish

    def finish(
        self,
        plan: StagePlan,
        samples: Rollout,
        scored: Scored,
        prompts: list[str],
        metrics: dict[str, float],
    ) -> None:
        """Log, show, evaluate and save a stage; the save comes last and makes it count."""
        c, done = self.config, plan.stage + 1
        self.progress.stage = done
        self.progress.samples_total += len(scored.slot)
        self.progress.nfe_total += total_of(self.accelerator, self.policy.nfe)
        line = {
            "stage": plan.stage,
            "rounds": plan.rounds,
            "trained_steps": plan.trained_steps,
            "samples_total": self.progress.samples_total,
            "nfe_total": self.progress.nfe_total,
            **metrics,
            **{f"seconds/{phase}": round(s, 3) for phase, s in self.seconds.items()},
        }
        self.policy.nfe, self.seconds = 0, dict.fromkeys(PHASES, 0.0)
        self.tracker.metrics(line)
        if shows_pictures(self.config, plan.stage):
            rows = self.shown_rows(plan, samples, scored, prompts)
            self.tracker.samples(done, rows, f"{c.run_name}, stage {done}")
        expected = stage_work(c, plan.stage)
        self.clock.advance(stage_work(c, plan.stage, metrics["selected"]), expected)
        if done in evaluated_stages(c):
            self.evaluate()
            self.tracker.curves()
        if done % c.checkpoint.every == 0 or done == c.stages.total:
            self.save()
        self.tracker.say(
            f"stage {done}/{c.stages.total}  K {plan.rounds}  m {plan.trained_steps}  "
            f"{mean_text(line, scored.scores)}  selected {metrics['selected']}/{len(scored.slot)}  "
            f"|ratio-1| {metrics['ratio/max_dev']:.1e}  ETA {self.clock.eta()}"
        )

    def shown_rows(
        self, plan: StagePlan, samples: Rollout, scored: Scored, prompts: list[str]
    ) -> list[Row]:
        """The stage's first prompts: their reflected rounds, then the last round's branches."""
        count, branches = min(self.config.pictures.prompts, len(prompts)), self.config.branch.count
        weights = self.config.reward.models.to_dict()
        shown = (samples.slot < count) & (samples.round == plan.rounds)
        places = (samples.slot * branches + samples.branch)[shown]
        final = samples.images[shown.to(samples.images.device)]
        images = share(self.accelerator, final, places, count * branches)
        own = own_part(self.accelerator, len(prompts))
        slots = torch.tensor([slot for slot in own if slot < count], dtype=torch.int64)
        reflected = [
            share(self.accelerator, of_round[(slots - own.start).to(of_round.device)], slots, count)
            for of_round in samples.reflected
        ]
        last = (scored.slot < count) & (scored.round == plan.rounds)
        scores = {name: v[last].view(count, branches) for name, v in scored.scores.items()}
        pictures = images.view(count, branches, *images.shape[1:])
        return sample_rows(reflected, pictures, scores, weights, prompts[:count])

    def evaluate(self) -> None:
        """Log the scores of both splits' fixed prompts and seeds."""
        for split, prompts in (("train", self.prompts), ("heldout", self.heldout)):
            scores = evaluate(self.policy, self.rewards, prompts, self.config, self.accelerator)
            for name, values in scores.items():
                mean = values.double().mean().item()
                self.tracker.evaluation(
                    {
                        "stage": self.progress.stage,
                        "split": split,
                        "rounds": self.config.eval.rounds,
                        "reward": name,
                        "n": len(values),
                        "mean": mean,
                        "scores": [round(v, 6) for v in values.tolist()],
                    }
                )
                self.tracker.say(
                    f"  evaluation after {self.progress.stage} stages, {split}: "
                    f"{name} {mean:.3f} (n {len(values)})"
                )
            self.clock.advance(evaluation_cost(self.config, len(prompts)))

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
        self.tracker.start(self.config, done if newest else -1)
        sizes = [len(self.prompts), len(self.heldout)]
        self.clock = Clock(work_left(self.config, done, sizes, evaluate_now=newest is None))
        if newest:
            self.tracker.say(f"resuming {self.folder} after {done} stages")
        else:
            self.evaluate()
            self.save()

    def encode_ahead(self, done: int) -> None:
        """Encode every prompt that the stages left will need, and free the text encoders."""
        for stage in range(done, self.config.stages.total):
            self.policy.remember(self.draw_prompts(plan_for(self.config, stage)))
        for split in (self.prompts, self.heldout):
            self.policy.remember(evenly(split, self.config.eval.num_prompts))
        self.policy.release_text_encoders()

    # ------------------------------------------------------------------ small things

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time of the work inside to a phase's seconds."""
        start = self.now()
        yield
        self.seconds[phase] += self.now() - start

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize(self.policy.device)
        return time.monotonic()
