"""Which checkpoint a run goes on from: the newest that can be trusted."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from ml_collections import ConfigDict

from srrl.errors import UserError
from srrl.run import manifest
from srrl.run.checkpoint import changed_keys
from srrl.run.folder import LOGS, stages


@dataclass(frozen=True)
class Chosen:
    """The checkpoint to resume from, None where there is none; and of newer ones what is wrong."""

    folder: Path | None
    faults: dict[Path, str]


def choose(run: Path, config: ConfigDict, free: tuple[str, ...] = ()) -> Chosen:
    """The newest checkpoint that is what its manifest says and of this run; free: as of
    check_same_run.

    Raises UserError where there are only others, or none and the logs tell of stages done.
    """
    faults = {}
    for folder in stages(run):
        try:
            found = manifest.check(folder)["config"]
        except ValueError as error:
            faults[folder] = str(error)
            continue
        parted = changed_keys(found, config, (*free, "stages.total"))
        if not parted:
            return Chosen(folder, faults)
        key = parted[0]
        faults[folder] = f"another run's, with config.{key}={found.get(key)!r}"
    remedy = (
        "put a good one back, choose another --config.run_name, or delete the folder to start again"
    )
    if faults:
        raise UserError(f"{run}: no checkpoint to go on from ({named(faults)}): {remedy}")
    told = [name for name in LOGS if tells(run / name)]
    if told:
        raise UserError(f"{run}: {told[0]} tells of stages, and there is no checkpoint: {remedy}")
    return Chosen(None, {})


def tells(log: Path) -> bool:
    """Whether a log has a line of anything but the evaluation of a start, which may be there before
    the first checkpoint. What has no end yet is no line."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return not all(map(of_start, text.split("\n")[:-1]))


def of_start(line: str) -> bool:
    try:
        return json.loads(line)["stage"] == 0
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def named(faults: dict[Path, str], most: int = 3) -> str:
    some = [f"{folder.name}: {fault}" for folder, fault in [*faults.items()][:most]]
    return "; ".join(some) + (f"; and {len(faults) - most} more" if len(faults) > most else "")


def set_aside(folder: Path) -> Path:
    """Rename a checkpoint that cannot be trusted, so that nothing takes it for the newest."""
    names = (f"{folder.name}.damaged{number or ''}" for number in count())
    aside = next(path for path in map(folder.with_name, names) if not path.exists())
    os.replace(folder, aside)
    return aside


def check_damaged(run: Path, config: ConfigDict, found: Chosen) -> None:
    """Raise UserError where checkpoints are damaged and checkpoint.damaged is "stop"."""
    if found.faults and config.checkpoint.damaged == "stop":
        raise UserError(
            f"{run}: {named(found.faults)}: put a good copy back, or go on from "
            f"{found.folder and found.folder.name} by --config.checkpoint.damaged=back"
        )


def go_on_from(
    run: Path,
    config: ConfigDict,
    free: tuple[str, ...],
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> Path | None:
    """The checkpoint to go on from, the same on every process; None where a run begins. Newer ones
    that cannot be trusted are named and set aside.

    Raises UserError where there are only such, or checkpoint.damaged is "stop".
    """
    found = refused = None
    if accelerator.is_main_process:
        try:
            found = choose(run, config, free)
        except UserError as error:
            refused = error
    found, refused = broadcast_object_list([found, refused])
    if refused:
        raise refused
    check_damaged(run, config, found)
    for folder, fault in found.faults.items():
        if accelerator.is_main_process:
            aside = set_aside(folder)
            say(f"warning: {folder.name} cannot be trusted ({fault}): kept as {aside.name}")
    return found.folder
