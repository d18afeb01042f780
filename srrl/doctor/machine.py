"""The machine: Python, packages, devices, precisions, processes. Torch is imported where needed."""

import importlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from srrl.doctor.rows import FAIL, OK, WARN, Row, Trouble, answer, brief, refused
from srrl.surroundings import LEFT_OVER, MEET_S, RANKS, SIZES, check_precision, has_driver, told

if TYPE_CHECKING:
    from ml_collections import ConfigDict

REPOSITORY = Path(__file__).resolve().parents[2]
GIB = 2**30
PROJECT = REPOSITORY / "pyproject.toml"  # not beside an installed package
SET_UP = "`bash train.sh` sets up .venv with what is pinned: use .venv/bin/python"
INSTALL = f"`python -m pip install -e {REPOSITORY}`; or {SET_UP}"
if not PROJECT.exists():
    SET_UP = INSTALL = "install srrl again by pip, without --no-deps, in an environment of its own"
MEET_LIMIT_S, DRIVER_S = 60, 10
LEAST_SHARED = GIB // 4  # bytes of /dev/shm that several GPUs need to talk


def python() -> Iterator[Row]:
    right = sys.version_info >= (3, 11)
    yield Row("platform", platform.platform())
    found = f"{platform.python_version()} at {sys.executable}"
    yield Row("python", found, OK if right else FAIL, f"Python 3.11 or newer is needed: {SET_UP}")


def packages() -> Iterator[Row]:
    """Those that pyproject.toml pins for a run; a row for each that is missing or another."""
    wanted, right = pins(), 0
    for name, pin in wanted.items():
        found = installed(name)
        if found is None:
            yield Row("package", f"{name} is not installed ({pin} is pinned)", FAIL, INSTALL)
        elif found != pin:
            yield Row("package", f"{name} {found}, not {pin} as pinned", WARN, INSTALL)
        else:
            right += 1
    yield Row("packages", f"{right} of {len(wanted)} packages as pinned")
    paths = os.environ.get("PYTHONPATH", "").split(":")
    if installed("srrl") is None and str(REPOSITORY) not in paths:
        found = "srrl itself is not installed: train.sh finds it, other commands do not"
        yield Row("package", found, WARN, INSTALL)


def pins() -> dict[str, str]:
    """The version of each package that pyproject.toml pins, or the installed package."""
    import tomllib  # Python 3.11's

    if PROJECT.exists():
        wanted = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    else:
        wanted = [line for line in requires("srrl") or [] if "extra ==" not in line]
    pinned = (requirement.partition("==") for requirement in wanted)
    return {name: pin for name, _, pin in pinned if pin}


def installed(name: str) -> str | None:
    """A package's version without what its build adds (+cpu); None where it is not there."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def imports() -> Iterator[Row]:
    """Whether the packages can be used: torchvision, which diffusers takes where it is there, and
    then all that training imports."""
    if importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
        except Exception as error:
            found = f"torchvision cannot be imported ({brief(error)})"
            remedy = (
                "it is of another torch, and diffusers takes it: nothing here needs it, so "
                "`python -m pip uninstall torchvision`"
            )
            yield Row("torchvision", found, FAIL, remedy)
    try:
        for module in ("srrl.trainer", "srrl.rig.training"):
            importlib.import_module(module)
    except Exception as error:
        yield Row("imports", brief(error), FAIL, SET_UP)
    else:
        yield Row("imports", "what training imports can be imported")


def devices() -> Iterator[Row]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Row("cpu", f"{platform.machine()}, {cores}, {memory / GIB:.1f} GiB of memory")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else torch.version.hip or "the CPU"
    count = torch.cuda.device_count()
    found = f"torch {torch.__version__}, built for {built}; driver {driver() or 'not found'}"
    if count or not (sys.platform == "linux" and has_driver()):
        yield Row("gpus", f"{count}; {found}")
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = (
            f"a driver is here and torch finds no GPU: unset CUDA_VISIBLE_DEVICES={hidden}"
            if hidden is not None
            else "a driver is here and torch finds no GPU: install a build of torch for it, or a "
            "newer driver (`nvidia-smi` shows it)"
        )
        yield Row("gpus", f"0; {found}", WARN, remedy)
    for i in range(count):
        free, total = torch.cuda.mem_get_info(i)
        found = f"{torch.cuda.get_device_name(i)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        remedy = "other processes hold more than half of it: `nvidia-smi` shows which"
        yield Row(f"gpu {i}", found, OK if free > total / 2 else WARN, remedy)


def driver() -> str | None:
    """The version of NVIDIA's driver, as its own tool says it."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    try:
        said = answer([tool, "--query-gpu=driver_version", "--format=csv,noheader"], DRIVER_S)
    except (Trouble, OSError) as error:
        return brief(error)
    return said.strip().partition("\n")[0] or None


def precision(config: "ConfigDict", _: bool) -> Iterator[Row]:
    """A forward and a backward pass in each precision on each GPU, else in float32 on the CPU."""
    import torch

    wanted = config.mixed_precision
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    for device in gpus or ["cpu"]:
        for name in ("no", "fp16", "bf16") if gpus else ("no",):
            remedy = "choose another --config.mixed_precision, or a build of torch for this device"
            state = FAIL if name in (wanted, "no") else WARN
            try:
                found, right = "forward and backward are finite", finite(device, name)
            except Exception as error:
                found, right = brief(error), False
            else:
                found = found if right else "forward and backward are not finite"
            yield Row("precision", f"{name} on {device}: {found}", OK if right else state, remedy)
    if not gpus:
        found = f"config.mixed_precision={wanted!r} on the CPU"
        yield from refused("precision", found, lambda: check_precision("cpu", wanted))


def finite(device: str, precision: str) -> bool:
    """Whether a block of a small UNet (convolution, group norm, attention, linear layers) gives
    finite features and gradients in "no" (float32), "fp16" or "bf16"."""
    import torch
    from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D

    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    given = {"temb_channels": 32, "resnet_groups": 8, "cross_attention_dim": 32}
    block = CrossAttnDownBlock2D(32, 64, num_attention_heads=2, **given).to(device, dtype)
    x = torch.randn(2, 32, 8, 8, device=device, dtype=dtype)
    text = torch.randn(2, 7, 32, device=device, dtype=dtype)
    features, _ = block(x, text[:, 0], encoder_hidden_states=text)
    features.float().square().mean().backward()
    return all(t.isfinite().all() for t in (features, *(p.grad for p in block.parameters())))


def processes() -> Iterator[Row]:
    """Whether processes can meet: those of several GPUs, else two on the CPU."""
    import torch

    gpus = torch.cuda.device_count()
    backend, count = ("nccl", gpus) if gpus > 1 else ("gloo", 2)
    named = f"{count} processes by {backend}"
    command = [sys.executable, "-m", "srrl.doctor.meet", backend, str(count)]
    paths = f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    around = {name: v for name, v in os.environ.items() if not LEFT_OVER.fullmatch(name)}
    try:
        answer(command, MEET_LIMIT_S, {**around, "PYTHONPATH": paths})
    except Trouble as error:
        state = FAIL if gpus > 1 else WARN
        remedy = (
            "a run of one process (`-- --num_processes 1`) goes without; else look at the host's "
            "name (/etc/hosts), firewall, GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        )
        yield Row("processes", f"{named} cannot meet ({brief(error, 120)})", state, remedy)
    else:
        yield Row("processes", f"{named} meet")
    yield shared_memory(gpus)


def shared_memory(gpus: int, folder: str = "/dev/shm") -> Row:
    """What several GPUs talk by."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        found, small = f"{folder}: {(error.strerror or str(error)).lower()}", True
    else:
        found = f"{folder}: {usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
        small = usage.free < LEAST_SHARED
    remedy = "give the container more (`docker run --shm-size=1g`), or set NCCL_SHM_DISABLE=1"
    return Row("shared memory", found, WARN if small and gpus > 1 else OK, remedy)


def environment() -> Iterator[Row]:
    """What is left over from another launch."""
    names = (n for n in os.environ if LEFT_OVER.fullmatch(n) or n in (*SIZES, *RANKS))
    left = sorted(names)
    if left:
        found = ", ".join(f"{name}={os.environ[name]}" for name in left)
        remedy = (
            f"left over from another launch? scripts/train.py by itself would wait for the others: "
            f"unset {', '.join(left)} (bash train.sh does not read them)"
        )
        yield Row("environment", found, WARN, remedy)
    else:
        yield Row("environment", "nothing left over from another launch")
    yield from refused("environment", f"{MEET_S} is set", lambda: told((MEET_S,)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        yield Row("environment", re.sub(r"\s+", " ", f"CUDA_VISIBLE_DEVICES={visible}"))
