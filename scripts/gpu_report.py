"""Measure and check everything that needs a GPU, in one command and without a network.

    python scripts/gpu_report.py                          everything, in about 6 minutes
    python scripts/gpu_report.py --only sd14 rewards      some parts; OUT keeps its others
    python scripts/gpu_report.py --measure-only           leave the planned figures to
    python scripts/gpu_report.py --page-only              this, on any machine, without a GPU
    python scripts/gpu_report.py --wheels DIR             with packages from DIR's wheels
    python scripts/gpu_report.py --device cpu --model tiny --out runs/report    a trial run

Full-size architectures with random weights: SD v1.4 and SDXL by phase (time, memory beside what
scripts/plan.py says, ratio before the first update), the rewards, a run against the CPU's, killed
and resumed. Every part runs in a process of its own and has its share of the time: one that fails
or takes longer is reported, keeps what it has measured, and the rest goes on. After every part it
writes OUT/report.json and OUT/GPU.md, ready to be docs/GPU.md; OUT/PART.log has the tracebacks.

It needs Python 3.11 or newer with torch and what pyproject.toml lists but wandb; versions may
differ from the pins, and the page says which do.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
import traceback
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# In the order of their worth, with the seconds that they may take of the 330 or so in all; what
# one leaves, the later ones share.
PARTS = {
    "machine": 8,
    "sd14": 75,
    "sdxl": 115,
    "rewards": 20,
    "parity": 20,
    "resume": 40,
    "scoring": 25,
    "compiled": 40,
}
GRACE = 8  # seconds after which a part that does not stop is killed
MINUTES = {"cuda": 5.5, "cpu": 60}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--minutes", type=float, help="of measuring (5.5; on a CPU 60)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("full", "tiny"), default="full")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use besides")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_report"))
    parser.add_argument("--measure-only", action="store_true", help="compute no planned figures")
    parser.add_argument("--page-only", action="store_true", help="compute those of OUT's rows")
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.minutes = MINUTES[args.device] if args.minutes is None else args.minutes
    return args


def refuse(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def unpack(wheels: Path, folder: Path) -> None:
    """Lay the wheels' contents into a folder that goes on the path."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        refuse(f"--wheels {wheels}: holds no .whl file")
    for wheel in found:
        with zipfile.ZipFile(wheel) as file:
            file.extractall(folder)


def check(args: argparse.Namespace) -> None:
    if args.minutes <= 0:
        refuse(f"--minutes {args.minutes}: above 0")
    try:
        import torch
    except ImportError:
        refuse(f"{sys.executable} has no torch: choose another interpreter, or bash train.sh once")
    if args.device == "cuda" and not torch.cuda.is_available():
        refuse("no GPU found: --device cpu --model tiny tries the report itself")
    if args.device == "cpu" and args.model == "full":
        refuse("--device cpu takes hours for --model full: add --model tiny")


def work(args: argparse.Namespace, part: str, deadline: float) -> None:
    """What the process of one part does."""
    log = os.open(args.out / f"{part}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from srrl.measure import checks, stages
    from srrl.measure.job import Job

    job = Job(part, args.device, args.model == "tiny", args.out, deadline)
    getattr(stages if hasattr(stages, part) else checks, part)(job)


def run_part(args: argparse.Namespace, part: str, seconds: float) -> None:
    """Run one part to its end or its time; what it wrote stays, how it died is added.

    Its process is a fork: what was imported here need not be again, and CUDA is untouched here.
    """
    start = time.monotonic()
    (args.out / f"{part}.jsonl").unlink(missing_ok=True)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=work, args=(args, part, start + seconds))
    process.start()
    process.join(seconds + GRACE)
    if process.exitcode is None:
        process.kill()
        process.join()
    if code := process.exitcode:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        log = args.out / f"{part}.log"
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] if log.exists() else []
        error = f"{how} after {time.monotonic() - start:.0f} s: {' '.join(last)[:200]}"
        with open(args.out / f"{part}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, "name": "the part", "error": error}) + "\n")
    print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


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


def measure(args: argparse.Namespace) -> None:
    begun = time.monotonic()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asks for the GPU and leaves CUDA to the parts
    }
    args.out.mkdir(parents=True, exist_ok=True)
    if args.wheels:
        unpack(args.wheels, args.out / "site")
        sys.path.insert(0, str(args.out / "site"))
    check(args)
    try:
        from srrl.measure import checks, stages  # noqa: F401
    except Exception:
        traceback.print_exc()  # each part will say so
    chosen = [part for part in PARTS if part in args.only]
    for n, part in enumerate(chosen):
        left = max(begun + 60 * args.minutes - time.monotonic(), 0)
        share = left * PARTS[part] / sum(PARTS[p] for p in chosen[n:])
        print(f"[{n + 1}/{len(chosen)}] {part}, {share:.0f} of {left:.0f} s left", flush=True)
        run_part(args, part, share)
        write(args, planned=False)


def main() -> None:
    sys.path.insert(0, str(REPOSITORY))
    args = arguments()
    if not args.page_only:
        measure(args)
    rows = write(args, planned=not args.measure_only)
    failed = [f"{row['part']}: {row['name']}" for row in rows if "error" in row]
    print(
        f"wrote {args.out / 'GPU.md'} and report.json" + (f"; failed: {failed}" if failed else "")
    )


if __name__ == "__main__":
    main()
