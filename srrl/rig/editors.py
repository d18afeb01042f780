"""The editors of RL-RIG (arXiv 2602.19974), which redraw a picture as an edit prompt says.

Both are policies over DDIM steps with log-probabilities, behind one face:

    instruct    an InstructPix2Pix model (srrl/models/instruct.py), shown the picture
    inversion   any text-to-image model: the picture goes back to noise under weak guidance from its
                prompt (the Inverse Diffuser, SRRL's own inversion) and is denoised under the edit
                prompt
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srrl.budget import nfe_per_step
from srrl.models.conditioning import Conditioning
from srrl.models.instruct import InstructPolicy, evaluations_a_step
from srrl.models.parts import quiet
from srrl.models.policy import Policy
from srrl.rounds import Randomness, RolloutSettings, Sampled, invert_steps, sample_round

EDITORS = ("instruct", "inversion")


@dataclass(frozen=True)
class Edits:
    """B * G edits, the G of a picture together.

    images uint8 [B * G, 3, H, W]; conditioning: of the B edits, for another look at the steps;
    sampled: the trained steps with their log-probs.
    """

    images: Tensor
    conditioning: Conditioning
    sampled: Sampled


@dataclass(frozen=True)
class Editor:
    """A policy that edits: an InstructPolicy, or any other by inversion over settings.depth steps
    (None: all of them).

    settings: guidance_scale and eta of an edit, inversion_guidance, and branches, the edits G of a
    picture.
    """

    policy: Policy
    settings: RolloutSettings

    @property
    def kind(self) -> str:
        return EDITORS[not isinstance(self.policy, InstructPolicy)]

    @property
    def evaluations(self) -> int:
        """Of the network, for one edit with one branch and no trained steps."""
        total, s = self.policy.schedule.num_steps, self.settings
        if isinstance(self.policy, InstructPolicy):
            return total * evaluations_a_step(s.guidance_scale, self.policy.image_guidance)
        both = nfe_per_step(s.guidance_scale) + nfe_per_step(s.inversion_guidance)
        return (s.depth or total) * both

    def condition(self, images: Tensor, texts: Sequence[str]) -> Conditioning:
        """Of edit prompts for pictures uint8 [B, 3, H, W]."""
        with quiet():  # of a long text CLIP reads the beginning, and would say so each time
            made: Conditioning
            if isinstance(self.policy, InstructPolicy):
                made = self.policy.instruct(images, list(texts))
            else:
                made = self.policy.encode(list(texts))
        self.policy.encoder.forget(texts)
        return made

    @torch.no_grad()
    def edit(
        self,
        images: Tensor,
        prompts: Sequence[str],
        texts: Sequence[str],
        *,
        seed: int,
        numbers: Sequence[int],
        stage: int = 0,
        trained_steps: int = 0,
        apart: bool = False,
    ) -> Edits:
        """Edit pictures uint8 [B, 3, H, W] of prompts under edit prompts `texts`.

        numbers: of the B pictures, which with seed and stage decide the noise; the last
        `trained_steps` steps are kept. apart: the branches have noise of their own from the start,
        not only in the trained steps.
        """
        policy, first = self.policy, 0
        branches = self.settings.branches
        randomness = Randomness(policy, seed, stage, list(numbers), branches)
        conditioning = self.condition(images, texts)
        if self.kind == "instruct":
            x = randomness.noise("start", per_branch=apart).draw()
        else:
            total = policy.schedule.num_steps
            weak, depth = self.settings.inversion_guidance, self.settings.depth
            seen = policy.to_latents(images)
            x = invert_steps(policy, seen, policy.encode(list(prompts)), weak, depth)
            first = total - (depth or total)
            x = x.repeat_interleave(branches, 0) if apart else x
            if trained_steps > total - first - self.settings.skip_last:
                raise ValueError(f"{trained_steps} trained steps begin before the depth {depth}")
        sampled = sample_round(
            policy,
            x,
            conditioning,
            self.settings,
            randomness,
            trained_steps=trained_steps,
            first=first,
            branched=apart,
        )
        return Edits(policy.decode(sampled.x0), conditioning, sampled)
