"""What guidance and reflection do for a model at inference, paired over the same noise.

    python scripts/measure_base.py                          the embedded base, before training
    python scripts/measure_base.py --config config/stage_process.py:tiny --seeds 5

Prints the mean score on the preset's prompts for a range of guidance scales at K = 1, and for
K = 1, 2, 3 rounds at the preset's guidance, with 95% intervals of the paired differences.
"""

import argparse

import torch

from rewards import load_rewards, score_all
from srrl.config import load_config, resolve
from srrl.errors import one_line_errors
from srrl.policy import Policy
from srrl.prompts import load_prompts
from srrl.rollout import RolloutSettings, rollout, rollout_settings
from srrl.statistics import format_difference


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="config/stage_process.py:tiny")
    parser.add_argument("--model", help="another pipeline than the config's")
    parser.add_argument("--seeds", type=int, default=3, help="images per prompt")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 5.0, 8.0])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--inversion-guidance", type=float)
    parser.add_argument("--denoise-guidance", type=float)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()

    config = load_config([f"--config={args.config}"])
    if args.inversion_guidance is not None:
        config.reflect.inversion_guidance = args.inversion_guidance
    if args.denoise_guidance is not None:
        config.reflect.denoise_guidance = args.denoise_guidance
    config.sample.num_steps = args.steps or config.sample.num_steps
    policy = Policy.load(
        resolve(args.model or config.pretrained.model),
        num_steps=config.sample.num_steps,
        eta=config.sample.eta,
        micro_batch=config.sample.micro_batch,
    )
    prompts = sorted(
        load_prompts(resolve(config.prompts.train)) + load_prompts(resolve(config.prompts.heldout))
    )
    rewards = load_rewards(config.reward.models)
    conditioning = policy.encode(prompts)

    def measure(settings: RolloutSettings, rounds: int) -> torch.Tensor:
        scores = []
        for seed in range(args.seeds):
            images = rollout(
                policy, conditioning, settings, rounds=rounds, trained_steps=0,
                seed=seed, stage=0, slots=list(range(len(prompts))),
            ).images  # fmt: skip
            scores.append(sum(score_all(rewards, images, prompts).values()))
        return torch.cat(scores)

    settings = rollout_settings(config, branches=1)
    n = len(prompts) * args.seeds
    print(f"{config.pretrained.model}, {config.sample.num_steps} steps, "
          f"eta {settings.eta}, n = {n}")  # fmt: skip
    first = None
    for guidance in args.guidance:
        scores = measure(RolloutSettings(**{**vars(settings), "guidance_scale": guidance}), 1)
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
