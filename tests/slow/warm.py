"""Python processes that have imported already: `python warm.py SOCKET` forks one for each command
that tests/slow/ask.py asks for.

A command then begins in milliseconds instead of the seconds that importing torch, diffusers,
transformers and peft takes; from there on it is a process like any other: its own interpreter
state, files, signals and end. There must be no threads before the fork: nothing is computed here.
"""

import atexit
import contextlib
import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import sys
import traceback
from pathlib import Path

REPOSITORY = Path(__file__).parents[2].resolve()
MODULES = ["-m", "srrl.elastic"], ["-m", "torch.distributed.run"]
# Variables that nothing reads while the libraries are imported.
LATE = re.compile(
    r"(WANDB|PYTEST|SRRL|SLURM|MASTER|PMI|WORLD|LOCAL|GROUP|ROLE|TORCHELASTIC|ACCELERATE|FSDP)_\w+"
    r"|HOME|PATH|PYTHONPATH|RANK|COLUMNS|OLDPWD|PWD|SHLVL|_|PYTHON|TORCH_NCCL_\w+|KMP_\w+"
)


def imports() -> None:
    gc.disable()
    import srrl  # noqa: I001  first, as every command does

    import accelerate.commands.launch  # noqa: F401
    import peft  # noqa: F401
    import torch.distributed.run  # noqa: F401
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401

    import srrl.run.stages  # noqa: F401

    gc.freeze()
    gc.enable()


def fits(arguments: list[str], environment: dict[str, str], folder: str) -> bool:
    """Whether a command is the same one here: what it runs, and what it has set."""
    script = Path(folder, arguments[0]).resolve()
    ours = any(script.is_relative_to(REPOSITORY / room) for room in ("scripts", "tests"))
    changed = {name for name, _ in environment.items() ^ os.environ.items()}
    paths = environment.get("PYTHONPATH", "").split(":")
    others = any(Path(folder, path, "diffusers").is_dir() for path in paths)
    return (ours or arguments[:2] in MODULES) and all(map(LATE.fullmatch, changed)) and not others


def become(arguments: list[str], environment: dict[str, str], folder: str, executable: str) -> int:
    """In the child: run `EXECUTABLE ARGUMENTS` as python does, and return its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable, code = executable, 0
    module = arguments[0] == "-m"
    sys.argv = arguments[module:]
    added = environment.get("PYTHONPATH", "").split(":")
    first = folder if module else os.path.dirname(os.path.abspath(arguments[0]))
    sys.path[:1] = [first, *filter(None, added)]
    try:
        if module:
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def asked(one: socket.socket) -> tuple[dict, list[int]]:
    """What somebody asks for, and their three streams."""
    text, streams, _, _ = socket.recv_fds(one, 1 << 16, 3)
    while not text.endswith(b"\n"):
        more = one.recv(1 << 16)
        if not more:
            raise ConnectionError("who asks has gone")
        text += more
    return json.loads(text), streams


def fork(given: dict, streams: list[int]) -> int:
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        sys.stdin = os.fdopen(0)
        os._exit(become(**given))
    return child


def serve(address: str) -> None:
    """Until the one who started this has closed its standard input."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    ended, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    askers: dict[socket.socket, int] = {}
    print("ready", flush=True)
    while True:
        ready = select.select([0, listener, ended, *askers], [], [])[0]
        for source in ready:
            if source == 0:
                return
            if source == ended:
                os.read(ended, 1 << 10)
                while pair := waited():
                    child, status = pair
                    for one in [one for one, pid in askers.items() if pid == child]:
                        del askers[one]
                        tell(one, status)
                        one.close()
            elif source == listener:
                one, _ = listener.accept()
                given, streams = asked(one)
                if fits(given["arguments"], given["environment"], given["folder"]):
                    askers[one] = fork(given, streams)
                else:
                    tell(one, "no")
                    one.close()
                for stream in streams:
                    os.close(stream)
            elif source in askers:
                heard = b""  # where the asker is gone; else signals
                with contextlib.suppress(ConnectionError):
                    heard = source.recv(16)
                for number in heard.split() or [signal.SIGKILL]:
                    os.kill(askers[source], int(number))
                if not heard:
                    del askers[source]
                    source.close()


def waited() -> tuple[int, int] | None:
    """A child that has ended, and its exit code."""
    try:
        child, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (child, os.waitstatus_to_exitcode(status)) if child else None


def tell(one: socket.socket, said: object) -> None:
    with contextlib.suppress(OSError):  # they are gone
        one.sendall(f"{said}\n".encode())


if __name__ == "__main__":
    imports()
    serve(sys.argv[1])
