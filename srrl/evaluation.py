"""Evaluation at fixed prompts and seeds, so that images pair across stages and runs."""

from collections.abc import Mapping

import torch
from ml_collections import ConfigDict
from torch import Tensor

from rewards import Reward, score_all
from srrl.policy import Policy
from srrl.prompts import evenly
from srrl.rollout import rollout, rollout_settings


def evaluate(
    policy: Policy, rewards: Mapping[str, Reward], prompts: list[str], c: ConfigDict
) -> dict[str, Tensor]:
    """Each reward's scores float32 [seeds * prompts] of the policy's images, seeds outermost.

    The prompts are eval.num_prompts evenly taken from the list. Does not count in policy.nfe.
    """
    prompts = evenly(prompts, c.eval.num_prompts)
    conditioning = policy.encode(prompts)
    parts: dict[str, list[Tensor]] = {name: [] for name in rewards}
    counted = policy.nfe
    for seed in range(c.eval.first_seed, c.eval.first_seed + c.eval.seeds):
        images = rollout(
            policy,
            conditioning,
            rollout_settings(c, branches=1),
            rounds=c.eval.rounds,
            trained_steps=0,
            seed=seed,
            stage=0,
            slots=list(range(len(prompts))),
        ).images[-len(prompts) :]
        for name, values in score_all(rewards, images, prompts).items():
            parts[name].append(values)
    policy.nfe = counted
    return {name: torch.cat(values) for name, values in parts.items()}
