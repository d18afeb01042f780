"""Score any images by any rewards; also the way to check that a reward is installed.

    python scripts/score.py a.png b.png --prompt "a dog riding a bicycle" --rewards vqascore
    python scripts/score.py runs/x/outputs/*.png --prompts-file prompts.json --json scores.json \\
        --rewards vqascore imagereward \\
        --options '{"vqascore": {"model": "zhiqiulin/clip-flant5-xxl"}}'

One --prompt goes with every image; a prompts file (a JSON list of strings) has one for each image.
Prints a table, and writes it with --json. Of a run, `--checkpoint runs/NAME` takes the rewards.
"""

import argparse
import json
import os
from pathlib import Path

from srrl.config import load_config, load_saved
from srrl.errors import UserError, one_line_errors
from srrl.prompts import load_prompts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--prompt", help="for every image")
    parser.add_argument("--prompts-file", help="a JSON list with one for each image")
    parser.add_argument("--rewards", nargs="+", default=["vqascore", "imagereward"])
    parser.add_argument("--options", default="{}", help="as reward.options, JSON")
    parser.add_argument("--checkpoint", type=Path, help="a run, for its reward.* instead")
    parser.add_argument("--device", help="cuda, cuda:1, cpu")
    parser.add_argument("--json", type=Path, help="file for the scores")
    args = parser.parse_args()
    if bool(args.prompt) == bool(args.prompts_file):
        raise UserError("give either --prompt or --prompts-file")
    return args


def read_image(path: Path):
    """uint8 [3, H, W] of any image file; transparency is laid on white."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"cannot read the image {str(path)!r}: {error}") from error


def main() -> None:
    args = arguments()
    prompts = load_prompts(args.prompts_file) if args.prompts_file else [args.prompt]
    prompts = prompts * len(args.images) if args.prompt else prompts
    if len(prompts) != len(args.images):
        raise UserError(f"{len(prompts)} prompts for {len(args.images)} images: give one for each")
    if args.checkpoint:
        config = load_saved(args.checkpoint / "config.json")
    else:
        models = json.dumps(dict.fromkeys(args.rewards, 1.0))
        config = load_config([
            "--config=config/stage_process.py:sd14", f"--config.reward.models={models}",
            f"--config.reward.options={args.options}",
        ])  # fmt: skip

    import torch

    from rewards import check_prompts, score_all
    from rewards.scoring import rewards_of

    images = [read_image(path) for path in args.images]
    rewards = rewards_of(config, args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check_prompts(rewards, prompts, "--prompt")
    rows = []
    for path, image, prompt in zip(args.images, images, prompts, strict=True):
        scores = score_all(rewards, image[None], [prompt])
        values = {name: round(score.item(), 6) for name, score in scores.items()}
        rows.append({"image": str(path), "prompt": prompt, **values})
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


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


if __name__ == "__main__":
    with one_line_errors():
        main()
