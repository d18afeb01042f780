"""Measure and check everything that needs a GPU, in one command and without a network.

    python scripts/gpu_report.py                          everything, in about 8 minutes
    python scripts/gpu_report.py --only sd14 rewards      some parts; OUT keeps its others
    python scripts/gpu_report.py --no-plan                without the planned figures
    python scripts/gpu_report.py --only                   nothing but those, on any machine
    python scripts/gpu_report.py --device cpu --model tiny --minutes 60    a trial run

Full-size architectures with random weights: SD v1.4 and SDXL by phase (time, memory beside what
scripts/plan.py says, ratio before the first update), the rewards, RL-RIG's
phases; then tests/gpu. Every part runs in a process of its own and has its share of the time: one
that dies or takes longer is reported, keeps what it has measured, and the rest goes on. After every
part it writes OUT/report.json and OUT/GPU.md, ready to be docs/GPU.md; OUT/PART.log has the
tracebacks.

It needs Python 3.11 or newer with torch, pytest and what pyproject.toml lists but wandb; versions
may differ from the pins, and the page says which do.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# In the order of their worth, with the seconds that they may take of the 450 or so in all; what
# one leaves, the later ones share.
PARTS = {"machine": 8, "sd14": 80, "sdxl": 120, "rewards": 25, "rig": 120, "checks": 97}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--minutes", type=float, default=7.5, help="of measuring (7.5)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("full", "tiny"), default="full")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_report"))
    parser.add_argument("--no-plan", action="store_true", help="compute no planned figures")
    args = parser.parse_args()
    args.out = args.out.resolve()
    return args


def check(args: argparse.Namespace) -> None:
    import torch

    refused = None
    if args.minutes <= 0:
        refused = f"--minutes {args.minutes}: above 0"
    elif args.device == "cuda" and not torch.cuda.is_available():
        refused = "no GPU found: --device cpu --model tiny tries the report itself"
    elif args.device == "cpu" and args.model == "full":
        refused = "--device cpu takes hours for --model full: add --model tiny"
    if refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(2)


def work(args: argparse.Namespace, part: str) -> None:
    """What the process of one part does."""
    log = os.open(args.out / f"{part}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from srrl.measure import parts, rig_stages

    function = rig_stages.rig if part == "rig" else getattr(parts, part)
    function(parts.Job(part, args.device, args.model == "tiny", args.out))


def run_part(args: argparse.Namespace, part: str, seconds: float) -> None:
    """Run one part to its end or its time; what it wrote stays, how it died is added.

    Its process is a fork: what was imported here need not be again, and CUDA is untouched here.
    """
    start, file = time.monotonic(), args.out / f"{part}.jsonl"
    file.write_text("")
    process = multiprocessing.get_context("fork").Process(target=work, args=(args, part))
    process.start()
    process.join(seconds)
    if late := process.exitcode is None:
        process.kill()
        process.join()
    if process.exitcode:
        how = "its time was up" if late else f"ended with {process.exitcode}, see {part}.log"
        row = {"part": part, "name": "the part", "error": how}
        with open(file, "a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
    print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


def measure(args: argparse.Namespace, chosen: list[str]) -> None:
    end = time.monotonic() + 60 * args.minutes
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks for the GPU and leaves CUDA to the parts
    }
    check(args)
    from srrl.measure import parts, rig_stages  # noqa: F401

    args.out.mkdir(parents=True, exist_ok=True)
    for n, part in enumerate(chosen):
        left = max(end - time.monotonic(), 0)
        share = left * PARTS[part] / sum(PARTS[p] for p in chosen[n:])
        print(f"[{n + 1}/{len(chosen)}] {part}, {share:.0f} of {left:.0f} s left", flush=True)
        run_part(args, part, share)
        write(args, planned=False)


def write(args: argparse.Namespace, planned: bool) -> list[dict]:
    """Write the JSON and the page of all parts that OUT has; returns their rows.

    planned: with what the plan says of them, which takes half a minute.
    """
    from srrl.measure.page import add_planned, page

    files = [args.out / f"{part}.jsonl" for part in PARTS]
    rows = [json.loads(line) for f in files if f.exists() for line in f.read_text().splitlines()]
    if planned:
        add_planned(rows)
    command = "python scripts/gpu_report.py " + shlex.join(sys.argv[1:])
    report = {"command": command.strip(), "rows": rows}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = page(rows, command.strip(), trial=args.model == "tiny")
    (args.out / "GPU.md").write_text(text, encoding="utf-8")
    return rows


def main() -> None:
    sys.path.insert(0, str(REPOSITORY))
    args = arguments()
    if chosen := [part for part in PARTS if part in args.only]:
        measure(args, chosen)
    rows = write(args, planned=not args.no_plan)
    failed = [f"{row['part']}: {row['name']}" for row in rows if "error" in row]
    print(
        f"wrote {args.out / 'GPU.md'} and report.json" + (f"; failed: {failed}" if failed else "")
    )


if __name__ == "__main__":
    main()
