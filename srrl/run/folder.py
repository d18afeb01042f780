"""Folders and files that are written to, and where a run keeps its checkpoints; without torch."""

import contextlib
import json
import tempfile
from pathlib import Path

from srrl.errors import UserError

STATE_FILE = "trainer_state.json"


def stage_folder(run: Path, stage: int) -> Path:
    return run / "checkpoints" / f"stage_{stage:04d}"


def newest(run: Path) -> Path | None:
    """The newest checkpoint that a run can resume from."""
    found = [
        p.parent
        for p in (run / "checkpoints").glob(f"stage_*/{STATE_FILE}")
        if p.parent.name.removeprefix("stage_").isdigit()  # not a .tmp
    ]
    return max(found, key=lambda p: int(p.name.removeprefix("stage_")), default=None)


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
        raise UserError(
            f"{named} {file}: cannot be written ({error.strerror.lower()}): choose another file"
        ) from None
    if not before:
        file.unlink()


def read_lines(file: Path) -> list[dict]:
    """A log's lines of JSON; a torn one is none, nor is a log that is not there."""
    found = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(text))
    return found
