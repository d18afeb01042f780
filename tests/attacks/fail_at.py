"""Run scripts/train.py with one of its system calls failing, below the run's output_dir.

    python tests/attacks/fail_at.py COUNT ERRNO  [train.py's arguments]

The first write to each file that Python opens and every fsync, rename, unlink, rmdir and mkdir
count; the COUNT-th one fails. With COUNT 0 none does, and what they were is printed at the end.
"""

import builtins
import io
import os
import sys
from pathlib import Path

from scripts import train
from srrl.errors import one_line_errors

WRITTEN = {"w", "a", "x"}


class Failing:
    """Counts calls, and lets one fail."""

    def __init__(self, count: int, number: int, below: Path):
        self.count, self.number, self.below, self.seen = count, number, str(below), 0
        self.log: list[str] = []

    def reached(self, name: str, path: object) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        if not str(path).startswith(self.below):
            return False
        self.seen += 1
        self.log.append(f"{name} {path}")
        return self.seen == self.count

    def error(self, *names: object) -> OSError:
        return OSError(self.number, os.strerror(self.number), *names)

    def wrap(self, name: str, says_where: bool) -> None:
        call = getattr(os, name)

        def wrapped(path, *rest, **options):
            where, folder = path, options.get("dir_fd")
            if folder is not None:
                where = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            made = name == "mkdir" and os.path.isdir(where)  # which nobody would wonder about
            if not made and self.reached(name, where):
                raise self.error(str(where)) if says_where else self.error()
            return call(path, *rest, **options)

        setattr(os, name, wrapped)

    def wrap_open(self) -> None:
        plain, failing = io.open, self

        class Raw(io.FileIO):
            written = False

            def write(self, data):
                first, self.written = not self.written, True
                if first and failing.reached("write", self.name):
                    raise failing.error()
                return super().write(data)

        def opened(file, mode="r", *rest, **options):
            ours = isinstance(file, str | os.PathLike) and str(file).startswith(failing.below)
            if not (WRITTEN & set(mode) and ours and "+" not in mode) or "opener" in options:
                return plain(file, mode, *rest, **options)
            stream = io.BufferedWriter(Raw(str(file), mode.replace("b", "").replace("t", "")))
            return stream if "b" in mode else io.TextIOWrapper(stream, options.get("encoding"))

        builtins.open = io.open = opened


def main(count: int, number: int, arguments: list[str]) -> None:
    given = next(a for a in arguments if a.startswith("--config.output_dir="))
    failing = Failing(count, number, Path(given.partition("=")[2]))
    for name, says_where in (
        ("fsync", False),
        ("replace", True),
        ("unlink", True),
        ("rmdir", True),
        ("mkdir", True),
    ):
        failing.wrap(name, says_where)
    failing.wrap_open()
    train.main(arguments)
    if not count:
        print("\n".join(f"call {line}" for line in failing.log))


if __name__ == "__main__":
    with one_line_errors():
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
