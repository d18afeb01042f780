"""Python processes that have imported already: `python warm.py` forks one for each command.

A line on its input names a command's arguments and the files for its output; the lines that it
answers have the process and its exit code. A command then begins in milliseconds instead of the ten
seconds that importing torch, diffusers, transformers and peft takes; from there on it is a process
like any other: its own interpreter state, files, signals and end. It must not have threads before
the fork, so nothing is computed here.
"""

import atexit
import json
import os
import runpy
import sys
import traceback


def imports() -> None:
    import srrl  # noqa: I001  first, as every command does

    import accelerate  # noqa: F401
    import peft  # noqa: F401
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: F401

    import srrl.run.stages  # noqa: F401


def become(
    arguments: list[str], environment: dict[str, str], folder: str, out: str, err: str
) -> int:
    """In the child: run a script as `python SCRIPT ARGUMENTS` does, and return its exit code."""
    os.setsid()
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT),
        (2, err, os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    added = environment.get("PYTHONPATH", "").split(":")
    sys.path[:1] = [os.path.dirname(os.path.abspath(arguments[0])), *filter(None, added)]
    code = 0
    try:
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


def main() -> None:
    imports()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(become(**asked))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
