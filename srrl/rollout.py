"""The K-round reflective trajectory (SRRL, arXiv 2505.22407): denoise, invert, denoise again.

Rounds 1 .. K-1 reflect: denoise x_T^k to x_0^k, then walk it back to x_T^(k+1) under weak
guidance from the prompt. Round K samples: the G branches of a prompt share every step until the
trained interval, the last m steps, then diverge; the policy gradient trains on those m steps.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from srrl.ddim import denoise_mean, invert, log_prob
from srrl.models.policy import Conditioning, Policy

SHARED_BRANCH = 2**16  # the branch number of noise that all branches of a prompt share
PURPOSES = ("start", "steps", "prompts", "updates")


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

    What counts and chooses (slots, rounds, places, rows) lives on the CPU, what the networks read
    and write on the policy's device; a tensor crosses only by a `.to(` or `.cpu()` in plain sight.

    slot, branch, round  int64 [N]: index of the prompt, of the branch, of the round (from 1)
    latents              float32 [N, m + 1, C, h, w], the first before the m steps
    log_probs            float32 [N, m], under the sampling policy
    images               uint8 [N, 3, H, W], the decoded x_0
    reflected            for each reflecting round its images uint8 [P, 3, H, W], if kept
    """

    slot: Tensor
    branch: Tensor
    round: Tensor
    latents: Tensor
    log_probs: Tensor
    images: Tensor
    reflected: list[Tensor] = field(default_factory=list)

    @classmethod
    def cat(cls, parts: "Iterable[Rollout]") -> "Rollout":
        parts = list(parts)
        tensors = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("slot", "branch", "round", "latents", "log_probs", "images")
        }
        rounds = zip(*(part.reflected for part in parts), strict=True)
        return cls(**tensors, reflected=[torch.cat(images) for images in rounds])


def generator(seed: int, stage: int, slot: int, branch: int, to_go: int, purpose: str):
    """The random generator of one sample and purpose: a function of these numbers alone.

    Draws therefore do not depend on batch size, number of processes or what ran before; on a CPU
    results do not either, beyond rounding; a GPU's kernels may round otherwise for another batch.
    `to_go` counts rounds from the end, so that runs of different K share their last round's noise.
    """
    key = (seed, stage, slot, branch, to_go, PURPOSES.index(purpose))
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
        step = torch.full((len(x),), i, device=x.device)
        a_t, a_s, sigma = policy.schedule.coefficients(step, eta)
        predicted = policy.noise(x, step, a_t, conditioning, guidance)
        mean = denoise_mean(x, predicted, a_t, a_s, sigma)
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
        step = torch.full((len(x),), i, device=x.device)
        a_t, a_s, _ = policy.schedule.coefficients(step, 0.0)
        predicted = policy.noise(x, step, a_s, conditioning, guidance)
        x = invert(x, predicted, a_s, a_t)
    return x


@torch.no_grad()
def rollout(
    policy: Policy,
    conditioning: Conditioning,
    settings: RolloutSettings,
    *,
    rounds: int,
    trained_steps: int,
    seed: int,
    stage: int,
    slots: list[int],
    start: Tensor | None = None,
    keep_reflected: bool = False,
    timed: Callable[[str], AbstractContextManager] = nullcontext,
) -> Rollout:
    """K-round trajectories for P prompts: conditioning of P rows, `slots` their P numbers.

    They start from `start` [P, C, h, w], or from noise that belongs to (seed, stage, slot).
    Returns P * G trajectories (with train_rounds "all", P * G * K), prompts outermost. `timed`
    is entered around the work of the phases "reflect", "sample" and "decode".
    """
    device, shape = policy.device, policy.latent_shape
    total, branches = policy.schedule.num_steps, settings.branches
    diverge = total - settings.skip_last - trained_steps if trained_steps else total
    later = total - (settings.depth or total)  # where rounds after the first begin
    if rounds > 1 and diverge < later:
        raise ValueError(f"{trained_steps} trained steps begin before the reflection's depth")
    every_round = settings.train_rounds == "all"
    slot = torch.tensor(slots).repeat_interleave(branches)
    branch = torch.arange(branches).repeat(len(slots))
    spread = torch.arange(len(slots), device=device).repeat_interleave(branches)

    def noise(to_go: int, purpose: str, per_branch: bool) -> Noise:
        keys = (
            list(zip(slot.tolist(), branch.tolist(), strict=True))
            if per_branch
            else [(s, SHARED_BRANCH) for s in slots]
        )
        drawn = [generator(seed, stage, s, b, to_go, purpose) for s, b in keys]
        return Noise(drawn, shape, device)

    def decode(x0: Tensor) -> Tensor:
        with timed("decode"):
            return policy.decode(x0)

    def reflect(x: Tensor, k: int) -> Tensor:
        """x_0^k of a round that only reflects."""
        own = noise(rounds - k, "steps", per_branch=False)
        guidance, eta = settings.denoise_guidance, settings.reflect_eta
        steps = range(later if k > 1 else 0, total)
        return denoise_steps(policy, x, conditioning, steps, guidance, eta, own)[0][-1]

    def sample(x: Tensor, k: int) -> tuple[Rollout, Tensor]:
        """Round k from x [P or P * G, C, h, w], branching before the trained steps; and x_0^k."""
        guidance, eta = settings.guidance_scale, settings.eta
        taken = range(later if k > 1 else 0, total)
        with timed("sample"):
            if len(x) == len(slots):
                own = noise(rounds - k, "steps", per_branch=False)
                together = range(taken.start, diverge)
                shared = denoise_steps(policy, x, conditioning, together, guidance, eta, own)
                x, taken = shared[0][-1][spread], range(diverge, total)
            own = noise(rounds - k, "steps", per_branch=True)
            cond = conditioning.rows(spread)
            latents, log_probs = denoise_steps(policy, x, cond, taken, guidance, eta, own)
        first = diverge - taken.start  # of the trained steps, among those taken here
        last = first + trained_steps
        kept = log_probs[first:last]
        return Rollout(
            slot,
            branch,
            torch.full_like(slot, k),
            torch.stack(latents[first : last + 1], 1),
            torch.stack(kept, 1) if kept else torch.zeros(len(x), 0, device=device),
            decode(latents[-1]),
        ), latents[-1]

    x = noise(0, "start", per_branch=False).draw() if start is None else start.to(device)
    sampled, reflected = [], []
    for k in range(1, rounds):
        if every_round:
            part, x0 = sample(x, k)
            sampled.append(part)
            cond = conditioning.rows(spread)
        else:
            with timed("reflect"):
                x0, cond = reflect(x, k), conditioning
            if keep_reflected:
                reflected.append(decode(x0))
        with timed("reflect"):
            x = invert_steps(policy, x0, cond, settings.inversion_guidance, settings.depth)
    sampled.append(sample(x, rounds)[0])
    result = Rollout.cat(sampled) if every_round else sampled[0]
    result.reflected = reflected
    return result
