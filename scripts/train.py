"""Train a diffusion model by SRRL, or RL-RIG's actor and editor.

    accelerate launch scripts/train.py --config config/stage_process.py:sd14
    accelerate launch scripts/train.py --config config/stage_process.py:tiny --config.seed=7
    accelerate launch scripts/train.py --config config/rig.py:sd14
    accelerate launch scripts/train.py --resume runs/tiny --config.stages.total=64

`bash train.sh` and `bash train_rig.sh` do this with the right preset. The same command resumes a
run that was stopped. Every knob is explained in the config's file.
"""

import gc
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

from ml_collections import ConfigDict

from srrl.config import flatten, load_config
from srrl.errors import UserError, one_line_errors, report, show_help, stop_if_asked
from srrl.life import end_in_calls, end_on_signals, follow_launcher
from srrl.methods import METHODS
from srrl.surroundings import MEET_S, check_precision, started, told

# Seconds that wandb has to begin a run, and to take what is left at its end.
START_S, END_S = 15, 25


@contextmanager
def meeting() -> Iterator[None]:
    """While this process meets the others that its environment tells of: it says what it waits for,
    and ends where they do not come. Raises UserError for an environment that cannot be."""
    others = told()
    patience = int(others.pop(MEET_S, 300))
    if started() == 1:
        yield
        return
    where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    about = ", ".join([*(f"{name}={value}" for name, value in others.items()), f"at {where}"])
    remedy = f"start all of them (bash train.sh does), or unset {', '.join(others)}"

    def give_up() -> None:
        report(f"not all processes of {about} came within {patience} s ({MEET_S}): {remedy}")
        os._exit(2)

    late = [
        Timer(
            min(10, patience / 2), print, [f"waiting for the processes of {about}"], {"flush": True}
        ),
        Timer(patience, give_up),
    ]
    for timer in late:
        timer.daemon = True
        timer.start()
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the processes of {about} cannot meet ({reason}): {remedy}") from error
    finally:
        for timer in late:
            timer.cancel()


def start_tracker(config: ConfigDict, accelerator: Any, folder: Path) -> None:
    """Let the main process log to config.tracker, too. Where that fails, it says so in a line."""
    from srrl.run.tracking import folder_only

    name = config.tracker
    if name == "none" or not accelerator.is_main_process:
        return
    values = {k: v if isinstance(v, int | float) else str(v) for k, v in flatten(config).items()}
    try:
        settings = {"wandb": wandb_settings(folder)} if name == "wandb" else {}
        accelerator.init_trackers("srrl", config=values, init_kwargs=settings)
        if not accelerator.trackers:
            raise UserError(f"{name} is not installed")
    except Exception as error:
        accelerator.trackers = []
        print(folder_only(name, error), flush=True)


def wandb_settings(folder: Path) -> dict[str, Any]:
    """For wandb.init: a run that goes on goes on there, too. Raises UserError where nobody is
    logged in, or the server is away."""
    import wandb

    from srrl.run.checkpoint import write_atomic
    from srrl.run.tracking import check_wandb

    check_wandb()
    file = folder / "wandb_id.txt"
    if not file.exists():
        write_atomic(file, f"{secrets.token_hex(8)}\n")
    run = file.read_text(encoding="utf-8").strip()
    patience = wandb.Settings(init_timeout=START_S, finish_timeout=END_S)
    name, where = folder.name, str(folder)
    return {"name": name, "dir": where, "id": run, "resume": "allow", "settings": patience}


def plan_line(config: ConfigDict, pipe: Any, accelerator: Any) -> str:
    """What the run will take (scripts/plan.py); that it cannot be counted never stops a run."""
    import torch

    from srrl.measure.bill import GIB, SHARE
    from srrl.measure.biller import Biller
    from srrl.measure.cards import card_of
    from srrl.measure.show import one_line

    cuda, n = accelerator.device.type == "cuda", accelerator.num_processes
    fsdp = "FSDP" in str(accelerator.distributed_type)
    try:
        bill = Biller(config, cuda, n, fsdp, pipe).bill()
    except Exception as error:
        return f"plan: not counted ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
    if not cuda:
        return one_line(bill)
    seen = torch.cuda.get_device_properties(accelerator.device)
    return one_line(bill, card_of(seen.name, seen.total_memory / GIB), SHARE, n)


def main(argv: list[str]) -> None:
    config = load_config(argv, methods=[*METHODS])
    METHODS[config.method].load("files")(config)

    from accelerate import Accelerator

    from rewards import check_names
    from srrl.models.start import start_file
    from srrl.run.checkpoint import check_same_run, newest
    from srrl.run.distributed import together, waiting_at_most

    folder = Path(config.output_dir) / config.run_name
    check_same_run(folder, config)
    if config.pretrained.get("lora") and not newest(folder):
        start_file(config.pretrained.lora)
    # Before the device is looked at.
    check_names(config.reward.models, config.reward.options.to_dict())
    log_with = None if config.tracker == "none" else config.tracker
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UserError(
            "DeepSpeed is not supported: spread the UNet by config/accelerate/fsdp.yaml"
        )
    with meeting():
        waiting = waiting_at_most(config.process_timeout)
        accelerator = Accelerator(log_with=log_with, project_dir=folder, kwargs_handlers=[waiting])
    if accelerator.num_processes != started():
        raise UserError(
            f"{started()} processes were started, but they found no GPUs to meet on: on a CPU "
            f"launch with `-- --num_processes {started()}` alone, or set ACCELERATE_USE_CPU=true"
        )
    check_precision(accelerator.device.type, config.mixed_precision)
    with together(accelerator, config.process_timeout):
        train(config, accelerator, folder)


def report_of(folder: Path, config: ConfigDict, tracker: Any) -> None:
    """Write the run's page, if config.report asks for it; a run does not fail for it."""
    if not config.report:
        return
    with tracker.drawn(folder / "report.html", "the report"):
        from srrl.report.page import write_report

        tracker.say(f"open {write_report([folder], folder)}: all of it on one page")


def train(config: ConfigDict, accelerator: Any, folder: Path) -> None:
    """The run, from the lock on its folder to its last line."""
    from srrl.run import environment
    from srrl.run.checkpoint import leaving_nothing, lock
    from srrl.run.tracking import Tracker

    with leaving_nothing(folder):
        locked = lock(folder) if accelerator.is_main_process else None  # open until the run ends
        tracker = Tracker(folder, accelerator)
        run = METHODS[config.method].load()(config, accelerator, tracker)
    start_tracker(config, accelerator, folder)
    n = accelerator.num_processes
    processes = f"{n} process{'es' if n > 1 else ''}"
    tracker.say(f"{folder}: {config.pretrained.model} on {accelerator.device}, {processes}")
    tracker.say(run.describe())
    # Of the method that plan.py knows.
    if accelerator.is_main_process and config.method == "srrl" and config.plan:
        tracker.say(plan_line(config, run.trainee.pipe, accelerator))
    if accelerator.is_main_process:
        environment.begin(folder, config, accelerator)
    gc.freeze()  # what has been loaded stays: no garbage is looked for in it
    begun = time.monotonic()
    run.run()
    if accelerator.is_main_process:
        environment.end(folder, begun)
        report_of(folder, config, tracker)
    tracker.finish()
    if locked:
        locked.close()


if __name__ == "__main__":
    show_help(__doc__, sys.argv[1:])
    with one_line_errors():
        end_on_signals()
        end_in_calls()
        follow_launcher()
        stop_if_asked()
        main(sys.argv[1:])
