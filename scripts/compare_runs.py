"""Are two runs the same, bit for bit?

    python scripts/compare_runs.py runs/before runs/after
    python scripts/compare_runs.py runs/before runs/after --ignore updates samples.jsonl

Compares every line of metrics.jsonl (but for times), eval.jsonl and samples.jsonl, the pixels of
every picture, and every tensor of every checkpoint's weights; --ignore leaves out keys of the logs,
or a log, which a version of the code has added. On a CPU with as many threads the same command
gives the same run; a GPU's kernels may round otherwise from one start to the next. Prints a line
for each difference and one at the end; the exit code is 1 where the runs differ and 2 where one
cannot be read.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from srrl.errors import UserError, one_line_errors

PICTURES = ("samples/**/*.png", "images/*/*.png")
LOGS = ("metrics.jsonl", "eval.jsonl", "samples.jsonl")


def log_lines(file: Path, ignored: list[str]) -> list[dict]:
    """A log's lines without their times and ignored keys."""
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the log {file}: {error}") from None
    return [
        {k: v for k, v in x.items() if k not in ignored and not k.startswith("seconds/")}
        for x in lines
    ]


def differing_logs(one: Path, other: Path, ignored: list[str]) -> Iterator[str]:
    for name in LOGS:
        if name in ignored:
            continue
        if name == "eval.jsonl" and not any((run / name).exists() for run in (one, other)):
            continue  # neither was judged
        lines, others = (log_lines(run / name, ignored) for run in (one, other))
        if len(lines) != len(others):
            yield f"{name}: {len(lines)} and {len(others)} lines"
        for number, (a, b) in enumerate(zip(lines, others, strict=False), 1):
            keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
            if keys or list(a) != list(b):
                yield f"{name} line {number}: {', '.join(keys) or 'order of the keys'}"


def files(run: Path, pattern: str) -> dict[str, Path]:
    return {str(path.relative_to(run)): path for path in sorted(run.glob(pattern))}


def differing_files(one: Path, other: Path, pattern: str, same) -> Iterator[str]:
    """Files that only one run has, or that `same` finds different."""
    ours, theirs = files(one, pattern), files(other, pattern)
    for name in sorted(ours.keys() ^ theirs.keys()):
        yield f"{name}: only in {one if name in ours else other}"
    for name in sorted(ours.keys() & theirs.keys()):
        if not same(ours[name], theirs[name]):
            yield f"{name}: differs"


def same_pixels(one: Path, other: Path) -> bool:
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        return a.size == b.size and a.tobytes() == b.tobytes()


def same_tensors(one: Path, other: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def differences(one: Path, other: Path, ignored: list[str] | None = None) -> Iterator[str]:
    """A line for each difference of two run folders. Raises UserError for what is no run."""
    yield from differing_logs(one, other, ignored or [])
    for pictures in PICTURES:
        yield from differing_files(one, other, pictures, same_pixels)
    yield from differing_files(one, other, "checkpoints/stage_*/**/*.safetensors", same_tensors)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=Path, metavar="RUN")
    parser.add_argument("other", type=Path, metavar="RUN")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="KEY")
    args = parser.parse_args()
    found = list(differences(args.one, args.other, args.ignore))
    for line in found:
        print(line)
    images = sum(len(files(args.one, pictures)) for pictures in PICTURES)
    weights = len(files(args.one, "checkpoints/stage_*/**/*.safetensors"))
    compared = (
        f"{len(log_lines(args.one / LOGS[0], []))} stages, {images} pictures, {weights} weights"
    )
    print(
        f"{len(found)} differences ({compared})" if found else f"the same, bit for bit ({compared})"
    )
    return 1 if found else 0


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
