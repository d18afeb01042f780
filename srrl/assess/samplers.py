"""Ways to draw a picture at test time, to be compared at equal network evaluations.

Each takes a Task and keywords and returns the pictures uint8 [P, 3, H, W] of its P prompts; what it
costs is what the policy counted. All begin at the same noise for the same seed, so pictures pair.
A sampler is named as in "reflect:rounds=3" or "best:n=4": the function's name and its keywords.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from srrl.assess.search import best, best_reflect, best_round, cycle, repair, until
from srrl.assess.task import Task
from srrl.ddim import make_schedule
from srrl.errors import UserError
from srrl.models.policy import Policy
from srrl.rollout import rollout
from srrl.rounds import denoise_steps


@contextmanager
def num_steps(policy: Policy, steps: int | None, eta: float) -> Iterator[None]:
    """Let a policy take so many denoising steps for a while."""
    schedule = policy.schedule
    if steps:
        made = make_schedule(policy.pipe.scheduler.config, steps, eta)
        policy.schedule = made.to(policy.device)
    try:
        yield
    finally:
        policy.schedule = schedule


def plain(task: Task, steps: int | None = None, guidance: float | None = None) -> Tensor:
    """One denoising, maybe of more steps or at another guidance scale."""
    return _rolled(task, 1, steps=steps, guidance_scale=guidance)


def reflect(
    task: Task,
    rounds: int = 2,
    depth: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    denoise: float | None = None,
    inversion: float | None = None,
    eta: float | None = None,
) -> Tensor:
    """K rounds: denoise, invert (maybe only `depth` steps), denoise again (SRRL, arXiv 2505.22407).

    guidance: of the last round; denoise, inversion, eta: guidances and eta of the reflecting ones,
    the config's reflect.* if not given, however the policy was trained.
    """
    return _rolled(
        task,
        rounds,
        steps=steps,
        guidance_scale=guidance,
        denoise_guidance=denoise,
        inversion_guidance=inversion,
        reflect_eta=eta,
        depth=depth,
        train_rounds="last",
    )


def _rolled(
    task: Task, rounds: int, stage: int = 0, steps: int | None = None, **changed: float | str | None
) -> Tensor:
    given: dict[str, Any] = {name: value for name, value in changed.items() if value is not None}
    settings = replace(task.settings, **given)
    with num_steps(task.policy, steps, settings.eta):
        return rollout(
            task.policy,
            task.conditioning,
            settings,
            rounds=rounds,
            trained_steps=0,
            seed=task.seed,
            stage=stage,
            prompts=task.numbers,
        ).images[-len(task.numbers) :]


@torch.no_grad()
def zigzag(task: Task, steps: int | None = None, inversion: float | None = None) -> Tensor:
    """Z-Sampling (arXiv 2412.10891): in each of the first `steps` steps (all of them), denoise,
    invert at the weak guidance `inversion` (the reflection's), and denoise again."""
    policy, s = task.policy, task.settings
    total = policy.schedule.num_steps
    weak = s.inversion_guidance if inversion is None else inversion
    x, noise = task.noise("start").draw(), task.noise("steps")
    for i in range(total):
        if i < (total if steps is None else steps):
            down, _ = policy.step(x, i, task.conditioning, s.guidance_scale, 0.0)
            x = policy.step_back(down, i, task.conditioning, weak)
        taken = denoise_steps(
            policy, x, task.conditioning, range(i, i + 1), s.guidance_scale, s.eta, noise
        )
        x = taken[0][-1]
    return policy.decode(x)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f
    for f in (plain, reflect, best, zigzag, until, best_round, best_reflect, repair, cycle)
}
# Of a sampler's keywords the least and the most that they can be.
RANGES = {
    "steps": (1, 999),
    "rounds": (1, 1000),
    "n": (1, 1000),
    "depth": (1, 999),
    "cycles": (1, 1000),
    "particles": (1, 1000),
    "low": (-1e6, 1e6),
    "guidance": (0, 100),
    "denoise": (0, 100),
    "inversion": (0, 100),
    "eta": (0, 1),
    "threshold": (-1e6, 1e6),
}


@dataclass(frozen=True)
class Sampler:
    """A sampler and its keywords; `text` is how it is named."""

    text: str
    name: str
    keywords: dict[str, int | float]

    def draw(self, task: Task) -> Tensor:
        return SAMPLERS[self.name](task, **self.keywords)

    @property
    def weight(self) -> float:
        """About how many plain samplings it costs, for the time left."""
        if self.name == "zigzag":
            return 3.0
        parameters = inspect.signature(SAMPLERS[self.name]).parameters
        given = {key: p.default for key, p in parameters.items()} | self.keywords
        drawn = given.get("n", 1) + given.get("cycles", 0) * given.get("particles", 0)
        return float(drawn + 2 * (given.get("rounds", 1) - 1))

    def check(self, num_steps: int) -> None:
        """Raise UserError where it goes back more steps than there are, num_steps by the config."""
        steps, back = self.keywords.get("steps", num_steps), self.keywords.get("depth", 0)
        if self.name == "zigzag":  # whose steps are those that go back
            steps, back = num_steps, self.keywords.get("steps", 0)
        if back > steps:
            raise UserError(f"sampler {self.text!r}: {back} of {steps} denoising steps: too many")


def parse_sampler(text: str) -> Sampler:
    """The sampler of a text like "reflect:rounds=3,guidance=8". Raises UserError."""
    name, _, given = text.partition(":")
    if name not in SAMPLERS:
        raise UserError(f"unknown sampler {name!r}: known are {', '.join(SAMPLERS)}")
    known = dict(list(inspect.signature(SAMPLERS[name]).parameters.items())[1:])
    keywords: dict[str, int | float] = {}
    for pair in filter(None, given.split(",")):
        key, _, value = pair.partition("=")
        if key not in known:
            raise UserError(f"sampler {text!r}: {name} takes {', '.join(known)}, not {key!r}")
        if key in keywords:
            raise UserError(f"sampler {text!r}: {key} is given twice")
        whole = "int" in str(known[key].annotation)
        try:
            keywords[key] = int(value) if whole else float(value)
        except ValueError:
            kind = "a whole number" if whole else "a number"
            raise UserError(f"sampler {text!r}: {key} must be {kind}, not {value!r}") from None
        least, most = RANGES[key]
        if not least <= keywords[key] <= most:
            raise UserError(f"sampler {text!r}: {key}={value} is not from {least:g} to {most:g}")
    return Sampler(text, name, keywords)
