"""What a stage of SRRL leaves: its trajectories' scores, which are trained on, and from these its
metrics, its lines of samples.jsonl and its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from srrl.advantages import with_total
from srrl.run.distributed import gather_rows, local_range
from srrl.run.pictures import Images


@dataclass(frozen=True)
class Scored:
    """A stage's N trajectories in the order (prompt, branch, round), the same on every process.

    prompt, round  int64 [N]: index of the stage's prompt; of the round, from 1
    scores         for each reward float32 [N], 0 where the image was not judged
    judged         bool [N], which images were
    local          int64 [N], the index in this process's Rollout; -1 for another process's
    first          where first rounds are judged, theirs for each reward float32 [N]
    details        for each reward that has some N of them, None where the image was not judged
    """

    prompt: Tensor
    round: Tensor
    scores: dict[str, Tensor]
    judged: Tensor
    local: Tensor
    first: dict[str, Tensor] = field(default_factory=dict)
    details: dict[str, list] = field(default_factory=dict)


@dataclass(frozen=True)
class Selected:
    """advantages float32 [N] of a stage's trajectories; index int64 [S]: those to train on."""

    advantages: Tensor
    index: Tensor


def stage_metrics(
    scored: Scored, selected: Selected, weights: Mapping[str, float]
) -> dict[str, float]:
    """Of the stage's line in metrics.jsonl what sampling and scoring gave; `tied`: of the groups
    that are compared the share in which a reward scored all images alike."""
    advantages = selected.advantages
    metrics = {"advantage/std": advantages.std().item(), "selected": len(selected.index)}
    for name, values in with_total(scored.scores, weights).items():
        metrics[f"reward/{name}/mean"] = values[scored.judged].mean().item()
        metrics[f"reward/{name}/std"] = values[scored.judged].std().item()
        metrics[f"reward/{name}/tied"] = tied(scored, values)
    return metrics


def tied(scored: Scored, values: Tensor) -> float:
    """The share of groups, each a prompt's judged images of a round, with one score; 0 where each
    has a single image and is compared with its prompt's history."""
    places = torch.stack([scored.prompt, scored.round], 1)[scored.judged]
    groups, index, sizes = places.unique(dim=0, return_inverse=True, return_counts=True)
    if sizes.max() == 1:
        return 0.0
    own = values[scored.judged]
    least, most = (
        torch.zeros(len(groups)).scatter_reduce(0, index, own, how, include_self=False)
        for how in ("amin", "amax")
    )
    return (least == most).float().mean().item()


def stage_records(
    scored: Scored, selected: Selected, prompts: list[str], branches: int
) -> list[dict[str, Any]]:
    """For each of the N trajectories its line of samples.jsonl."""
    chosen, rounds = set(selected.index.tolist()), int(scored.round.max() - scored.round.min()) + 1
    scores, first = (
        {name: values.tolist() for name, values in of.items()}
        for of in (scored.scores, scored.first)
    )
    return [
        {
            "prompt": prompts[prompt],
            "slot": prompt,
            "branch": n // rounds % branches,
            "round": int(scored.round[n]),
            "scores": {k: v[n] for k, v in scores.items()} if scored.judged[n] else None,
            **({"first": {k: v[n] for k, v in first.items()}} if first else {}),
            "advantage": selected.advantages[n].item(),
            "selected": n in chosen,
            **({"details": {k: v[n] for k, v in scored.details.items()}} if scored.details else {}),
        }
        for n, prompt in enumerate(scored.prompt.tolist())
    ]


def stage_images(accelerator: Accelerator, images: Images, scored: Scored, prompts: int) -> Images:
    """The pictures of the first `prompts` prompts, from the processes that have them; every process
    calls it or none. images: those of this process's Rollout."""
    local = scored.local[scored.prompt < prompts]
    index = (local >= 0).nonzero()[:, 0]
    sampled = gather_rows(accelerator, images.sampled[local[index]], index, len(local))
    span = local_range(accelerator, int(scored.prompt[-1]) + 1)
    index = torch.tensor([p for p in span if p < prompts], dtype=torch.int64)
    reflected = [
        gather_rows(accelerator, of_round[index - span.start], index, prompts)
        for of_round in images.reflected
    ]
    return Images(sampled, reflected)
