"""What the trainings of the embedded models share: the optimizer, and the diffuser's pictures."""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from srrl.config import load_config
from srrl.models.instruct import InstructPolicy
from srrl.models.policy import Policy
from srrl.rig.editors import Editor
from srrl.rollout import rollout
from srrl.rounds import RolloutSettings, rollout_settings
from srrl.shapes.edits import naive
from srrl.shapes.lessons import moved, shows_any
from srrl.shapes.pipeline import TINY_EDITOR, TINY_SD
from srrl.shapes.reader import Seen, read
from srrl.shapes.scenes import Scene, all_scenes, parse

SNR_GAMMA = 5.0
EDITING = RolloutSettings(1, 3.0, 1.0, 1.0, 1.0, 0.0, "last", 0)  # guidance 3, eta 1


class Training:
    """AdamW with a warm-up and a cosine to zero, gradients clipped to a norm of 1, and now and
    then a line with the time left."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        steps: int,
        rate: float,
        warm_up: int = 50,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        self.name, self.parameters, self.steps = name, list(parameters), steps
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, betas=betas)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda i: min(1, (i + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1, i / steps))),
        )
        self.done, self.start = 0, time.monotonic()

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1

    def say(self, **values: float) -> None:
        """After every hundredth step and the last, how far it is."""
        if self.done % 100 and self.done != self.steps:
            return
        eta = (time.monotonic() - self.start) / self.done * (self.steps - self.done)
        shown = " ".join(f"{k} {v:.4f}" for k, v in values.items())
        print(f"{self.name} {self.done}/{self.steps} {shown} ETA {eta:.0f} s", flush=True)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    noising: DDIMScheduler,
    generator: torch.Generator,
) -> Tensor:
    """Of the noise predicted at noisy latents and timesteps, of x0 [B, C, h, w]; weighted by
    min-SNR (arXiv 2303.09556). More of the noisy steps: they decide the layout, the others are
    easy."""
    t = (1000 * torch.rand(len(x0), generator=generator) ** 0.7).long()
    noise = torch.randn(x0.shape, generator=generator)
    predicted = predict(noising.add_noise(x0, noise, t), t)
    alphas = noising.alphas_cumprod[t]
    snr = (alphas / (1 - alphas)).clamp(min=1e-8)
    weight = snr.clamp(max=SNR_GAMMA) / snr
    return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()


def drawn(prompts: Sequence[str], seed: int) -> Tensor:
    """The embedded diffuser's pictures uint8 [N, 3, 32, 32], one of each prompt."""
    policy = Policy.load(str(TINY_SD), num_steps=10, eta=1.0, micro_batch=64)
    settings = rollout_settings(load_config(["--config=config/stage_process.py:tiny"]), branches=1)
    parts = []
    for start in range(0, len(prompts), 96):
        some = list(prompts[start : start + 96])
        given: dict[str, Any] = {"rounds": 1, "trained_steps": 0, "seed": seed, "stage": start}
        shown = rollout(policy, policy.encode(some), settings, prompts=[*range(len(some))], **given)
        parts.append(shown.images)
        print(f"drawn {start + len(some)}/{len(prompts)}", flush=True)
    return torch.cat(parts)


def tiny_editor(folder: Path) -> Editor:
    """The embedded editor, or another one of its kind, as the trainings use it."""
    return Editor(InstructPolicy.load(str(folder), num_steps=10, eta=1.0, micro_batch=64), EDITING)


def prompts_without(avoid: frozenset[Scene], count: int) -> list[str]:
    """So many prompts of all scenes but those, over and over."""
    prompts = [s.prompt for s in all_scenes() if s not in avoid]
    return (prompts * (count // len(prompts) + 1))[:count]


@dataclass
class Source:
    """Pictures uint8 [N, 3, 32, 32], what is seen in each, and the prompts of those that have."""

    pictures: Tensor
    seen: list[Seen]
    prompts: list[str] | None = None

    @classmethod
    def without(
        cls, avoid: frozenset[Scene], pictures: Tensor, prompts: list[str] | None = None
    ) -> Self:
        """Of pictures, those that show none of the scenes."""
        seen = read(pictures)
        kept = [i for i, s in enumerate(seen) if not shows_any(s, avoid)]
        return cls(pictures[kept], [seen[i] for i in kept], prompts and [prompts[i] for i in kept])

    def take(self, rng: random.Random) -> tuple[Tensor, Seen, str | None]:
        i = rng.randrange(len(self.pictures))
        prompt = self.prompts[i] if self.prompts else None
        return *moved(self.pictures[i], self.seen[i], rng), prompt


def edited(source: Source, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """So many of a source's pictures after an edit by the embedded editor, as an untrained actor
    would have it, and their prompts: what a loop's later rounds show."""
    rng = random.Random(seed)
    which = rng.sample(range(len(source.pictures)), min(count, len(source.pictures)))
    assert source.prompts is not None
    prompts = [source.prompts[i] for i in which]
    texts = [naive(parse(p), source.seen[i], rng) for p, i in zip(prompts, which, strict=True)]
    editor, parts = tiny_editor(TINY_EDITOR), []
    for start in range(0, len(which), 96):
        part = slice(start, start + 96)
        some = (source.pictures[which[part]], prompts[part], texts[part])
        parts.append(editor.edit(*some, seed=seed, numbers=which[part]).images)
        print(f"edited {min(start + 96, len(which))}/{len(which)}", flush=True)
    return torch.cat(parts), prompts
