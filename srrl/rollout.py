"""The K-round reflective trajectory (SRRL, arXiv 2505.22407): denoise, invert, denoise again.

Rounds 1 .. K-1 reflect (`reflect_round`): denoise x_T^k to x_0^k, then walk it back to x_T^(k+1)
under weak guidance from the prompt. Round K samples (`sample_round`): the G branches of a prompt
share every step until the trained interval, the last m steps, then diverge; the policy gradient
trains on those m steps.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields

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
    )


@dataclass
class Rollout:
    """N trajectories, each the m trained steps of one sampled round of one branch.

    What counts and chooses (indices, rounds) and the pictures live on the CPU, what the network
    reads on the policy's device; a tensor crosses only by a `.to(` or `.cpu()` in plain sight.

    prompt, branch, round  int64 [N]: index of the prompt, of the branch, of the round (from 1)
    latents                float32 [N, m + 1, C, h, w], the first before the m steps
    log_probs              float32 [N, m], under the sampling policy
    images                 uint8 [N, 3, H, W], the decoded x_0
    reflected              for each reflecting round its images uint8 [P, 3, H, W], if kept
    """

    prompt: Tensor
    branch: Tensor
    round: Tensor
    latents: Tensor
    log_probs: Tensor
    images: Tensor
    reflected: list[Tensor] = field(default_factory=list)

    @classmethod
    def cat(cls, parts: "Iterable[Rollout]") -> "Rollout":
        """All parts in one. They are used up: each tensor is freed once it is copied."""
        parts = list(parts)
        tensors = {}
        for name in (f.name for f in fields(cls) if f.name != "reflected"):
            tensors[name] = torch.cat([vars(part).pop(name) for part in parts])
        rounds = zip(*(part.reflected for part in parts), strict=True)
        return cls(**tensors, reflected=[torch.cat(images) for images in rounds])


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

    def __init__(self, generators: list[torch.Generator], shape: tuple[int, ...], device):
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


def reflect_round(
    policy: Policy,
    x: Tensor,
    down: Conditioning,
    up: Conditioning,
    settings: RolloutSettings,
    noise: Noise | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """A round that only reflects: denoise x [B, C, h, w] from step `first` on to x_0 under `down`,
    and invert that under `up`. Returns x_0 and where the next round begins.

    noise: of the steps, where settings.reflect_eta is above 0.
    """
    steps = range(first, policy.schedule.num_steps)
    guidance, eta = settings.denoise_guidance, settings.reflect_eta
    x0 = denoise_steps(policy, x, down, steps, guidance, eta, noise)[0][-1]
    return x0, invert_steps(policy, x0, up, settings.inversion_guidance, settings.depth)


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


def rollout(
    policy: Policy,
    conditioning: Conditioning,
    settings: RolloutSettings,
    *,
    rounds: int,
    trained_steps: int,
    seed: int,
    stage: int,
    prompts: list[int],
    start: Tensor | None = None,
    keep_reflected: bool = False,
    timed: Callable[[str], AbstractContextManager] = nullcontext,
) -> Rollout:
    """K-round trajectories for P prompts: conditioning of P rows, `prompts` their P numbers.

    They start from `start` [P, C, h, w], or from noise that belongs to (seed, stage, prompt).
    Returns P * G trajectories (with train_rounds "all", P * G * K), prompts outermost. `timed`
    is entered around the work of the phases "reflect", "sample" and "decode".
    """
    total, branches = policy.schedule.num_steps, settings.branches
    later = total - (settings.depth or total)  # where rounds after the first begin
    if rounds > 1 and trained_steps and total - settings.skip_last - trained_steps < later:
        raise ValueError(f"{trained_steps} trained steps begin before the reflection's depth")
    every_round = settings.train_rounds == "all"
    randomness = Randomness(policy, seed, stage, prompts, branches)
    prompt = torch.tensor(prompts).repeat_interleave(branches)
    branch = torch.arange(branches).repeat(len(prompts))
    spread = torch.arange(len(prompts), device=policy.device).repeat_interleave(branches)

    def decode(x0: Tensor) -> Tensor:
        with timed("decode"):
            return policy.decode(x0)

    def sample(x: Tensor, k: int) -> tuple[Rollout, Tensor]:
        """Round k from x, and its x_0."""
        with timed("sample"):
            sampled = sample_round(
                policy,
                x,
                conditioning,
                settings,
                randomness,
                trained_steps=trained_steps,
                first=later if k > 1 else 0,
                to_go=rounds - k,
                branched=every_round and k > 1 and branches > 1,
            )
        trained, images = (sampled.latents, sampled.log_probs), decode(sampled.x0)
        return Rollout(prompt, branch, torch.full_like(prompt, k), *trained, images), sampled.x0

    x = start.to(policy.device) if start is not None else randomness.noise("start").draw()
    sampled, reflected = [], []
    for k in range(1, rounds):
        if every_round:
            part, x0 = sample(x, k)
            sampled.append(part)
            rows, weak = conditioning.rows(spread), settings.inversion_guidance
            with timed("reflect"):
                x = invert_steps(policy, x0, rows, weak, settings.depth)
            continue
        with timed("reflect"):
            noise, first = randomness.noise("steps", rounds - k), later if k > 1 else 0
            x0, x = reflect_round(policy, x, conditioning, conditioning, settings, noise, first)
        if keep_reflected:
            reflected.append(decode(x0))
    sampled.append(sample(x, rounds)[0])
    result = Rollout.cat(sampled) if every_round else sampled[0]
    result.reflected = reflected
    return result
