"""Draw samples for people to look at: every round of them, with its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewards import Reward, score_all
from srrl.models.policy import Policy
from srrl.rollout import rollout
from srrl.rounds import RolloutSettings


@dataclass(frozen=True)
class Drawn:
    """B samples round by round: images uint8 [B, 3, H, W], and each reward's scores float32 [B]."""

    images: list[Tensor]
    scores: list[dict[str, Tensor]]

    def scores_of(self, i: int) -> list[dict[str, float]]:
        """One sample's, by round."""
        return [{reward: values[i].item() for reward, values in s.items()} for s in self.scores]


def draw(
    policy: Policy,
    settings: RolloutSettings,
    rewards: Mapping[str, Reward],
    prompts: list[str],
    seeds: Sequence[int],
    rounds: int,
) -> Drawn:
    """A sample of so many rounds for each prompt and the seed beside it.

    A seed's noise is that of torch.Generator().manual_seed(seed); a sample depends on its prompt
    and seed alone. Raises UserError as the policy and rewards.score_all do.
    """
    start = [
        torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    samples = rollout(
        policy,
        policy.encode(prompts),
        settings,
        rounds=rounds,
        trained_steps=0,
        seed=0,
        stage=0,
        prompts=list(seeds),
        start=torch.stack(start),
        keep_reflected=True,
    )
    # with train_rounds "all" every round is among the images
    images = [*samples.reflected, *samples.images.split(len(prompts))]
    return Drawn(images, [score_all(rewards, of_round, prompts) for of_round in images])


def drawn_from(
    policy: Policy, settings: RolloutSettings, prompt: str, seed: int, rounds: int, checkpoint: str
) -> dict[str, Any]:
    """What a picture's PNG text says that it was drawn from."""
    return {
        "prompt": prompt,
        "negative_prompt": policy.encoder.negative_prompt,
        "seed": seed,
        "rounds": rounds,
        "steps": policy.schedule.num_steps,
        "eta": settings.eta,
        "guidance_scale": settings.guidance_scale,
        "checkpoint": checkpoint,
    }
