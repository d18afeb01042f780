"""Draw pictures with a checkpoint, or with the untrained model, and show every round.

    python scripts/sample.py --checkpoint runs/tiny --prompts "a blue circle above a red square"
    python scripts/sample.py --checkpoint runs/tiny/checkpoints/stage_0010 \\
        --prompts-file config/prompts/shapes_unconventional_heldout.json --limit 8 --rounds 3
    python scripts/sample.py --config config/stage_process.py:tiny --prompts "..."   (no LoRA)

    python scripts/sample.py --checkpoint runs/tiny --export kohya          (for ComfyUI, A1111)

Writes to --out: grid.png (prompts by seeds), strip_NNN.png for each sample (its rounds
x_0^1 ... x_0^K side by side with their scores), each final picture by itself as image_NNN.png, and
samples.json. A seed's noise is that of torch.Generator().manual_seed(seed), so with --eta 0 and
--rounds 1 a plain diffusers pipeline with DDIMScheduler and load_lora_weights draws the same.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from srrl.errors import UserError, one_line_errors
from srrl.prompts import check_files, load_prompts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="a run's folder or one checkpoint")
    parser.add_argument("--config", help="FILE.py:PRESET, for the model without a LoRA")
    parser.add_argument("--prompts", nargs="+", help="prompts as they are")
    parser.add_argument("--prompts-file", help="a JSON list of prompts")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--rounds", type=int, default=2, help="K")
    parser.add_argument("--eta", type=float, help="of the last round (the config's)")
    parser.add_argument("--guidance-scale", type=float, help="of the last round (the config's)")
    parser.add_argument("--num-steps", type=int, help="T (the config's)")
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument(
        "--export", choices=["kohya"], help="also write the LoRA as ComfyUI and A1111 read it"
    )
    args = parser.parse_args()
    if (args.checkpoint and args.config) or not (args.checkpoint or args.config):
        raise UserError("give either --checkpoint or --config (the model without a LoRA)")
    if args.export and not args.checkpoint:
        raise UserError(f"--export {args.export}: give the --checkpoint to export")
    if args.prompts and args.prompts_file:
        raise UserError("give either --prompts or --prompts-file")
    if not (args.prompts or args.prompts_file or args.export):
        raise UserError("give --prompts or --prompts-file")
    if min(args.seeds) < 0:
        raise UserError(f"--seeds {min(args.seeds)} is out of range: at least 0")
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds} is out of range: at least 1")
    return args


def main() -> None:
    args = arguments()
    prompts = load_prompts(args.prompts_file) if args.prompts_file else args.prompts or []
    prompts = prompts[: args.limit]

    from srrl.run.checkpoint import chosen_model

    config, weights = chosen_model(args.checkpoint, args.config)
    check_files(config)

    import torch

    from rewards import check_prompts, score_all
    from rewards.scoring import rewards_of
    from srrl.models.policy import Policy
    from srrl.models.weights import KOHYA_FILE, export_kohya, load_trained
    from srrl.rollout import rollout, rollout_settings
    from srrl.run.pictures import Row, sheet, to_pil

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rewards = rewards_of(config, device) if prompts else {}
    check_prompts(rewards, prompts, "--prompts")
    settings = rollout_settings(config, branches=1)
    if args.eta is not None:
        settings = replace(settings, eta=args.eta)
    if args.guidance_scale is not None:
        settings = replace(settings, guidance_scale=args.guidance_scale)
    policy = Policy.from_config(config, device=device, num_steps=args.num_steps, eta=settings.eta)
    load_trained(policy.pipe, config, weights)

    args.out.mkdir(parents=True, exist_ok=True)
    if args.export:
        export_kohya(policy.pipe, args.out / KOHYA_FILE)
        print(f"wrote {args.out / KOHYA_FILE}")
    if not prompts:
        return
    jobs = [(prompt, seed) for prompt in prompts for seed in args.seeds]
    start = torch.stack(
        [
            torch.randn(policy.latent_shape, generator=torch.Generator().manual_seed(seed))
            for _, seed in jobs
        ]
    )
    samples = rollout(
        policy,
        policy.encode([prompt for prompt, _ in jobs]),
        settings,
        rounds=args.rounds,
        trained_steps=0,
        seed=0,
        stage=0,
        slots=[seed for _, seed in jobs],
        start=start,
        keep_reflected=True,
    )
    by_round = [*samples.reflected, *samples.images.split(len(jobs))]  # each [jobs, 3, H, W]
    scores = [score_all(rewards, images, [p for p, _ in jobs]) for images in by_round]

    def caption(k: int, job: int) -> str:
        return " ".join(f"{values[job]:.2f}" for values in scores[k].values())

    records = []
    for job, (prompt, seed) in enumerate(jobs):
        captions = [f"round {k + 1}: {caption(k, job)}" for k in range(len(by_round))]
        strip = Row(f"{prompt}, seed {seed}", [images[job] for images in by_round], captions)
        sheet([strip]).save(args.out / f"strip_{job:03d}.png")
        to_pil(by_round[-1][job]).save(args.out / f"image_{job:03d}.png")
        rounds = [{name: values[job].item() for name, values in s.items()} for s in scores]
        records.append({"prompt": prompt, "seed": seed, "scores": rounds})
    rows = [
        Row(
            prompt,
            [by_round[-1][i * len(args.seeds) + j] for j in range(len(args.seeds))],
            [
                f"seed {seed}: {caption(-1, i * len(args.seeds) + j)}"
                for j, seed in enumerate(args.seeds)
            ],
        )
        for i, prompt in enumerate(prompts)
    ]
    name = str(weights or config.pretrained.model)
    sheet(rows, f"{name}, K = {args.rounds}").save(args.out / "grid.png")
    (args.out / "samples.json").write_text(json.dumps(records, indent=1) + "\n")
    for name in rewards:
        means = [f"{s[name].mean():.3f}" for s in scores]
        print(f"{name}: mean of {len(jobs)} samples in round 1 ... K: {', '.join(means)}")
    print(f"wrote {args.out}/grid.png, {len(jobs)} strips and images, samples.json")


if __name__ == "__main__":
    with one_line_errors():
        main()
