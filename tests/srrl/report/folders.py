"""Folders as runs leave them, written at once: small logs and pictures of known numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from srrl.config import flatten, load_config
from srrl.run.pictures import save_fixed, to_pil
from tests.conftest import PRESET, PROMPTS, small_run

HOSTILE = "<script>document.title = 'taken'</script> a \"quoted\" & 'odd' $prompt$"


def lines(file: Path, some: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in some), encoding="utf-8")


def metrics_line(stage: int, **changes: Any) -> dict[str, Any]:
    """Of a stage of 8 samples, 4 of them selected, and of 3 seconds."""
    return {
        "stage": stage,
        "rounds": 1,
        "trained_steps": 3,
        "samples_total": 8 * stage,
        "nfe_total": 100 * stage,
        "advantage/std": 0.5,
        "selected": 4,
        "reward/shapes/mean": 0.1 * stage,
        "updates": 1,
        "ratio/first_max_dev": 0.0,
        "ratio/max_dev": 1e-3,
        "clip_fraction": 0.1,
        "loss": 0.1,
        "grad_norm": 0.2,
        "lr": 1e-3,
        "seconds/sample": 2.0,
        "seconds/update": 1.0,
        **changes,
    }


def eval_line(stage: int, split: str, scores: Sequence[float | None], **changes: Any) -> dict:
    good = [s for s in scores if s is not None]
    return {
        "stage": stage,
        "split": split,
        "rounds": 1,
        "reward": "shapes",
        "n": len(scores),
        "seeds": 1,
        "first_seed": 1_000_000,
        "mean": sum(good) / len(good),
        "scores": list(scores),
        **changes,
    }


def config_of(folder: Path, *flags: str) -> dict[str, Any]:
    return flatten(load_config([PRESET, *small_run(folder), "--config.eval.num_prompts=4", *flags]))


def write_run(
    run: Path,
    *flags: str,
    stages: int = 3,
    gain: float = 0.1,
    side: int = 32,
    kept: Sequence[int] = (),
    prompts: Sequence[str] = PROMPTS,
) -> Path:
    """A run of three stages or more whose train scores rise by `gain` a stage, with pictures of its
    first two prompts, and those of whole stages in `kept`."""
    run.mkdir(parents=True)
    files = {split: run / f"{split}_prompts.json" for split in ("train", "heldout")}
    for file in files.values():
        file.write_text(json.dumps(prompts))
    config = config_of(run.parent, *flags, f"--config.stages.total={stages}")
    config |= {f"prompts.{split}": str(file) for split, file in files.items()}
    (run / "config.json").write_text(json.dumps(config))
    lines(run / "metrics.jsonl", [metrics_line(n) for n in range(1, stages + 1)])
    scores = {n: [0.1 * i + gain * n for i in range(len(prompts))] for n in range(stages + 1)}
    evals = [eval_line(n, split, scores[n]) for n in scores for split in files]
    lines(run / "eval.jsonl", evals)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
    for n in scores:
        for split in files:
            save_fixed(pictures, run / "samples" / "fixed" / f"{split}_K1" / f"stage_{n:04d}.png")
    sampled = []
    for stage in kept:
        for slot, prompt in enumerate(prompts):
            image = f"images/stage_{stage:04d}/{slot:04d}_00_01.png"
            (run / image).parent.mkdir(parents=True, exist_ok=True)
            to_pil(pictures[0]).save(run / image)
            line = {"stage": stage, "prompt": prompt, "slot": slot, "branch": 0, "round": 1}
            score = {"shapes": (0.3, 0.9, 0.1, 0.5)[slot % 4]}
            more = {"scores": score, "advantage": 0.5, "selected": True, "image": image}
            sampled.append({**line, **more})
    lines(run / "samples.jsonl", sampled)
    return run
