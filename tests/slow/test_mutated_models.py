"""No file of a model ends in a traceback: damaged ones, each refused in a line or exact. 120 here;
docs/LOG.md has more."""

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch

from srrl.errors import UserError
from srrl.models.architectures import blank_pipeline
from srrl.models.policy import Policy
from srrl.shapes.pipeline import TINY_SD, TINY_SDXL
from tests.ldm import save_single_file
from tests.models import WEIGHTS, linked, same_weights, write

pytestmark = pytest.mark.slow
VALUES = [None, True, False, 0, -1, 3, 1.5, "x", "", [], [1], [2, "x"], {}, {"x": 1}]
MUTANTS = 20  # of each source and seed
OPTIONS = {"num_steps": 2, "eta": 0.0, "micro_batch": 4}
PROMPT = ["a blue circle above a red square"]


def split(whole: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", whole[:8])[0]
    return json.loads(whole[8 : 8 + size]), whole[8 + size :]


def joined(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as every writer aligns it
    return struct.pack("<Q", len(text)) + text + data


def damage_tensors(draw: random.Random, whole: bytes) -> tuple[bytes, bool]:
    """A safetensors file with a fault, and whether it is still the whole model."""
    header, data = split(whole)
    key = draw.choice([k for k in header if k != "__metadata__"])
    kind = draw.randrange(10)
    if kind == 0:
        header[draw.choice(["x.", "unet.", "model."]) + key] = header.pop(key)
    elif kind == 1:
        del header[key]
    elif kind == 2:  # one more, which nothing needs
        header["more.weight"] = {
            "dtype": "F16",
            "shape": [2],
            "data_offsets": [len(data), len(data) + 4],
        }
        return joined(header, data + bytes(4)), True
    elif kind == 3:
        header[key]["shape"] = draw.choice(
            [[*header[key]["shape"], 1], [1, *header[key]["shape"]], []]
        )
    elif kind == 4:
        header[key][draw.choice(["dtype", "shape", "data_offsets"])] = draw.choice(VALUES)
    elif kind == 5:
        header[key]["dtype"] = draw.choice(["F8_E4M3", "I8", "F64", "F4", "I16"])
    elif kind == 6:
        return whole[: draw.randrange(len(whole))], False
    elif kind == 7:
        size = draw.choice([0, 1, 2**63, 2**31, len(whole), len(whole) - 9])
        return struct.pack("<Q", size) + whole[8:], False
    elif kind == 8:
        text = bytearray(json.dumps(header).encode())
        text[draw.randrange(len(text))] = draw.randrange(256)
        return joined(bytes(text), data), False
    else:
        del header[key]
        return joined(header, data), False
    return joined(header, data), False


def damage_json(draw: random.Random, whole: bytes) -> bytes:
    read, kind = json.loads(whole), draw.randrange(8)
    if kind == 0:
        return whole[: draw.randrange(len(whole))]
    if kind == 1:
        return json.dumps(draw.choice(VALUES)).encode()
    if kind == 2:
        text = bytearray(whole)
        text[draw.randrange(len(text))] = draw.randrange(256)
        return bytes(text)
    key = draw.choice(list(read))
    if kind == 3:
        del read[key]
    elif kind == 4:
        read[key + "_x"] = read.pop(key)
    else:
        read[key] = draw.choice(VALUES)
    return json.dumps(read).encode()


@torch.no_grad()
def draws(policy: Policy) -> torch.Tensor:
    """The UNet's output, and that a picture comes of it or a line says why not."""
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    output = policy.predict(x, torch.zeros(1, dtype=torch.long), policy.encode(PROMPT), 3.0)
    policy.decode(output)
    return output


def ends_well(file: Path, content: bytes, exact: Policy, given: Path, **source) -> bool:
    """Load a model with another content of one of its files: it is refused in a line that names
    it, or draws. Says which."""
    write(file, content)
    try:
        output = draws(policy := Policy.load(str(given), **OPTIONS, **source))
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return False
    if file.suffix == ".safetensors":
        assert torch.equal(output, draws(exact))
        for part in WEIGHTS:
            assert same_weights(getattr(policy.pipe, part), getattr(exact.pipe, part))
    return True


def counted(model: Path) -> None:
    """Its cost is counted, or it is refused in a line."""
    try:
        blank_pipeline(str(model))
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("source", "seed"), [(TINY_SD, 0), (TINY_SD, 1), (TINY_SD, 2), (TINY_SDXL, 5)]
)
def test_a_damaged_folder(source, seed, tmp_path):
    draw, exact = random.Random(seed), Policy.load(str(source), **OPTIONS)
    loaded = 0
    for number in range(MUTANTS):
        model = linked(tmp_path / f"model{number}", source)
        weights = number % 2 == 0
        files = sorted(model.rglob("*.safetensors" if weights else "*.json"))
        file = draw.choice(files)
        whole = file.read_bytes()
        if weights:
            content, complete = damage_tensors(draw, whole)
        else:
            content, complete = damage_json(draw, whole), False
        well = ends_well(file, content, exact, model)
        assert well or not complete
        loaded += well
        if not weights:
            counted(model)
        shutil.rmtree(model)
    assert 0 < loaded < MUTANTS


@pytest.mark.parametrize(("source", "seed"), [(TINY_SD, 0), (TINY_SDXL, 2)])
def test_a_damaged_single_file(source, seed, tmp_path):
    draw, exact = random.Random(seed), Policy.load(str(source), **OPTIONS)
    file = tmp_path / "model.safetensors"
    save_single_file(exact.pipe, file)
    exact = Policy.load(str(file), single_file_config=str(source), **OPTIONS)
    whole = file.read_bytes()
    for _ in range(MUTANTS):
        content, complete = damage_tensors(draw, whole)
        assert ends_well(file, content, exact, file, single_file_config=str(source)) or not complete
        counted(file)
