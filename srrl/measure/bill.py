"""A bill: what a run takes, by phase, and what it keeps in memory."""

from collections import Counter
from dataclasses import dataclass, field, replace

from srrl.measure.cards import Card

GIB = 2**30
REWARD = "batch size of reward "
PHASES = ("encode", "reflect", "sample", "decode", "score", "update", "evaluate")
# Beside tensors: CUDA's context and its libraries' workspaces, and what the allocator cannot use.
CONTEXT = 1.0 * GIB
SLACK = 0.03


@dataclass
class Phase:
    """evaluations of the UNet; flops by precision ("half", "single"); peak memory in bytes."""

    evaluations: int = 0
    flops: Counter = field(default_factory=Counter)
    peak: int = 0

    @property
    def tflop(self) -> float:
        return sum(self.flops.values()) / 1e12


@dataclass(frozen=True)
class Bill:
    """What a run takes, in all (`phases`) and by stage (`stages`); memory is one process's.

    resident: bytes by part that stay in memory, the optimizer's state among them
    uncounted: rewards whose networks are not known here
    """

    phases: dict[str, Phase]
    stages: list[dict[str, Phase]]
    resident: dict[str, int]
    uncounted: list[str]

    @property
    def peak(self) -> tuple[str, int]:
        """The phase with the highest peak, and its bytes."""
        name = max(self.phases, key=lambda n: self.phases[n].peak)
        return name, self.phases[name].peak

    @property
    def evaluations(self) -> int:
        return sum(phase.evaluations for phase in self.phases.values())

    @property
    def tflop(self) -> float:
        return sum(phase.tflop for phase in self.phases.values())

    def hours(self, card: Card, share: float, processes: int = 1) -> float:
        """On so many cards, each at this share of its rate."""
        rate = {"half": card.half, "single": card.single}
        work = sum(
            n / 1e12 / rate[kind] for p in self.phases.values() for kind, n in p.flops.items()
        )
        return work / share / processes / 3600

    def part(self, name: str, card: Card) -> float:
        """A phase's share of the hours."""
        alone = replace(self, phases={name: self.phases[name]})
        return alone.hours(card, 1.0) / self.hours(card, 1.0)

    def needs(self) -> int:
        """Bytes that a card must have for the run."""
        return round(self.peak[1] * (1 + SLACK) + CONTEXT)


def room(card: Card) -> float:
    """Bytes of a card that tensors can take."""
    return (card.gib * GIB - CONTEXT) / (1 + SLACK)


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
