"""One round of a trajectory: denoise, invert, sample; and where its noise comes from.

A sampled round's G branches share every step until the trained interval, the last m steps, then
diverge; the policy gradient trains on those m steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from srrl.ddim import log_prob
from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy

SHARED_BRANCH = 2**16  # the branch number of noise that all branches of a prompt share
PURPOSES = ("start", "steps", "prompts", "updates", "words")


@dataclass(frozen=True)
class RolloutSettings:
    """The sampling part of the config, see config/stage_process.py for each meaning."""

    branches: int
    guidance_scale: float
    eta: float
    denoise_guidance: float
    inversion_guidance: float
    reflect_eta: float
    train_rounds: str  # "last": only round K is policy; "all": every round is
    skip_last: int  # steps after the trained interval
    depth: int | None = None  # steps that a reflection walks back; None: all of them
    reflect_steps: int | None = None  # steps of a reflecting round; None: those of any other


def rollout_settings(c: ConfigDict, branches: int | None = None) -> RolloutSettings:
    """The config's sampling; `branches` replaces branch.count, as for evaluation."""
    return RolloutSettings(
        branches=branches or c.branch.count,
        guidance_scale=c.sample.guidance_scale,
        eta=c.sample.eta,
        denoise_guidance=c.reflect.denoise_guidance,
        inversion_guidance=c.reflect.inversion_guidance,
        reflect_eta=c.reflect.eta,
        train_rounds=c.reflect.train_rounds,
        skip_last=c.interval.skip_last,
        depth=c.reflect.depth,
        reflect_steps=c.reflect.num_steps,
    )


def generator(
    seed: int, stage: int, prompt: int, branch: int, to_go: int, purpose: str
) -> torch.Generator:
    """The random generator of one sample and purpose: a function of these numbers alone.

    Draws therefore do not depend on batch size, number of processes or what ran before; on a CPU
    results do not either, beyond rounding; a GPU's kernels may round otherwise for another batch.
    `to_go` counts rounds from the end, so that runs of different K share their last round's noise.
    """
    key = (seed, stage, prompt, branch, to_go, PURPOSES.index(purpose))
    state = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


class Noise:
    """Standard normal noise with a generator for each sample."""

    def __init__(
        self, generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device
    ):
        self.generators, self.shape, self.device = generators, shape, device

    def draw(self) -> Tensor:
        """float32 [B, *shape]"""
        drawn = [torch.randn(self.shape, generator=g) for g in self.generators]
        return torch.stack(drawn).to(self.device)


@dataclass(frozen=True)
class Randomness:
    """Where the noise of P prompts with G branches each comes from.

    prompts: the numbers of the prompts, which with the seed and the stage decide all of it.
    """

    policy: Policy
    seed: int
    stage: int
    prompts: list[int]
    branches: int

    def noise(self, purpose: str, to_go: int = 0, per_branch: bool = False) -> Noise:
        """Of the "start" or of the "steps" of a round: a row for each prompt, or for each of its
        branches, prompts outermost."""
        branches = range(self.branches) if per_branch else [SHARED_BRANCH]
        return Noise(
            [
                generator(self.seed, self.stage, prompt, branch, to_go, purpose)
                for prompt in self.prompts
                for branch in branches
            ],
            self.policy.latent_shape,
            self.policy.device,
        )


@torch.no_grad()
def denoise_steps(
    policy: Policy,
    x: Tensor,
    conditioning: Conditioning,
    steps: range,
    guidance: float,
    eta: float,
    noise: Noise | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Denoise x [B, C, h, w] through the given step indices.

    Returns the latents before each step and after the last, and with eta > 0 the log-prob [B]
    of each step.
    """
    latents, log_probs = [x], []
    for i in steps:
        mean, sigma = policy.step(x, i, conditioning, guidance, eta)
        x = mean
        if eta > 0:
            assert noise is not None
            x = mean + sigma * noise.draw()
            log_probs.append(log_prob(x, mean, sigma))
        latents.append(x)
    return latents, log_probs


@torch.no_grad()
def invert_steps(
    policy: Policy, x: Tensor, conditioning: Conditioning, guidance: float, depth: int | None = None
) -> Tensor:
    """Condition-guided DDIM inversion of x_0 [B, C, h, w] back to x_T, or over the last `depth`
    steps of a denoising only."""
    total = policy.schedule.num_steps
    for i in reversed(range(total - (depth or total), total)):
        x = policy.step_back(x, i, conditioning, guidance)
    return x


@dataclass(frozen=True)
class Sampled:
    """A sampled round of N = P * G trajectories: latents float32 [N, m + 1, C, h, w], log_probs
    float32 [N, m] of its m trained steps, and x0 [N, C, h, w]."""

    latents: Tensor
    log_probs: Tensor
    x0: Tensor


def sample_round(
    policy: Policy,
    x: Tensor,
    conditioning: Conditioning,
    settings: RolloutSettings,
    randomness: Randomness,
    *,
    trained_steps: int,
    first: int = 0,
    to_go: int = 0,
    branched: bool = False,
) -> Sampled:
    """A round that is sampled, from step `first` on: conditioning of P prompts, x [P, C, h, w],
    whose G branches share the steps before the trained ones; or, where the branches have parted
    before (`branched`), x [P * G, C, h, w]. `to_go` counts the rounds that follow.
    """
    guidance, eta, total = settings.guidance_scale, settings.eta, policy.schedule.num_steps
    diverge = total - settings.skip_last - trained_steps if trained_steps else total
    spread = torch.arange(len(conditioning), device=x.device).repeat_interleave(settings.branches)
    parted = first
    if not branched:
        noise = randomness.noise("steps", to_go)
        together = range(first, diverge)
        x = denoise_steps(policy, x, conditioning, together, guidance, eta, noise)[0][-1][spread]
        parted = diverge
    noise, rows = randomness.noise("steps", to_go, per_branch=True), conditioning.rows(spread)
    path, log_probs = denoise_steps(policy, x, rows, range(parted, total), guidance, eta, noise)
    begin = diverge - parted  # of the trained steps, among those taken here
    trained = log_probs[begin : begin + trained_steps]
    return Sampled(
        torch.stack(path[begin : begin + trained_steps + 1], 1),
        torch.stack(trained, 1) if trained else x.new_zeros(len(x), 0),
        path[-1],
    )


@contextmanager
def fewer_steps(policy: Policy, steps: int | None) -> Iterator[None]:
    """Let a policy take only so many of its denoising steps for a while."""
    whole = policy.schedule
    policy.schedule = whole.thinned(steps) if steps else whole
    try:
        yield
    finally:
        policy.schedule = whole
