"""What the environment and the machine say before anything runs: other processes, and GPUs.

Nothing here imports torch at once.
"""

import os
import re
import sys
from pathlib import Path

from srrl.errors import UserError

# What tells a process of others, as accelerate reads it; beside torch's launcher MPI's.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
MEET_S = "SRRL_MEET_S"  # seconds that the processes of a run have to meet: 300 where it is not set
# What tells accelerate and torch's launcher how to run, left over from another job.
LEFT_OVER = re.compile(
    r"(ACCELERATE|FSDP|PET|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_.*|(LOCAL_)?(RANK|WORLD_SIZE)"
)
# What NVIDIA's and AMD's drivers have in /dev, on a board and below Windows, too.
DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "kfd", "dxg")


def started() -> int:
    """How many processes the environment tells of."""
    return max(int(os.environ.get(name, 1)) for name in SIZES)


def told(names: tuple[str, ...] = (*SIZES, *RANKS, MEET_S)) -> dict[str, str]:
    """Those of the variables that are set. Raises UserError for one that is no number."""
    found = {name: os.environ[name] for name in names if name in os.environ}
    odd = [f"{name}={value}" for name, value in found.items() if not re.fullmatch(r"-?\d+", value)]
    if odd:
        raise UserError(f"{odd[0]} in the environment: a number, or unset it")
    return found


def has_driver() -> bool:
    """Whether a GPU's driver may have a device here; only Linux says."""
    return sys.platform != "linux" or any(any(Path("/dev").glob(name)) for name in DEVICES)


def gpu_count() -> int:
    """How many GPUs torch can use. It takes seconds to import: not where no driver has a device."""
    if not has_driver():
        return 0
    import torch

    return torch.cuda.device_count()


def check_precision(device: str, precision: str) -> None:
    """Raise UserError for half precision on a device of the type "cpu"."""
    if device == "cpu" and precision != "no":
        raise UserError(
            f"config.mixed_precision={precision!r} needs a GPU, and there is none: "
            f"add --config.mixed_precision=no (slow for a full-size model)"
        )
