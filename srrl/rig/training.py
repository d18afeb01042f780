"""RL-RIG's training (arXiv 2602.19974): its phases, each a run of its own, one after the other."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from accelerate import Accelerator
from accelerate.utils import DistributedType
from ml_collections import ConfigDict

from rewards import Reward, check_prompts
from rewards.scoring import rewards_of
from srrl.checks import OF_PHASE, PHASES, phase_values
from srrl.config import flatten
from srrl.errors import UserError
from srrl.rig.assess import judged_by
from srrl.rig.phases import ActorRun, EditorRun
from srrl.rig.setup import Parts
from srrl.rig.trainer import PhaseRun
from srrl.rig.wishes import split_wishes
from srrl.run.checkpoint import check_same_run
from srrl.run.tracking import Tracker


def phase_config(config: ConfigDict, phase: str) -> ConfigDict:
    """The config of a phase's run: what is unset for both is its own."""
    own = copy.deepcopy(config)
    for key, value in phase_values(flatten(config), phase).items():
        section, _, leaf = key.partition(".")
        own[section][leaf] = value
    own.output_dir, own.run_name = f"{config.output_dir}/{config.run_name}", phase
    own.phases = config.phases[: config.phases.index(phase) + 1]  # whose words it is trained on
    return own


def free_of(phase: str) -> tuple[str, ...]:
    """Keys on which a phase's run does not depend: the other's, and those that it has elsewhere."""
    others = [f"phase.{other}." for other in PHASES if other != phase]
    return (*others, *(f"phase.{phase}.{name}" for name in OF_PHASE.values()), "loop.")


class Phases:
    """The config's phases, one after the other; each resumes by itself."""

    kinds: ClassVar[dict[str, Callable[..., PhaseRun]]] = {"actor": ActorRun, "editor": EditorRun}

    def __init__(
        self, config: ConfigDict, accelerator: Accelerator, parts: Parts, rewards: dict[str, Reward]
    ):
        self.config, self.accelerator = config, accelerator
        self.parts, self.rewards = parts, rewards

    def describe(self) -> str:
        return f"  phases  {', then '.join(self.config.phases)}"

    def run(self) -> None:
        before = 0
        for phase in self.config.phases:
            run = self.of(phase, before)
            run.tracker.say(run.describe())
            run.run()
            before += run.config.stages.total

    def of(self, phase: str, before: int = 0) -> PhaseRun:
        own = phase_config(self.config, phase)
        tracker = Tracker(Path(own.output_dir) / own.run_name, self.accelerator, phase, before)
        run = self.kinds[phase](own, self.parts, self.rewards, self.accelerator, tracker)
        run.free = free_of(phase)
        return run


def start(config: ConfigDict, accelerator: Accelerator, tracker: Tracker) -> Phases:
    """The phases of a config: checked before a model is loaded."""
    if accelerator.distributed_type == DistributedType.FSDP:
        raise UserError(
            "RL-RIG trains LoRAs, which fit on each GPU: use config/accelerate/multi_gpu.yaml"
        )
    for phase in config.phases:
        own = phase_config(config, phase)
        check_same_run(Path(own.output_dir) / own.run_name, own, free_of(phase))
    parts = Parts(config, accelerator.device, tuple(config.phases))
    wishes = split_wishes(config)
    for split, some in wishes.items():
        parts.check(some, (), config.prompts[split])
    for name in judged_by(config, config.checker.model):
        tracker.say(f"warning: judge {name!r} is the checker's own model: it likes what is trained")
    rewards = rewards_of(config, accelerator.device)
    for split, some in wishes.items():
        check_prompts(rewards, [wish.prompt for wish in some], config.prompts[split])
    return Phases(config, accelerator, parts, rewards)
