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
    start   "module:function" of what makes a srrl.run.stages.StagedRun of a config, an accelerator
            and a tracker; None: scripts/train.py does not train it
    """

    preset: str
    check: Callable[..., None]
    start: str | None

    def load(self) -> Callable[..., Any]:
        """The function `start`."""
        module, _, function = self.start.partition(":")
        return getattr(importlib.import_module(module), function)


METHODS = {
    "srrl": Method("config/stage_process.py:sd14", check_srrl, "srrl.trainer:start"),
    "rig": Method("config/rig.py:sd14", check_rig, None),
}
