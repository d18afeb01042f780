"""SRRL (arXiv 2505.22407), one trainer for every model: sample, score, select, update."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from ml_collections import ConfigDict
from torch import Tensor

from rewards import score_all
from rewards.scoring import Scorer, rewards_of
from srrl.advantages import ScoreHistory, select, stage_advantages
from srrl.batch import Batch, pairs_objective, shuffled_pairs
from srrl.budget import totals_table
from srrl.curriculum import StagePlan, judges_first, plan_for, reflected_at, shows_pictures
from srrl.errors import UserError
from srrl.image_run import ImageRun
from srrl.learner import Learner
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.prompts import split_prompts
from srrl.records import Scored, Selected, stage_images, stage_metrics, stage_records
from srrl.rollout import Rollout, Starts, rollout
from srrl.rounds import rollout_settings
from srrl.run.curves import Panel
from srrl.run.distributed import gather_objects, gather_rows, local_range
from srrl.run.pictures import Images
from srrl.run.stages import Outcome
from srrl.run.tracking import Tracker, mean_text


class Trainer(ImageRun):
    """Trains the policy; `stage` is the method."""

    phases = ("reflect", "sample", "decode", "score", "update")
    panels = (Panel("curriculum", {"rounds": "rounds K", "trained_steps": "trained steps m"}),)

    def __init__(self, *given: Any):
        """Of what an ImageRun is made of."""
        super().__init__(*given)
        self.policy = policy = self.trainee
        background = self.config.reward.backend != "local" or policy.device.type == "cuda"
        self.scorer = Scorer(self.rewards, background)
        sampling, clip_range = rollout_settings(self.config), self.config.train.clip_range
        objective = partial(pairs_objective, sampling, clip_range, policy)
        self.learner = Learner(self.config, policy, self.accelerator, objective)
        self.history = ScoreHistory(self.config.reward.history)
        self.starts: Starts | None = None  # of a stage's prompts, where they are needed again

    def stage(self, stage: int) -> Outcome:
        return self.train(plan_for(self.config, stage))

    def train(self, plan: StagePlan) -> Outcome:
        """Sample, score, select, update."""
        prompts = self.draw_prompts(plan)
        samples = self.sample(plan, prompts)
        scored = self.score(plan, samples, prompts)
        selected = self.select(plan, scored, prompts)
        batch = self.batch(samples, scored, selected, prompts)
        images = Images(samples.images, samples.reflected)
        del samples  # the update needs the batch alone
        weights = self.config.reward.models.to_dict()
        metrics = stage_metrics(scored, selected, weights)
        if self.config.reflect.when == "failed" and plan.rounds > 1:
            metrics["reflected"] = self.kept.again.float().mean().item()
        metrics |= self.update(plan, batch)
        return Outcome(
            {"rounds": plan.rounds, "trained_steps": plan.trained_steps},
            metrics,
            f"K {plan.rounds}  m {plan.trained_steps}  {mean_text(metrics)}",
            stage_records(scored, selected, prompts, self.config.branch.count),
            partial(self.pictures, images, scored, prompts),
        )

    def sample(self, plan: StagePlan, prompts: list[str]) -> Rollout:
        """Reflect and sample: K-round trajectories of this process's share of the prompts.

        A batch's images begin to be scored as soon as they are there.
        """
        c, settings = self.config, rollout_settings(self.config)
        shared = reflected_at(c, plan.stage) != plan.stage
        local, parts = list(local_range(self.accelerator, len(prompts))), []
        for start in range(0, len(local), c.sample.batch_size):
            indices = local[start : start + c.sample.batch_size]
            own = [prompts[i] for i in indices]
            part = rollout(
                self.policy,
                self.policy.encode(own),
                settings,
                rounds=plan.rounds,
                trained_steps=plan.trained_steps,
                seed=c.seed,
                stage=self.seeding(plan.stage),
                prompts=indices,
                starts=self.kept.rows(indices) if shared else None,
                judging=partial(self.first_scores, own) if judges_first(c) else None,
                keep_reflected=shows_pictures(c, plan.stage),
                timed=self.timed,
            )
            judged = self.is_judged(plan, part.round)
            with self.timed("score"):
                of_image = [prompts[i] for i in part.prompt[judged].tolist()]
                self.scorer.submit(part.images[judged], of_image)
            parts.append(part)
        samples = Rollout.cat(parts)
        if not shared:
            self.keep(samples.starts, torch.tensor(local), len(prompts))
        return samples

    def first_scores(self, prompts: list[str], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The scores of first rounds' images, and which are reflected: all, or those whose weighted
        sum is too low."""
        with self.timed("score"):
            self.scorer.wait()
            scores = score_all(self.rewards, images, prompts)
        if self.config.reflect.when == "always":
            return scores, torch.ones(len(images), dtype=torch.bool)
        total = sum(w * scores[name] for name, w in self.config.reward.models.items())
        return scores, total < self.config.reflect.threshold

    @property
    def kept(self) -> Starts:
        """The starts that are remembered, where some are."""
        assert self.starts is not None
        return self.starts

    def keep(self, starts: Starts, index: Tensor, prompts: int) -> None:
        """Remember every process's starts, where later stages or the scores need them."""
        if self.config.reflect.reuse == 1 and not judges_first(self.config):
            return
        x, again, *scores = (
            gather_rows(self.accelerator, tensor.cpu(), index, prompts)
            for tensor in (starts.x, starts.again.int(), *starts.scores.values())
        )
        named = dict(zip(starts.scores, scores, strict=True))
        self.starts = Starts(x, again.bool(), named)

    def score(self, plan: StagePlan, samples: Rollout, prompts: list[str]) -> Scored:
        """Each reward's scores of the final images, of every process."""
        with self.timed("score"):
            scores, details = self.scorer.collect()
        branches, rounds = self.config.branch.count, self.sampled_rounds(plan)
        first = plan.rounds - rounds + 1
        place = (samples.prompt * branches + samples.branch) * rounds + samples.round - first
        n = len(prompts) * branches * rounds
        local = torch.full((n,), -1)
        local[place] = torch.arange(len(place))
        every = torch.arange(n)
        judged = place[self.is_judged(plan, samples.round)]
        details = {k: gather_objects(self.accelerator, v, judged, n) for k, v in details.items()}
        prompt = every // (branches * rounds)
        scores = {k: gather_rows(self.accelerator, v, judged, n) for k, v in scores.items()}
        of_first = {}
        if judges_first(self.config) and plan.rounds > 1:
            of_first = {name: values[prompt] for name, values in self.kept.scores.items()}
        if self.config.reflect.clamp and of_first:
            again = self.kept.again[prompt]
            for name, values in scores.items():
                scores[name] = torch.where(again, torch.maximum(values, of_first[name]), values)
        return Scored(
            prompt=prompt,
            round=every % rounds + first,
            scores=scores,
            judged=self.is_judged(plan, every % rounds + first),
            local=local,
            first=of_first,
            details={k: v for k, v in details.items() if any(v)},
        )

    def pictures(self, images: Images, scored: Scored, prompts: list[str], count: int) -> Images:
        """Those of the first `count` prompts, and the scores of the reflecting rounds that are
        shown; every process calls it or none."""
        found = stage_images(self.accelerator, images, scored, count)
        if not self.accelerator.is_main_process:
            return found
        n = min(count, self.config.pictures.prompts)
        scores = [
            score_all(self.rewards, of_round[:n], prompts[:n]) for of_round in found.reflected
        ]
        return replace(found, scores=scores)

    def is_judged(self, plan: StagePlan, rounds: torch.Tensor) -> torch.Tensor:
        """Which trajectories' images are scored, bool [N] for their rounds: all of them, or with
        reward.rounds "last" those of the last round, whose scores the others share."""
        return (rounds == plan.rounds) | (self.config.reward.rounds != "last")

    def sampled_rounds(self, plan: StagePlan) -> int:
        """The rounds of a trajectory that are sampled, scored and trained."""
        return plan.rounds if self.config.reflect.train_rounds == "all" else 1

    def select(self, plan: StagePlan, scored: Scored, prompts: list[str]) -> Selected:
        """How much better an image is than its prompt's, of this stage and of the last ones, which
        the history remembers; and the extremes of each group of branches."""
        c, every_round = self.config.select, self.config.reflect.train_rounds == "all"
        by_round = self.config.reward.rounds == "all" and every_round
        judged = scored.judged
        indices, rounds = scored.prompt[judged].tolist(), scored.round[judged].tolist()
        keys = [
            f"{prompts[i]} (round {k})" if by_round else prompts[i]
            for i, k in zip(indices, rounds, strict=True)
        ]
        scores = {name: values[judged] for name, values in scored.scores.items()}
        if self.config.reward.rounds == "mean" and every_round:  # one for each trajectory
            keys = keys[:: plan.rounds]
            scores = {name: values.view(-1, plan.rounds).mean(1) for name, values in scores.items()}
        if share := self.config.reflect.baseline:
            scores = {name: v - share * scored.first[name] for name, v in scores.items()}
        weights = self.config.reward.models.to_dict()
        advantages = stage_advantages(keys, scores, weights, self.history, plan.stage)
        advantages = advantages.repeat_interleave(len(scored.prompt) // len(advantages))
        groups = scored.prompt * (plan.rounds + 1) + scored.round
        index = select(advantages, groups, c.pos_threshold, c.neg_threshold, c.mode)
        return Selected(advantages, index)

    def batch(
        self, samples: Rollout, scored: Scored, selected: Selected, prompts: list[str]
    ) -> Batch:
        """What the update needs of the selected trajectories, from the processes that have them."""
        t, index, device = self.config.train, selected.index, self.policy.device
        local = scored.local[index]
        rows = (local >= 0).nonzero()[:, 0]
        latents, log_probs = (
            gather_rows(self.accelerator, tensor[local[rows].to(device)], rows, len(index))
            for tensor in (samples.latents, samples.log_probs)
        )
        advantages = selected.advantages[index].clamp(-t.adv_clip_max, t.adv_clip_max)
        weights = torch.where(advantages > 0, t.positive_weight, t.negative_weight)
        if t.round_weights == "linear":
            weights = weights * scored.round[index] / scored.round.max()
        return Batch(
            latents,
            log_probs,
            (advantages * weights).to(device),
            self.policy.encode(prompts).rows(scored.prompt[index].to(device)),
        )

    def update(self, plan: StagePlan, batch: Batch) -> dict[str, float]:
        """Passes of the clipped policy gradient over the batch; what they measured."""
        with self.timed("update"):
            pairs = shuffled_pairs(self.config, plan, len(batch))
            return self.learner.update(plan.stage, batch, pairs)

    def state(self) -> dict:
        kept: dict[str, Any] = {"history": self.history.entries}
        if self.starts is not None and self.config.reflect.reuse > 1:
            kept |= {"starts": self.starts.state(), "drawn": self.drawn}
        return kept

    def load_state(self, state: dict) -> None:
        self.history.entries = {
            key: [(stage, scores) for stage, scores in entries]
            for key, entries in state["history"].items()
        }
        if "starts" in state:
            self.starts, self.drawn = Starts.from_state(state["starts"]), state["drawn"]

    def spreads(self) -> dict[str, float]:
        return self.history.spreads(self.config.reward.models.to_dict())

    def describe(self) -> str:
        return totals_table(self.config)


def start(config: ConfigDict, accelerator: Accelerator, tracker: Tracker) -> Trainer:
    """The run of a config: checked against the processes that were started, its models loaded."""
    check_processes(config, accelerator)
    rewards = rewards_of(config, accelerator.device)
    policy = Policy.from_config(config, device=accelerator.device)
    make_trainable(policy.network, config)
    return Trainer(config, policy, rewards, accelerator, tracker)


def check_processes(config: ConfigDict, accelerator: Accelerator) -> None:
    """Raise UserError where so many processes cannot share the config's work."""
    n = accelerator.num_processes
    prompts = config.sample.num_batches_per_stage * config.sample.batch_size
    if n > prompts:
        raise UserError(
            f"{n} processes for {prompts} prompts a stage: raise "
            f"config.sample.num_batches_per_stage or launch fewer"
        )
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    if config.use_lora:
        raise UserError(
            "FSDP shards the whole UNet: add --config.use_lora=false, or train the LoRA with "
            "config/accelerate/multi_gpu.yaml"
        )
    if config.reflect.when == "failed":
        raise UserError(
            "FSDP with config.reflect.when='failed': the processes that share the UNet must all "
            "call it equally often: set it to 'always'"
        )
    counts = {"config.sample.num_batches_per_stage x sample.batch_size": prompts}
    if config.eval.every:
        for split, lines in split_prompts(config).items():
            name = f"the number of prompts evaluated of config.prompts.{split}"
            counts[name] = min(config.eval.num_prompts, len(lines))
    for name, count in counts.items():
        if count % n:
            raise UserError(
                f"{name} = {count} is not a multiple of the {n} processes that share the UNet: "
                f"they must all call it equally often (eval.num_prompts, prompts.*)"
            )
