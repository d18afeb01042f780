"""The methods that scripts/train.py knows, by config.method, which a run's config.json keeps.

Nothing here imports torch: a method's code is loaded once its config is known to be right.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srrl.checks import check_rig, check_srrl


@dataclass(frozen=True)
class Method:
    """What a name in config.method stands for.

    preset  a config file's preset that has every key
    check   (config, values, require): its values' ranges (srrl/checks.py)
    files   "module:function" of what refuses prompts and models that are not there, by a config
    start   "module:function" of what makes a run of a config, an accelerator and a tracker
    """

    preset: str
    check: Callable[..., None]
    files: str
    start: str

    def load(self, which: str = "start") -> Callable[..., Any]:
        """The function `start`, or `files`."""
        module, _, function = getattr(self, which).partition(":")
        return getattr(importlib.import_module(module), function)


METHODS = {
    "srrl": Method(
        "config/stage_process.py:sd14", check_srrl, "srrl.prompts:check_files", "srrl.trainer:start"
    ),
    "rig": Method(
        "config/rig.py:sd14", check_rig, "srrl.rig.wishes:check_files", "srrl.rig.training:start"
    ),
}
