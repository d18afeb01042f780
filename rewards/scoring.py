"""From the config to scores: which rewards, in which process, and beside the sampling."""

import os
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from rewards import (
    ORIGINALS,
    REGISTRY,
    Reward,
    check_names,
    details_of,
    load_rewards,
    score_all,
)
from rewards.faults import FOLDER
from srrl.checks import DEVICE
from srrl.errors import UserError

Scores = tuple[dict[str, Tensor], dict[str, list]]  # and what is said of each, by reward


def rewards_of(c: ConfigDict, device: torch.device | str) -> dict[str, Reward]:
    """The config's rewards: in this process, or behind a worker that is started or connected to.

    device: the trainer's, where reward.device does not say otherwise. Raises UserError.
    """
    r, device = c.reward, reward_device(c, device)
    run = Path(c.output_dir) / c.run_name
    os.environ[FOLDER] = str(run if run.exists() else Path.cwd())
    check_given(c)
    names, options = list(r.models), r.options.to_dict()
    dtype = r.dtype if device.type == "cuda" else "fp32"
    if r.backend == "local":
        return load_rewards(names, options, device=str(device), dtype=dtype)
    from rewards.client import Worker, worker_rewards

    worker = Worker(
        {name: options.get(name, {}) for name in names},
        address=r.worker.address or "",
        python=r.worker.python or "",
        device=str(device),
        dtype=dtype,
        original=r.backend == "original",
        load_s=r.worker.load_s,
        batch_s=r.worker.batch_s,
    )
    return {**worker_rewards(worker)}


def reward_device(c: ConfigDict, device: torch.device | str) -> torch.device:
    """Where the rewards of a trainer on `device` compute. Raises UserError where that is not."""
    named = str(c.reward.device or device)
    if not re.fullmatch(DEVICE, named):
        raise UserError(f"reward device {named!r}: expected cpu, cuda or cuda:NUMBER")
    chosen, there = torch.device(named), torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= there and not c.reward.worker.address:
        raise UserError(f"reward device {named!r}: there are {there} GPUs here, from cuda:0 on")
    return chosen


def check_given(c: ConfigDict) -> None:
    """Raise UserError for rewards that are not known, options of others, and a backend that lacks
    its interpreter."""
    r, names = c.reward, list(c.reward.models)
    unused = set(r.options) - set(names)
    if unused:
        raise UserError(f"options of {min(unused)!r}, which is not among the rewards {names}")
    original = r.backend == "original"
    check_names(names, r.options.to_dict(), ORIGINALS if original else REGISTRY)
    if original and not (r.worker.python or r.worker.address):
        raise UserError(
            "reward.backend='original' needs the packages' own environment: make it by "
            "`bash scripts/original_rewards.sh DIR` and set reward.worker.python to DIR/bin/python"
        )


def counts_of(rewards: Mapping[str, Reward]) -> dict[str, int]:
    """What rewards count, as reward/NAME/WHAT."""
    counted = {name: getattr(reward, "counts", None) or {} for name, reward in rewards.items()}
    return {f"reward/{name}/{what}": n for name, own in counted.items() for what, n in own.items()}


class Scorer:
    """Scores a stage's batches in the order in which they come.

    With `background` a batch is scored while the next one is sampled: by a worker's process, or on
    a CUDA stream of its own. The scores are those of scoring one after the other.
    """

    def __init__(self, rewards: Mapping[str, Reward], background: bool):
        self.rewards = rewards
        self.pool = ThreadPoolExecutor(1, "scoring") if background else None
        self.pending: list[Future[Scores] | Scores] = []
        self.stream = torch.cuda.Stream() if background and torch.cuda.is_available() else None

    def submit(self, images: Tensor, prompts: list[str]) -> None:
        """Begin to score a batch: images uint8 [B, 3, H, W] and B prompts."""
        images = images.cpu()
        if self.pool:
            self.pending.append(self.pool.submit(self._score, images, prompts))
        else:
            self.pending.append(self._score(images, prompts))

    def wait(self) -> None:
        """Until all that was submitted has been scored."""
        wait([p for p in self.pending if isinstance(p, Future)])

    def collect(self) -> Scores:
        """Each reward's scores float32 [N] of all batches since the last time, in their order, and
        the N details of those that have some, [] for the others.

        Raises UserError as score_all does.
        """
        pending, self.pending = self.pending, []
        done = [p.result() if isinstance(p, Future) else p for p in pending]
        scores = {name: torch.cat([part[name] for part, _ in done]) for name in self.rewards}
        told = {n: [d for _, part in done for d in part.get(n, ())] for n in self.rewards}
        return scores, told

    def _score(self, images: Tensor, prompts: list[str]) -> Scores:
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            scores = score_all(self.rewards, images, prompts)
        return scores, details_of(self.rewards, len(prompts))
