"""Measure and check everything that needs a GPU, in one command and without a network.

    python scripts/gpu_report.py                          everything, in under 9 minutes
    python scripts/gpu_report.py --only sd14 rewards      some parts
    python scripts/gpu_report.py --wheels DIR             with packages from DIR's wheels
    python scripts/gpu_report.py --device cpu --model tiny --out runs/report    a trial run

Full-size architectures with random weights: SD v1.4 and SDXL by phase (time, memory beside what
scripts/plan.py says, ratio before the first update), the rewards, a run against the CPU's, killed
and resumed, several processes. Every part runs in a process of its own: one that fails is reported
and the rest goes on. Writes OUT/report.json and OUT/GPU.md, which is ready to be docs/GPU.md.

It needs Python 3.11 or newer with torch and what pyproject.toml lists but wandb; versions may
differ from the pins, and the page says which do.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = (
    "machine",
    "sd14",
    "sdxl",
    "rewards",
    "parity",
    "resume",
    "scoring",
    "processes",
    "compiled",
)
GRACE = 45  # seconds a part may go on after the time is up


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--minutes", type=float, default=9, help="nothing is begun after them (9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("full", "tiny"), default="full")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use besides")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_report"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def refuse(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def unpack(wheels: Path, folder: Path) -> None:
    """Lay the wheels' contents into a folder that goes on PYTHONPATH."""
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


def run_part(args: argparse.Namespace, part: str, environment: dict[str, str], end: float) -> None:
    """Run one part to its end or its time; what it wrote stays, how it died is added."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        __file__,
        "--part",
        part,
        "--device",
        args.device,
        "--model",
        args.model,
        "--out",
        str(args.out),
        "--deadline",
        str(end),
    ]
    log = open(args.out / f"{part}.log", "w", encoding="utf-8")  # noqa: SIM115
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    limit = max(end - start, 0) + GRACE if args.device == "cuda" else None
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = (args.out / f"{part}.log").read_text(encoding="utf-8").strip().splitlines()[-1:]
        row = {"part": part, "name": "the part", "error": f"{how}: {' '.join(last)[:200]}"}
        with open(args.out / f"{part}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


def read_rows(folder: Path, parts: tuple[str, ...]) -> list[dict]:
    files = [folder / f"{part}.jsonl" for part in parts]
    return [json.loads(line) for f in files if f.exists() for line in f.read_text().splitlines()]


def measure(args: argparse.Namespace) -> None:
    """What the process of one part does."""
    from srrl.measure import checks, stages
    from srrl.measure.job import Job

    job = Job(args.part, args.device, args.model == "tiny", args.out, args.deadline)
    module = stages if hasattr(stages, args.part) else checks
    getattr(module, args.part)(job)


def main() -> None:
    sys.path.insert(0, str(REPOSITORY))
    args = arguments()
    args.out = args.out.resolve()
    if args.part:
        return measure(args)
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    paths = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    if args.wheels:
        unpack(args.wheels, args.out / "site")
        paths.insert(0, str(args.out / "site"))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    check(args)
    chosen = tuple(part for part in PARTS if part in args.only)
    for part in chosen:
        (args.out / f"{part}.jsonl").unlink(missing_ok=True)
    for number, part in enumerate(chosen, 1):
        left = begun + 60 * args.minutes - time.monotonic()
        print(f"[{number}/{len(chosen)}] {part}, {max(left, 0) / 60:.1f} minutes left", flush=True)
        run_part(args, part, environment, begun + 60 * args.minutes)
        write(args, chosen, begun)
    rows = read_rows(args.out, chosen)
    failed = [f"{row['part']}: {row['name']}" for row in rows if "error" in row]
    print(
        f"wrote {args.out / 'GPU.md'} and report.json" + (f"; failed: {failed}" if failed else "")
    )


def write(args: argparse.Namespace, chosen: tuple[str, ...], begun: float) -> None:
    """The JSON and the page of what is there so far, after every part."""
    from srrl.measure.page import page

    rows = read_rows(args.out, chosen)
    minutes = (time.monotonic() - begun) / 60
    command = "python scripts/gpu_report.py " + shlex.join(sys.argv[1:])
    report = {"command": command.strip(), "minutes": round(minutes, 2), "rows": rows}
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = page(rows, report["command"], minutes, trial=args.model == "tiny")
    (args.out / "GPU.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
