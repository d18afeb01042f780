"""Run one stage of a config in this process and print what its memory grew by, as JSON.

    python tests/slow/peak.py OUT [train.py's --config flags]

baseline: resident bytes when everything is imported and no model is there; peak: the most after.
"""

import json
import sys
from pathlib import Path

from accelerate import Accelerator

from srrl.config import load_config
from srrl.curriculum import plan_for
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer


class Redness:
    """Scores that differ between any two images, without a network."""

    def score(self, images, prompts):
        return images[:, 0].float().mean((1, 2))


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(field)) * 1024


def main(out: str, flags: list[str]) -> None:
    config = load_config(flags)
    accelerator = Accelerator(cpu=True)
    baseline = status("VmRSS")
    policy = Policy.from_config(config, device="cpu")
    make_trainable(policy.network, config)
    loaded = status("VmRSS")
    folder = Path(config.output_dir) / config.run_name
    rewards = {name: Redness() for name in config.reward.models}
    trainer = Trainer(config, policy, rewards, accelerator, Tracker(folder, accelerator))
    trainer.prepare(0)
    trainer.train(plan_for(config, 0))
    result = {"baseline": baseline, "loaded": loaded, "peak": status("VmHWM")}
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
