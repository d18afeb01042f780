"""Reflection-GRPO (arXiv 2602.19974): what both phases of RL-RIG's training share."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, score_all
from rewards.scoring import counts_of
from srrl.batch import shuffled_pairs
from srrl.curriculum import StagePlan
from srrl.evaluation import over_seeds
from srrl.models.trainee import Trainee
from srrl.prompts import evenly, stage_prompts
from srrl.rig.forms import REASONS
from srrl.rig.grpo import Groups, group, parted
from srrl.rig.loop import Asked, Loop, acting, draw, editing
from srrl.rig.setup import Parts
from srrl.rig.strips import marks
from srrl.rig.walk import States, Tried, of, true_shares, walk
from srrl.rig.wishes import Wish, split_wishes
from srrl.run.curves import Panel
from srrl.run.distributed import all_sum, gather_rows, local_range
from srrl.run.image_statistics import Evaluated
from srrl.run.pictures import Row
from srrl.run.stages import Outcome, StagedRun
from srrl.run.statistics import by_prompt
from srrl.run.tracking import Tracker

SHARE = 0.6  # of the pictures that are states, about: for the time left


class PhaseRun(StagedRun):
    """A phase: pictures that fail are edited in groups, the checker's verdicts are the reward."""

    phases = ("draw", "write", "edit", "check", "update")
    unselected = "in each group all rewards are equal, or nothing passes more (train.need_gain)"
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "groups of a stage", {"groups": "all", "tied": "equal rewards", "hopeless": "no gain"}
        ),
        Panel(
            "share of requirements that edits pass",
            {"reward/checker/mean": "by the checker", "before/checker": "before the edit"},
            counts=False,
        ),
    )

    name: str

    def __init__(
        self,
        config: ConfigDict,
        parts: Parts,
        trainee: Trainee,
        rewards: Mapping[str, Reward],
        accelerator: Accelerator,
        tracker: Tracker,
    ):
        super().__init__(config, trainee, accelerator, tracker)
        self.parts, self.rewards, self.wishes = parts, rewards, split_wishes(config)
        self.settings = config.phase[self.name]
        trainee.nfe = 0  # what another phase has taken of it is that phase's
        self.history: dict[str, list[dict[str, Any]]] = {}

    # ------------------------------------------------------------------ what a phase says

    @abstractmethod
    def attempt(self, asked: Asked) -> Tried:
        """`group` attempts at each state."""

    @abstractmethod
    def nothing(self) -> dict[str, Tensor]:
        """What attempts at no state have as their own."""

    @abstractmethod
    def batch(self, states: States, groups: Groups, index: Tensor) -> Any:
        """What the update needs of the selected attempts int64 [n], each state * group + number."""

    @abstractmethod
    def rewarded(self, states: States) -> Tensor:
        """float32 [S, G]."""

    trained_steps = 1  # of an attempt

    # ------------------------------------------------------------------ a stage

    def stage(self, stage: int) -> Outcome:
        c, parts, before = self.config, self.parts, self.parts.meter.read()
        s = c.sample
        total = s.num_batches_per_stage * s.batch_size
        drawn = stage_prompts(self.wishes["train"], stage, total, c.seed, c.prompts.draw)
        wishes = [Wish(drawn[i].prompt, drawn[i].graph, i) for i in self.local(total)]
        states = walk(
            parts,
            wishes,
            total=total,
            stage=stage,
            rounds=self.settings.rounds,
            group=self.settings.group,
            attempt=self.attempt,
            timed=self.timed,
            accelerator=self.accelerator,
            nothing=self.nothing(),
        )
        spent = parts.meter.read() + before * -1
        rewards = self.rewarded(states)
        gained = states.share > states.before[:, None] + 1e-6
        t = c.train
        groups = group(rewards, gained, t.adv_clip_max, t.need_gain)
        index = groups.kept.repeat_interleave(self.settings.group).nonzero()[:, 0]
        measured = self.update(stage, states, groups, index)
        ledgers = zip(("evaluations", "vlm_calls", "vlm_tokens"), spent.all, strict=True)
        metrics = {
            **stage_metrics(states, groups, rewards),
            "selected": len(index),
            **{name: all_sum(self.accelerator, round(value)) for name, value in ledgers},
            **measured,
        }
        heading = f"{self.name}  no state"
        self.unselected = "no picture failed, or nothing was written that can be tried"
        if len(states):
            passed = states.before.mean(), states.share.mean()
            heading = "{}  passed {:.3f} to {:.3f}".format(self.name, *passed)
            self.unselected = type(self).unselected
        return Outcome(
            {"states": len(states)},
            metrics,
            heading,
            stage_records(states, groups, rewards),
            rows=partial(self.rows, states, rewards),
        )

    def update(self, stage: int, states: States, groups: Groups, index: Tensor) -> dict[str, float]:
        """Passes over the selected attempts."""
        with self.timed("update"):
            plan = StagePlan(stage, 1, self.trained_steps)
            batch = self.batch(states, groups, index) if len(index) else None
            return self.learner.update(stage, batch, shuffled_pairs(self.config, plan, len(index)))

    def local(self, n: int) -> range:
        return local_range(self.accelerator, n)

    def rows(self, states: States, rewards: Tensor, count: int) -> list[Row]:
        """A row for each of the first so many states: the picture, and the attempts at it."""
        shown = torch.arange(min(count, len(states)))
        local = states.local[shown]
        index = (local >= 0).nonzero()[:, 0]
        g, size = self.settings.group, self.parts.diffuser.image_size
        mine = states.tried[local[index]] if len(index) else torch.zeros(0, g, 3, *size).byte()
        tried = gather_rows(self.accelerator, mine, index, len(shown))
        made = []
        for i in shown.tolist():
            told = states.told[i]
            captions = [f"before\n{marks(told['required'], told['passed'])}"]
            for (text, reason, _), passed in zip(told["edits"], told["after"], strict=True):
                captions.append(
                    f"{text or f'no edit: {reason}'}\n{marks(told['required'], passed)}"
                )
            title = f"{told['prompt']}, round {states.round[i]}"
            best = 1 + int(rewards[i].argmax())
            made.append(Row(title, [states.images[i], *tried[i]], captions, best))
        return made

    # ------------------------------------------------------------------ evaluation

    def counts(self) -> dict[str, int]:
        return counts_of(self.rewards)

    def splits(self) -> dict[str, list[Wish]]:
        return self.wishes if self.config.eval.every else {}

    def prepare(self, done: int) -> None:
        """Of what will be written nothing is known beforehand."""
        if cut := self.parts.cut([w for some in self.splits().values() for w in some]):
            self.tracker.say(cut)

    @torch.no_grad()
    def evaluate_split(self, prompts: list[Wish], rounds: int, shown: list[int]) -> Evaluated:
        """Shares of the requirements after so many rounds of the loop: by the checker, in truth
        where it can be read; and the judges' scores."""
        c, parts = self.config, self.parts
        some = evenly(prompts, c.eval.num_prompts)
        write, redraw = acting(parts.actor_for(parts.editor)), editing(parts.editor)
        loop = Loop(parts.seer, write, redraw, parts.meter, rounds, c.loop.keep)
        names = ["checker", *(["exact"] if parts.exact else []), *self.rewards]

        def judge(index: list[int], seed: int) -> tuple[dict[str, Tensor], Tensor]:
            wishes = [Wish(some[i].prompt, some[i].graph, i) for i in index]
            first = draw(parts.diffuser, parts.settings, wishes, seed)
            trails = loop.run(first, wishes, seed)
            images = torch.stack([trail.final.image for trail in trails])
            scores = {"checker": of([trail.final.passed.tolist() for trail in trails])}
            if parts.exact:
                scores["exact"] = true_shares(images, wishes)
            return scores | score_all(self.rewards, images, [w.prompt for w in wishes]), images

        counted = self.trainee.nfe
        size = parts.diffuser.image_size
        found = over_seeds(judge, names, len(some), c, self.accelerator, shown, size)
        self.trainee.nfe = counted
        return found

    def log_evaluation(self, split: str, rounds: int, reward: str, found: Evaluated) -> None:
        super().log_evaluation(split, rounds, reward, found)
        if split == self.watched and rounds == max(self.config.eval.rounds):
            e, values = self.config.eval, found.scores[reward]
            judged = [split, rounds, e.seeds, e.first_seed, len(values)]
            means = by_prompt(values, e.seeds).tolist()
            line = {"stage": self.progress.stage, "of": judged, "means": means}
            self.history.setdefault(reward, []).append(line)

    @property
    def watched(self) -> str:
        return "heldout" if "heldout" in self.wishes else "train"

    def evaluate(self) -> None:
        super().evaluate()
        best = self.parted()
        if best is not None:
            ends = ": the phase ends" if self.config.train.stop_on_heldout else ""
            self.tracker.say(
                f"  warning: on {self.watched} prompts the checker passes more, and {self.truth} "
                f"has fallen, since stage {best} (train.stop_on_heldout){ends}"
            )

    @property
    def truth(self) -> str:
        return "exact" if self.parts.exact else next(iter(self.rewards))

    def parted(self) -> int | None:
        """The stage since which the checker and the truth have parted, at the last evaluation."""
        lines = [self.history.get(name, []) for name in ("checker", self.truth)]
        lines = [[x for x in some if x["of"] == some[-1]["of"]] for some in lines]
        values = [[torch.tensor(x["means"]) for x in some] for some in lines]
        if len(values[0]) < 2 or len(values[0]) != len(values[1]):
            return None
        best = parted(*values)
        return None if best is None else lines[0][best]["stage"]

    def over(self) -> bool:
        return self.config.train.stop_on_heldout and self.parted() is not None

    def state(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state(self, state: dict[str, Any]) -> None:
        self.history = state["history"]

    # ------------------------------------------------------------------ what it costs

    def stage_work(self, stage: int, selected: int | None = None) -> float:
        s = self.config.sample
        tried = s.num_batches_per_stage * s.batch_size * self.settings.rounds * self.settings.group
        return SHARE * tried * self.parts.editor.evaluations

    def evaluation_work(self, prompts: list[Wish]) -> float:
        e = self.config.eval
        rounds = SHARE * sum(e.rounds) * self.parts.editor.evaluations
        return min(len(prompts), e.num_prompts) * e.seeds * rounds

    def metered(self, name: str, work: float) -> AbstractContextManager:
        """By the editor's network: it has most of the work."""
        share = work / self.accelerator.num_processes
        return self.meter.work(f"{self.name}, {name}", self.parts.editor.policy.network, share)

    def describe(self) -> str:
        c, own = self.config, self.settings
        prompts = c.sample.num_batches_per_stage * c.sample.batch_size
        return (
            f"  {self.name}  {c.stages.total} stages of {prompts} prompts: what fails is edited "
            f"{own.group} times, in {own.rounds} rounds"
        )


def completions(states: States) -> dict[str, float]:
    """Of what the actor wrote: how many answers were refused for which reason, the share of the
    others, and how many of a state's edit prompts are distinct."""
    written = [[(e[0], e[1]) for e in told["edits"]] for told in states.told]
    if all(len(set(some)) == 1 for some in written):  # one for all attempts
        written = [some[:1] for some in written]
    reasons = Counter(reason for some in written for _, reason in some if reason) + states.refused
    total = sum(map(len, written)) + states.refused.total()
    distinct = [len({text for text, _ in some}) / len(some) for some in written]
    return {
        "form": 1 - reasons.total() / max(total, 1),
        "distinct": sum(distinct) / max(len(distinct), 1),
        **{f"refused/{reason}": reasons[reason] for reason in REASONS},
    }


def stage_metrics(states: States, groups: Groups, rewards: Tensor) -> dict[str, float]:
    found = {
        "groups": len(states),
        "tied": int(groups.tied.sum()),
        "hopeless": int(groups.hopeless.sum()),
        **completions(states),
        "before/checker": states.before.mean().item(),
        "reward/checker/mean": states.share.mean().item(),
        "reward/std": rewards.std(1).mean().item() if len(states) else 0.0,
    }
    if states.exact is not None:
        found["reward/exact/mean"] = states.exact.mean().item()
    if "likeness" in states.own:
        found["likeness"] = states.own["likeness"].mean().item()
    return found


def stage_records(states: States, groups: Groups, rewards: Tensor) -> list[dict[str, Any]]:
    """For each attempt its line of samples.jsonl."""
    lines = []
    for i, told in enumerate(states.told):
        for g, (text, reason, completion) in enumerate(told["edits"]):
            line = {
                "prompt": told["prompt"],
                "round": int(states.round[i]),
                "branch": g,
                "failed": told["failed"],
                "edit": text,
                "reason": reason,
                "completion": completion,
                "before": states.before[i].item(),
                "checker": states.share[i, g].item(),
                "reward": rewards[i, g].item(),
                "advantage": groups.advantages[i, g].item(),
                "selected": bool(groups.kept[i]),
            }
            if states.exact is not None:
                line["exact"] = states.exact[i, g].item()
            if "likeness" in states.own:
                line["likeness"] = states.own["likeness"][i, g].item()
            lines.append(line)
    return lines
