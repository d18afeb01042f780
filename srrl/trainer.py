"""SRRL (arXiv 2505.22407), one trainer for every model: sample, score, select, update."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, check_prompts
from rewards.scoring import Scorer
from srrl.advantages import ScoreHistory, select, stage_advantages
from srrl.budget import evaluation_cost, plan_for, shows_pictures, stage_work
from srrl.curriculum import StagePlan
from srrl.evaluation import evaluate
from srrl.learner import Learner, Selection
from srrl.models.policy import Policy
from srrl.prompts import split_prompts, stage_prompts
from srrl.rollout import Rollout, rollout, rollout_settings
from srrl.run.distributed import own_part, share
from srrl.run.pictures import Images
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


@dataclass(frozen=True)
class Chosen:
    """advantages float32 [N] of a stage's trajectories; rows int64 [S]: those to train on."""

    advantages: Tensor
    rows: Tensor


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
        self.prompts = split_prompts(config)
        for split, prompts in self.prompts.items():
            check_prompts(rewards, prompts, config.prompts[split])
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
        chosen = self.select(plan, scored, prompts)
        selection = self.selection(samples, scored, chosen, prompts)
        with self.timed("update"):
            updated = self.learner.update(plan, selection)
        metrics = self.metrics(plan, scored, chosen) | updated
        return Outcome(
            {"rounds": plan.rounds, "trained_steps": plan.trained_steps},
            metrics,
            f"K {plan.rounds}  m {plan.trained_steps}  {mean_text(metrics, scored.scores)}",
            self.lines(plan, scored, chosen, prompts),
            lambda slots: self.images(samples, scored, slots),
        )

    # ------------------------------------------------------------------ sample

    def draw_prompts(self, plan: StagePlan) -> list[str]:
        """The stage's prompts; a trajectory's `slot` is its prompt's place in this list."""
        s = self.config.sample
        count = s.num_batches_per_stage * s.batch_size
        drawn = self.seeding(plan), count, self.config.seed, self.config.prompts.draw
        return stage_prompts(self.prompts["train"], *drawn)

    def seeding(self, plan: StagePlan) -> int:
        """The stage whose prompts and noise this one draws: its own, but for stages.seed_cycle."""
        cycle = self.config.stages.seed_cycle
        return plan.stage % cycle if cycle else plan.stage

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
                stage=self.seeding(plan),
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

    def select(self, plan: StagePlan, scored: Scored, prompts: list[str]) -> Chosen:
        """How much better an image is than its prompt's, of this stage and of the last ones, which
        the history remembers; and the extremes of each group of branches."""
        c, every_round = self.config.select, self.config.reflect.train_rounds == "all"
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
        return Chosen(advantages, rows)

    def selection(
        self, samples: Rollout, scored: Scored, chosen: Chosen, prompts: list[str]
    ) -> Selection:
        """What the update needs of the chosen trajectories, from the processes that have them."""
        t, rows, own = self.config.train, chosen.rows, scored.own[chosen.rows]
        places = (own >= 0).nonzero()[:, 0]
        latents, log_probs = (
            share(self.accelerator, of_own[own[places].to(of_own.device)], places, len(rows))
            for of_own in (samples.latents, samples.log_probs)
        )
        advantages = chosen.advantages[rows].clamp(-t.adv_clip_max, t.adv_clip_max)
        weights = torch.where(advantages > 0, t.positive_weight, t.negative_weight)
        return Selection(
            latents,
            log_probs,
            (advantages * weights).to(self.policy.device),
            self.policy.encode(prompts).rows(scored.slot[rows].to(self.policy.device)),
        )

    # ------------------------------------------------------------------ for the run around it

    def metrics(self, plan: StagePlan, scored: Scored, chosen: Chosen) -> dict[str, float]:
        """Of the stage's line in metrics.jsonl what sampling and scoring gave."""
        judged = self.judged(plan, scored.round)
        metrics = {"advantage/std": chosen.advantages.std().item(), "selected": len(chosen.rows)}
        for name, values in scored.scores.items():
            metrics[f"reward/{name}/mean"] = values[judged].mean().item()
            metrics[f"reward/{name}/std"] = values[judged].std().item()
        return metrics

    def lines(
        self, plan: StagePlan, scored: Scored, chosen: Chosen, prompts: list[str]
    ) -> list[dict[str, Any]]:
        """For each of the N trajectories its line of samples.jsonl."""
        selected, judged = set(chosen.rows.tolist()), self.judged(plan, scored.round).tolist()
        return [
            {
                "prompt": prompts[slot],
                "slot": slot,
                "branch": n // self.sampled_rounds(plan) % self.config.branch.count,
                "round": int(scored.round[n]),
                "scores": {k: v[n].item() for k, v in scored.scores.items()} if judged[n] else None,
                "advantage": chosen.advantages[n].item(),
                "selected": n in selected,
            }
            for n, slot in enumerate(scored.slot.tolist())
        ]

    def images(self, samples: Rollout, scored: Scored, slots: int) -> Images:
        """The pictures of the first `slots` prompts, from the processes that have them."""
        own = scored.own[scored.slot < slots]
        places = (own >= 0).nonzero()[:, 0]
        images = samples.images[own[places].to(samples.images.device)]
        part = own_part(self.accelerator, int(scored.slot[-1]) + 1)
        mine = torch.tensor([slot for slot in part if slot < slots], dtype=torch.int64)
        return Images(
            share(self.accelerator, images, places, len(own)),
            [
                share(
                    self.accelerator, of_round[(mine - part.start).to(of_round.device)], mine, slots
                )
                for of_round in samples.reflected
            ],
        )

    def prompts_of(self, stage: int) -> list[str]:
        return self.draw_prompts(plan_for(self.config, stage))

    def splits(self) -> dict[str, list[str]]:
        return self.prompts if self.config.eval.every else {}

    def judge(
        self, prompts: list[str], rounds: int, shown: list[int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        given = self.policy, self.rewards, prompts, self.config, self.accelerator
        return evaluate(*given, rounds, shown)

    def stage_work(self, stage: int, selected: int | None = None) -> float:
        return stage_work(self.config, stage, selected)

    def judging_work(self, prompts: list[str]) -> float:
        return evaluation_cost(self.config, len(prompts))
