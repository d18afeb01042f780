"""Evaluation at fixed prompts and seeds, so that images pair across stages and runs."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, score_all
from srrl.models.policy import Policy
from srrl.prompts import evenly
from srrl.rollout import rollout, rollout_settings
from srrl.run.distributed import gather_rows, local_range


def evaluate(
    policy: Policy,
    rewards: Mapping[str, Reward],
    prompts: list[str],
    c: ConfigDict,
    accelerator: Accelerator,
    rounds: int,
    shown: Sequence[int] = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """Each reward's scores float32 [seeds * prompts] of the policy's images of so many rounds,
    seeds outermost; and the first seed's images uint8 [n, 3, H, W] of the n prompts at `shown`.

    The prompts are eval.num_prompts evenly taken from the list, spread over the processes. Does
    not count in policy.nfe.
    """
    prompts = evenly(prompts, c.eval.num_prompts)
    local = list(local_range(accelerator, len(prompts)))
    local_prompts, local_index = [prompts[i] for i in local], torch.tensor(local, dtype=torch.int64)
    by_seed: dict[str, list[Tensor]] = {name: [] for name in rewards}
    counted, first_images = policy.nfe, None
    for seed in range(c.eval.first_seed, c.eval.first_seed + c.eval.seeds):
        scores = {name: torch.zeros(0) for name in rewards}
        if local:
            images = rollout(
                policy,
                policy.encode(local_prompts),
                rollout_settings(c, branches=1),
                rounds=rounds,
                trained_steps=0,
                seed=seed,
                stage=0,
                prompts=local,
            ).images[-len(local) :]
            scores = score_all(rewards, images, local_prompts)
            first_images = images if first_images is None else first_images
        for name, values in scores.items():
            by_seed[name].append(gather_rows(accelerator, values, local_index, len(prompts)))
    policy.nfe = counted
    columns = [i for i, prompt in enumerate(shown) if prompt in local]
    pictures = torch.zeros(0, 3, *policy.image_size, dtype=torch.uint8)
    if columns:
        pictures = torch.stack([first_images[local.index(shown[i])] for i in columns])
    index = torch.tensor(columns, dtype=torch.int64)
    pictures = gather_rows(accelerator, pictures, index, len(shown))
    return {name: torch.cat(values) for name, values in by_seed.items()}, pictures
