"""Draw pictures with a checkpoint, or with the untrained model, and show every round.

    python scripts/sample.py --checkpoint runs/tiny --prompt "a blue circle above a red square"
    python scripts/sample.py --checkpoint runs/tiny:best --seeds 0-31 \\
        --prompts-file config/prompts/shapes_unconventional_heldout.json --limit 8 --rounds 3
    python scripts/sample.py --config config/stage_process.py:tiny --prompt "..."     (no LoRA)
    python scripts/sample.py --config config/stage_process.py:sd14 --checkpoint lora.safetensors \\
        --prompt "..." --negative-prompt "blurry" --no-score
    python scripts/sample.py --config config/stage_process.py:sdxl --prompt "..." \\
        --config.pretrained.model=model.safetensors --config.pretrained.vae=vae.safetensors

    python scripts/sample.py --checkpoint runs/tiny --export kohya          (for ComfyUI, A1111)

Of an installed package it is `srrl-sample`.

Writes to --out: grid.png (prompts by seeds; several pages of many), strip_NNN.png for each sample
(its rounds x_0^1 ... x_0^K side by side with their scores), each final picture by itself as
image_NNN.png with what it was drawn from in its PNG text, and samples.json. A seed's noise is that
of torch.Generator().manual_seed(seed), so with --eta 0 and --rounds 1 a plain diffusers pipeline
with DDIMScheduler and load_lora_weights draws the same. --config.KEY=VALUE changes what --config
names; a run has its own config, which is not changed.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from srrl.config import load_config, parse
from srrl.errors import UserError, one_line_errors
from srrl.prompts import check_files, load_prompts, typed
from srrl.run.folder import make_folder

# Most rows and columns of a page of the grid.
PAGE_ROWS, PAGE_COLUMNS = 12, 16


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and --config.KEY=VALUE for the preset."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a run, RUN:best, RUN:16, or a LoRA's file or folder")
    add(
        "--config",
        help="FILE.py:PRESET, for the model without a LoRA, or of a LoRA by itself; "
        "--config.KEY=VALUE changes it (a run has its own config)",
    )
    add("--prompt", "--prompts", nargs="+", dest="prompts", help="prompts as they are")
    add("--prompts-file", help="a JSON list of prompts, or a .txt with one a line")
    add("--negative-prompt", default="", help="what guidance leads away from")
    add("--limit", type=int, help="only the first so many prompts")
    add("--seeds", nargs="+", default=["0-3"], help="numbers and ranges, as 0-31 40 (0-3)")
    add("--rounds", type=int, default=2, help="K (%(default)s)")
    add("--eta", type=float, help="of the last round (the config's)")
    add("--guidance-scale", type=float, help="of the last round (the config's)")
    add("--num-steps", type=int, help="T (the config's)")
    add(
        "--batch-size",
        type=int,
        default=16,
        help="samples at once; does not change them (%(default)s)",
    )
    add("--no-score", action="store_true", help="do not load the rewards")
    add(
        "--out",
        type=Path,
        default=Path("outputs"),
        help="folder (%(default)s); pictures of an earlier call in it are removed",
    )
    add("--export", choices=["kohya"], help="also write the LoRA as ComfyUI and A1111 read it")
    args, overrides = parse(parser, sys.argv[1:])
    if not (args.checkpoint or args.config):
        raise UserError("give --checkpoint, or --config (the model without a LoRA)")
    if args.export and not args.checkpoint:
        raise UserError(f"--export {args.export}: give the --checkpoint to export")
    if args.prompts and args.prompts_file:
        raise UserError("give either --prompt or --prompts-file")
    if not (args.prompts or args.prompts_file or args.export):
        raise UserError("give --prompt or --prompts-file")
    args.prompts = [typed(text, "--prompt") for text in args.prompts or []]
    if not all(text.strip() for text in args.prompts):
        raise UserError("--prompt: an empty prompt: fill it, or leave it out")
    args.negative_prompt = typed(args.negative_prompt, "--negative-prompt")
    args.seeds = [seed for text in args.seeds for seed in seeds_of(text)]
    for name in ("rounds", "batch_size", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least 1")
    if args.num_steps is not None and not 1 <= args.num_steps <= 999:
        raise UserError(f"--num-steps {args.num_steps} is out of range: 1 to 999")
    if args.eta is not None and not 0 <= args.eta <= 1:
        raise UserError(f"--eta {args.eta} is out of range: 0 to 1")
    return args, overrides


def seeds_of(text: str) -> list[int]:
    """The seeds of "7" or "0-31"."""
    first, dash, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise UserError(f"--seeds {text}: expected a number of at least 0, or a range as 0-31")
    found = range(int(first), int(last or first) + 1)
    if not found:
        raise UserError(f"--seeds {text}: the range is empty")
    return list(found)


def main() -> None:
    args, overrides = arguments()
    prompts = load_prompts(args.prompts_file) if args.prompts_file else args.prompts
    prompts = prompts[: args.limit]
    if args.config:
        # Refused before anything heavy is imported.
        load_config([f"--config={args.config}", *overrides])

    from srrl.run.checkpoint import chosen_model

    config, weights = chosen_model(args.checkpoint, args.config, overrides)
    if overrides and weights and weights.is_dir():
        raise UserError(f"{overrides[0]}: only beside --config; a run has its own config")
    check_files(config)
    make_folder(args.out, f"--out {args.out}")
    if prompts:
        print(
            f"{len(prompts) * len(args.seeds)} samples: {len(prompts)} prompts x "
            f"{len(args.seeds)} seeds, K = {args.rounds}, to {args.out}",
            flush=True,
        )

    import torch

    from rewards import check_prompts
    from rewards.scoring import rewards_of
    from srrl.models.lora_uses import KOHYA_FILE, export_kohya, load_trained
    from srrl.models.policy import Policy
    from srrl.rounds import rollout_settings

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rewards = rewards_of(config, device) if prompts and not args.no_score else {}
    check_prompts(rewards, prompts, args.prompts_file or "--prompt")
    settings = rollout_settings(config, branches=1)
    if args.eta is not None:
        settings = replace(settings, eta=args.eta)
    if args.guidance_scale is not None:
        settings = replace(settings, guidance_scale=args.guidance_scale)
    policy = Policy.from_config(config, device=device, num_steps=args.num_steps, eta=settings.eta)
    policy.encoder.negative_prompt = args.negative_prompt
    lora = load_trained(policy.pipe, config, weights)
    if lora:
        print(f"{weights}: {lora}", flush=True)

    if args.export:
        written = export_kohya(policy.pipe, args.out / KOHYA_FILE, lora)
        print(f"wrote {args.out / KOHYA_FILE}: {written}")
    if prompts:
        name = str(weights or config.pretrained.model)
        draw(args, policy, settings, rewards, prompts, name)


def draw(args, policy, settings, rewards, prompts: list[str], name: str) -> None:
    """Draw, score and write all samples, a batch at a time."""
    from srrl import drawing
    from srrl.run.checkpoint import write_atomic
    from srrl.run.pictures import (
        CELL,
        Row,
        clear,
        labelled,
        save_with_text,
        sheet,
        thumbnail,
        to_pil,
    )
    from srrl.run.tracking import Clock

    clear(args.out, "image_*.png", "strip_*.png", "grid*.png")
    if cut := policy.encoder.cut(prompts):
        print(cut, flush=True)
    jobs = [(prompt, seed) for prompt in prompts for seed in args.seeds]
    clock = Clock(len(jobs))
    records, small = [], []
    for first in range(0, len(jobs), args.batch_size):
        batch = jobs[first : first + args.batch_size]
        texts, seeds = map(list, zip(*batch, strict=True))
        drawn = drawing.draw(policy, settings, rewards, texts, seeds, args.rounds)
        for i, (prompt, seed) in enumerate(batch):
            number = len(records)
            rounds = drawn.scores_of(i)
            record = {
                "prompt": prompt,
                "seed": seed,
                "scores": rounds,
                "image": f"image_{number:03d}.png",
                "strip": f"strip_{number:03d}.png",
            }
            captions = [labelled(f"round {k}", values) for k, values in enumerate(rounds, 1)]
            strip = Row(f"{prompt}, seed {seed}", [images[i] for images in drawn.images], captions)
            sheet([strip]).save(args.out / record["strip"])
            final = drawn.images[-1][i]
            text = drawing.drawn_from(policy, settings, prompt, seed, args.rounds, name)
            save_with_text(
                to_pil(final), args.out / record["image"], {**text, "scores": rounds[-1]}
            )
            small.append(thumbnail(final, CELL))
            records.append(record)
        write_atomic(args.out / "samples.json", json.dumps(records, indent=1) + "\n")
        clock.advance(len(batch))
        print(f"  {len(records)}/{len(jobs)} samples  ETA {clock.eta()}", flush=True)
    pages = grid_pages(prompts, args.seeds, records, small)
    for number, rows in enumerate(pages, 1):
        place = f", page {number} of {len(pages)}" if len(pages) > 1 else ""
        file = f"grid_{number:02d}.png" if len(pages) > 1 else "grid.png"
        sheet(rows, f"{name}, K = {args.rounds}{place}").save(args.out / file)
    for reward in rewards:
        means = [
            sum(r["scores"][k][reward] for r in records) / len(records) for k in range(args.rounds)
        ]
        print(
            f"{reward}: mean of {len(jobs)} samples in round 1 ... K: "
            f"{', '.join(f'{mean:.3f}' for mean in means)}"
        )
    shown = "grid.png" if len(pages) == 1 else f"{len(pages)} pages of grids"
    print(f"wrote {args.out}: {shown}, {len(jobs)} strips and images, samples.json")


def grid_pages(prompts: list[str], seeds: list[int], records: list[dict], small: list) -> list:
    """Pages of rows: a prompt's seeds side by side, or the prompts where there is one seed."""
    from srrl.run.pictures import Row, labelled, side_by_side

    names, scores = [f"seed {r['seed']}" for r in records], [r["scores"][-1] for r in records]
    if len(seeds) == 1 and len(prompts) > 1:
        rows = side_by_side(small, names, scores, prompts)
    else:
        rows = []
        for p, prompt in enumerate(prompts):
            for first in range(0, len(seeds), PAGE_COLUMNS):
                places = [p * len(seeds) + j for j in range(first, len(seeds))][:PAGE_COLUMNS]
                captions = [labelled(names[i], scores[i]) for i in places]
                rows.append(Row(prompt, [small[i] for i in places], captions))
    return [rows[i : i + PAGE_ROWS] for i in range(0, len(rows), PAGE_ROWS)]


def command() -> None:
    """`srrl-sample`, and this script."""
    with one_line_errors():
        main()


if __name__ == "__main__":
    command()
