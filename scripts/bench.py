"""Time each phase of a stage against its floor, the same number of bare UNet passes.

    python scripts/bench.py --model tiny --json bench.json

The floor runs as many samples through the bare UNet as the phase counted network evaluations, at
the fastest batch size found (forward for reflect and sample, forward and backward into the LoRA
for update). Phase and floor alternate within one run and the overhead is the median of their
ratios. Decoding and scoring have no such floor and are given in seconds, scoring also by a worker.
Also shows the counted evaluations beside those of the formula (srrl/budget.py), images per second
by phase, and on a GPU the peak of its memory.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict

from rewards import score_all
from rewards.scoring import rewards_of
from srrl.budget import stage_cost, trained_passes
from srrl.config import load_config
from srrl.curriculum import StagePlan
from srrl.errors import one_line_errors
from srrl.models.policy import Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Floor:
    """Bare UNet passes on random input, at the fastest of a few batch sizes."""

    def __init__(self, policy: Policy, sizes: list[int]):
        self.policy = policy
        encoded = policy.encode([""])
        text = encoded.text
        shape = (max(sizes), *policy.latent_shape)
        self.x = torch.randn(shape, device=policy.device, dtype=policy.network.dtype)
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.text = text.expand(max(sizes), -1, -1).contiguous().to(self.x.dtype)
        self.pooled = encoded.pooled.expand(max(sizes), -1).to(self.x.dtype)
        self.t = torch.randint(0, 1000, (max(sizes),), device=policy.device)
        self.best = {grad: self._fastest(sizes, grad) for grad in (False, True)}

    def _pass(self, size: int, grad: bool) -> None:
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

    def _fastest(self, sizes: list[int], grad: bool) -> int:
        seconds = {}
        for size in sizes:
            self._pass(size, grad)
            times = []
            for _ in range(3):
                start = self._now()
                self._pass(size, grad)
                times.append(self._now() - start)
            seconds[size] = statistics.median(times) / size
        return min(seconds, key=seconds.__getitem__)

    def _now(self) -> float:
        synchronize(self.policy.device)
        return time.perf_counter()

    def seconds(self, evaluations: int, grad: bool) -> float:
        """Seconds for so many samples through the UNet."""
        size = self.best[grad]
        start = self._now()
        for done in range(0, evaluations, size):
            self._pass(min(size, evaluations - done), grad)
        elapsed = self._now() - start
        for parameter in self.policy.trainable():
            parameter.grad = None
        return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="a preset of config/stage_process.py")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    args = parser.parse_args()

    config = load_config([f"--config=config/stage_process.py:{args.model}"])
    accelerator = Accelerator()
    policy = Policy.from_config(config, device=accelerator.device)
    make_trainable(policy.network, config)
    with tempfile.TemporaryDirectory() as folder:
        config.output_dir = folder
        tracker = Tracker(Path(folder) / config.run_name, accelerator)
        rewards = rewards_of(config, accelerator.device)
        trainer = Trainer(config, policy, rewards, accelerator, tracker)
        figures = measure(trainer, Floor(policy, args.batch_sizes), args)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


def measure(trainer: Trainer, floor: Floor, args: argparse.Namespace) -> dict:
    """Alternate the phases of a stage with their floors."""
    config, policy = trainer.config, trainer.policy
    m = config.interval.steps or config.interval.right
    ratios: dict[str, list[float]] = {"reflect": [], "sample": [], "update": []}
    seconds: dict[str, list[float]] = {name: [] for name in ratios}
    counted: dict[str, int] = {}
    expected: dict[str, int] = {}

    def compare(phase: str, evaluations: int, grad: bool) -> None:
        bare = floor.seconds(evaluations, grad)
        seconds[phase].append(trainer.seconds[phase])
        ratios[phase].append(trainer.seconds[phase] / bare)

    for repeat in range(args.repeats + 1):  # the first one warms up
        plan = StagePlan(
            stage=1 + repeat % 2 * config.pictures.every, rounds=args.rounds, trained_steps=m
        )
        trainer.seconds = dict.fromkeys(Trainer.phases, 0.0)
        cost = stage_cost(config, plan)
        prompts = trainer.draw_prompts(plan)
        policy.nfe = 0
        samples = trainer.sample(plan, prompts)
        sampled = policy.nfe
        scored = trainer.score(plan, samples, prompts)
        chosen = trainer.select(plan, scored, prompts)
        batch = trainer.batch(samples, scored, chosen, prompts)
        trainer.update(plan, batch)
        updated = policy.nfe - sampled
        counted = {"reflect and sample": sampled, "update": updated}
        expected = {
            "reflect and sample": cost.reflect + cost.sample,
            "update": cost.update_per_pass * trained_passes(config, len(batch)),
        }
        if repeat:
            for phase in ("decode", "score"):
                seconds.setdefault(phase, []).append(trainer.seconds[phase])
            compare("reflect", cost.reflect, grad=False)
            compare("sample", cost.sample, grad=False)
            compare("update", updated, grad=True)
    images = [prompts[slot] for slot in samples.prompt.tolist()]
    seconds["score by a worker"] = by_a_worker(config, samples.images, images, args.repeats)
    medians = {phase: statistics.median(s) for phase, s in seconds.items()}
    on_gpu = policy.device.type == "cuda"
    return {
        "model": args.model,
        "device": str(policy.device),
        "images_per_second": {p: round(cost.images / medians[p], 3) for p in ratios},
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if on_gpu else None,
        "overhead": {phase: round(statistics.median(r), 4) for phase, r in ratios.items()},
        "overhead_all": {phase: [round(x, 4) for x in r] for phase, r in ratios.items()},
        "seconds": {phase: round(s, 4) for phase, s in medians.items()},
        "floor_batch_size": {
            "forward": floor.best[False],
            "forward and backward": floor.best[True],
        },
        "evaluations": counted,
        "evaluations_by_formula": expected,
    }


def by_a_worker(
    config: ConfigDict, images: torch.Tensor, prompts: list[str], repeats: int
) -> list[float]:
    """Seconds of scoring the images in a process of its own, sending them there included."""
    with config.unlocked():
        config.reward.backend = "worker"
    rewards, seconds = rewards_of(config, images.device), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        score_all(rewards, images, prompts)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


if __name__ == "__main__":
    with one_line_errors():
        main()
