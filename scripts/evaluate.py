"""What guidance and reflection do for a model at inference, paired over the same noise.

    python scripts/evaluate.py                            the embedded base, before training
    python scripts/evaluate.py --checkpoint runs/tiny     a trained run, or one of its checkpoints
    python scripts/evaluate.py --config config/stage_process.py:sd14 --rounds 1 2 3 --guidance 5

Prints the mean reward on the run's train and held-out prompts for a range of guidance scales at
K = 1, and for a range of rounds K at the config's guidance, with 95% intervals of the paired
differences to the first of each.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from rewards import score_all
from rewards.scoring import rewards_of
from srrl.config import resolve
from srrl.errors import one_line_errors
from srrl.models.policy import Policy
from srrl.models.weights import load_trained
from srrl.prompts import check_files, load_prompts
from srrl.rollout import RolloutSettings, rollout, rollout_settings
from srrl.run.checkpoint import chosen_model
from srrl.run.statistics import format_difference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/stage_process.py:tiny")
    parser.add_argument("--checkpoint", type=Path, help="a run or checkpoint, with its config")
    parser.add_argument("--model", help="another pipeline than the config's")
    parser.add_argument("--seeds", type=int, default=5, help="images per prompt")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 5.0, 8.0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()

    config, weights = chosen_model(args.checkpoint, args.config)
    check_files(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = Policy.from_config(config, device=device, model=args.model)
    load_trained(policy.pipe, config, weights)
    prompts = sorted(
        load_prompts(resolve(config.prompts.train)) + load_prompts(resolve(config.prompts.heldout))
    )
    rewards = rewards_of(config, device)
    conditioning = policy.encode(prompts)

    def measure(settings: RolloutSettings, rounds: int) -> torch.Tensor:
        scores = []
        for seed in range(args.seeds):
            images = rollout(
                policy, conditioning, settings, rounds=rounds, trained_steps=0,
                seed=seed, stage=0, slots=list(range(len(prompts))),
            ).images[-len(prompts) :]  # fmt: skip
            scores.append(sum(score_all(rewards, images, prompts).values()))
        return torch.cat(scores)

    settings = rollout_settings(config, branches=1)
    n = len(prompts) * args.seeds
    print(f"{weights or args.model or config.pretrained.model}, {config.sample.num_steps} steps, "
          f"eta {settings.eta}, n = {n}")  # fmt: skip
    first = None
    for guidance in args.guidance:
        scores = measure(replace(settings, guidance_scale=guidance), 1)
        first = scores if first is None else first
        print(f"guidance {guidance:4.1f}  mean {scores.mean():.3f}  "
              f"against guidance {args.guidance[0]}: {format_difference(first, scores)}",
              flush=True)  # fmt: skip
    first = None
    for rounds in args.rounds:
        scores = measure(settings, rounds)
        first = scores if first is None else first
        print(f"rounds K = {rounds}  mean {scores.mean():.3f}  "
              f"against K = {args.rounds[0]}: {format_difference(first, scores)}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    with one_line_errors():
        main()
