"""A bill: what a run takes, by phase, and what it keeps in memory."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from srrl.measure.cards import Card

GIB = 2**30
REWARD = "batch size of reward "
PHASES = ("encode", "reflect", "sample", "decode", "score", "update", "evaluate")
# Beside tensors: CUDA's context and its libraries' workspaces, and what the allocator cannot use.
CONTEXT = 1.0 * GIB
SLACK = 0.03
# Seconds that one of torch's operators takes at least, launched from Python on the server CPU of an
# H200: SD v1.4's UNet with its LoRA under autocast took 49 ms a call of 7,944 operators, whatever
# its rows; forward and backward passes 124 ms of 29,111, with gradient checkpointing 231 of 40,500.
LAUNCH = 5.5e-6
SHARE = 0.35  # of a card's data-sheet rate, where launching is not what takes the time


class Call(NamedTuple):
    """A network's call: its precision ("half", "single"), floating-point operations, and how many
    of torch's operators make it."""

    kind: str
    flops: int
    operators: int

    def seconds(self, card: Card, share: float) -> float:
        """The longer one of launching and of computing at a share of the card's rate:

        max(operators x LAUNCH, flops / (share x rate))
        """
        computing = card.seconds({self.kind: self.flops}) / share
        return max(self.operators * LAUNCH, computing)


@dataclass
class Phase:
    """nfe: network evaluations of the UNet; calls of networks, and how many of each; peak memory in
    bytes."""

    nfe: int = 0
    calls: Counter[Call] = field(default_factory=Counter)
    peak: int = 0

    @property
    def flops(self) -> Counter[str]:
        """By precision."""
        found: Counter[str] = Counter()
        for call, times in self.calls.items():
            found[call.kind] += times * call.flops
        return found

    @property
    def tflop(self) -> float:
        return sum(self.flops.values()) / 1e12


@dataclass(frozen=True)
class Bill:
    """What a run takes, in all (`phases`) and by stage (`stages`); memory is one process's.

    resident: bytes by part that stay in memory, the optimizer's state among them
    uncounted: rewards whose networks are not known here
    at_most: whether what fails alone is reflected, so that a run may take less
    """

    phases: dict[str, Phase]
    stages: list[dict[str, Phase]]
    resident: dict[str, int]
    uncounted: list[str]
    at_most: bool = False

    @property
    def peak(self) -> tuple[str, int]:
        """The phase with the highest peak, and its bytes."""
        name = max(self.phases, key=lambda n: self.phases[n].peak)
        return name, self.phases[name].peak

    @property
    def nfe(self) -> int:
        return sum(phase.nfe for phase in self.phases.values())

    @property
    def tflop(self) -> float:
        return sum(phase.tflop for phase in self.phases.values())

    def hours(self, card: Card, share: float, processes: int = 1) -> float:
        """On so many cards, calls as long as Call.seconds says."""
        calls = (pair for phase in self.phases.values() for pair in phase.calls.items())
        seconds = sum(times * call.seconds(card, share) for call, times in calls)
        return seconds / processes / 3600


@dataclass(frozen=True)
class Usage:
    """Memory of a process at one point of a phase: `fixed` bytes and `each` for every one of the
    `n` that go through the network at once, which `key` of the config bounds."""

    phase: str
    fixed: float
    each: float = 0.0
    n: int = 0
    key: str | None = None

    @property
    def peak(self) -> int:
        return round(self.fixed + self.each * self.n)
