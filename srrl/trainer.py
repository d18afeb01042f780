"""SRRL (arXiv 2505.22407), one trainer for every model: sample, score, select, update."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, check_prompts
from rewards.scoring import Scorer
from srrl.advantages import ScoreHistory, select, stage_advantages
from srrl.budget import evaluation_cost, plan_for, shows_pictures, stage_work
from srrl.config import resolve
from srrl.curriculum import StagePlan
from srrl.evaluation import evaluate
from srrl.learner import Learner, Selection
from srrl.models.policy import Policy
from srrl.prompts import load_prompts, stage_prompts
from srrl.rollout import Rollout, rollout, rollout_settings
from srrl.run.distributed import own_part, share
from srrl.run.pictures import Row, sample_rows
from srrl.run.stages import Outcome, StagedRun
from srrl.run.tracking import Tracker, mean_text


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


class Trainer(StagedRun):
    """Trains the policy; `stage` is the method."""

    def __init__(
        self,
        config: ConfigDict,
        policy: Policy,
        rewards: dict[str, Reward],
        accelerator: Accelerator,
        tracker: Tracker,
    ):
        super().__init__(config, policy, accelerator, tracker)
        self.rewards = rewards
        self.prompts = load_prompts(resolve(config.prompts.train))
        self.heldout = load_prompts(resolve(config.prompts.heldout))
        check_prompts(rewards, self.prompts, config.prompts.train)
        check_prompts(rewards, self.heldout, config.prompts.heldout)
        background = config.reward.backend != "local" or policy.device.type == "cuda"
        self.scorer = Scorer(rewards, background)
        self.learner = Learner(config, policy, accelerator)
        self.history = ScoreHistory(config.reward.history)

    def stage(self, stage: int) -> Outcome:
        return self.follow(plan_for(self.config, stage))

    def follow(self, plan: StagePlan) -> Outcome:
        """Sample, score, select, update."""
        prompts = self.draw_prompts(plan)
        samples = self.sample(plan, prompts)
        scored = self.score(plan, samples, prompts)
        selection, metrics = self.select(plan, samples, scored, prompts)
        with self.timed("update"):
            metrics |= self.learner.update(plan, selection)
        return Outcome(
            {"rounds": plan.rounds, "trained_steps": plan.trained_steps},
            metrics,
            f"K {plan.rounds}  m {plan.trained_steps}  {mean_text(metrics, scored.scores)}",
            samples=len(scored.slot),
            rows=lambda: self.rows(plan, samples, scored, prompts),
        )

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

    # ------------------------------------------------------------------ for the run around it

    def rows(
        self, plan: StagePlan, samples: Rollout, scored: Scored, prompts: list[str]
    ) -> list[Row]:
        """Of the picture: the first prompts' reflected rounds, then the last round's branches."""
        count = min(self.config.pictures.prompts, len(prompts))
        shown = (samples.slot < count) & (samples.round == plan.rounds)
        last = (scored.slot < count) & (scored.round == plan.rounds)
        final = samples.images[shown.to(samples.images.device)]
        places = (samples.slot * self.config.branch.count + samples.branch)[shown]
        images = share(self.accelerator, final, places, count * self.config.branch.count)
        own = own_part(self.accelerator, len(prompts))
        slots = torch.tensor([slot for slot in own if slot < count], dtype=torch.int64)
        reflected = [
            share(self.accelerator, of_round[(slots - own.start).to(of_round.device)], slots, count)
            for of_round in samples.reflected
        ]
        return sample_rows(
            reflected,
            images.view(count, -1, *images.shape[1:]),
            {name: values[last].view(count, -1) for name, values in scored.scores.items()},
            self.config.reward.models.to_dict(),
            prompts[:count],
        )

    def prompts_of(self, stage: int) -> list[str]:
        return self.draw_prompts(plan_for(self.config, stage))

    def splits(self) -> dict[str, list[str]]:
        return {"train": self.prompts, "heldout": self.heldout}

    def judge(self, prompts: list[str]) -> dict[str, Tensor]:
        return evaluate(self.policy, self.rewards, prompts, self.config, self.accelerator)

    def stage_work(self, stage: int, selected: int | None = None) -> float:
        return stage_work(self.config, stage, selected)

    def judging_work(self, prompts: list[str]) -> float:
        return evaluation_cost(self.config, len(prompts))
