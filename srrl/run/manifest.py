"""What a checkpoint is: manifest.json beside its files, written last, with their checksums.

Without torch. A checkpoint whose files are not what the manifest says is never resumed from
(srrl.run.recovery); what only draws with its weights does not ask.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
# How file systems say that folders are not theirs to put on the disk.
NO_FOLDERS = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


def seal(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the manifest of a folder's files, and of the flat config they were made with; all of
    it is on the disk when this returns."""
    files = {
        str(p.relative_to(folder)): described(p) for p in sorted(folder.rglob("*")) if p.is_file()
    }
    content = {"format": FORMAT, "config": dict(config), "files": files}
    text = json.dumps({**content, "sha256": digest(content)}, indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)


def described(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        checksum = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": checksum}


def digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """Put a file, or a folder's names, on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in NO_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(opened)


def read(folder: Path) -> dict[str, Any]:
    """The manifest; raises ValueError, with what is wrong, where it is none that can be trusted,
    and OSError where it cannot be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = content.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"no {MANIFEST}: incomplete, or of an older version") from None
    except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise ValueError(f"{MANIFEST} is damaged") from None
    if found != digest(content):
        raise ValueError(f"{MANIFEST} is damaged")
    if content["format"] != FORMAT:
        raise ValueError(f"of format {content['format']}, this version has {FORMAT}")
    return content


def check(folder: Path) -> dict[str, Any]:
    """The manifest, if all files are what it says; raises ValueError with the first that is not,
    and OSError where one cannot be read."""
    content = read(folder)
    for name, told in content["files"].items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        size = file.stat().st_size
        if size != told["bytes"]:
            raise ValueError(f"{name} has {size:,} bytes, not {told['bytes']:,}")
        if described(file) != told:
            raise ValueError(f"{name} is not what was written")
    return content
