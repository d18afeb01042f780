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
    best             as many pictures as rounds, the best by the checker
    plain            the loop, the prompt itself as the edit prompt
    actor            the loop, the actor's edit prompts
    expert           the loop, an expert's (the shapes world alone): a ceiling
    inversion        as plain, by the inversion editor
    inversion_actor  as actor, by the inversion editor

Every knob is explained in config/rig.py; --config.KEY=VALUE changes it.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

from srrl.config import flatten, load_config, parse
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


def draw(args: argparse.Namespace, config, out: Path) -> None:
    """Pictures of prompts in one way, a strip for each."""
    import torch

    from srrl.checks import WAYS
    from srrl.rig.setup import Parts, first_pictures, wish_of, wishes_of
    from srrl.rig.strips import strip
    from srrl.run.checkpoint import write_atomic
    from srrl.run.pictures import sheet, to_pil
    from srrl.run.tracking import Clock

    if args.way not in WAYS:
        raise UserError(f"--way {args.way!r}: one of {', '.join(WAYS)}")
    if not args.prompts and not args.prompts_file:
        raise UserError("nothing to draw: give --prompt or --prompts-file")
    wishes = wishes_of(args.prompts_file) if args.prompts_file else []
    wishes += [
        wish_of(prompt, len(wishes) + i, "--prompt") for i, prompt in enumerate(args.prompts)
    ]
    parts = Parts(config, "cuda" if torch.cuda.is_available() else "cpu")
    parts.check_prompts(wishes, [args.way])
    way = parts.way(args.way)
    clock, trails = Clock(len(wishes) * args.images), []
    for image in range(args.images):
        for first in range(0, len(wishes), config.evaluate.batch_size):
            some = wishes[first : first + config.evaluate.batch_size]
            seed = config.seed + image
            images, cost = first_pictures(parts, some, seed)
            trails += [(image, trail) for trail in way.run(images, some, seed, cost)]
            clock.advance(len(some))
            print(f"  {len(trails)}/{len(wishes) * args.images} samples  ETA {clock.eta()}")
    trails.sort(key=lambda pair: pair[1].wish.number)
    records = []
    for i, (image, trail) in enumerate(trails):
        to_pil(trail.final.image).save(out / f"image_{i:03d}.png")
        row = strip(trail, f"{trail.wish.prompt}, seed {config.seed + image}")
        sheet([row]).save(out / f"strip_{i:03d}.png")
        records.append(
            {
                "prompt": trail.wish.prompt,
                "seed": config.seed + image,
                "image": f"image_{i:03d}.png",
                "kept": trail.kept,
                "steps": [
                    {
                        "edit": step.edit and step.edit.text,
                        "completion": step.edit and step.edit.completion,
                        "checked": {
                            r.text: round(p, 4)
                            for r, p in zip(
                                trail.wish.requirements, step.chances.tolist(), strict=True
                            )
                        },
                    }
                    for step in trail.steps
                ],
                "refused": dict(trail.reasons),
                "evaluations": trail.costs.evaluations,
                "vlm_calls": trail.costs.calls,
                "vlm_tokens": trail.costs.tokens,
            }
        )
    for page in range(0, len(trails), PAGE):
        rows = [strip(trail) for _, trail in trails[page : page + PAGE]]
        name = "strips.png" if len(trails) <= PAGE else f"strips_{page // PAGE + 1:02d}.png"
        sheet(rows, f"{config.run_name}, {args.way}").save(out / name)
    write_atomic(out / "samples.json", json.dumps(records, indent=1) + "\n")
    n = len(trails)
    for name, share in (
        ("the first picture", sum(t.steps[0].whole for _, t in trails) / n),
        ("the one that is kept", sum(t.final.whole for _, t in trails) / n),
    ):
        print(f"the checker sees all requirements met in {name}: {share:.3f} of {n}")
    print(f"wrote {out}: {n} strips and images, samples.json")


def evaluate(args: argparse.Namespace, config, out: Path) -> None:
    """The ways side by side, resumable by batches."""
    import torch

    from rewards import check_prompts
    from rewards.scoring import rewards_of
    from srrl.prompts import evenly
    from srrl.rig.assess import records, summary, table
    from srrl.rig.loop import Costs
    from srrl.rig.seeing import EMBEDDED
    from srrl.rig.setup import Parts, first_evaluations, first_pictures, wishes_of
    from srrl.run.checkpoint import write_atomic
    from srrl.run.tracking import Clock

    e = config.evaluate
    wishes = wishes_of(config.prompts.heldout)
    wishes = evenly(wishes, args.num_prompts or len(wishes))
    parts = Parts(config, "cuda" if torch.cuda.is_available() else "cpu")
    parts.check_prompts(wishes, e.ways)
    same = config.reward.options.to_dict().get("checker", {}).get("model", EMBEDDED)
    if "checker" in config.reward.models and same == config.checker.model:
        print("warning: the judge is the checker itself: it will like what the loop made")
    judges = rewards_of(config, parts.device)
    check_prompts(judges, [wish.prompt for wish in wishes], config.prompts.heldout)

    values = {k: v for k, v in flatten(config).items() if not k.startswith(("evaluate", "output"))}
    told = json.dumps([values, [w.prompt for w in wishes], e.first_seed, e.extract], default=str)
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    lines = {
        (x["way"], x["image"], x["number"]): x
        for x in read_lines(out / "pictures.jsonl")
        if x.get("key") == key
    }
    jobs = [
        (image, first, way)
        for image in range(e.images)
        for first in range(0, len(wishes), e.batch_size)
        for way in e.ways
    ]

    def batch(first: int) -> list:
        return wishes[first : first + e.batch_size]

    def done(image: int, first: int, way: str) -> bool:
        return all((way, image, wish.number) in lines for wish in batch(first))

    left = [job for job in jobs if not done(*job)]
    print(
        f"{len(e.ways)} ways x {len(wishes)} prompts x {e.images} pictures: {len(jobs)} batches, "
        f"{len(jobs) - len(left)} done",
        flush=True,
    )
    ways = {name: parts.way(name) for name in e.ways}
    clock, drawn = Clock(len(left)), None
    for image, first, name in left:
        some, seed = batch(first), e.first_seed + image
        if drawn is None or drawn[0] != (image, first):
            start = time.monotonic()
            images, cost = first_pictures(parts, some, seed)
            drawn = (image, first), images, cost, time.monotonic() - start
        _, images, cost, seconds = drawn
        start = time.monotonic()
        trails = ways[name].run(images, some, seed, cost)
        seconds = (seconds + time.monotonic() - start) / len(some)
        seer = parts.seer if e.extract else None
        made = records(trails, exact=parts.exact, seer=seer, judges=judges)
        own = {"key": key, "way": name, "image": image}
        made = [{**own, **line, "seconds": round(seconds, 4)} for line in made]
        with open(out / "pictures.jsonl", "a", encoding="utf-8") as log:
            log.write("".join(json.dumps(line) + "\n" for line in made))
        lines |= {(name, image, line["number"]): line for line in made}
        clock.advance(1)
        print(f"{name}: picture {image + 1}, prompts {first + 1} on  ETA {clock.eta()}", flush=True)
    numbers = {wish.number for wish in wishes}
    by_way = {
        name: [
            x for (way, i, n), x in lines.items() if way == name and n in numbers and i < e.images
        ]
        for name in e.ways
    }
    first_cost = Costs(first_evaluations(parts))
    rows = summary(by_way, e.images, e.ways[0])
    most = {name: way.most(first_cost) for name, way in ways.items()}
    text = table(rows, most)
    write_atomic(out / "table.md", text + "\n")
    write_atomic(out / "table.json", json.dumps(rows, indent=1) + "\n")
    print(text)
    print(f"wrote {out}: table.md, table.json, pictures.jsonl")


def read_lines(file: Path) -> list[dict]:
    """Lines of JSON; a torn one is none."""
    found = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
