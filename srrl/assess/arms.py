"""A study's runs: which there are, what each costs, and the commands that train and evaluate it."""

import sys
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from srrl.assess.cells import Result, finished
from srrl.budget import run_evaluations, run_images
from srrl.config import REPOSITORY, load_config
from srrl.run.folder import read_lines, stage_folder

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


def shared_flags(study: ConfigDict, preset: str = "") -> list[str]:
    """What all arms are told; `preset` goes over the study's own."""
    presets = "+".join(filter(None, (study.preset, preset)))
    values = (FLAG + value for value in study.overrides)
    return [f"--config=config/stage_process.py:{presets}", *values]


def arm_flags(study: ConfigDict, arm: str, stages: int) -> list[str]:
    """train.py's flags of an arm that has so many stages, but for its seed and folder."""
    given = study.arms[arm]
    values = [
        f"stages.total={stages}",
        f"stages.per_cycle={-(-stages // study.max_rounds)}",
        f"reflect.max_rounds={study.max_rounds}",
        *given["values"],
    ]
    return [*shared_flags(study, given.preset), *(FLAG + value for value in values)]


def expected(study: ConfigDict, arm: str, stages: int, budget: str) -> int:
    """The "images" or network "evaluations" of a run, as far as known before it has selected."""
    config = load_config(arm_flags(study, arm, stages))
    return run_images(config) if budget == "images" else run_evaluations(config)


def stages_of(study: ConfigDict, arm: str, budget: str) -> int:
    """The stages at which an arm comes nearest to what the reference takes of the budget."""
    wanted = expected(study, study.reference, study.stages, budget)
    choices = range(1, 3 * study.stages)
    return min(choices, key=lambda stages: abs(expected(study, arm, stages, budget) - wanted))


def runs_of(study: ConfigDict) -> list[Run]:
    """Every run, seed by seed, so that a study that is stopped has all arms at some seeds."""
    runs = []
    stages = {
        (arm, budget): stages_of(study, arm, budget)
        for arm in study.arms
        for budget in study.budgets
    }
    for seed in study.seeds:
        for budget in study.budgets:
            for arm in study.arms:
                if arm == study.reference and budget != study.budgets[0]:
                    continue  # the same run
                folder = Path(study.output_dir) / f"{arm}_{budget}_{seed}"
                runs.append(Run(arm, budget, seed, stages[arm, budget], folder))
    return runs


def train_command(study: ConfigDict, run: Run) -> list[str]:
    begin, seed = study.get("begin", ""), run.seed + study.get("seed_offset", 0)
    return [
        sys.executable,
        str(REPOSITORY / "scripts" / "train.py"),
        *arm_flags(study, run.arm, run.stages),
        *([f"{FLAG}pretrained.lora={begin.replace('{seed}', str(run.seed))}"] if begin else []),
        f"{FLAG}seed={seed}",
        f"{FLAG}output_dir={run.folder.parent}",
        f"{FLAG}run_name={run.name}",
    ]


@dataclass(frozen=True)
class Evaluation:
    """What evaluate.py is asked of a run (None: the model before training), and where it writes."""

    run: Run | None
    folder: Path
    samplers: tuple[str, ...]
    prompts: tuple[str, ...]  # files
    images: int  # of each prompt
    flags: tuple[str, ...] = ()

    def command(self, study: ConfigDict) -> list[str]:
        of = ["--checkpoints", str(self.run.folder)] if self.run else shared_flags(study)
        return [
            sys.executable,
            str(REPOSITORY / "scripts" / "evaluate.py"),
            *of,
            "--rewards",
            *study.rewards,
            "--samplers",
            *self.samplers,
            "--prompts",
            *self.prompts,
            "--images",
            str(self.images),
            *self.flags,
            "--out",
            str(self.folder),
        ]

    def results(self) -> list[Result]:
        """The cells that were asked for, as far as they are there."""
        asked = (
            r
            for r in finished(self.folder).values()
            if r.cell.sampler in self.samplers
            and r.cell.prompts in self.prompts
            and r.cell.images == self.images
        )
        return list({r.cell.combination: r for r in asked}.values())

    def done(self) -> bool:
        return len(self.results()) == len(self.prompts) * len(self.samplers)


def prompt_files(study: ConfigDict) -> dict[str, str]:
    """The file of each split: "train", "heldout", and those of prompts in other words."""
    prompts = load_config(shared_flags(study)).prompts
    further = {"wordings": study.wordings} if study.get("wordings") else {}
    return {"train": prompts.train, "heldout": prompts.heldout, **further}


def evaluation_of(study: ConfigDict, run: Run | None) -> Evaluation:
    """What every run is scored by."""
    folder = run.folder / "judged" if run else Path(study.output_dir) / "base"
    files, flags = tuple(prompt_files(study).values()), ("--num-prompts", str(study.num_prompts))
    return Evaluation(run, folder, study.samplers, files, study.images, flags)


def at_test_time(study: ConfigDict, run: Run | None) -> Evaluation | None:
    """The further ways to sample from an arm's first run, on held-out prompts."""
    first = (study.test_time.get("arm"), study.budgets[0], study.seeds[0])
    if not study.test_time.samplers or not run or (run.arm, run.budget, run.seed) != first:
        return None
    wanted, folder = study.test_time, run.folder / "test_time"
    files = (prompt_files(study)["heldout"],)
    return Evaluation(run, folder, wanted.samplers, files, wanted.images)


def evaluations(study: ConfigDict, run: Run | None) -> list[Evaluation]:
    return [e for e in (evaluation_of(study, run), at_test_time(study, run)) if e]


def nfe_of(run: Run) -> int:
    """Network evaluations that a finished run has really taken."""
    return read_lines(run.folder / "metrics.jsonl")[-1]["nfe_total"]


def is_trained(run: Run) -> bool:
    """A stage's checkpoint is the last thing that is written of it."""
    return stage_folder(run.folder, run.stages).is_dir()
