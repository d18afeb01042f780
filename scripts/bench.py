"""Time each phase of a stage against its floor, the same number of bare UNet passes.

    python scripts/bench.py --model tiny --json bench.json

The floor runs as many samples through the bare UNet as the phase counted network evaluations, at
the fastest batch size found (forward for reflect and sample, forward and backward into the LoRA
for update). Phase and floor alternate within one run and the overhead is the median of their
ratios. Every prompt is reflected, so that the evaluations are known before. Decoding and scoring
have no such floor and are given in seconds. --config.KEY=VALUE changes the preset.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from srrl.budget import stage_cost
from srrl.config import parse
from srrl.curriculum import StagePlan
from srrl.errors import one_line_errors
from srrl.measure.parts import synchronize, trainer_of
from srrl.models.policy import Policy
from srrl.trainer import Trainer


class Floor:
    """Bare UNet passes on random input, at the fastest of a few batch sizes."""

    def __init__(self, policy: Policy, sizes: list[int]):
        self.policy, n = policy, max(sizes)
        encoded = policy.encode([""] * n)
        x = torch.randn(n, *policy.latent_shape, device=policy.device, dtype=policy.network.dtype)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.text, self.pooled = encoded.text.to(x.dtype), encoded.pooled.to(x.dtype)
        self.t = torch.randint(0, 1000, (n,), device=policy.device)
        self.best = {}
        for grad in (False, True):
            for size in sizes:
                self.seconds(size, grad, size)
            speed = {size: self.seconds(3 * size, grad, size) / size for size in sizes}
            self.best[grad] = min(speed, key=speed.__getitem__)

    def run(self, size: int, grad: bool) -> None:
        half = self.x.dtype != torch.float32
        with (
            torch.set_grad_enabled(grad),
            torch.autocast(self.policy.device.type, self.x.dtype, enabled=half),
        ):
            output = self.policy.network(
                self.x[:size],
                self.t[:size],
                self.text[:size],
                added_cond_kwargs=self.policy.size_conditioning(self.pooled[:size]),
            )[0]
        if grad:
            output.float().square().mean().backward()

    def seconds(self, evaluations: int, grad: bool, size: int = 0) -> float:
        """Seconds for so many samples through the UNet, `size` at once (0: the fastest)."""
        size = size or self.best[grad]
        synchronize(self.policy.device.type)
        start = time.perf_counter()
        for done in range(0, evaluations, size):
            self.run(min(size, evaluations - done), grad)
        synchronize(self.policy.device.type)
        elapsed = time.perf_counter() - start
        for parameter in self.policy.trainable():
            parameter.grad = None
        return elapsed


def measure(trainer: Trainer, floor: Floor, repeats: int) -> dict:
    """Alternate the phases of a stage with their floors."""
    c, policy = trainer.config, trainer.policy
    seconds: dict[str, list[float]] = {phase: [] for phase in Trainer.phases}
    ratios: dict[str, list[float]] = {phase: [] for phase in ("reflect", "sample", "update")}
    for repeat in range(repeats + 1):  # the first one warms up
        plan = StagePlan(1 + repeat, rounds=2, trained_steps=c.interval.steps or c.interval.right)
        trainer.seconds, policy.nfe = dict.fromkeys(Trainer.phases, 0.0), 0
        trainer.train(plan)
        cost = stage_cost(c, plan)
        updated = policy.nfe - cost.reflect - cost.sample
        evaluations = {"reflect": cost.reflect, "sample": cost.sample, "update": updated}
        if repeat:
            for phase, taken in trainer.seconds.items():
                seconds[phase].append(taken)
            for phase, n in evaluations.items():
                bare = floor.seconds(n, grad=phase == "update")
                ratios[phase].append(trainer.seconds[phase] / bare)
    return {
        "device": str(policy.device),
        "overhead": {phase: round(statistics.median(r), 4) for phase, r in ratios.items()},
        "overhead_all": {phase: [round(x, 4) for x in r] for phase, r in ratios.items()},
        "seconds": {phase: round(statistics.median(s), 4) for phase, s in seconds.items()},
        "floor_batch_size": {"forward": floor.best[False], "with backward": floor.best[True]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a preset of config/stage_process.py")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    args, overrides = parse(parser, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--config=config/stage_process.py:{args.model}", "--config.reflect.when=always"]
        flags += overrides
        trainer = trainer_of([*flags, f"--config.output_dir={folder}"], Accelerator(), {})
        figures = measure(trainer, Floor(trainer.policy, args.batch_sizes), args.repeats)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    with one_line_errors():
        main()
