"""A run's config beside the presets, and beside other runs'."""

import itertools
import json
import runpy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from srrl.config import REPOSITORY, flatten
from srrl.methods import METHODS
from srrl.report.gather import Run

NAMES = ("run_name", "output_dir")  # in which every run differs


@dataclass(frozen=True)
class Changed:
    """A key whose value is not the preset's; MISSING where one of them lacks it."""

    key: str
    preset: str
    run: str


MISSING = "not there"


@cache
def presets(method: str) -> dict[str, dict[str, Any]]:
    """The flat values of a method's presets, and of those that go over a model, by name."""
    file = METHODS[method].preset.partition(":")[0]
    module = runpy.run_path(str(REPOSITORY / file))
    models = module.get("MODELS", module["PRESETS"])
    over = ["", *(f"+{name}" for name in module["PRESETS"] if name not in models)]
    names = [model + more for model, more in itertools.product(models, over)]
    return {f"{file}:{name}": flatten(module["get_config"](name)) for name in names}


def changes(run: Run) -> tuple[str, list[Changed]]:
    """The preset that a run's config differs from in the fewest keys, and these."""
    if not run.config or run.method not in METHODS:
        return "", []
    found = {name: _changed(values, run.config) for name, values in presets(run.method).items()}
    nearest = min(found, key=lambda name: len(found[name]))
    return nearest, found[nearest]


def _changed(preset: dict[str, Any], config: dict[str, Any]) -> list[Changed]:
    keys = [key for key in dict.fromkeys([*preset, *config]) if key not in NAMES]
    pairs = [Changed(k, shown(preset.get(k, MISSING)), shown(config.get(k, MISSING))) for k in keys]
    return [pair for pair in pairs if pair.preset != pair.run]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """For each key in which runs differ what it is in each of them."""
    keys = [key for key in dict.fromkeys(k for r in runs for k in r.config) if key not in NAMES]
    table = {key: [shown(run.config.get(key, MISSING)) for run in runs] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def shown(value: Any) -> str:
    """A config's value, alike whether it comes from Python or from JSON."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
