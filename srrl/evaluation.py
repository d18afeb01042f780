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
from srrl.run.distributed import own_part, share


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
    own = list(own_part(accelerator, len(prompts)))
    parts: dict[str, list[Tensor]] = {name: [] for name in rewards}
    counted, kept = policy.nfe, None
    for seed in range(c.eval.first_seed, c.eval.first_seed + c.eval.seeds):
        scores = {name: torch.zeros(0) for name in rewards}
        if own:
            mine = [prompts[i] for i in own]
            images = rollout(
                policy,
                policy.encode(mine),
                rollout_settings(c, branches=1),
                rounds=rounds,
                trained_steps=0,
                seed=seed,
                stage=0,
                prompts=own,
            ).images[-len(own) :]
            scores = score_all(rewards, images, mine)
            kept = images if kept is None else kept
        places = torch.tensor(own, dtype=torch.int64)
        for name, values in scores.items():
            parts[name].append(share(accelerator, values, places, len(prompts)))
    policy.nfe = counted
    side = int(policy.time_ids[0])
    here = [i for i, place in enumerate(shown) if place in own]
    rows = [kept[own.index(shown[i])] for i in here]
    pictures = torch.stack(rows) if rows else torch.zeros(0, 3, side, side, dtype=torch.uint8)
    pictures = share(accelerator, pictures, torch.tensor(here, dtype=torch.int64), len(shown))
    return {name: torch.cat(values) for name, values in parts.items()}, pictures
