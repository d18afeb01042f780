"""One trainer for every model: sample, score, select, update, stage after stage."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, check_prompts, score_all
from srrl import checkpoint
from srrl.advantages import ScoreHistory, select, stage_advantages
from srrl.budget import evaluated_stages, evaluation_cost, plan_for, stage_work, work_left
from srrl.config import resolve
from srrl.curriculum import StagePlan
from srrl.ddim import denoise_mean, log_prob
from srrl.errors import UserError
from srrl.evaluation import evaluate
from srrl.pictures import sample_rows
from srrl.policy import Conditioning, Policy
from srrl.ppo import Objective, clipped_objective
from srrl.prompts import load_prompts, stage_prompts
from srrl.rollout import Rollout, generator, rollout, rollout_settings
from srrl.tracking import Clock, Tracker, mean_text

PHASES = ("reflect", "sample", "decode", "score", "update")


@dataclass(frozen=True)
class Selection:
    """The S trajectories to train on, the same on every process.

    latents float32 [S, m + 1, C, h, w], log_probs float32 [S, m], advantages float32 [S],
    conditioning of S rows.
    """

    latents: Tensor
    log_probs: Tensor
    advantages: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.advantages)


@dataclass(frozen=True)
class Update:
    """What one optimizer step measured; ratio_max_dev is max |ratio - 1| over its pairs."""

    loss: float
    grad_norm: float
    clip_fraction: float
    ratio_max_dev: float


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
        t = config.train
        self.optimizer = torch.optim.AdamW(
            policy.trainable(),
            lr=t.learning_rate,
            betas=(t.adam_beta1, t.adam_beta2),
            weight_decay=t.adam_weight_decay,
            eps=t.adam_epsilon,
        )
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
            scores = self.score(samples, prompts)
            selection, metrics = self.select(plan, samples, scores, prompts)
            metrics |= self.update(plan, selection)
            self.finish(plan, samples, scores, prompts, metrics)
        self.tracker.summary()

    # ------------------------------------------------------------------ sample

    def draw_prompts(self, plan: StagePlan) -> list[str]:
        """The stage's prompts; a trajectory's `slot` is its prompt's place in this list."""
        s = self.config.sample
        count = s.num_batches_per_stage * s.batch_size
        return stage_prompts(self.prompts, plan.stage, count, self.config.seed)

    def sample(self, plan: StagePlan, prompts: list[str]) -> Rollout:
        """Reflect and sample: K-round trajectories of the stage's prompts."""
        c, settings = self.config, rollout_settings(self.config)
        parts = []
        for start in range(0, len(prompts), c.sample.batch_size):
            slots = list(range(start, start + c.sample.batch_size))
            part = rollout(
                self.policy,
                self.policy.encode([prompts[i] for i in slots]),
                settings,
                rounds=plan.rounds,
                trained_steps=plan.trained_steps,
                seed=c.seed,
                stage=plan.stage,
                slots=slots,
                keep_reflected=self.shows_pictures(plan.stage),
                timed=self.timed,
            )
            parts.append(part)
        return Rollout.cat(parts)

    # ------------------------------------------------------------------ score

    def score(self, samples: Rollout, prompts: list[str]) -> dict[str, Tensor]:
        """Each reward's scores float32 [N] of the final images."""
        with self.timed("score"):
            of_image = [prompts[i] for i in samples.slot.tolist()]
            return score_all(self.rewards, samples.images, of_image)

    # ------------------------------------------------------------------ select

    def select(
        self, plan: StagePlan, samples: Rollout, scores: dict[str, Tensor], prompts: list[str]
    ) -> tuple[Selection, dict[str, float]]:
        """Advantages over the prompts' history, and the trajectories worth training on."""
        c = self.config.select
        every_round = self.config.reflect.train_rounds == "all"
        keys = [
            f"{prompts[slot]} (round {k})" if every_round else prompts[slot]
            for slot, k in zip(samples.slot.tolist(), samples.round.tolist(), strict=True)
        ]
        weights = self.config.reward.models.to_dict()
        advantages = stage_advantages(keys, scores, weights, self.history, plan.stage)
        groups = samples.slot * (plan.rounds + 1) + samples.round
        rows = select(advantages, groups, c.pos_threshold, c.neg_threshold, c.mode)
        metrics = {"advantage/std": advantages.std().item(), "selected": len(rows)}
        for name, values in scores.items():
            metrics[f"reward/{name}/mean"] = values.mean().item()
            metrics[f"reward/{name}/std"] = values.std().item()
        on_device = rows.to(self.policy.device)
        conditioning = self.policy.encode(prompts).rows(
            samples.slot.to(on_device.device)[on_device]
        )
        selection = Selection(
            samples.latents[on_device],
            samples.log_probs[on_device],
            advantages[rows]
            .clamp(-self.config.train.adv_clip_max, self.config.train.adv_clip_max)
            .to(self.policy.device),
            conditioning,
        )
        return selection, metrics

    # ------------------------------------------------------------------ update

    def update(self, plan: StagePlan, selection: Selection) -> dict[str, float]:
        """num_inner_epochs passes of the clipped policy gradient over the selection."""
        t = self.config.train
        updates: list[Update] = []
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(plan.stage)
        with self.timed("update"):
            for epoch in range(t.num_inner_epochs if len(selection) else 0):
                shuffle = generator(self.config.seed, plan.stage, epoch, 0, 0, "updates")
                order = torch.randperm(len(selection), generator=shuffle)
                for part in order.tensor_split(-(-len(order) // t.trajectories_per_update)):
                    pairs = torch.cartesian_prod(part, torch.arange(plan.trained_steps))
                    pairs = pairs[torch.randperm(len(pairs), generator=shuffle)]
                    updates.append(self.optimizer_step(selection, pairs, first=not updates))
        n = max(len(updates), 1)
        return {
            "ratio/first_max_dev": updates[0].ratio_max_dev if updates else 0.0,
            "ratio/max_dev": max((u.ratio_max_dev for u in updates), default=0.0),
            "clip_fraction": sum(u.clip_fraction for u in updates) / n,
            "loss": sum(u.loss for u in updates) / n,
            "grad_norm": sum(u.grad_norm for u in updates) / n,
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def learning_rate(self, stage: int) -> float:
        """The rate of a stage: linear from learning_rate to final_lr_fraction of it."""
        t, total = self.config.train, self.config.stages.total
        return t.learning_rate * (1 - (1 - t.final_lr_fraction) * stage / total)

    def optimizer_step(self, selection: Selection, pairs: Tensor, first: bool) -> Update:
        """One update on (trajectory, trained step) pairs int64 [B, 2], in micro-batches."""
        t = self.config.train
        loss = clipped = deviation = 0.0
        for part in pairs.split(t.micro_batch):
            objective = self.objective(selection, part.to(self.policy.device))
            share = len(part) / len(pairs)
            (objective.loss * share).backward()
            loss += objective.loss.item() * share
            clipped += objective.clipped.float().mean().item() * share
            deviation = max(deviation, (objective.ratio - 1).abs().max().item())
        norm = torch.nn.utils.clip_grad_norm_(self.policy.trainable(), t.max_grad_norm).item()
        if first:
            self.check_first_ratio(deviation)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"loss {loss} or gradient norm {norm} is not finite: the weights were not "
                f"changed; try a lower train.learning_rate or mixed_precision 'bf16' or 'no'"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(loss, norm, clipped, deviation)

    def objective(self, selection: Selection, pairs: Tensor) -> Objective:
        """The clipped objective of (trajectory, trained step) pairs int64 [B, 2]."""
        c, schedule = self.config, self.policy.schedule
        row, j = pairs[:, 0], pairs[:, 1]
        x, x_next = selection.latents[row, j], selection.latents[row, j + 1]
        step = schedule.num_steps - c.interval.skip_last - selection.log_probs.shape[1] + j
        a_t, a_s, sigma = schedule.coefficients(step, c.sample.eta)
        conditioning = selection.conditioning.rows(row)
        noise = self.policy.noise(x, step, a_t, conditioning, c.sample.guidance_scale)
        log_p = log_prob(x_next, denoise_mean(x, noise, a_t, a_s, sigma), sigma)
        return clipped_objective(
            log_p, selection.log_probs[row, j], selection.advantages[row], c.train.clip_range
        )

    def check_first_ratio(self, deviation: float) -> None:
        """Stop if sampling and training disagree: before a stage's first update, ratio is 1."""
        limit = self.config.train.max_first_ratio_dev
        if limit is None:
            limit = 1e-4 if self.config.mixed_precision == "no" else 2e-2
        if not deviation <= limit:
            raise UserError(
                f"|ratio - 1| is {deviation:.2e} before the first update of a stage, above "
                f"{limit:.0e}: sampling and training disagree. Look for dropout, a guidance scale "
                f"or precision that differs between them, or latents stored in half precision"
            )

    # ------------------------------------------------------------------ finish

    def finish(
        self,
        plan: StagePlan,
        samples: Rollout,
        scores: dict[str, Tensor],
        prompts: list[str],
        metrics: dict[str, float],
    ) -> None:
        """Log, show, evaluate and save a stage; the save comes last and makes it count."""
        c, done = self.config, plan.stage + 1
        self.progress.stage = done
        self.progress.samples_total += len(samples.slot)
        self.progress.nfe_total += self.policy.nfe
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
        if self.shows_pictures(plan.stage):
            weights, count = c.reward.models.to_dict(), c.pictures.prompts
            rows = sample_rows(samples, scores, weights, prompts[:count])
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
            f"{mean_text(line, scores)}  selected {metrics['selected']}/{len(samples.slot)}  "
            f"|ratio-1| {metrics['ratio/max_dev']:.1e}  ETA {self.clock.eta()}"
        )

    def evaluate(self) -> None:
        """Log the scores of both splits' fixed prompts and seeds."""
        for split, prompts in (("train", self.prompts), ("heldout", self.heldout)):
            scores = evaluate(self.policy, self.rewards, prompts, self.config)
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
        state = self.optimizer.state_dict()
        checkpoint.save(self.folder, self.policy, state, self.history, self.progress)
        checkpoint.prune(self.folder, self.progress.stage, self.config.checkpoint.keep_every)

    def resume(self) -> None:
        """Continue from the newest checkpoint, or evaluate the start and save it as stage 0."""
        newest = checkpoint.newest(self.folder)
        if newest:
            self.progress, state = checkpoint.load(newest, self.policy, self.history)
            self.optimizer.load_state_dict(state)
        done = self.progress.stage
        self.tracker.start(self.config, done if newest else -1)
        sizes = [len(self.prompts), len(self.heldout)]
        self.clock = Clock(work_left(self.config, done, sizes, evaluate_now=newest is None))
        if newest:
            self.tracker.say(f"resuming {self.folder} after {done} stages")
        else:
            self.evaluate()
            self.save()

    # ------------------------------------------------------------------ small things

    def shows_pictures(self, stage: int) -> bool:
        every, total = self.config.pictures.every, self.config.stages.total
        return stage == 0 or (stage + 1) % every == 0 or stage + 1 == total

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[phase] += time.monotonic() - start
