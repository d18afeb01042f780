"""The header of a .safetensors file: names, shapes and types, without a tensor read."""

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from srrl.errors import UserError

LFS = b"version https://git-lfs"
POINTER = "is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder"
# What other files begin with, and what they are.
RENAMED = {
    b"PK": "a PyTorch file that was renamed: it may run code: convert it",
    b"\x80\x02": "a pickle that was renamed: it may run code: convert it",
    b"\x80\x04": "a pickle that was renamed: it may run code: convert it",
    b"GGUF": "a GGUF file that was renamed: a quantised file cannot be trained",
    b'{"': "a JSON file: give its folder, or the .safetensors beside it",
    b"{\n": "a JSON file: give its folder, or the .safetensors beside it",
    b"<!": "a web page, not the file: download it again, from its download link",
    b"<h": "a web page, not the file: download it again, from its download link",
}
READ = {"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"}


@dataclass(frozen=True)
class Header:
    """shapes by tensor; metadata: strings that a program left there."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]


def is_pointer(path: Path) -> bool:
    """Is the file what git leaves in place of one that git-lfs has not fetched?"""
    with open(path, "rb") as file:
        return file.read(len(LFS)) == LFS


def what_else(path: Path, error: SafetensorError) -> str:
    """What a file is that is no .safetensors file (which may begin with any byte), and a remedy."""
    with open(path, "rb") as file:
        begins = file.read(4)
    damaged = f"incomplete or damaged ({error}): download it again"
    return next((what for mark, what in RENAMED.items() if begins.startswith(mark)), damaged)


def check_file(path: Path, named: str) -> Header:
    """The file's header. Raises UserError for a git-lfs pointer, a damaged file, or fp8."""
    if is_pointer(path):
        raise UserError(f"{named} {POINTER}")
    try:
        with safe_open(path, "pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
            types = {key: str(part.get_dtype()) for key, part in parts.items()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{named} is {what_else(path, error)}") from error
    other = {key: kind for key, kind in types.items() if kind not in READ and 0 not in shapes[key]}
    if other:
        key, kind = next(iter(other.items()))
        raise UserError(
            f"{named} has {len(other)} tensors of type {kind}, as {key}: a quantised file (fp8 or "
            f"less) cannot be trained: give the model in fp16, bf16 or fp32"
        )
    return Header(shapes, metadata)
