"""Score checkpoints: prompt files x rewards x ways of sampling, at paired seeds, with intervals.

    python scripts/evaluate.py                                   the embedded base, K = 1, 2, 3
    python scripts/evaluate.py --checkpoints base runs/tiny --rewards shapes judge
    python scripts/evaluate.py --checkpoints runs/tiny --samplers plain best:n=3 zigzag \\
        reflect:rounds=2 until:rounds=3,threshold=0.9 plain:steps=30 plain:guidance=8
    accelerate launch scripts/evaluate.py --config config/stage_process.py:sd14 --num-prompts 32

Each combination of checkpoint, prompt file and sampler is a cell: the mean of each reward with its
95% interval over prompts (bootstrapped; Student's t of fewer than 20 prompts), the paired
difference to the baseline (the first cell unless --baseline names another), how different a
prompt's pictures are, network evaluations and seconds a picture. Prints the table and writes it to
--out as markdown, CSV and JSON with a plot and a grid.
Stopped and started again it goes on where it was; under accelerate all processes share the prompts.

Of an installed package it is `srrl-evaluate`.

Samplers: plain(steps, guidance), reflect(rounds, depth, steps, guidance, denoise, inversion, eta),
zigzag(steps, inversion); and by the first reward's score best(n), best_round(rounds),
best_reflect(n, rounds), until(rounds, threshold), repair(rounds, threshold, low) and
cycle(cycles, particles, threshold). Of these "scored" counts the pictures that they looked at.
"""

import argparse
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import parse, parse_options, replace_dict
from srrl.errors import UserError, one_line_errors
from srrl.run.folder import make_folder

BASE = "base"


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and --config.KEY=VALUE for the base."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, many = parser.add_argument, {"nargs": "+", "default": []}
    add(
        "--config",
        default="config/stage_process.py:tiny",
        help="of the base (%(default)s); --config.KEY=VALUE changes it",
    )
    add("--checkpoints", **many, help='runs, RUN:best, RUN:16, or "base"')
    add("--prompts", **many, help="prompt files; by default the run's train and held-out ones")
    add("--num-prompts", type=int, help="so many of each file, evenly taken; by default all")
    add("--rewards", **many, help="by default the runs'")
    add("--options", help="their keywords, JSON, as reward.options; by default the runs'")
    add("--samplers", **many, help="as above; by default K = 1, 2 and 3")
    add("--rounds", type=int, **many, help="2 is short for reflect:rounds=2, 1 for plain")
    add("--guidance", type=float, **many, help="8 is short for plain:guidance=8")
    add("--images", type=int, default=4, help="of each prompt (%(default)s)")
    add("--first-seed", type=int, default=2_000_000, help="of the images (%(default)s)")
    add("--baseline", help='"CHECKPOINT SAMPLER"; by default the first cell')
    add("--out", type=Path, default=Path("runs/evaluation"), help="folder (%(default)s)")
    return parse(parser, sys.argv[1:])


def wanted_samplers(args: argparse.Namespace) -> list[str]:
    named = [f"plain:guidance={g:g}" for g in args.guidance]
    named += ["plain" if k == 1 else f"reflect:rounds={k}" for k in args.rounds]
    return list(dict.fromkeys([*args.samplers, *named])) or [
        "plain",
        "reflect:rounds=2",
        "reflect:rounds=3",
    ]


def models_of(args: argparse.Namespace, overrides: list[str]) -> dict:
    """For each checkpoint its config and the folder of its weights (None for the base)."""
    from srrl.run.checkpoint import chosen_model

    named = args.checkpoints or [BASE]
    real = [Path(c) for c in named if c != BASE]
    if overrides and real:
        raise UserError(f"{overrides[0]}: only for the base; a run has its own config")
    models = {
        c: chosen_model(None if c == BASE else Path(c), args.config, overrides) for c in named
    }
    if real and BASE in models:  # the base that they were trained from
        models[BASE] = (chosen_model(real[0], args.config)[0], None)
    return models


def scoring(args: argparse.Namespace, models: dict) -> ConfigDict:
    """The first model's config with the rewards and options that score all: those asked for, else
    the models' own. Raises UserError where these are not the same."""
    asked = None if args.options is None else parse_options(args.options)

    def of(c: ConfigDict) -> dict[str, dict]:
        options = c.reward.options.to_dict() if asked is None else asked
        return {name: options.get(name, {}) for name in args.rewards or c.reward.models}

    own = {name: of(c) for name, (c, _) in models.items()}
    first, config = next((name, c) for name, (c, _) in models.items())
    for other, settings in own.items():
        if settings != own[first]:
            raise UserError(
                f"{first} is scored by {json.dumps(own[first])} and {other} by "
                f"{json.dumps(settings)}: give --rewards and --options for all of them"
            )
    chosen = {name: options for name, options in own[first].items() if options}
    replace_dict(config, config.reward, "models", dict.fromkeys(own[first], 1.0))
    replace_dict(config, config.reward, "options", chosen if asked is None else asked)
    return config


def prompts_of(args: argparse.Namespace, config: ConfigDict) -> dict[str, list[str]]:
    """The prompts of each file."""
    from srrl.prompts import evenly, load_prompts

    files = args.prompts or [config.prompts.train, config.prompts.heldout]
    prompts = {file: load_prompts(file) for file in files}
    if args.num_prompts:
        prompts = {file: evenly(texts, args.num_prompts) for file, texts in prompts.items()}
    return prompts


def main() -> None:
    args, overrides = arguments()
    for name, least in (("images", 1), ("num_prompts", 1), ("first_seed", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: at least {least}")
    make_folder(args.out, f"--out {args.out}")

    from accelerate import Accelerator

    from rewards import check_prompts
    from rewards.scoring import rewards_of
    from srrl.assess.cells import Cell, Result, digest, finished, run_cell
    from srrl.assess.report import lines_of, text_table, write_report
    from srrl.assess.samplers import parse_sampler
    from srrl.models.lora_uses import load_trained
    from srrl.models.policy import Policy
    from srrl.rounds import rollout_settings
    from srrl.run.meter import Meter
    from srrl.run.tracking import Clock

    samplers = [parse_sampler(text) for text in wanted_samplers(args)]
    models = models_of(args, overrides)
    for c, _ in models.values():
        for sampler in samplers:
            sampler.check(c.sample.num_steps)
    config = scoring(args, models)
    prompts = prompts_of(args, config)
    baseline = tuple(args.baseline.split(maxsplit=1)) if args.baseline else None
    if baseline and baseline not in {(c, s.text) for c in models for s in samplers}:
        raise UserError(f"--baseline {args.baseline!r}: no such cell: give CHECKPOINT SAMPLER")
    accelerator = Accelerator()
    rewards = rewards_of(config, accelerator.device)
    for file, texts in prompts.items():
        check_prompts(rewards, texts, file)
    chooser = args.rewards[0] if args.rewards else next(iter(rewards))
    embedding = next(
        (r.embed for name, r in rewards.items() if hasattr(r, "embed") and name != chooser), None
    )

    def say(text: str) -> None:
        if accelerator.is_main_process:
            print(text, flush=True)

    def cell_of(checkpoint: str, file: str, text: str) -> Cell:
        c, weights = models[checkpoint]
        settings = {
            "sample": c.sample.to_dict(),
            "reflect": c.reflect.to_dict(),
            "model": c.pretrained.model,
            "rewards": list(rewards),
            "options": config.reward.options.to_dict(),
        }
        return Cell(
            checkpoint,
            digest(weights),
            file,
            text,
            args.images,
            args.first_seed,
            len(prompts[file]),
            json.dumps(settings, sort_keys=True, default=str),
        )

    jobs = [(cell_of(c, f, s.text), s) for c in models for f in prompts for s in samplers]
    done = finished(args.out)
    accelerator.wait_for_everyone()
    left = [(cell, sampler) for cell, sampler in jobs if cell.key not in done]
    say(f"{len(jobs)} cells, {len(jobs) - len(left)} done; {args.images} images of each prompt")
    clock = Clock(sum(sampler.weight * cell.count * cell.images for cell, sampler in left))
    loaded, policy, meter = None, None, Meter(accelerator.is_main_process)
    for number, (cell, sampler) in enumerate(left, 1):
        c, weights = models[cell.checkpoint]
        if loaded != cell.checkpoint:
            known = policy is not None
            del policy
            policy, loaded = Policy.from_config(c, device=accelerator.device), cell.checkpoint
            cut = policy.encoder.cut([p for texts in prompts.values() for p in texts])
            if cut and not known:
                say(cut)
            lora = load_trained(policy.pipe, c, weights)
            if lora:
                say(f"{weights}: {lora}")
        at = f"cell {number}/{len(left)}, {loaded}, {Path(cell.prompts).stem}, {sampler.text}"

        def tick(seed: int, at: str = at, work: float = sampler.weight * cell.count) -> None:
            clock.advance(work)
            say(f"{at}: seed {seed}/{args.images}  ETA {clock.eta()}")

        samples = sampler.weight * cell.count * cell.images / accelerator.num_processes
        with meter.work(at, policy.network, 2 * policy.schedule.num_steps * samples):
            result = run_cell(
                cell,
                sampler,
                policy,
                rollout_settings(c, branches=1),
                prompts[cell.prompts],
                rewards,
                accelerator,
                chooser=chooser,
                embedding=embedding,
                pictures=args.out / "pictures",
                tick=tick,
            )
        line = result.line()
        done[cell.key] = Result.of(line)  # as a later start will read it
        if accelerator.is_main_process:
            with open(args.out / "cells.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
    if accelerator.is_main_process:
        results = [done[cell.key] for cell, _ in jobs]
        lines = lines_of(results, baseline)
        written = write_report(args.out, results, lines, prompts)
        print(text_table(lines))
        print(f"differences are to {args.baseline or ' '.join(jobs[0][0].combination[1:])}")
        print(f"wrote {args.out}: {', '.join(written)}")


def command() -> None:
    """`srrl-evaluate`, and this script."""
    with one_line_errors():
        main()


if __name__ == "__main__":
    command()
