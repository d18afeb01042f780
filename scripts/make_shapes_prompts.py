"""Write the embedded world's prompt files (those of config/prompts/ are committed).

    python scripts/make_shapes_prompts.py --out config/prompts

The 192 prompts in which both shapes have an unconventional colour are split 1 : 2 into train and
held-out by a fixed shuffle; the 48 in which both are conventional are a set of their own. Half of
the held-out ones are also written in other words than these, in each of four ways in turn.
"""

import argparse
import itertools
import json
import random
from pathlib import Path

from srrl.shapes.scenes import WORDINGS, all_scenes, parse


def prompt_sets() -> dict[str, list[str]]:
    """File stem to prompts."""
    by_count = {n: [s.prompt for s in all_scenes() if s.unconventional == n] for n in range(3)}
    unconventional = random.Random("shapes").sample(by_count[2], len(by_count[2]))
    heldout = sorted(unconventional[64:])
    scenes = [parse(prompt) for prompt in heldout[::2]]
    ways = itertools.cycle(WORDINGS)
    return {
        "shapes_conventional": by_count[0],
        "shapes_unconventional_train": sorted(unconventional[:64]),
        "shapes_unconventional_heldout": heldout,
        "shapes_wordings": [s.worded(way) for s, way in zip(scenes, ways, strict=False)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for stem, prompts in prompt_sets().items():
        (folder / f"{stem}.json").write_text(json.dumps(prompts, indent=1) + "\n")
        print(f"{stem}.json: {len(prompts)} prompts")


if __name__ == "__main__":
    main()
