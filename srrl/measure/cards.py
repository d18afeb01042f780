"""What graphics cards offer: memory, and the most that their makers' data sheets promise."""

from collections.abc import Mapping
from dataclasses import dataclass

from srrl.errors import UserError


@dataclass(frozen=True)
class Card:
    """gib: memory in GiB as the driver shows it. half, single: TFLOP/s of dense matrix products in
    half precision with float32 accumulation, and in float32."""

    name: str
    gib: float
    half: float
    single: float

    def seconds(self, flops: Mapping[str, int]) -> float:
        """At the card's full rate, of operations by precision ("half", "single")."""
        return sum(
            n / 1e12 / {"half": self.half, "single": self.single}[k] for k, n in flops.items()
        )


CARDS = {
    "b200": Card("NVIDIA B200", 179.0, 2250, 80),
    "h200": Card("NVIDIA H200", 139.8, 989, 67),
    "h100": Card("NVIDIA H100 80GB", 79.6, 989, 67),
    "a100": Card("NVIDIA A100 80GB", 79.2, 312, 19.5),
    "a100-40": Card("NVIDIA A100 40GB", 39.4, 312, 19.5),
    "l40s": Card("NVIDIA L40S", 44.5, 362, 91.6),
    "a6000": Card("NVIDIA RTX A6000", 47.5, 155, 38.7),
    "5090": Card("NVIDIA GeForce RTX 5090", 31.4, 209.5, 104.8),
    "4090": Card("NVIDIA GeForce RTX 4090", 23.5, 165.2, 82.6),
    "3090": Card("NVIDIA GeForce RTX 3090", 23.6, 71, 35.6),
    "l4": Card("NVIDIA L4", 22.0, 121, 30.3),
    "a10g": Card("NVIDIA A10G", 22.0, 70, 31.2),
    "v100": Card("Tesla V100 16GB", 15.8, 125, 15.7),
    "t4": Card("Tesla T4", 14.6, 65, 8.1),
}


def card_named(name: str) -> Card:
    """Raises UserError, which lists the known ones."""
    if name.lower() not in CARDS:
        raise UserError(f"--card {name}: known are {', '.join(CARDS)}")
    return CARDS[name.lower()]


def card_of(device_name: str, gib: float) -> Card | None:
    """The card that a driver calls `device_name`, with the memory it shows; None if unknown."""
    words = set(device_name.upper().replace("-", " ").split())
    for card in CARDS.values():
        own = {w for w in card.name.upper().split() if any(x.isdigit() for x in w)}
        if any(w in words for w in own if not w.endswith("GB")):
            return Card(device_name, gib, card.half, card.single)
    return None
