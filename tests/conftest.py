"""Shared fixtures: the embedded pipeline as a policy, and small configs of it."""

import copy
import gc
import os
import tempfile
from collections.abc import Generator
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test downloads anything, here or in a command it runs
os.environ["SRRL_ERROR_FOLDER"] = tempfile.mkdtemp()  # for rewards' faults

import pytest
import torch
from ml_collections import ConfigDict

from srrl.config import load_config
from srrl.models.policy import Policy
from srrl.models.weights import add_lora
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from tests import lines

lines.watch()
gc.freeze()  # what has been imported stays: nothing is looked for in it
PRESET = "--config=config/stage_process.py:tiny"
LORA = load_config([PRESET]).lora


MODELS = {"sd": TINY_SD, "sdxl": TINY_SDXL}
BOTH = ["sd", pytest.param("sdxl", marks=pytest.mark.slow)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Whole attacks run where they are asked for (-m attack); their slices always do."""
    if not any("::" in given for given in config.args):
        gone = lines.gone({item.nodeid for item in items})
        if gone:
            raise pytest.UsageError(f"tests/lines.csv names tests that are not there: {gone}")
    # The long ones of this folder first, so that all processes end at about the same time.
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)
    if "attack" not in config.option.markexpr:
        whole = [item for item in items if item.get_closest_marker("attack")]
        config.hook.pytest_deselected(items=whole)
        items[:] = [item for item in items if item not in whole]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    lines.forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A test that passes has shown the lines that tests/lines.csv has it for."""
    yield
    if "SRRL_LINES" in os.environ:
        lines.keep(item.nodeid)
    missing = lines.unseen(item.nodeid)
    assert not missing, f"tests/lines.csv names this test, which has not shown {missing}"


def load_policy(model: str = "sd", lora: bool = False, num_steps: int = 10, **changes) -> Policy:
    """A policy of one's own. An embedded model ("sd", "sdxl") is read once and copied."""
    arguments = {"num_steps": num_steps, "eta": 1.0, "micro_batch": 64, **changes}
    if model in MODELS:
        policy = copy.deepcopy(embedded(model, **arguments))
    else:
        policy = Policy.load(model, **arguments)
    if lora:
        add_lora(policy.network, LORA, seed=0)
    return policy


@cache
def embedded(model: str, **arguments) -> Policy:
    return Policy.load(str(MODELS[model]), **arguments)


def randomise_lora(policy: Policy, scale: float = 0.05) -> None:
    """Give the LoRA an effect, as training would."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.trainable():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += scale * noise.to(parameter.device)


@pytest.fixture(scope="session", params=BOTH)
def policy(request) -> Policy:
    """The embedded pipelines without a LoRA. Tests must not change them."""
    return load_policy(request.param)


@pytest.fixture(params=BOTH)
def lora_policy(request) -> Policy:
    return load_policy(request.param, lora=True)


@pytest.fixture
def small_config(tmp_path: Path) -> ConfigDict:
    """A run of two small stages, the second with two rounds."""
    return load_config([PRESET, *small_run(tmp_path)])


def small_run(folder: Path, stages: int = 2) -> list[str]:
    """Overrides of `tiny` that make a run of seconds."""
    return [
        f"--config.output_dir={folder}",
        "--config.run_name=run",
        "--config.plan=false",
        "--config.report=false",
        f"--config.stages.total={stages}",
        "--config.stages.per_cycle=1",
        "--config.sample.num_steps=5",
        "--config.sample.batch_size=3",
        "--config.branch.count=3",
        "--config.select.pos_threshold=0.1",
        "--config.select.neg_threshold=-0.1",
        "--config.select.mode=extremes",
        "--config.reflect.when=always",
        "--config.interval.left=3",
        "--config.interval.right=3",
        "--config.interval.skip_last=1",
        "--config.interval.steps=3",
        "--config.train.trajectories_per_update=2",
        "--config.train.num_inner_epochs=2",
        "--config.eval.num_prompts=3",
        "--config.eval.seeds=1",
        "--config.eval.every=1",
        "--config.eval.rounds=[1]",
        "--config.pictures.every=1",
        "--config.pictures.prompts=2",
    ]


# The preset's own steps again: half precision and its bounds were measured on them.
LONG = [f"--config.{v}" for v in ("sample.num_steps=10", "interval.skip_last=4")]
PROMPTS = [
    "a blue circle above a red square",
    "a red triangle left of a green circle",
    "a yellow square below a blue triangle",
    "a green circle right of a yellow triangle",
]
