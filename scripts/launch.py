"""Check the command, choose the preset, and run scripts/train.py under accelerate.

    python scripts/launch.py FILE.py:GPU_PRESET CPU_PRESET [train.py's flags] [-- accelerate's]

What train.sh does once Python is set up, with presets of config/stage_process.py. It uses every
visible GPU, or one process on the CPU, unless accelerate's flags say otherwise
(`-- --num_processes 2`, or `-- --config_file FILE` with a file as in config/accelerate). Without
such a file, what `accelerate config` has written on this machine and accelerate's environment
variables are not read. The config is checked before anything heavy is imported; the exit code is
that of train.py, which accelerate's launcher would turn into 1, and a process that dies is reported
in one line. SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal) and SIGQUIT end the trainers and
then this, with one line and 128 + the signal's number; when this dies, they do.
"""

import contextlib
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from srrl.config import COMMAND, REPOSITORY, load_config, resolve
from srrl.elastic import death_of
from srrl.errors import (
    UserError,
    ask_to_stop,
    one_line_errors,
    read_status,
    show_help,
    stopped_by,
)
from srrl.life import (
    ENDING,
    LAUNCHER,
    adopt_orphans,
    die_with_parent,
    end_on_signals,
    handle,
    send_all,
)
from srrl.methods import METHODS
from srrl.run.folder import newest
from srrl.surroundings import LEFT_OVER, gpu_count

TRAIN = REPOSITORY / "scripts" / "train.py"
LOCAL = REPOSITORY / "config" / "accelerate" / "local.yaml"
CONFIG_FILE = re.compile("--config[_-]file")
LAUNCH, TORCHRUN = [sys.executable, "-m", "srrl.elastic"], "torch.distributed.run"
# Between the signal to end and the one that nobody can ignore.
GRACE_S = 4
TRACEBACK = re.compile(rb"\[rank\d+\]:")
CLOSING = re.compile(rb"closing signal")
LAUNCHER_NOISE = re.compile(rb"elastic|closing signal")


def asked_processes(launcher: list[str]) -> int | None:
    """The --num_processes among accelerate's flags. Raises UserError if it is no number."""
    joined = " ".join(launcher)
    given = re.search(r"--num[_-]processes[ =](\S+)", joined)
    if not given:
        return None
    if not given[1].isdigit() or int(given[1]) < 1:
        raise UserError(f"--num_processes {given[1]}: expected a number of at least 1")
    return int(given[1])


def launch_command(launcher: list[str], gpus: int, processes: int | None) -> list[str]:
    """The command that starts the processes, up to the script's name."""
    command = [*LAUNCH, "accelerate.commands.launch", "--quiet"]
    if names_config(launcher):
        return [*command, *launcher]
    if not gpus and (processes or 1) > 1:  # accelerate's own launcher would start one
        return [*LAUNCH, TORCHRUN, "--standalone", f"--nproc_per_node={processes}"]
    processes = processes or max(gpus, 1)
    command += [f"--config_file={LOCAL}", "--num_machines=1", "--dynamo_backend=no"]
    if processes > 1:
        command.append("--multi_gpu")
    if not gpus:
        threads = asked_threads() or os.cpu_count()
        command += ["--cpu", f"--num_cpu_threads_per_process={threads}"]
    return [*command, *launcher, f"--num_processes={processes}"]


def asked_threads() -> int | None:
    """The threads of a process that OMP_NUM_THREADS asks for; of a list the outermost."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdigit() and int(first) else None


def names_config(launcher: list[str]) -> bool:
    """Whether accelerate's flags name a config file."""
    return any(map(CONFIG_FILE.match, launcher))


def found_config(launcher: list[str]) -> list[str]:
    """accelerate's flags, with a config file that only the project has as it is found there."""
    flags = [
        part
        for flag in launcher
        for part in (flag.split("=", 1) if CONFIG_FILE.match(flag) else [flag])
    ]
    return [
        resolve(flag) if CONFIG_FILE.fullmatch(before) else flag
        for before, flag in zip(["", *flags], flags, strict=False)
    ]


def surroundings(launcher: list[str]) -> dict[str, str]:
    """The environment; of accelerate's own variables only beside a config file that is named."""
    if names_config(launcher):
        return dict(os.environ)
    return {name: v for name, v in os.environ.items() if not LEFT_OVER.fullmatch(name)}


def run(
    command: list[str], environment: dict[str, str], processes: int | None, several: bool
) -> tuple[int, str]:
    """Run to the end; several: whether processes are started that meet. Returns (exit code, what
    to say: "" or how a process died)."""
    status = Path(environment["SRRL_STATUS_FILE"])
    if processes and TORCHRUN in command:
        threads = max(1, (os.cpu_count() or 1) // processes)
        environment |= {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": str(asked_threads() or threads),
        }
    # Blocked until there is a handler. One process stays so until train.py takes them: its launcher
    # would answer by a traceback. Several are in sessions of their own: theirs passes them on.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    adopt_orphans()
    process = subprocess.Popen(
        command,
        env=environment | {LAUNCHER: str(os.getpid())},
        stderr=subprocess.PIPE if several else None,
        process_group=0,  # accelerate's launcher does not pass signals on to the trainer
        preexec_fn=partial(begin, several),
    )
    stopped: list[int] = []

    def kill(*_: object) -> None:
        send_group(process.pid, signal.SIGKILL)
        send_all(signal.SIGKILL)

    def end(number: int, _: object) -> None:
        """Once: let the trainers end, also those that have not begun. Again, or where they do not:
        at once."""
        if stopped:
            return kill()
        stopped.append(number)
        ask_to_stop(status, number)
        send_group(process.pid, number)
        signal.alarm(GRACE_S)

    def pause(*_: object) -> None:
        """Ctrl-Z: stop the trainers, too, and go on with them; at once where no shell is there to
        say when."""
        send_all(signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, pause)
        send_all(signal.SIGCONT)

    signal.signal(signal.SIGTSTP, pause)
    signal.signal(signal.SIGALRM, kill)
    handle(end)

    def forward() -> None:
        """Pass the trainers' stderr on, until one has ended badly. Tracebacks of those that miss
        one which has said its error, or which a signal has ended, are left out."""
        tracebacks, ended = [], False
        for line in process.stderr:
            if CLOSING.search(line) and not ended:  # the others may be waiting for it
                ended = True
                late = threading.Timer(GRACE_S, send_all, [signal.SIGKILL, process.pid])
                late.daemon = True
                late.start()
            if TRACEBACK.match(line):
                tracebacks.append(line)
            elif not (ended or stopped or LAUNCHER_NOISE.search(line)):
                show(line)
        died = death_of(status)
        if died and died[1] == 1 and not (stopped or status.exists()):
            show(b"".join(tracebacks))

    def show(text: bytes) -> None:
        sys.stderr.buffer.write(text)
        sys.stderr.flush()

    if several:
        reader = threading.Thread(target=forward, daemon=True)
        reader.start()
    code = process.wait()
    signal.alarm(0)
    handle(signal.SIG_IGN)
    if stopped or code:
        kill()  # nothing of it is left
    if several:
        reader.join(timeout=10)
    number = stopped_by(status)
    if number:
        return 128 + number, "stopped"
    if died := death_of(status):
        return died[1] if died[1] - 128 in ENDING else 1, death(*died)
    return code, ""


def begin(several: bool) -> None:
    """In the child, before it is the command."""
    die_with_parent()
    if several:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def send_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(group, number)


def death(rank: int, code: int) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"process {rank} {how} and the others were stopped"


def main(argv: list[str]) -> int:
    (presets, _, gpu_preset), cpu_preset, *arguments = argv[0].rpartition(":"), *argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, launcher = arguments[:split], found_config(arguments[split + 1 :])
    processes = asked_processes(launcher)
    presets = f"--config={presets}:"
    given = any(a.partition("=")[0] in ("--config", "--resume") for a in arguments)
    typed = shlex.join([*os.environ.get(COMMAND, "python scripts/launch.py").split(), *argv[2:]])
    config = checked(arguments if given else [presets + cpu_preset, *arguments])
    gpus = gpu_count()
    if not given:
        if not gpus:
            print(f"no GPU found: running the embedded preset {cpu_preset!r}", flush=True)
        arguments = [presets + (gpu_preset if gpus else cpu_preset), *arguments]
        config = checked(arguments)

    with tempfile.TemporaryDirectory() as folder:
        status = Path(folder) / "status"
        command = launch_command(launcher, gpus, processes)
        several = bool({TORCHRUN, "--multi_gpu"} & set(command))
        code, how = run(
            [*command, str(TRAIN), *arguments],
            surroundings(launcher) | {"SRRL_STATUS_FILE": str(status), COMMAND: typed},
            processes,
            several or names_config(launcher),
        )
        known = read_status(status)
    if known:
        code, message = known
        print(message, end="\n" if message else "", file=sys.stderr)
    elif code:
        run_folder = Path(config.output_dir) / config.run_name
        how = how if how == "stopped" else f"error: {how or 'training ended early'}"
        saved = any(map(newest, (run_folder, *run_folder.glob("*/"))))
        resumes = f": the same command resumes {run_folder}" if saved else ""
        print(f"{how}{resumes}", file=sys.stderr)
    return 128 - code if code < 0 else code


def checked(arguments: list[str]) -> ConfigDict:
    config = load_config(arguments, methods=[*METHODS])
    METHODS[config.method].load("files")(config)
    return config


def train() -> None:
    """Train Stable Diffusion v1.4 by SRRL; without a GPU, the embedded tiny model.

        srrl-train                                                 the whole job
        srrl-train --config.reflect.rounds=3                       one value
        srrl-train --config config/stage_process.py:tiny+ddpo      presets, one over the other
        srrl-train --config config/rig.py:tiny                     RL-RIG
        srrl-train --resume runs/NAME --config.stages.total=64     a run goes on as it was begun
        srrl-train -- --num_processes 2                            accelerate's flags come after --

    Presets that choose a model: sd14, sdxl, tiny, tiny_xl. Over a model: ddpo, b2diffurl,
    selective, srrl_paper, released. A run is written to runs/NAME below the folder that you are in;
    the same command resumes a run that was stopped. config/... and srrl/... are looked for in that
    folder, then in the package. Exit codes: 0 done; 2 an error, which the last line names; 130
    stopped by Ctrl-C, 143 by SIGTERM, 129 by a closed terminal."""
    os.environ[COMMAND] = "srrl-train"
    command(["config/stage_process.py:sd14", "tiny", *sys.argv[1:]], inspect.getdoc(train))


def command(argv: list[str], text: str) -> None:
    """Run what the arguments say to its end; text: the help."""
    show_help(text, argv)
    with one_line_errors():
        end_on_signals()
        sys.exit(main(argv))


if __name__ == "__main__":
    command(sys.argv[1:], __doc__)
