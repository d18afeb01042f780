"""The checks in their order, in a process of their own: what hangs or dies there is a row, too."""

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from srrl.doctor.rows import FAIL, OK, Row, attempted, ended
from srrl.life import die_with_parent
from srrl.surroundings import gpu_count

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# "module:function" of the rows. Those of MACHINE take nothing, the others the config, and whether
# the user keeps the libraries from asking the hub.
MACHINE = (
    "machine:python",
    "machine:packages",
    "machine:environment",
    "machine:imports",
    "machine:devices",
    "machine:processes",
)
RUN = (
    "checkup:config",
    "machine:precision",
    "models:prompts",
    "models:models",
    "rewards:rewards",
    "folder:disk",
    "folder:run",
    "folder:tracker",
)
LIMIT_S, END_S = 120, 10  # for a check, and for what libraries do at the end
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
# What tells libraries and rewards where to leave things.
WRITERS = ("SRRL_ERROR_FOLDER", "TORCHINDUCTOR_CACHE_DIR", "WANDB_CACHE_DIR", "WANDB_DIR")
GPU_PRESET, CPU_PRESET = "config/stage_process.py:sd14", "config/stage_process.py:tiny"


def checkup(argv: Sequence[str], limit: float = LIMIT_S) -> Iterator[Row]:
    """The rows of all checks for a command's flags. Each check has so many seconds."""
    left = [*MACHINE, *RUN]
    with tempfile.TemporaryDirectory() as folder:
        while left:
            for name, rows in visit(argv, tuple(left), folder, limit):
                yield from rows
                left.remove(name)
                if name == "machine:imports" and any(row.state != OK for row in rows):
                    yield Row("the rest", "not looked at", FAIL, "it needs what has failed above")
                    return


def visit(
    argv: Sequence[str], names: tuple[str, ...], folder: str, limit: float
) -> Iterator[tuple[str, list[Row]]]:
    """Checks and their rows by one process, up to the one that it does not survive."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, [*argv], names, folder), daemon=True)
    process.start()
    theirs.close()
    try:
        for name in names:
            try:
                if ours.poll(limit):
                    yield name, ours.recv()
                    continue
                found = f"no answer within {limit:g} s"
            except EOFError:
                process.join()
                found = ended(process.exitcode or 0)
            remedy = "whoever looks at this is stopped or ended by it: try that part by itself"
            yield name, [Row(title(name), found, FAIL, remedy)]
            return
        process.join(END_S)  # libraries take their temporary files away
    finally:
        process.kill()
        process.join()
        ours.close()


def work(line: Connection, argv: list[str], names: tuple[str, ...], folder: str) -> None:
    """In the process: send each check's rows. Nothing is fetched, shown or left behind."""
    die_with_parent()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    offline = any(os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE") for n in OFFLINE)
    os.environ |= {"HF_HUB_OFFLINE": "1", **dict.fromkeys(WRITERS, folder)}
    for name in names:
        line.send([*attempted(title(name), partial(looked_at, name, tuple(argv), offline))])


def looked_at(name: str, argv: tuple[str, ...], offline: bool) -> Iterator[Row]:
    """The rows of a check."""
    module, _, function = name.partition(":")
    look = getattr(importlib.import_module(f"srrl.doctor.{module}"), function)
    return look() if name in MACHINE else look(config_of(argv), offline)


def title(name: str) -> str:
    return name.partition(":")[2].replace("_", " ")


@cache
def config_of(argv: tuple[str, ...]) -> "ConfigDict":
    """The config of a command's flags, by default the one that train.sh would choose here."""
    from srrl.config import load_config
    from srrl.methods import METHODS

    default = GPU_PRESET if gpu_count() else CPU_PRESET
    return load_config(argv, default=default, methods=[*METHODS])


def config(config: "ConfigDict", _: bool) -> Iterator[Row]:
    method = f"method {config.method}, mixed_precision {config.mixed_precision}"
    yield Row("config", f"run {config.run_name!r}, {method}, model {config.pretrained.model}")
