"""Train the embedded world's second judge from nothing, in a few minutes on a CPU.

    python scripts/pretrain_judge.py

makes srrl/shapes/judge.safetensors again: a small network that says of each colour whether it is
there and as which shape, or malformed, how two colours stand to each other, and whether there is
anything else. Most of its pictures hold one to three things, whole or with spikes, bumps and wrong
sizes, anywhere, in any colours; the others are of the kinds that fool judges
(srrl/shapes/frauds.py), and scenes as they should be. Nothing in them comes from the verifier.
"""

import srrl  # noqa: F401, I001  first: it quiets what importing transformers would log

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from srrl.shapes import frauds
from srrl.shapes.deform import CORNERS, deformed
from srrl.shapes.judge import JUDGE_FILE, KINDS, PAIRS, Judge, pair_of, read_parts
from srrl.shapes.pipeline import TINY_SD
from srrl.shapes.scenes import (
    BACKGROUND,
    COLOURS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZE,
    Scene,
    all_scenes,
    render,
)

BANK, BATCH, STEPS, RATE = 80_000, 128, 10_000, 2e-3
MALFORMED = 0.25  # of the things
APART = 12.0  # pixels between two things' centres, at least
OF_SCENES, CLEAN = 0.5, "none"  # the share of scenes' pictures, and those without a fraud
CLEAR = 3.0  # pixels by which a relation's axis must lead over the other one


@dataclass
class Bank:
    """pictures float32 [N, 3, 32, 32] in [0, 1]; kinds int64 [N, 4]; relations int64 [N, 6], -1
    where a pair is not there or its relation unclear; strange float32 [N], 1 where there is
    anything else."""

    pictures: Tensor
    kinds: Tensor
    relations: Tensor
    strange: Tensor

    @classmethod
    def cat(cls, parts: Sequence["Bank"]) -> "Bank":
        names = ("pictures", "kinds", "relations", "strange")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


class Maker:
    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def choice(self, weights: list[float], n: int) -> Tensor:
        chances = torch.tensor(weights, dtype=torch.float32)
        return torch.multinomial(chances, n, replacement=True, generator=self.generator)

    def centres(self, n: int) -> Tensor:
        """[n, 3, 2]: most in the renderer's places for two, the rest anywhere apart."""
        angle = self.choice([1, 1, 1, 1], n) * math.pi / 2
        towards = torch.stack([angle.cos(), angle.sin()], 1)
        across = towards.flip(1)
        first = SIZE / 2 + self.uniform(6, 9, n, 1) * towards + self.uniform(-3, 3, n, 1) * across
        second = SIZE / 2 - self.uniform(6, 9, n, 1) * towards + self.uniform(-3, 3, n, 1) * across
        corner = self.uniform(6, 26, n, 2)
        placed = torch.stack([first, second, corner], 1)
        free = self.uniform(6, 26, n, 3, 2)
        return torch.where(torch.rand(n, 1, 1, generator=self.generator) < 0.3, free, placed)

    def bumps(self, n: int, shape: str, malformed: Tensor) -> Tensor:
        """[n, 4, 3]: of malformed things spikes or big bumps, of the others little ones."""
        at = self.uniform(-math.pi, math.pi, n, 4)
        corners = torch.tensor((CORNERS.get(shape, [0.5, 2.1, 3.6, 5.2]) * 2)[:4])
        spiked = malformed & (torch.rand(n, generator=self.generator) < 0.5)
        at = torch.where(spiked[:, None], corners.expand(n, 4), at)
        width = torch.where(
            spiked[:, None], self.uniform(0.25, 0.6, n, 1), self.uniform(0.3, 1.2, n, 4)
        )
        sign = torch.where(torch.rand(n, 4, generator=self.generator) < 0.5, -1.0, 1.0)
        big = torch.where(
            spiked[:, None], self.uniform(1.8, 3.5, n, 1), sign * self.uniform(1.6, 3, n, 4)
        )
        height = torch.where(malformed[:, None], big, self.uniform(-0.5, 0.5, n, 4))
        return torch.stack([at, width, height], 2)

    def pictures(self, n: int) -> Bank:
        """n pictures and what they show."""
        count = self.choice([0.02, 0.13, 0.7, 0.15], n)
        order = torch.rand(n, len(COLOURS), generator=self.generator).argsort(1)
        centres = self.centres(n)
        kinds = torch.zeros(n, len(COLOURS), dtype=torch.int64)
        relations = torch.full((n, len(PAIRS)), -1)
        picture = (BACKGROUND + self.uniform(-0.04, 0.04, n, 1, 1, 1)).expand(n, 3, SIZE, SIZE)
        palette = torch.tensor(list(COLOURS.values()))
        at = torch.zeros(n, len(COLOURS), 2)
        rows, shown = torch.arange(n), []
        for thing in range(3):
            there = count > thing
            for earlier in range(thing):  # things do not cover each other
                away = (centres[:, thing] - centres[:, earlier]).norm(dim=1)
                there = there & ((away > APART) | ~shown[earlier])
            shown.append(there)
            shape = self.choice([1, 1, 1], n)
            malformed = torch.rand(n, generator=self.generator) < MALFORMED
            radius = self.uniform(*RADIUS, n)
            wrong = malformed & (torch.rand(n, generator=self.generator) < 0.2)
            sizes = torch.where(
                self.choice([1, 1], n) == 0, self.uniform(1.2, 2.3, n), self.uniform(7, 9, n)
            )
            radius = torch.where(wrong, sizes, radius)
            mask = torch.zeros(n, SIZE, SIZE)
            for k, name in enumerate(SHAPES):
                these = (there & (shape == k)).nonzero()[:, 0]
                bumps = self.bumps(len(these), name, (malformed & ~wrong)[these])
                mask[these] = deformed(name, centres[these, thing], radius[these], bumps)
            mask = mask[:, None]
            colour = order[:, thing]
            paint = (palette[colour] + self.uniform(-0.06, 0.06, n, 3)).clamp(0, 1)[
                :, :, None, None
            ]
            picture = picture * (1 - mask) + paint * mask
            kind = torch.where(malformed, len(KINDS) - 1, shape + 1)
            kinds[rows[there], colour[there]] = kind[there]
            at[rows[there], colour[there]] = centres[there, thing]
        for p, (a, b) in enumerate(PAIRS):
            apart = at[:, a] - at[:, b]
            lead = apart[:, 0].abs() - apart[:, 1].abs()
            both = (kinds[:, a] > 0) & (kinds[:, b] > 0) & (lead.abs() > CLEAR)
            names = list(RELATIONS)
            beside = torch.where(apart[:, 0] < 0, names.index("left of"), names.index("right of"))
            stacked = torch.where(apart[:, 1] < 0, names.index("above"), names.index("below"))
            relations[:, p] = torch.where(both, torch.where(lead > 0, beside, stacked), -1)
        return Bank(picture, kinds, relations, torch.zeros(n))

    def scenes(self, n: int) -> Bank:
        """n pictures of scenes: half of them as they should be, the others evenly of all kinds."""
        kinds = [*frauds.KINDS, *[CLEAN] * len(frauds.KINDS)]
        every, parts = all_scenes(), []
        for i, kind in enumerate(kinds):
            drawable = [s for s in every if kind == CLEAN or frauds.drawable(kind, s)]
            count = n * (i + 1) // len(kinds) - n * i // len(kinds)
            chosen = torch.randint(len(drawable), (count,), generator=self.generator)
            some = [drawable[k] for k in chosen]
            if kind == CLEAN:
                made = frauds.fraud_of(render(some, self.generator))
            else:
                made = frauds.KINDS[kind](some, self.generator)
            parts.append(told(made, some))
        return Bank.cat(parts)

    @torch.no_grad()
    def bank(self, n: int, vae: AutoencoderKL) -> Bank:
        """n pictures; half of them have been through the pipeline's VAE, as drawn ones have."""
        parts = []
        for _ in range(n // 500):
            scenes = int(500 * OF_SCENES)
            part = Bank.cat([self.pictures(500 - scenes), self.scenes(scenes)])
            mixed = torch.randperm(500, generator=self.generator)
            part = Bank(*(getattr(part, f.name)[mixed] for f in fields(Bank)))
            through = vae.decode(vae.encode(part.pictures[:250] * 2 - 1).latent_dist.mean).sample
            part.pictures = torch.cat([(through / 2 + 0.5).clamp(0, 1), part.pictures[250:]])
            parts.append(part)
        return Bank.cat(parts)


def told(made: frauds.Fraud, scenes: list[Scene]) -> Bank:
    """What pictures of scenes show, and what is wrong with them."""
    n, colours, malformed = len(scenes), list(COLOURS), len(KINDS) - 1
    kinds, rows = torch.zeros(n, len(COLOURS), dtype=torch.int64), torch.arange(n)
    for k, things in enumerate(([s.first for s in scenes], [s.second for s in scenes])):
        colour = torch.tensor([colours.index(c) for c, _ in things])
        shape = torch.tensor([SHAPES.index(s) + 1 for _, s in things])
        kinds[rows, colour] = torch.where(made.malformed[:, k], malformed, shape)
    further = (made.third >= 0).nonzero()[:, 0]
    # Whatever shape it has: that it is there is what counts.
    kinds[further, made.third[further]] = malformed
    relations = torch.full((n, len(PAIRS)), -1)
    pairs = torch.tensor([pair_of(scene) for scene in scenes])
    relations[rows, pairs[:, 0]] = pairs[:, 1]
    return Bank(made.pictures, kinds, relations, made.strange.float())


def train(judge: Judge, bank: Bank, steps: int, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    start = time.monotonic()
    for step in range(steps):
        rows = torch.randint(len(bank.pictures), (BATCH,), generator=generator)
        noise = 0.03 * torch.rand(BATCH, 1, 1, 1, generator=generator)
        pictures = bank.pictures[rows]
        pictures = pictures + noise * torch.randn(pictures.shape, generator=generator)
        kinds, relations, strange = judge(pictures)
        loss = F.cross_entropy(kinds.flatten(0, 1), bank.kinds[rows].flatten())
        loss = loss + F.cross_entropy(
            relations.flatten(0, 1), bank.relations[rows].flatten(), ignore_index=-1
        )
        loss = loss + F.binary_cross_entropy_with_logits(strange, bank.strange[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            eta = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            print(f"judge {step + 1}/{steps} loss {loss:.4f} ETA {eta:.0f} s", flush=True)


def report(judge: Judge, seed: int) -> None:
    """Say how often the judge is right about fresh pictures and renders."""
    fresh, scenes = Maker(seed).pictures(2000), all_scenes()
    with torch.no_grad():
        kinds, relations, _ = judge(fresh.pictures)
    right = (kinds.argmax(-1) == fresh.kinds)[fresh.kinds > 0].float().mean()
    clear = fresh.relations >= 0
    stands = (relations.argmax(-1) == fresh.relations)[clear].float().mean()
    shown = (render(scenes, torch.Generator().manual_seed(seed)) * 255).round().to(torch.uint8)
    parts = read_parts(judge, shown, scenes)
    own = torch.stack(list(parts.values())).prod(0)
    print(
        f"things {right:.3f} and relations {stands:.3f} right on fresh pictures; renders of the "
        f"432 scenes: mean {own.mean():.3f}, lowest {own.min():.3f}"
    )
    for kind, made in frauds.KINDS.items():
        some = [s for s in scenes if frauds.drawable(kind, s)]
        shown = made(some, torch.Generator().manual_seed(seed)).pictures
        parts = read_parts(judge, (shown * 255).round().to(torch.uint8), some)
        own = torch.stack(list(parts.values())).prod(0)
        print(f"{kind}: mean {own.mean():.3f}, above 0.5 {(own > 0.5).float().mean():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=JUDGE_FILE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pictures", type=int, default=BANK)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = AutoencoderKL.from_pretrained(TINY_SD / "vae", torch_dtype=torch.float32)
    bank = Maker(args.seed).bank(args.pictures, vae.eval())
    judge = Judge()
    train(judge, bank, args.steps, torch.Generator().manual_seed(args.seed))
    judge.eval()
    save_file({k: v.half().contiguous() for k, v in judge.state_dict().items()}, args.out)
    report(judge, args.seed + 1)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
