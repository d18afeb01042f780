"""Score any images by any rewards; also the way to check that a reward is installed.

    python scripts/score.py a.png b.png --prompt "a dog riding a bicycle" --rewards vqascore
    python scripts/score.py outputs                     sample.py's pictures, by their own prompts
    python scripts/score.py pictures/*.jpg --prompts-file prompts.txt --json scores.json \\
        --rewards vqascore imagereward \\
        --options '{"vqascore": {"model": "zhiqiulin/clip-flant5-xxl"}}'

Of an installed package it is `srrl-score`.

One --prompt goes with every image; a prompts file (a JSON list, or a .txt with one a line) has one
for each; without either, PNGs that sample.py wrote have theirs in them. Of a folder, all pictures
are taken but sample.py's grids and strips; they are turned as their EXIF says and laid on white.
Writes the scores with --json, also those before an error, and prints a table. The rewards: those of
--rewards, of a run (`--checkpoint runs/NAME`), or by default the embedded verifier where all
prompts are of its world, and VQAScore and ImageReward elsewhere. --config.KEY=VALUE changes what
else the config says of them (--config.reward.dtype=fp32); a run has its own config.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import load_config, load_saved, parse, parse_options, saved_values
from srrl.errors import UserError, one_line_errors
from srrl.prompts import check_text, load_prompts, typed
from srrl.run.folder import try_file

KINDS = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".gif",
)
SHEETS = re.compile(r"(grid(_\d+)?|strip_\d+)\.png")  # sample.py's


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and --config.KEY=VALUE for the rewards' settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--prompt", help="for every image")
    parser.add_argument("--prompts-file", help="one for each image: a JSON list, or a .txt")
    parser.add_argument("--rewards", nargs="+")
    parser.add_argument("--options", help="their keywords, JSON, as reward.options")
    parser.add_argument("--checkpoint", type=Path, help="a run or a checkpoint, for its reward.*")
    parser.add_argument("--device", help="cuda, cuda:1, cpu")
    parser.add_argument("--json", type=Path, help="file for the scores")
    args, overrides = parse(parser, sys.argv[1:])
    if args.checkpoint and overrides:
        raise UserError(f"{overrides[0]}: not with --checkpoint; a run has its own config")
    if args.prompt and args.prompts_file:
        raise UserError("give either --prompt or --prompts-file")
    if args.checkpoint and (args.rewards or args.options):
        raise UserError("give either --checkpoint, for its rewards, or --rewards and --options")
    parse_options(args.options)
    if args.json:
        try_file(args.json, "--json")
    if args.prompt:
        args.prompt = typed(args.prompt, "--prompt")
    return args, overrides


def images_of(paths: list[Path]) -> list[Path]:
    """The files, and the pictures in the folders."""
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if is_picture(p)) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: no pictures ({', '.join(KINDS)}) in this folder")
        found += inside
    return found


def is_picture(path: Path) -> bool:
    """Of a folder's files the pictures, but sample.py's of several pictures, and hidden ones."""
    return (
        path.suffix.lower() in KINDS
        and not path.name.startswith(".")
        and not SHEETS.fullmatch(path.name)
    )


def prompts_of(args: argparse.Namespace, images: list[Path]) -> list[str]:
    """A prompt for each image. Raises UserError for images that cannot be judged."""
    from rewards.files import read_picture

    inside = [read_picture(path)[1] for path in images]
    if args.prompt:
        return [args.prompt] * len(images)
    if args.prompts_file:
        prompts = load_prompts(args.prompts_file)
        if len(prompts) != len(images):
            raise UserError(f"{len(prompts)} prompts for {len(images)} images: give one for each")
        return prompts
    for path, prompt in zip(images, inside, strict=True):
        if not prompt:
            raise UserError(f"{path} has no prompt in it: give --prompt or --prompts-file")
        check_text(prompt, f"the prompt in {path}")
    return inside


def default_rewards(prompts: list[str]) -> list[str]:
    """The embedded verifier where it can judge every prompt, otherwise the method's."""
    from srrl.shapes.scenes import parse

    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return ["vqascore", "imagereward"]
    return ["shapes"]


def config_of(checkpoint: Path) -> ConfigDict:
    """That of a run, or of one of its checkpoints."""
    if saved_values(checkpoint / "config.json"):
        return load_saved(checkpoint / "config.json")
    from srrl.models.locate import locate

    named = f"--checkpoint {checkpoint}"
    config = locate(checkpoint, named).config
    if config is None:
        raise UserError(f"{named}: has no run's config.json, whose rewards it is for: give a run")
    return load_saved(config)


def main() -> None:
    args, overrides = arguments()
    files = images_of(args.images)
    prompts = prompts_of(args, files)
    if args.checkpoint:
        config = config_of(args.checkpoint)
    else:
        models = json.dumps(dict.fromkeys(args.rewards or default_rewards(prompts), 1.0))
        config = load_config(
            [
                "--config=config/stage_process.py:sd14",
                f"--config.reward.models={models}",
                f"--config.reward.options={args.options or '{}'}",
                *overrides,
            ]
        )

    import torch
    from tqdm import tqdm

    from rewards import check_prompts, score_all
    from rewards.files import read_picture
    from rewards.scoring import rewards_of

    rewards = rewards_of(config, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_prompts(rewards, prompts, args.prompts_file or "--prompt")
    rows = []
    jobs = list(zip(files, prompts, strict=True))
    try:
        for path, prompt in tqdm(jobs, "scoring", leave=False, disable=None):
            scores = score_all(rewards, read_picture(path)[0][None], [prompt])
            values = {name: round(score.item(), 6) for name, score in scores.items()}
            rows.append({"image": str(path), "prompt": prompt, **values})
    finally:  # also what was scored before an error
        if args.json and rows:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


def show(rows: list[dict]) -> None:
    """Print the rows as a table."""
    columns = list(rows[0])
    cells = [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in rows]
    common = os.path.commonpath([row["image"] for row in rows]) if len(rows) > 1 else ""
    for cell in cells if common else ():
        cell[0] = os.path.relpath(cell[0], common)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for cell in [columns, *cells]:
        print("  ".join(text.ljust(w) for text, w in zip(cell, widths, strict=True)).rstrip())


def command() -> None:
    """`srrl-score`, and this script."""
    with one_line_errors():
        main()


if __name__ == "__main__":
    command()
