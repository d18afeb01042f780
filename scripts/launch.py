"""Check the command, choose the preset, and run scripts/train.py under accelerate.

    python scripts/launch.py GPU_PRESET CPU_PRESET [train.py's flags] [-- accelerate's flags]

What train.sh does once Python is set up. The config is checked before anything heavy is
imported; the exit code is that of train.py, which accelerate's launcher would turn into 1.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from srrl.config import REPOSITORY, check_files, load_config
from srrl.errors import one_line_errors

TRAIN = REPOSITORY / "scripts" / "train.py"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def default_launch(gpu: bool) -> list[str]:
    """accelerate's flags for one process on the first GPU, or on the CPU."""
    flags = ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    return flags if gpu else [*flags, "--cpu", f"--num_cpu_threads_per_process={os.cpu_count()}"]


def main(argv: list[str]) -> int:
    gpu_preset, cpu_preset, *arguments = argv
    split = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, launcher = arguments[:split], arguments[split + 1 :]
    presets = "--config=config/stage_process.py:"
    given = any(a.partition("=")[0] == "--config" for a in arguments)
    check_files(load_config(arguments if given else [presets + cpu_preset, *arguments]))
    gpu = has_gpu()
    if not given:
        if not gpu:
            print(f"no GPU found: running the embedded preset {cpu_preset!r}", flush=True)
        arguments = [presets + (gpu_preset if gpu else cpu_preset), *arguments]
        check_files(load_config(arguments))

    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
        command += launcher or default_launch(gpu)
        process = subprocess.Popen(
            [*command, str(TRAIN), *arguments],
            env={**os.environ, "SRRL_STATUS_FILE": str(status)},
            process_group=0,  # accelerate's launcher does not pass signals on to the trainer
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: os.killpg(process.pid, received))
        code = process.wait()
        return int(status.read_text()) if status.exists() else code


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
