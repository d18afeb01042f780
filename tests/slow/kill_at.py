"""Run scripts/train.py and kill -9 it from inside, at a chosen moment.

    python tests/slow/kill_at.py sample|words|update|save COUNT  [train.py's arguments]

"sample": in the middle of the COUNT-th stage's denoising; "words": before RL-RIG's actor writes for
the COUNT-th time; "update": before the COUNT-th optimizer step is applied, its gradients computed;
"save": with the COUNT-th checkpoint half written.
"""

import os
import signal
import sys

import torch

from scripts import train
from srrl import rollout
from srrl.models.vlm import VLM


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(where: str, count: int, arguments: list[str]) -> None:
    seen = 0

    def reached() -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    if where == "sample":
        original = rollout.invert_steps

        def invert(policy, x, *rest):
            if reached():
                die()
            return original(policy, x, *rest)

        rollout.invert_steps = invert
    elif where == "update":
        step = torch.optim.AdamW.step

        def half_step(self, *rest):
            if reached():
                die()
            return step(self, *rest)

        torch.optim.AdamW.step = half_step
    elif where == "words":
        write = VLM.write

        def interrupted(self, *given, **settings):
            if reached():
                die()
            return write(self, *given, **settings)

        VLM.write = interrupted
    else:
        save = torch.save

        def half_saved(*given):
            save(*given)
            if reached():
                die()

        torch.save = half_saved
    train.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
