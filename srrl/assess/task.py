"""What a sampler is given to draw."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy
from srrl.rounds import Noise, Randomness, RolloutSettings

Score = Callable[[Tensor, list[str]], Tensor]  # images uint8 [B, 3, H, W], prompts -> float32 [B]


@dataclass(frozen=True)
class Task:
    """P prompts to draw with a policy at one seed.

    settings: how the policy samples (one branch); numbers: of the prompts, which with the seed
    decide the noise; score: what samplers choose by; spent: of each prompt the network evaluations,
    which samplers say that do not take as many for each.
    """

    policy: Policy
    conditioning: Conditioning
    settings: RolloutSettings
    prompts: list[str]
    numbers: list[int]
    seed: int
    score: Score
    spent: list[float] = field(default_factory=list)

    def noise(self, purpose: str, to_go: int = 0, stage: int = 0) -> Noise:
        """The noise that rollout draws for this seed, of the start or of a round's steps. Another
        stage's is independent of it."""
        return Randomness(self.policy, self.seed, stage, self.numbers, 1).noise(purpose, to_go)

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def part(self, indices: list[int]) -> "Task":
        """The same for some of the prompts."""
        index = torch.tensor(indices, device=self.device)
        return replace(
            self,
            conditioning=self.conditioning.rows(index),
            prompts=[self.prompts[i] for i in indices],
            numbers=[self.numbers[i] for i in indices],
        )
