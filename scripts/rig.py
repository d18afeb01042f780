"""RL-RIG (arXiv 2602.19974): generate, reflect, edit; on prompts, and beside what it must beat.

    python scripts/rig.py draw --prompt "a red circle left of a blue square"
    python scripts/rig.py draw --prompt "stone tower attached to stone bridge" \\
        --config config/rig.py:sd14
    python scripts/rig.py evaluate
    python scripts/rig.py evaluate --config config/rig.py:sd14 --config.evaluate.images=2

draw writes a strip for each picture: what was drawn, which requirements the checker sees met, the
edit prompt that the actor wrote, the next picture. evaluate draws the held-out prompts in several
ways at the same seeds and writes a table with 95% intervals over prompts; stopped and started again
it goes on where it was. The ways (config.evaluate.ways):

    once             one picture
    again            drawn again where the checker fails it
    best             a picture more for each round, the best of all by the checker
    plain            the loop, the prompt itself as the edit prompt
    actor            the loop, the actor's edit prompts
    expert           the loop, an expert's (the shapes world alone): a ceiling
    inversion        as plain, by the inversion editor
    inversion_actor  as actor, by the inversion editor

Every knob is explained in config/rig.py; --config.KEY=VALUE changes it.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import load_config, parse
from srrl.errors import UserError, one_line_errors
from srrl.run.folder import make_folder

PAGE = 8  # strips of a page


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="rig.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawn = commands.add_parser("draw", help="pictures of prompts, as strips")
    drawn.add_argument(
        "--prompt", dest="prompts", action="append", default=[], help="a scene graph"
    )
    drawn.add_argument("--prompts-file", help="prompts, or LAION-SG's rows")
    drawn.add_argument("--images", type=int, default=4, help="of each prompt (%(default)s)")
    drawn.add_argument("--way", default="actor", help="of those above (%(default)s)")
    tried = commands.add_parser("evaluate", help="the ways, in a table")
    tried.add_argument("--num-prompts", type=int, help="so many, evenly taken; by default all")
    for command in (drawn, tried):
        command.add_argument("--config", default="config/rig.py:tiny", help="(%(default)s)")
        command.add_argument("--out", type=Path, help="folder (output_dir/run_name/COMMAND)")
    args, overrides = parse(parser, argv)
    return args, overrides


def main(argv: list[str]) -> None:
    args, overrides = arguments(argv)
    config = load_config([f"--config={args.config}", *overrides], methods=["rig"])
    for name in ("images", "num_prompts"):
        given = getattr(args, name, None)
        if given is not None and given < 1:
            raise UserError(f"--{name.replace('_', '-')} {given}: at least 1")
    out = args.out or Path(config.output_dir) / config.run_name / args.command
    make_folder(out, f"--out {out}")
    {"draw": draw, "evaluate": evaluate}[args.command](args, config, out)


def draw(args: argparse.Namespace, config: ConfigDict, out: Path) -> None:
    """Pictures of prompts in one way, a strip for each, written batch by batch."""
    import torch

    from srrl.checks import WAYS
    from srrl.prompts import typed
    from srrl.rig.setup import Parts
    from srrl.rig.strips import strip, told
    from srrl.rig.ways import first_pictures, way_of
    from srrl.rig.wishes import wish_of, wishes_of
    from srrl.run.checkpoint import write_atomic
    from srrl.run.pictures import clear, sheet, to_pil
    from srrl.run.tracking import Clock

    if args.way not in WAYS:
        raise UserError(f"--way {args.way!r}: one of {', '.join(WAYS)}")
    if not args.prompts and not args.prompts_file:
        raise UserError("nothing to draw: give --prompt or --prompts-file")
    wishes = wishes_of(args.prompts_file) if args.prompts_file else []
    wishes += [wish_of(typed(prompt, "--prompt"), 0, "--prompt") for prompt in args.prompts]
    # As in sample.py a picture depends on its prompt and its seed alone.
    seeds = range(config.seed, config.seed + args.images)
    jobs = [replace(wish, number=seed) for wish in wishes for seed in seeds]
    parts = Parts(config, "cuda" if torch.cuda.is_available() else "cpu")
    parts.check(wishes, [args.way], args.prompts_file or "--prompt")
    clear(out, "image_*.png", "strip*.png")
    if cut := parts.cut(wishes):
        print(cut, flush=True)
    way = way_of(parts, args.way)
    clock, rows, records = Clock(len(jobs)), [], []
    for first in range(0, len(jobs), config.evaluate.batch_size):
        some = jobs[first : first + config.evaluate.batch_size]
        for trail in way.run(*first_pictures(parts, some, 0), some, 0):
            number = len(records)
            rows.append(strip(trail, f"{trail.wish.prompt}, seed {trail.wish.number}"))
            records.append({**told(trail), "image": f"image_{number:03d}.png"})
            to_pil(trail.final.image).save(out / records[-1]["image"])
            sheet(rows[-1:]).save(out / f"strip_{number:03d}.png")
        write_atomic(out / "samples.json", json.dumps(records, indent=1) + "\n")
        clock.advance(len(some))
        print(f"  {len(records)}/{len(jobs)} samples  ETA {clock.eta()}", flush=True)
    for page in range(0, len(rows), PAGE):
        name = "strips.png" if len(rows) <= PAGE else f"strips_{page // PAGE + 1:02d}.png"
        sheet(rows[page : page + PAGE], f"{config.run_name}, {args.way}").save(out / name)
    for name, key in (("the first picture", "whole_at_first"), ("the one that is kept", "whole")):
        met = sum(record[key] for record in records)
        print(f"the checker sees all requirements met in {name}: {met:.0f} of {len(records)}")
    print(f"wrote {out}: {len(records)} strips and images, samples.json")


def evaluate(args: argparse.Namespace, config: ConfigDict, out: Path) -> None:
    """The ways side by side, resumable by batches."""
    import torch

    from rewards import check_prompts
    from rewards.scoring import rewards_of
    from srrl.prompts import evenly
    from srrl.rig.assess import judged_by, records, summary, table
    from srrl.rig.setup import Parts
    from srrl.rig.ways import first_pictures, settings_key, way_of
    from srrl.rig.wishes import wishes_of
    from srrl.run.checkpoint import write_atomic
    from srrl.run.folder import read_lines
    from srrl.run.tracking import Clock

    e = config.evaluate
    wishes = wishes_of(config.prompts.heldout)
    wishes = evenly(wishes, args.num_prompts or len(wishes))
    parts = Parts(config, "cuda" if torch.cuda.is_available() else "cpu")
    parts.check(wishes, e.ways, config.prompts.heldout)
    if cut := parts.cut(wishes):
        print(cut, flush=True)
    for name in judged_by(config, config.checker.model):
        print(f"warning: judge {name!r} is the checker's own model: it likes what the loop made")
    seer, ways = parts.seer, {name: way_of(parts, name) for name in e.ways}
    judges = rewards_of(config, parts.device)
    check_prompts(judges, [wish.prompt for wish in wishes], config.prompts.heldout)

    key, log = settings_key(config, wishes), out / "pictures.jsonl"
    lines = {(x["way"], x["image"], x["number"]): x for x in read_lines(log) if x.get("key") == key}
    batches = [wishes[i : i + e.batch_size] for i in range(0, len(wishes), e.batch_size)]
    jobs = [(image, some, way) for image in range(e.images) for some in batches for way in e.ways]
    left = [
        (image, some, way)
        for image, some, way in jobs
        if not all((way, image, wish.number) in lines for wish in some)
    ]
    print(
        f"{len(e.ways)} ways x {len(wishes)} prompts x {e.images} pictures: {len(jobs)} batches, "
        f"{len(jobs) - len(left)} done",
        flush=True,
    )
    clock, drawn, begun = Clock(len(left)), None, None
    for image, some, name in left:
        seed, start = e.first_seed + image, time.monotonic()
        if begun != (image, some[0].number):
            drawn, begun = first_pictures(parts, some, seed), (image, some[0].number)
            first_seconds = time.monotonic() - start
            start = time.monotonic()
        trails = ways[name].run(*drawn, some, seed)
        seconds = (first_seconds + time.monotonic() - start) / len(some)
        made = records(trails, exact=parts.exact, seer=seer if e.extract else None, judges=judges)
        own = {"key": key, "way": name, "image": image}
        made = [{**own, **line, "seconds": round(seconds, 4)} for line in made]
        append(log, made)
        lines |= {(name, image, line["number"]): line for line in made}
        clock.advance(1)
        place = f"picture {image + 1}, prompts {some[0].number + 1} on"
        print(f"{name}: {place}  ETA {clock.eta()}", flush=True)
    by_way = {
        name: [lines[name, i, wish.number] for i in range(e.images) for wish in wishes]
        for name in e.ways
    }
    rows = summary(by_way, e.images, e.ways[0])
    questions = sum(len(wish.requirements) for wish in wishes) / len(wishes)
    text = table(rows, {name: way.most(questions) for name, way in ways.items()})
    write_atomic(out / "table.md", text + "\n")
    write_atomic(out / "table.json", json.dumps(rows, indent=1) + "\n")
    print(text)
    print(f"wrote {out}: table.md, table.json, pictures.jsonl")


def append(file: Path, lines: list[dict]) -> None:
    """Add lines of JSON, after a torn one on a line of their own."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    torn = file.exists() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
    with open(file, "a", encoding="utf-8") as log:
        log.write("\n" * bool(torn) + text)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
