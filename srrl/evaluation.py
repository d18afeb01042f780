"""Evaluation at fixed prompts and seeds, so that images pair across stages and runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, score_all
from srrl.models.policy import Policy
from srrl.prompts import evenly
from srrl.rollout import rollout
from srrl.rounds import rollout_settings
from srrl.run.distributed import gather_rows, local_range
from srrl.run.image_statistics import Evaluated, measured, summary


def evaluate(
    policy: Policy,
    rewards: Mapping[str, Reward],
    prompts: list[str],
    c: ConfigDict,
    accelerator: Accelerator,
    rounds: int,
    shown: Sequence[int] = (),
) -> Evaluated:
    """The policy's images of so many rounds, of which those of the prompts at `shown` are kept.

    The prompts are eval.num_prompts evenly taken from the list, spread over the processes. Rounds
    reflect as in scripts/evaluate.py, whatever trains the policy. Does not count in policy.nfe.
    """
    prompts = evenly(prompts, c.eval.num_prompts)
    settings = replace(rollout_settings(c, branches=1), train_rounds="last")

    def judge(index: list[int], seed: int) -> tuple[dict[str, Tensor], Tensor]:
        own = [prompts[i] for i in index]
        images = rollout(
            policy,
            policy.encode(own),
            settings,
            rounds=rounds,
            trained_steps=0,
            seed=seed,
            stage=0,
            prompts=index,
        ).images[-len(index) :]
        return score_all(rewards, images, own), images

    counted = policy.nfe
    found = over_seeds(judge, list(rewards), len(prompts), c, accelerator, shown, policy.image_size)
    policy.nfe = counted
    return found


def over_seeds(
    judge: Callable[[list[int], int], tuple[dict[str, Tensor], Tensor]],
    names: Sequence[str],
    prompts: int,
    c: ConfigDict,
    accelerator: Accelerator,
    shown: Sequence[int],
    size: tuple[int, int],
) -> Evaluated:
    """What `evaluate` returns, of so many prompts, whose scores of these names and images of a
    size (H, W) `judge` gives for some of them, by index, and a seed."""
    local = list(local_range(accelerator, prompts))
    local_index = torch.tensor(local, dtype=torch.int64)
    by_seed: dict[str, list[Tensor]] = {name: [] for name in names}
    rows: list[Tensor] = []
    first_images: Tensor | None = None
    for seed in range(c.eval.first_seed, c.eval.first_seed + c.eval.seeds):
        scores = {name: torch.zeros(0) for name in names}
        images = torch.zeros(0, 3, *size, dtype=torch.uint8)
        if local:
            scores, images = judge(local, seed)
            first_images = images if first_images is None else first_images
        own = measured(images.cpu())
        rows.append(gather_rows(accelerator, own, local_index, prompts))
        for name in names:
            by_seed[name].append(gather_rows(accelerator, scores[name], local_index, prompts))
    columns = [i for i, prompt in enumerate(shown) if prompt in local]
    pictures = torch.zeros(0, 3, *size, dtype=torch.uint8)
    if columns and first_images is not None:
        pictures = torch.stack([first_images[local.index(shown[i])] for i in columns])
    index = torch.tensor(columns, dtype=torch.int64)
    pictures = gather_rows(accelerator, pictures, index, len(shown))
    scores = {name: torch.cat(values) for name, values in by_seed.items()}
    return Evaluated(scores, summary(torch.cat(rows), c.eval.seeds), pictures)
