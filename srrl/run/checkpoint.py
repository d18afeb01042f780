"""Atomic checkpoints and exact resume.

A run's folder is only ever changed so that a kill at any moment leaves the newest checkpoint
whole: a checkpoint is written under another name, sealed by a manifest, flushed, and renamed. A run
goes on from the newest one that is what its manifest says. Logs are cut back to it, so a run that
was killed ends with the lines of one that was not, on a CPU bit for bit.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from srrl.config import flatten, load_config, load_saved, saved_values
from srrl.curriculum import evaluated_stages
from srrl.errors import UserError, writing
from srrl.models.locate import locate
from srrl.models.lora_file import read_lora_file
from srrl.models.trainee import Trainee
from srrl.models.weights import UNET_FILE
from srrl.run import manifest
from srrl.run.folder import (
    STATE_FILE,
    make_folder,
    newest,
    read_lines,
    stage_folder,
    stage_of,
    stages,
)
from srrl.run.manifest import MANIFEST

LOCK_FILE = ".lock"
# What may change when a run goes on: it does not change its weights, beyond rounding.
BATCHES = ("sample.num_batches_per_stage", "sample.batch_size")
FREE = (
    "output_dir",
    "tracker",
    "plan",
    "process_timeout",
    "report",
    "deterministic",
    "checkpoint.",
    "pictures.",
    "eval.",
    "allow_tf32",
    "sample.micro_batch",
    "sample.decode_batch",
    "train.micro_batch",
    "train.gradient_checkpointing",
    "reward.backend",
    "reward.device",
    "reward.worker.",
    "evaluate.",
    "checker.batch_size",
    "actor.batch_size",
    "train.stop_on_heldout",
    "train.max_bad_steps",
)
OPTIMIZER_FILE = "optimizer.pt"


@dataclass
class Progress:
    """stage: stages done; samples_total: images sampled; nfe_total: network evaluations."""

    stage: int = 0
    samples_total: int = 0
    nfe_total: int = 0


def write_atomic(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        manifest.flush(path.parent)


def save(
    run: Path,
    config: ConfigDict,
    trainee: Trainee,
    weights: dict[str, Tensor],
    learner_state: dict[str, Any],
    method_state: dict[str, Any],
    progress: Progress,
) -> Path:
    """Write checkpoints/stage_NNNN: trained weights, and what else resuming needs."""
    folder = stage_folder(run, progress.stage)
    temporary = folder.with_name(folder.name + ".tmp")
    with writing(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        exact = trainee.save_weights(temporary, weights)
        with open(temporary / OPTIMIZER_FILE, "wb") as file:  # given a path, torch hides the error
            torch.save({"learner": learner_state, "weights": exact}, file)
        state = {**asdict(progress), **method_state}
        (temporary / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        manifest.seal(temporary, flatten(config))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        manifest.flush(folder.parent)
    return folder


def chosen_model(
    given: Path | None, preset: str | None, overrides: Sequence[str] = ()
) -> tuple[ConfigDict, Path | None]:
    """The config and weights' folder of a run or checkpoint, or a LoRA's file by itself; or a
    preset's config with --config.KEY=VALUE over it, and None."""
    if given is None:
        return load_config([f"--config={preset}", *overrides]), None
    named = f"--checkpoint {given}"
    found = locate(given, named)
    if found.checkpoint and found.config:
        config = load_saved(found.config)
        if config.method != "srrl":
            raise UserError(
                f"{named}: a run of the method {config.method!r}, not SRRL's: scripts/rig.py draws "
                f"with RL-RIG's, by --config.actor.lora and --config.editor.lora"
            )
        return config, found.checkpoint
    if found.file.name == Path(UNET_FILE).name:
        raise UserError(f"{named}: a UNet without its run's config.json: give the run's folder")
    if not preset:
        raise UserError(
            f"{named}: a LoRA without its run's config.json: give its model by "
            f"--config FILE.py:PRESET"
        )
    read_lora_file(found.file, named)
    return load_config([f"--config={preset}", *overrides]), found.file


def prune(run: Path, keep_every: int) -> None:
    """The two newest checkpoints stay as they are. Older ones lose what only resuming needs, and go
    unless kept for their weights: of every so many stages, and of those that were evaluated."""
    old = stages(run)[2:]
    evaluated = [line.get("stage") for line in read_lines(run / "eval.jsonl")] if old else []
    for folder in old:
        stage = stage_of(folder)
        if stage in evaluated or (keep_every and stage % keep_every == 0):
            for name in (MANIFEST, STATE_FILE, OPTIMIZER_FILE):
                (folder / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(folder)


def load(folder: Path, trainee: Trainee) -> tuple[Progress, dict[str, Any], dict[str, Any]]:
    """Restore the weights; returns the progress, and the states of the method and the learner."""
    resumed = torch.load(folder / OPTIMIZER_FILE, weights_only=True, map_location="cpu")
    trainee.load_weights(folder, resumed["weights"])
    state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    progress = Progress(**{name: state.pop(name) for name in asdict(Progress())})
    return progress, state, resumed["learner"]


def saved_config(run: Path) -> dict[str, Any]:
    """The flat config that a folder's run was last started with, or, where config.json is lost,
    that of its newest checkpoint; empty if there is none.

    Raises UserError for a config.json of something else, which a run would replace."""
    file = run / "config.json"
    saved = saved_values(file)
    for folder in stages(run) if saved is None else []:
        with contextlib.suppress(ValueError):
            return manifest.read(folder)["config"]
    if saved is None and file.exists():
        raise UserError(f"{file} is not what a run writes: choose another --config.run_name")
    return saved or {}


def check_same_run(run: Path, config: ConfigDict, free: tuple[str, ...] = ()) -> None:
    """Raise UserError if the folder holds a run that this config would change the results of.

    What FREE and `free` name may differ, the split of a stage's prompts into batches, and
    stages.total from the stages done on.
    """
    before = saved_config(run)
    if not before:
        return
    now = comparable(config)
    method = before.get("method", "srrl")
    if method != now["method"]:
        raise UserError(
            f"{run} holds a run of the method {method!r}: choose another --config.run_name"
        )
    found = newest(run)
    done = stage_of(found) if found else 0
    if now["stages.total"] >= done:
        free += ("stages.total",)
    changed = changed_keys(before, config, free)
    if changed:
        named = [
            f"config.{k}={before[k]!r}, not {now[k]!r}" if k in before else f"no config.{k}"
            for k in changed
        ]
        if "stages.total" in changed:
            named.append(f"{done} stages done")
        raise UserError(
            f"{run} holds a run with {'; '.join(named)}: choose another --config.run_name, or "
            f"delete the folder to start again"
        )


def changed_keys(before: dict[str, Any], config: ConfigDict, free: tuple[str, ...]) -> list[str]:
    """The keys in which a run with a saved flat config would have other results."""
    now = comparable(config)
    free += FREE
    if prompts_a_stage(before) == prompts_a_stage(now):
        free += BATCHES
    changed = [k for k in now if k not in before or before[k] != now[k]]
    return [k for k in changed if not k.startswith(free)]


def comparable(config: ConfigDict) -> dict[str, Any]:
    """The flat config as JSON gives it back."""
    return json.loads(json.dumps(flatten(config)))


def prompts_a_stage(flat: dict[str, Any]) -> int:
    return flat.get("sample.num_batches_per_stage", 0) * flat.get("sample.batch_size", 0)


def lock(run: Path) -> IO[str]:
    """Keep other processes out of a run's folder as long as the returned file is open.

    Raises UserError, naming the process and host, where one is in it. The system gives the lock
    of a process that dies back, so there is none to clean up.
    """
    make_folder(run, f"{run} (config.output_dir and run_name)")
    file = open(run / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115
    if _hold(run, file, fcntl.LOCK_EX):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


@contextlib.contextmanager
def leaving_nothing(run: Path) -> Iterator[None]:
    """Where what is inside fails, a run's folder that was not there before goes again, unless
    something else than its lock is in it."""
    new = not run.exists()
    try:
        yield
    except BaseException:
        if new and run.is_dir() and {file.name for file in run.iterdir()} <= {LOCK_FILE}:
            shutil.rmtree(run, ignore_errors=True)
        raise


def check_unlocked(run: Path) -> None:
    """Raise UserError, as `lock` does, where another process is in a run's folder; nothing there is
    changed or kept."""
    with contextlib.suppress(FileNotFoundError), open(run / LOCK_FILE, encoding="utf-8") as file:
        _hold(run, file, fcntl.LOCK_SH)


def _hold(run: Path, file: IO[str], kind: int) -> bool:
    """Lock a run's file as long as it is open; False on a file system without locks."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise UserError(
            f"{run} is in use by {file.read().strip() or 'another process'}: wait for it, stop it, "
            f"or choose another --config.run_name"
        ) from None
    except OSError:
        return False
    return True


def growth(config: ConfigDict, trainee: Trainee, done: int) -> float:
    """Bytes by which a run's checkpoints will grow after `done` stages (-1: before the start),
    about: three to go on from, one of them being written, and the weights kept."""
    parameters = list(trainee.trainable())
    every, stages_left = config.checkpoint.keep_every, range(done + 1, config.stages.total + 1)
    weights = 4 * sum(parameter.numel() for parameter in parameters)
    twice = len(parameters) < len(list(trainee.network.parameters()))  # a LoRA also exact
    whole = weights * (1 + twice + (0.5 if config.train.use_8bit_adam else 2))
    evaluated = {*evaluated_stages(config)}
    kept = sum(n in evaluated or bool(every and n % every == 0) for n in stages_left)
    return whole * (3 if done < 0 else 2 if done == 0 else 1) + weights * kept


def cut_log(path: Path, key: str, below: int) -> int:
    """Keep the lines of a JSONL log whose `key` is below a number. Returns how many others could
    not be read, not counting a last one that was being written."""
    if not path.exists():
        return 0
    kept, bad = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    for number, line in enumerate(lines):
        try:
            if json.loads(line)[key] < below:
                kept.append(line.rstrip("\n") + "\n")
        except (ValueError, RecursionError, KeyError, TypeError):
            bad.append(number)
    write_atomic(path, "".join(kept))
    torn = lines and not lines[-1].endswith("\n") and bad[-1:] == [len(lines) - 1]
    return len(bad) - bool(torn)
