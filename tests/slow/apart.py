"""Run scripts/train.py where the second process's weights come apart, as a faulty machine's would.

torchrun --nproc_per_node 2 tests/slow/apart.py [train.py's arguments]
"""

import sys

import torch

from scripts import train
from srrl.errors import one_line_errors
from srrl.learner import Learner


def main() -> None:
    update = Learner.update

    def faulty(self, *given):
        measured = update(self, *given)
        if self.accelerator.process_index == 1:
            first = next(iter(self.trainee.trainable()))
            with torch.no_grad():
                first.view(-1)[0] += 1e-6
        return measured

    Learner.update = faulty
    with one_line_errors():
        train.main(sys.argv[1:])


if __name__ == "__main__":
    main()
