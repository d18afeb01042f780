"""A config's rewards: found or not, where their weights are, and who scores."""

import inspect
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from ml_collections import ConfigDict

from rewards import (
    ORIGINALS,
    REGISTRY,
    Options,
    bound_options,
    check_prompts,
    keywords,
    load_rewards,
    reward_class,
    stands_for,
)
from rewards.api import APIScore
from rewards.checker import Checker
from rewards.client import Worker, worker_environment
from rewards.network import NetworkReward
from rewards.scoring import check_given, reward_device
from rewards.sgiou import EXACT, SGIoU
from rewards.worker import TOKEN
from srrl.doctor.models import check_weights, find_vlm, lacking, place, placed
from srrl.doctor.rows import FAIL, Row, Trouble, answer, attempted, brief, refused
from srrl.errors import UserError
from srrl.models.random_weights import RANDOM
from srrl.prompts import split_prompts
from srrl.rig.wishes import split_wishes

ANSWER_S, IMPORT_S = 5, 60
EMBEDDED = ("shapes", "judge", "requirements")  # small, and of one world's prompts


def rewards(config: ConfigDict, offline: bool) -> Iterator[Row]:
    """offline: whether the user keeps the libraries from asking the hub."""
    r = config.reward
    trainer = "cuda" if torch.cuda.is_available() else "cpu"
    bad = refused("rewards", ", ".join(r.models), lambda: check_given(config))
    bad += refused("rewards", f"on {r.device}", lambda: reward_device(config, trainer))
    yield from bad
    if bad:
        return
    if r.backend != "local":
        yield from attempted("reward worker", partial(worker, config))
    if r.worker.address:  # it has what it needs, or says so
        return
    options = r.options.to_dict()
    for name in r.models:
        look = partial(original_reward if r.backend == "original" else reward, name, options)
        yield from attempted(f"reward {name}", partial(look, config, offline))


def original_reward(
    name: str, options: Options, config: ConfigDict, offline: bool
) -> Iterator[Row]:
    model = keywords(name, options).get("model", "its package's own")
    path = ORIGINALS[stands_for(name, options)]
    yield Row(f"reward {name}", f"{path}, {model}, which its package looks for")


def reward(name: str, options: Options, config: ConfigDict, offline: bool) -> Iterator[Row]:
    """Its class, its options, and the models that a registered one loads; of those that are
    embedded also whether they can judge the prompts."""
    check, meant = f"reward {name}", stands_for(name, options)
    made = reward_class(name, REGISTRY.get(meant, meant))
    given = bound_options(name, made, keywords(name, options))
    if issubclass(made, APIScore):
        yield from api(check, made, given)
    elif issubclass(made, NetworkReward):
        yield from network(check, made, given, offline)
    elif issubclass(made, Checker | SGIoU) and given["model"] != EXACT:
        yield from placed(check, given["model"], find_vlm, offline, f"{name}: model")
    else:
        for split, lines in texts(config).items() if meant in EMBEDDED else ():
            check_prompts(load_rewards([name], options), lines, config.prompts[split])
        yield Row(check, f"{made.__module__}:{made.__qualname__}")


def texts(config: ConfigDict) -> dict[str, list[str]]:
    """The prompts of each split."""
    if config.method == "srrl":
        return split_prompts(config)
    return {split: [str(wish) for wish in some] for split, some in split_wishes(config).items()}


def api(check: str, made: type[APIScore], given: dict[str, Any]) -> Iterator[Row]:
    """Whether the model's server answers, once."""
    found = made(**{**given, "attempts": 1, "timeout": ANSWER_S})
    yield Row(check, f"{found.url} answers, model {found.model}")


def network(
    check: str, made: type[NetworkReward], given: dict[str, Any], offline: bool
) -> Iterator[Row]:
    """The folders of what a network is loaded from."""
    model = given["model"]
    if model == RANDOM:
        yield Row(check, f"{model}: {place(model)}")
        return
    takes = inspect.signature(made.folders).parameters
    try:
        folders = made.folders(**{key: given[key] for key in takes})
        check_weights(folders[0], f"reward {made.name!r}: {model}")
    except UserError as error:
        yield lacking(check, model, error, offline)
    else:
        yield Row(check, f"{model}: {place(model)}")


def worker(config: ConfigDict) -> Iterator[Row]:
    """Whether the process that scores can be: its interpreter, or the one at the address."""
    r = config.reward
    if r.worker.address:
        given = {"address": r.worker.address, "load_s": ANSWER_S, "batch_s": ANSWER_S}
        names: dict[str, dict[str, Any]] = {name: {} for name in r.models}
        bad = refused("reward worker", r.worker.address, lambda: Worker(names, **given).close())
        yield from bad or [Row("reward worker", f"{r.worker.address} answers, and knows {TOKEN}")]
        return
    python, code = r.worker.python or sys.executable, "import rewards.worker"
    if r.backend == "original":
        code += "; from rewards.originals import import_packages; import_packages()"
    try:
        answer([python, "-c", code], IMPORT_S, worker_environment())
    except (Trouble, OSError) as error:
        made = "`bash scripts/original_rewards.sh DIR` makes one for reward.worker.python"
        remedy = made if r.backend == "original" else "choose another reward.worker.python"
        yield Row("reward worker", f"{python}: {brief(error)}", FAIL, remedy)
    else:
        yield Row("reward worker", f"{python} imports what it needs")
