"""A sweep: the runs of every combination of the values that keys of a config are given.

--config.train.learning_rate=1e-4,3e-4       two values
--config.eval.rounds=[1],[1,2]               of lists and of JSON objects, too
--config.prompts.train='"a,b.json"'          one value with a comma in it, quoted as in CSV
"""

import csv
import hashlib
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from srrl.assess.pool import Job
from srrl.budget import run_evaluations
from srrl.config import REPOSITORY, flatten, load_config
from srrl.errors import UserError
from srrl.prompts import check_files
from srrl.run.folder import stage_folder

LONGEST = 40  # of a value in a folder's name


@dataclass(frozen=True)
class Trial:
    """A run of a sweep: the flags that train.py is given, and the config that they make."""

    flags: tuple[str, ...]
    config: ConfigDict

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir) / self.config.run_name

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(REPOSITORY / "scripts" / "train.py"), *self.flags]

    def todo(self) -> list[list[str]]:
        """The command, until the last stage's checkpoint is there."""
        done = stage_folder(self.folder, self.config.stages.total).is_dir()
        return [] if done else [self.command]

    @property
    def job(self) -> Job:
        return Job(self.config.run_name, self.todo, run_evaluations(self.config))


def trials(source: str, overrides: Sequence[str], name: str) -> list[Trial]:
    """The runs of `--config SOURCE` and --config.KEY=VALUES, below output_dir/NAME; seed by seed,
    so that of a sweep that is stopped all values have some. Raises UserError, in the words of
    train.py, for what one of them refuses."""
    given = by_key(overrides)
    if "run_name" in given:
        raise UserError("--config.run_name: a sweep names its runs: leave it out, and give --name")
    known = flatten(load_config([f"--config={source}"]))
    axes = {key: values_of(text, known.get(key)) for key, text in given.items()}
    named = [key for key, texts in axes.items() if len(texts) > 1 and key != "seed"]
    keys = sorted(axes, key=lambda key: key != "seed")
    some = [
        trial(source, dict(zip(keys, texts, strict=True)), [*named, "seed"], name)
        for texts in itertools.product(*(axes[key] for key in keys))
    ]
    if len(some) == 1:
        raise UserError(
            "nothing is varied: give a key several values, as "
            "--config.train.learning_rate=1e-4,3e-4, or --seeds 300,301"
        )
    names = [x.config.run_name for x in some]
    if twice := next((x for x in names if names.count(x) > 1), ""):
        raise UserError(f"{twice} is asked for twice: give each value once")
    return some


def trial(source: str, values: Mapping[str, str], named: Sequence[str], name: str) -> Trial:
    """The run of these values, some of which its folder is named by."""
    own = {key: text for key, text in values.items() if key != "output_dir"}
    flags = [f"--config={source}", *(f"--config.{key}={text}" for key, text in own.items())]
    leaves = flatten(load_config(flags))
    flags += [
        f"--config.output_dir={Path(values.get('output_dir', leaves['output_dir'])) / name}",
        f"--config.run_name={','.join(f'{key}={in_name(leaves[key])}' for key in named)}",
    ]
    return Trial(tuple(flags), load_config(flags))


def check(some: Sequence[Trial]) -> None:
    """Raise UserError for prompts, models and rewards that are not there, and for a run in a folder
    that has another one."""
    from rewards import check_names  # this imports torch
    from srrl.run.checkpoint import check_same_run

    for x in some:
        check_files(x.config)
        check_names(x.config.reward.models, x.config.reward.options.to_dict())
        check_same_run(x.folder, x.config)


def by_key(overrides: Sequence[str]) -> dict[str, str]:
    """The values of --config.KEY=VALUE and --config.KEY VALUE; of those given twice the last."""
    found, left = {}, list(overrides)
    while left:
        flag, equals, text = left.pop(0).partition("=")
        if not equals:
            if not left:
                raise UserError(f"{flag} needs a value: {flag}=VALUE")
            text = left.pop(0)
        found[flag.removeprefix("--config.")] = text
    return found


def values_of(text: str, like: object) -> list[str]:
    """The values that a text has between commas, of the kind of a value like this one. What cannot
    be read is one value, for the config to refuse."""
    try:
        if isinstance(like, tuple | dict):
            return [json.dumps(value) for value in json.loads(f"[{text}]")] or [text]
        return next(csv.reader([text], skipinitialspace=True, strict=True)) or [text]
    except (ValueError, RecursionError, csv.Error):
        return [text]


def in_name(value: object) -> str:
    """A value as part of a folder's name: itself where it is a short word, otherwise what of it can
    be in one, and a digest."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    word = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII)
    if word == text and len(text) <= LONGEST:
        return text
    return f"{word.strip('-')[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
