"""The K-round reflective trajectory (SRRL, arXiv 2505.22407): denoise, invert, denoise again.

Rounds 1 .. K-1 reflect (`reflect_rounds`): denoise x_T^k to x_0^k, then walk it back to x_T^(k+1)
under weak guidance from the prompt. Round K samples (srrl/rounds.py), and the policy gradient
trains on its last m steps.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from srrl.models.conditioning import Conditioning
from srrl.models.policy import Policy
from srrl.rounds import (
    Randomness,
    RolloutSettings,
    denoise_steps,
    fewer_steps,
    invert_steps,
    sample_round,
)


@dataclass
class Starts:
    """Where the sampled round of P prompts begins.

    x       float32 [P, C, h, w], on the policy's device
    again   bool [P], whether reflecting led there, or the first round was good enough
    scores  where first rounds are judged, their scores by each reward float32 [P]
    """

    x: Tensor
    again: Tensor
    scores: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def cat(cls, parts: "Sequence[Starts]") -> "Starts":
        scores = {name: torch.cat([p.scores[name] for p in parts]) for name in parts[0].scores}
        x, again = (torch.cat([getattr(p, key) for p in parts]) for key in ("x", "again"))
        return cls(x, again, scores)

    def rows(self, prompts: list[int]) -> "Starts":
        return Starts(
            self.x[prompts],
            self.again[prompts],
            {name: values[prompts] for name, values in self.scores.items()},
        )

    def state(self) -> dict[str, Any]:
        """The same for JSON, exactly."""
        numbers = self.x.cpu().numpy().astype("<f4").tobytes()
        return {
            "x": base64.b64encode(numbers).decode(),
            "shape": list(self.x.shape),
            "again": self.again.tolist(),
            "scores": {name: values.tolist() for name, values in self.scores.items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Starts":
        numbers = np.frombuffer(base64.b64decode(state["x"]), "<f4").astype(np.float32)
        scores = {name: torch.tensor(values) for name, values in state["scores"].items()}
        x = torch.from_numpy(numbers).view(state["shape"])
        return cls(x, torch.tensor(state["again"]), scores)


# Of a first round's images uint8 [P, 3, H, W] their scores by each reward float32 [P], and which
# are not good enough, bool [P].
Judging = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


@dataclass
class Rollout:
    """N trajectories, each the m trained steps of one sampled round of one branch.

    What counts and chooses (indices, rounds) and the pictures live on the CPU, what the network
    reads on the policy's device; a tensor crosses only by a `.to(` or `.cpu()` in plain sight.

    prompt, branch, round  int64 [N]: index of the prompt, of the branch, of the round (from 1)
    latents                float32 [N, m + 1, C, h, w], the first before the m steps
    log_probs              float32 [N, m], under the sampling policy
    images                 uint8 [N, 3, H, W], the decoded x_0
    starts                 where the P prompts' last round began
    reflected              for each reflecting round its images uint8 [P, 3, H, W], if kept
    """

    prompt: Tensor
    branch: Tensor
    round: Tensor
    latents: Tensor
    log_probs: Tensor
    images: Tensor
    starts: Starts
    reflected: list[Tensor] = field(default_factory=list)

    @classmethod
    def cat(cls, parts: "Iterable[Rollout]") -> "Rollout":
        """All parts in one, of as many rounds each. They are used up: each tensor is freed once it
        is copied."""
        parts = list(parts)
        tensors = {}
        for name in (f.name for f in fields(cls) if f.type == "Tensor" or f.type is Tensor):
            tensors[name] = torch.cat([vars(part).pop(name) for part in parts])
        starts = Starts.cat([vars(part).pop("starts") for part in parts])
        rounds = zip(*(part.reflected for part in parts), strict=True)
        return cls(**tensors, starts=starts, reflected=[torch.cat(images) for images in rounds])


@torch.no_grad()
def reflect_rounds(
    policy: Policy,
    conditioning: Conditioning,
    settings: RolloutSettings,
    randomness: Randomness,
    x: Tensor,
    rounds: int,
    judging: Judging | None = None,
    keep: bool = False,
    timed: Callable[[str], AbstractContextManager] = nullcontext,
) -> tuple[Starts, list[Tensor]]:
    """Rounds 1 .. K-1 of P prompts, which begin at x [P, C, h, w]: denoise x_T^k to x_0^k, then
    walk it back to x_T^(k+1) under weak guidance. And if they are kept, each round's images uint8
    [P, 3, H, W].

    With `judging`, prompts whose first round is good enough go no further: their last round begins
    where the first one did, and their images stay what they are.
    """
    total, depth = settings.reflect_steps or policy.schedule.num_steps, settings.depth
    starts = Starts(x, torch.full((len(x),), rounds > 1))
    index = torch.arange(len(x))  # of the prompts that go on
    kept: list[Tensor] = []
    for k in range(1, rounds):
        rows = index.to(x.device)
        now = conditioning.rows(rows)
        own = replace(randomness, prompts=[randomness.prompts[i] for i in index])
        steps = range(total - (depth or total) if k > 1 else 0, total)
        noise = own.noise("steps", rounds - k)
        guidance, eta = settings.denoise_guidance, settings.reflect_eta
        with timed("reflect"), fewer_steps(policy, settings.reflect_steps):
            x0 = denoise_steps(policy, starts.x[rows], now, steps, guidance, eta, noise)[0][-1]
        if keep or (judging and k == 1):
            with timed("decode"):
                kept.append(policy.decode(x0) if k == 1 else kept[-1].clone())
                if k > 1:
                    kept[-1][index] = policy.decode(x0)
        if judging and k == 1:
            starts.scores, starts.again = judging(kept[0])
            index = starts.again.nonzero()[:, 0]
            if not len(index):
                break
            rows = index.to(x.device)
            now, x0 = conditioning.rows(rows), x0[rows]
        with timed("reflect"), fewer_steps(policy, settings.reflect_steps):
            back = invert_steps(policy, x0, now, settings.inversion_guidance, depth)
            starts.x = starts.x.index_copy(0, rows, back)
    kept += kept[-1:] * (rounds - 1 - len(kept))
    return starts, kept if keep else []


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
    starts: Starts | None = None,
    judging: Judging | None = None,
    keep_reflected: bool = False,
    timed: Callable[[str], AbstractContextManager] = nullcontext,
) -> Rollout:
    """K-round trajectories for P prompts: conditioning of P rows, `prompts` their P numbers.

    They start from `start` [P, C, h, w], or from noise that belongs to (seed, stage, prompt); or
    their last round does from `starts`, where an earlier rollout's reflections led. `judging` says
    which first rounds are not good enough to be the last.
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
        place = prompt, branch, torch.full_like(prompt, k)
        return Rollout(*place, *trained, images, Starts(x, torch.zeros(0).bool())), sampled.x0

    x = start.to(policy.device) if start is not None else randomness.noise("start").draw()
    sampled: list[Rollout] = []
    reflected: list[Tensor] = []
    if starts is not None:
        x = starts.x.to(policy.device)
    elif not every_round:
        given = policy, conditioning, settings, randomness, x, rounds
        starts, reflected = reflect_rounds(*given, judging, keep_reflected, timed)
        x = starts.x
    else:
        starts = Starts(x, torch.full((len(prompts),), rounds > 1))
        for k in range(1, rounds):
            part, x0 = sample(x, k)
            sampled.append(part)
            rows, weak = conditioning.rows(spread), settings.inversion_guidance
            with timed("reflect"):
                x = invert_steps(policy, x0, rows, weak, settings.depth)
    sampled.append(sample(x, rounds)[0])
    result = Rollout.cat(sampled) if every_round else sampled[0]
    result.reflected, result.starts = reflected, starts
    return result
