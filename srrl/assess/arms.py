"""A study's runs: which there are, what each costs, and the commands that make and judge it."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from srrl.budget import expected_selected, plan_for, stage_cost, trained_passes
from srrl.config import REPOSITORY, load_config
from srrl.run.pictures import read_jsonl

FLAG = "--config."


@dataclass(frozen=True)
class Run:
    """An arm at a budget and seed."""

    arm: str
    budget: str
    seed: int
    stages: int
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name


def arm_flags(study: ConfigDict, arm: str, stages: int) -> list[str]:
    """train.py's flags of an arm that has so many stages, but for its seed and folder."""
    given = study.arms[arm]
    preset = "+".join(filter(None, (study.preset, given.preset)))
    values = [
        *study.overrides,
        f"stages.total={stages}",
        f"stages.per_cycle={-(-stages // study.max_rounds)}",
        f"reflect.max_rounds={study.max_rounds}",
        *given["values"],
    ]
    return [f"--config=config/stage_process.py:{preset}", *(FLAG + value for value in values)]


def expected(study: ConfigDict, arm: str, stages: int, budget: str) -> float:
    """The "images" or network "evaluations" of a run, as far as known before it has selected."""
    config = load_config(arm_flags(study, arm, stages))
    total = 0.0
    for n in range(stages):
        cost = stage_cost(config, plan_for(config, n))
        if budget == "images":
            total += cost.images
            continue
        passes = trained_passes(config, expected_selected(config, cost))
        total += cost.reflect + cost.sample + cost.update_per_pass * passes
    return total


def stages_of(study: ConfigDict, arm: str, budget: str) -> int:
    """The stages at which an arm comes nearest to what the reference takes of the budget."""
    wanted = expected(study, study.reference, study.stages, budget)
    choices = range(1, 3 * study.stages)
    return min(choices, key=lambda stages: abs(expected(study, arm, stages, budget) - wanted))


def runs_of(study: ConfigDict) -> list[Run]:
    """Every run, seed by seed, so that a study that is stopped has all arms at some seeds."""
    runs = []
    stages = {(arm, budget): stages_of(study, arm, budget)
              for arm in study.arms for budget in study.budgets}  # fmt: skip
    for seed in study.seeds:
        for budget in study.budgets:
            for arm in study.arms:
                if arm == study.reference and budget != study.budgets[0]:
                    continue  # the same run
                folder = Path(study.output_dir) / f"{arm}_{budget}_{seed}"
                runs.append(Run(arm, budget, seed, stages[arm, budget], folder))
    return runs


def train_command(study: ConfigDict, run: Run) -> list[str]:
    return [
        sys.executable, str(REPOSITORY / "scripts" / "train.py"),
        *arm_flags(study, run.arm, run.stages), f"{FLAG}seed={run.seed}",
        f"{FLAG}output_dir={run.folder.parent}", f"{FLAG}run_name={run.name}",
    ]  # fmt: skip


def evaluate_command(study: ConfigDict, checkpoint: str, out: Path) -> list[str]:
    return [
        sys.executable, str(REPOSITORY / "scripts" / "evaluate.py"),
        "--config", f"config/stage_process.py:{study.preset}", "--checkpoints", checkpoint,
        "--rewards", *study.rewards, "--samplers", *study.samplers,
        "--images", str(study.images), "--num-prompts", str(study.num_prompts), "--out", str(out),
    ]  # fmt: skip


def spent(run: Run) -> int:
    """Network evaluations that a finished run has really taken."""
    return read_jsonl(run.folder / "metrics.jsonl")[-1]["nfe_total"]


def is_trained(run: Run) -> bool:
    lines = read_jsonl(run.folder / "metrics.jsonl")
    return (
        bool(lines)
        and lines[-1]["stage"] + 1 == run.stages
        and bool(list(run.folder.glob(f"checkpoints/stage_{run.stages:04d}/*")))
    )


def is_judged(study: ConfigDict, folder: Path) -> bool:
    table = folder / "table.json"
    return table.exists() and len({x["sampler"] for x in json.loads(table.read_text())}) == len(
        study.samplers
    )
