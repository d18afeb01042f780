"""Samplers that look at what they have drawn, by a score, and choose or go on by it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from srrl.assess.task import Task
from srrl.rollout import rollout
from srrl.rounds import Noise, denoise_steps, invert_steps


@dataclass
class Search:
    """The best-scored picture of each of P prompts so far.

    images  uint8 [P, 3, H, W]
    scores  float32 [P]
    x0      float32 [P, C, h, w], its latents
    spent   float64 [P], the network evaluations of each prompt
    """

    task: Task
    images: Tensor = field(init=False)
    scores: Tensor = field(init=False)
    x0: Tensor = field(init=False)
    spent: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n, (height, width) = len(self.task.numbers), self.task.policy.image_size
        self.images = torch.zeros(n, 3, height, width, dtype=torch.uint8)
        self.scores = torch.full((n,), -torch.inf)
        self.x0 = torch.zeros(n, *self.task.policy.latent_shape, device=self.task.device)
        self.spent = torch.zeros(n, dtype=torch.float64)

    def draw(self, index: list[int], x: Tensor, noise: Noise, first: int = 0) -> Tensor:
        """Denoise x [B, C, h, w] of the prompts at an index from step `first` on, and keep what
        scores higher than before; returns x_0."""
        policy, s, now = self.task.policy, self.task.settings, self.task.part(index)
        steps, before = range(first, policy.schedule.num_steps), policy.nfe
        taken = denoise_steps(policy, x, now.conditioning, steps, s.guidance_scale, s.eta, noise)
        x0 = taken[0][-1]
        drawn = policy.decode(x0)
        scores = self.task.score(drawn, now.prompts)
        for i, p in enumerate(index):
            if scores[i] > self.scores[p]:
                self.images[p], self.scores[p], self.x0[p] = drawn[i], scores[i], x0[i]
        self._charge(index, before)
        return x0

    def anew(self, index: list[int], stage: int) -> Tensor:
        """Draw the prompts at an index from noise of their own; that of stage 0 is plain's."""
        now = self.task.part(index)
        noise = now.noise("steps", stage=stage)
        return self.draw(index, now.noise("start", stage=stage).draw(), noise)

    def reflected(self, index: list[int], x0: Tensor, to_go: int) -> Tensor:
        """Invert x_0 of the prompts at an index and draw them again."""
        now, before = self.task.part(index), self.task.policy.nfe
        guidance = self.task.settings.inversion_guidance
        x = invert_steps(self.task.policy, x0, now.conditioning, guidance)
        self._charge(index, before)
        return self.draw(index, x, now.noise("steps", to_go=to_go))

    def below(self, threshold: float) -> list[int]:
        return (self.scores < threshold).nonzero()[:, 0].tolist()

    def _charge(self, index: list[int], before: int) -> None:
        self.spent[index] += (self.task.policy.nfe - before) / len(index)

    def done(self) -> Tensor:
        """The pictures; the task is told what each has taken."""
        self.task.spent[:] = self.spent.tolist()
        return self.images


def best(task: Task, n: int = 2) -> Tensor:
    """The best-scored of n independent pictures; the first of them is plain's."""
    search, every = Search(task), list(range(len(task.numbers)))
    for stage in range(n):
        search.anew(every, stage)
    return search.done()


def best_round(task: Task, rounds: int = 3) -> Tensor:
    """The best-scored of the K rounds of a reflected trajectory, whose last one is reflect's."""
    drawn = rollout(
        task.policy,
        task.conditioning,
        task.settings,
        rounds=rounds,
        trained_steps=0,
        seed=task.seed,
        stage=0,
        prompts=task.numbers,
        keep_reflected=True,
    )
    images = torch.stack([*drawn.reflected, drawn.images[-len(task.numbers) :]])
    scores = torch.stack([task.score(of_round, task.prompts) for of_round in images])
    return images[scores.argmax(0), torch.arange(len(task.numbers))]


def best_reflect(task: Task, n: int = 2, rounds: int = 2) -> Tensor:
    """The best-scored of n independent pictures, reflected and drawn again until there are K rounds
    of it; the best-scored of all."""
    search, every = Search(task), list(range(len(task.numbers)))
    for stage in range(n):
        search.anew(every, stage)
    x0 = search.x0.clone()
    for k in range(1, rounds):
        x0 = search.reflected(every, x0, to_go=k)
    return search.done()


def until(task: Task, rounds: int = 3, threshold: float = 0.5) -> Tensor:
    """Sample; where the score is below the threshold, invert and sample again, up to K
    rounds. The best-scored picture of those that were drawn; the first is plain's."""
    search, index = Search(task), list(range(len(task.numbers)))
    x0 = search.anew(index, 0)
    for k in range(1, rounds):
        rows = [i for i, p in enumerate(index) if search.scores[p] < threshold]
        if not rows:
            break
        index = [index[i] for i in rows]
        x0 = search.reflected(index, x0[rows], to_go=k)
    return search.done()


def repair(task: Task, rounds: int = 3, threshold: float = 0.5, low: float = 0.1) -> Tensor:
    """Sample; what scores below the threshold is reflected from its best picture so far where that
    scores `low` at least, and drawn anew where it is worse (after EPIC, arXiv 2605.11722)."""
    search, index = Search(task), list(range(len(task.numbers)))
    search.anew(index, 0)
    for k in range(1, rounds):
        failed = search.below(threshold)
        partly = [p for p in failed if search.scores[p] >= low]
        if partly:
            search.reflected(partly, search.x0[partly], to_go=k)
        if whole := [p for p in failed if p not in partly]:
            search.anew(whole, k)
    return search.done()


def cycle(task: Task, cycles: int = 2, particles: int = 3, threshold: float = 0.5) -> Tensor:
    """Sample; in each cycle, what scores below the threshold is noised from its best picture so far
    to several depths, evenly spaced, and drawn from each (after ABCD, arXiv 2505.14036)."""
    search, total = Search(task), task.policy.schedule.num_steps
    search.anew(list(range(len(task.numbers))), 0)
    for k in range(cycles):
        index = search.below(threshold)
        if not index:
            break
        now, x0 = task.part(index), search.x0[index]
        for particle in range(particles):
            depth = -(-total * (particle + 1) // particles)  # of the last one: all steps
            first, stage = total - depth, 1 + k * particles + particle
            alpha = task.policy.schedule.alpha[first]
            noise = now.noise("start", stage=stage).draw()
            x = alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise
            search.draw(index, x, now.noise("steps", stage=stage), first)
    return search.done()
