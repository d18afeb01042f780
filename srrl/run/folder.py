"""Folders and files that are written to, and where a run keeps its checkpoints; without torch."""

import contextlib
import json
import re
import shutil
import tempfile
from pathlib import Path

from srrl.errors import UserError

UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
LOGS = ("metrics.jsonl", "samples.jsonl", "eval.jsonl")  # each line says its stage
STATE_FILE = "trainer_state.json"


def stage_folder(run: Path, stage: int) -> Path:
    return run / "checkpoints" / f"stage_{stage:04d}"


def stage_of(folder: Path) -> int:
    return int(folder.name.removeprefix("stage_"))


def stages(run: Path) -> list[Path]:
    """A run's checkpoints, the newest first; none that is still being written, or set aside."""
    found = (run / "checkpoints").glob("stage_*")
    named = [p for p in found if re.fullmatch(r"stage_\d+", p.name) and p.is_dir()]
    return sorted(named, key=stage_of, reverse=True)


def newest(run: Path) -> Path | None:
    """The newest checkpoint with what resuming needs, as far as names tell; whether it can be
    trusted recovery.choose finds out."""
    return next((folder for folder in stages(run) if (folder / STATE_FILE).exists()), None)


def make_folder(folder: Path, named: str) -> None:
    """Make a folder before anything else is done. Raises UserError, with what was `named`, where
    it cannot be, or nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{named}: there is a file of this name: choose another folder") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{named}: cannot be written to ({reason}): choose another") from None


def try_file(file: Path, named: str) -> None:
    """The same for a file, which is left as it was."""
    make_folder(file.parent, f"{named} {file}")
    before = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"{named} {file}: cannot be written ({reason}): choose another file"
        ) from None
    if not before:
        file.unlink()


def check_space(folder: Path, needed: float) -> None:
    """Raise UserError where the disk that a folder is on has less than so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: the run needs about {size(needed)} more, and {size(free)} are free: free "
            f"some, keep fewer checkpoints (checkpoint.keep_every) or images (pictures.images), or "
            f"choose another --config.output_dir"
        )


def size(number: float) -> str:
    """Bytes, like "1.4 GiB"."""
    unit = next((u for u in ("GiB", "MiB") if number >= UNITS[u]), "KiB")
    return f"{number / UNITS[unit]:.1f} {unit}"


def read_lines(file: Path) -> list[dict]:
    """A log's lines of JSON objects; a torn or damaged one is none, nor is a log that is not
    there."""
    found = []
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]
