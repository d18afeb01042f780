"""Cells: one checkpoint, prompt file and sampler, drawn and scored at paired seeds.

A finished cell is one line of cells.jsonl, so an evaluation that was stopped goes on with the next.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from rewards import Reward, score_all
from srrl.assess.samplers import Sampler
from srrl.assess.task import Task
from srrl.models.policy import Policy
from srrl.models.weights import LORA_FILE, UNET_FILE
from srrl.rounds import RolloutSettings
from srrl.run.distributed import all_max, all_sum, gather_rows, local_range
from srrl.run.folder import read_lines
from srrl.run.pictures import to_pil

GRID_PROMPTS = 6  # prompts whose pictures of the first seed are kept, for the grid


@dataclass(frozen=True)
class Cell:
    """What a cell draws. weights: a digest of the checkpoint's file, "" for the base."""

    checkpoint: str
    weights: str
    prompts: str
    sampler: str
    images: int  # of each prompt
    first_seed: int
    count: int  # prompts
    settings: str  # the sampling of the config, as JSON

    @property
    def combination(self) -> tuple[str, str, str]:
        """Prompts, checkpoint and sampler."""
        return self.prompts, self.checkpoint, self.sampler

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """A cell's outcome.

    scores     for each reward float32 [prompts, images]
    diversity  float32 [prompts]: mean distance between a prompt's pictures in the embedding
    nfe        network evaluations a picture, and the most of any
    calls      of the scorer that a sampler chooses by, a picture
    seconds    of all processes' time, a picture
    """

    cell: Cell
    scores: dict[str, Tensor]
    diversity: Tensor | None
    nfe: float
    seconds: float
    most: float = math.nan
    calls: float = math.nan

    def line(self) -> dict:
        return {
            "key": self.cell.key,
            **asdict(self.cell),
            "evaluations": self.nfe,
            "most": self.most,
            "calls": self.calls,
            "seconds": round(self.seconds, 4),
            "diversity": None if self.diversity is None else rounded(self.diversity),
            "scores": {name: [rounded(row) for row in rows] for name, rows in self.scores.items()},
        }

    @classmethod
    def of(cls, line: Mapping) -> "Result":
        cell = Cell(**{name: line[name] for name in Cell.__dataclass_fields__})
        diversity = None if line["diversity"] is None else torch.tensor(line["diversity"])
        scores = {name: torch.tensor(rows) for name, rows in line["scores"].items()}
        spent = (line[key] for key in ("evaluations", "seconds", "most", "calls"))
        return cls(cell, scores, diversity, *spent)


def rounded(values: Tensor) -> list[float]:
    return [round(v, 6) for v in values.tolist()]


def digest(weights: Path | None) -> str:
    """Of a checkpoint's folder or a LoRA's file; "" for none."""
    if weights is None:
        return ""
    files = (weights, weights / LORA_FILE, weights / UNET_FILE)
    file = next(f for f in files if f.is_file())
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def finished(folder: Path) -> dict[str, Result]:
    """The cells that are done, by key; a torn last line is not one."""
    return {line["key"]: Result.of(line) for line in read_lines(folder / "cells.jsonl")}


def run_cell(
    cell: Cell,
    sampler: Sampler,
    policy: Policy,
    settings: RolloutSettings,
    prompts: list[str],
    rewards: Mapping[str, Reward],
    accelerator: Accelerator,
    *,
    chooser: str,
    embedding: Callable[[Tensor], Tensor] | None = None,
    pictures: Path | None = None,
    tick: Callable[[int], None] = lambda seed: None,
) -> Result:
    """Draw and score a cell; the prompts are spread over the processes.

    chooser: the reward by which a sampler chooses; embedding: images uint8 [B, 3, H, W] -> [B, D];
    pictures: where the first prompts' first pictures go; `tick` is called with
    each seed's number when it is done.
    """
    prompt_indices = list(local_range(accelerator, len(prompts)))
    part, index = [prompts[i] for i in prompt_indices], torch.tensor(prompt_indices).long()
    conditioning = policy.encode(part) if part else None
    scores: dict[str, list[Tensor]] = {name: [] for name in rewards}
    drawn: list[Tensor] = []
    chosen, most = 0, 0.0
    counted, start = policy.nfe, time.monotonic()

    def score(images: Tensor, of: list[str]) -> Tensor:
        nonlocal chosen
        chosen += len(of)
        return score_all({chooser: rewards[chooser]}, images, of)[chooser]

    for seed in range(cell.first_seed, cell.first_seed + cell.images):
        of_seed = {name: torch.zeros(0) for name in rewards}
        if conditioning is not None:
            given = policy, conditioning, settings, part, prompt_indices, seed, score
            task, before = Task(*given), policy.nfe
            images = sampler.draw(task)
            most = max(most, *(task.spent or [(policy.nfe - before) / len(part)]))
            of_seed = score_all(rewards, images, part)
            if embedding:
                drawn.append(embedding(images))
            if pictures and seed == cell.first_seed:
                save_pictures(pictures, cell, images, prompt_indices)
        for name, values in of_seed.items():
            scores[name].append(gather_rows(accelerator, values, index, len(prompts)))
        tick(seed - cell.first_seed + 1)
    number = len(prompts) * cell.images
    seconds = all_sum(accelerator, round(1000 * (time.monotonic() - start))) / 1000
    compared = embedding is not None and cell.images > 1
    spread = distances(torch.stack(drawn, 1)) if drawn and compared else torch.zeros(len(part))
    used, policy.nfe = policy.nfe - counted, counted
    return Result(
        cell,
        {name: torch.stack(rows, 1) for name, rows in scores.items()},
        gather_rows(accelerator, spread, index, len(prompts)) if compared else None,
        all_sum(accelerator, used) / number,
        seconds / number,
        all_max(accelerator, most),
        all_sum(accelerator, chosen) / number,
    )


def distances(embedded: Tensor) -> Tensor:
    """The mean distance float32 [P] between the n pictures of each prompt, of [P, n, D]."""
    n = embedded.shape[1]
    return torch.cdist(embedded, embedded).sum((1, 2)) / (n * (n - 1))


def picture_file(folder: Path, cell: Cell, prompt_index: int) -> Path:
    return folder / f"{cell.key}_{prompt_index:03d}.png"


def save_pictures(folder: Path, cell: Cell, images: Tensor, prompt_indices: list[int]) -> None:
    """Save images uint8 [B, 3, H, W] of those prompts that the grid shows."""
    folder.mkdir(parents=True, exist_ok=True)
    for prompt_index, image in zip(prompt_indices, images, strict=True):
        if prompt_index < GRID_PROMPTS:
            to_pil(image).save(picture_file(folder, cell, prompt_index))
