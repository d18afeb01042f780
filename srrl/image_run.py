"""A run whose trainee is a policy that draws prompts: which prompts, how it is evaluated, and what
that costs."""

from accelerate import Accelerator
from ml_collections import ConfigDict

from rewards import Reward, check_prompts
from rewards.scoring import counts_of
from srrl.budget import evaluation_cost, stage_cost, stage_work
from srrl.curriculum import StagePlan, plan_for, reflected_at
from srrl.evaluation import evaluate
from srrl.models.policy import Policy
from srrl.prompts import foreign_heldout, split_prompts, stage_prompts, varied_prompts
from srrl.run.checkpoint import growth
from srrl.run.image_statistics import Evaluated
from srrl.run.stages import StagedRun
from srrl.run.tracking import Tracker


def space(c: ConfigDict, policy: Policy, done: int) -> float:
    """Bytes by which a run's folder will grow after `done` stages (-1: before the start), about,
    with the images that are saved, which PNG makes smaller by a third."""
    height, width = policy.image_size
    stages = range(max(done, 0), c.stages.total) if c.pictures.images else []
    images = sum(stage_cost(c, plan_for(c, stage)).images for stage in stages)
    return growth(c, policy, done) + images * 2 * height * width


class ImageRun(StagedRun):
    """Draws each stage's prompts from a file, and evaluates the policy on fixed ones by K."""

    trainee: Policy

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
        self.drawn: list[str] = []  # a stage's, drawn by their variance
        for split, prompts in self.prompts.items():
            check_prompts(rewards, prompts, config.prompts[split])
        if foreign := foreign_heldout(config):
            tracker.say(foreign)

    def draw_prompts(self, plan: StagePlan) -> list[str]:
        """The stage's prompts; a trajectory's `prompt` is its prompt's index in this list."""
        s = self.config.sample
        count = s.num_batches_per_stage * s.batch_size
        first = reflected_at(self.config, plan.stage)
        stage, train = self.seeding(first), self.prompts["train"]
        if self.config.prompts.draw != "variance":
            return stage_prompts(train, stage, count, self.config.seed, self.config.prompts.draw)
        if first == plan.stage or not self.drawn:
            self.drawn = varied_prompts(train, self.spreads(), stage, count, self.config.seed)
        return self.drawn

    def spreads(self) -> dict[str, float]:
        """The standard deviation of the scores that prompts have had, where they have some."""
        return {}

    def seeding(self, stage: int) -> int:
        """The stage whose prompts and noise one draws: its own, but for stages.seed_cycle."""
        cycle = self.config.stages.seed_cycle
        return stage % cycle if cycle else stage

    def begin(self) -> None:
        if self.config.pretrained.lora:
            self.tracker.say(self.trainee.start(self.config.pretrained.lora))

    def prompts_of(self, stage: int) -> list[str]:
        if self.config.prompts.draw == "variance":  # any of them
            return self.prompts["train"]
        return self.draw_prompts(plan_for(self.config, stage))

    def counts(self) -> dict[str, int]:
        return counts_of(self.rewards)

    def space(self, done: int) -> float:
        return space(self.config, self.trainee, done)

    def splits(self) -> dict[str, list[str]]:
        return self.prompts if self.config.eval.every else {}

    def evaluate_split(self, prompts: list[str], rounds: int, shown: list[int]) -> Evaluated:
        given = self.trainee, self.rewards, prompts, self.config, self.accelerator
        return evaluate(*given, rounds, shown)

    def stage_work(self, stage: int, selected: int | None = None) -> float:
        return stage_work(self.config, stage, selected)

    def evaluation_work(self, prompts: list[str]) -> float:
        return evaluation_cost(self.config, len(prompts))
