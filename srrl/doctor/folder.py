"""A run's folder, the disks that it and the libraries write to, and its tracker."""

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import constants
from ml_collections import ConfigDict

from srrl.doctor.rows import FAIL, OK, WARN, Row, attempted, brief, refused
from srrl.errors import UserError
from srrl.image_run import space
from srrl.measure.imagined import Imagined
from srrl.rig.training import free_of, phase_config
from srrl.run.checkpoint import check_same_run, check_unlocked
from srrl.run.folder import check_space, make_folder, newest, size, stage_of
from srrl.run.recovery import check_damaged, choose, named
from srrl.run.tracking import check_wandb, folder_only

LEAST_FREE = 2**30  # bytes that temporary files and what is fetched should have


def disk(config: ConfigDict, _: bool) -> Iterator[Row]:
    """Where the run and the libraries write."""
    yield from attempted("output_dir", partial(output, config))
    others = {"temporary files": tempfile.gettempdir(), "hub's cache": constants.HF_HUB_CACHE}
    for check, folder in others.items():
        free = shutil.disk_usage(existing(Path(folder))).free
        remedy = "free some, or choose another: TMPDIR, HF_HOME"
        state = OK if free > LEAST_FREE else WARN
        yield Row(check, f"{folder}: {size(free)} free", state, remedy)


def output(config: ConfigDict) -> Iterator[Row]:
    """Whether the run's folder can be written to, and how it will grow; it is not made."""
    run = Path(config.output_dir) / config.run_name
    there = existing(run)
    make_folder(there, f"{run} (config.output_dir and run_name)")
    free = shutil.disk_usage(there).free
    try:
        needed = growth(config, run)
    except Exception as error:  # as of a model whose architecture is not known here
        needed, why = 0, f"not counted ({brief(error, 80)})"
    else:
        why = f"the run needs about {size(needed)}" if needed else "not counted"
    try:
        check_space(there, needed)
    except UserError as error:
        yield Row("output_dir", f"{run}: {size(free)} free, {why}", FAIL, str(error))
    else:
        yield Row("output_dir", f"{run}: {size(free)} free, {why}")


def growth(config: ConfigDict, run: Path) -> float:
    """Bytes that the run's checkpoints and pictures will take, by networks without numbers; 0 for
    RL-RIG, whose are not built here."""
    if config.method != "srrl":
        return 0
    begun = newest(run)
    policy = Imagined(config, torch.cuda.is_available()).policy
    return space(config, policy, stage_of(begun) if begun else -1)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def run(config: ConfigDict, _: bool) -> Iterator[Row]:
    """What a run of this name would meet."""
    folder = Path(config.output_dir) / config.run_name
    yield from refused("run", str(folder), lambda: check_unlocked(folder))
    if "phases" not in config:  # else RL-RIG's runs below it
        yield from attempted("run", partial(resumed, folder, config, ()))
        return
    for phase in config.phases:
        own = phase_config(config, phase)
        folder = Path(own.output_dir) / own.run_name
        yield from attempted(f"run {phase}", partial(resumed, folder, own, free_of(phase)))


def resumed(run: Path, config: ConfigDict, free: tuple[str, ...]) -> Iterator[Row]:
    """The checkpoint that a run would go on from. Raises UserError where it would not."""
    check_same_run(run, config, free)
    found = choose(run, config, free)
    check_damaged(run, config, found)
    if found.faults:
        remedy = (
            "the run sets it aside and goes on from the one before; put a good copy back if there "
            "is one"
        )
        yield Row("run", f"{run}: damaged: {named(found.faults)}", WARN, remedy)
    if found.folder:
        total = config.stages.total
        yield Row("run", f"{run}: goes on after {stage_of(found.folder)} of {total} stages")
    else:
        yield Row("run", f"{run}: begins, no checkpoint is there")


def tracker(config: ConfigDict, _: bool) -> Iterator[Row]:
    """Whether config.tracker can be logged to; a run goes on without it."""
    name, where = config.tracker, ""
    remedies = {
        "wandb": "`wandb login`, WANDB_MODE=offline, or --config.tracker=none",
        "tensorboard": "`python -m pip install tensorboard`, or --config.tracker=none",
    }
    try:
        if name == "wandb":
            where = f", {check_wandb()}"
        elif name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    except Exception as error:
        yield Row("tracker", folder_only(name, error), WARN, remedies[name])
    else:
        yield Row("tracker", f"{name}{where}")
