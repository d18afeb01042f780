"""What a machine has around a run: an old `accelerate config`, a tracker that is away, limits on
files, folders that are none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.launch import asked_threads, launch_command, surroundings
from srrl.config import REPOSITORY
from srrl.doctor.meet import free_port
from tests.conftest import PRESET, small_run
from tests.slow.commands import logged, lora, run

pytestmark = pytest.mark.slow
CONFIGS = {
    "deepspeed": "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}\nnum_machines: 1",
    "fsdp": "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\nnum_machines: 1",
    "machines": "distributed_type: MULTI_GPU\nnum_machines: 2\nmachine_rank: 1\n"
    "main_process_ip: 10.0.0.1\nmain_process_port: 29500",
    "half": "distributed_type: 'NO'\nmixed_precision: fp16\ngpu_ids: '3'\nnum_machines: 1\n"
    "dynamo_config: {dynamo_backend: INDUCTOR}\ndebug: true",
    "sagemaker": "compute_environment: AMAZON_SAGEMAKER\nimage_uri: x",
    "torn": "distributed_type: [",
}
VARIABLES = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "FSDP_OFFLOAD_PARAMS": "true",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
}
# What the launched process finds: accelerate's state, and what its launcher has set.
PROBE = """
import json, os
from accelerate import Accelerator
a = Accelerator()
keys = [k for k in os.environ if k.startswith(("ACCELERATE_USE", "FSDP", "CUDA_VISIBLE"))]
print(json.dumps([str(a.distributed_type), a.num_processes, a.mixed_precision, str(
    a.state.dynamo_plugin.backend), a.gradient_accumulation_steps, keys]))
"""
PLAIN = ["DistributedType.NO", 1, "no", "NO", 1, ["ACCELERATE_USE_CPU"]]
KEY = "a" * 40


def configured(folder: Path, text: str) -> dict[str, str]:
    """An environment with an `accelerate config` of these lines, in a home of its own."""
    (folder / "home" / "accelerate").mkdir(parents=True)
    text = f"compute_environment: LOCAL_MACHINE\nnum_processes: 4\n{text}\n"
    (folder / "home" / "accelerate" / "default_config.yaml").write_text(text)
    return {"HF_HOME": str(folder / "home"), **VARIABLES}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_gpu_would_be_launched_with_knows_nobodys_config(name, tmp_path, monkeypatch):
    """By the command for one GPU, which would read the machine's config; it runs on a CPU, too."""
    (tmp_path / "probe.py").write_text(PROBE)
    for key, value in configured(tmp_path, CONFIGS[name]).items():
        monkeypatch.setenv(key, value)
    command = [*launch_command([], gpus=1, processes=None), tmp_path / "probe.py"]
    launched = subprocess.run(command, env=surroundings([]), capture_output=True, text=True)
    assert launched.returncode == 0, launched.stderr
    assert json.loads(launched.stdout.splitlines()[-1]) == PLAIN
    chosen = surroundings(["--config_file", "own.yaml"])  # who names one knows what they do
    assert chosen["ACCELERATE_USE_FSDP"] == "true"


def test_what_another_launcher_has_left_is_not_read(tmp_path):
    """MPI's ranks, and OpenMP's threads in a list or empty."""
    for number, left in enumerate(({"PMI_SIZE": "2", "PMI_RANK": "1"}, {"OMP_NUM_THREADS": "1,1"})):
        command = [
            sys.executable,
            "scripts/launch.py",
            "config/stage_process.py:sd14",
            "tiny",
            *small_run(tmp_path, 1),
        ]
        run(*command, f"--config.run_name=run{number}", **left)


@pytest.mark.parametrize(
    ("given", "threads"), [("4,2", 4), ("", None), ("x", None), ("0", None), (" 3 ", 3)]
)
def test_threads_that_are_asked_for(given, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert asked_threads() == threads


def test_a_run_beside_an_old_accelerate_config_is_the_run_without(tmp_path):
    environment = configured(tmp_path, CONFIGS["deepspeed"])
    run("bash", "train.sh", *small_run(tmp_path / "with", 1), **environment)
    run(sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path / "without", 1))
    one, other = (lora(tmp_path / folder / "run", 1) for folder in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in other)


def trained(folder: Path, tracker: str, **environment: str) -> list[str]:
    """What a small run with a tracker says; it must reach its end without a traceback."""
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(folder, 1)]
    given = {"HOME": str(folder), "PYTHONPATH": f"{folder / 'site'}:{REPOSITORY}", **environment}
    ended = run(*command, f"--config.tracker={tracker}", **given)
    assert "Traceback" not in ended.stderr
    assert [line["stage"] for line in logged(folder / "run", "metrics.jsonl")] == [1]
    return [line for line in ended.stdout.splitlines() if "logging to the run's folder" in line]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "wandb's server http://127.0.0.1:9 does not answer: ",
        ),
        ({"WANDB_API_KEY": "short"}, "wandb failed (WANDB_API_KEY invalid: API key must have 40"),
        ({"WANDB_MODE": "sometimes"}, "wandb failed (1 validation error for Settings mode Input"),
        ({}, "not logged in to wandb: "),
        ({"WANDB_MODE": "disabled"}, None),
    ],
)
def test_wandb_that_cannot_be_logged_to_is_one_line(environment, said, tmp_path):
    lines = trained(tmp_path, "wandb", **environment)
    assert len(lines) == (said is not None)
    assert said is None or lines[0].startswith(said)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_that_is_broken_is_one_line(tracker, tmp_path):
    package = tmp_path / "site" / tracker
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('half installed')")
    assert trained(tmp_path, tracker) == [
        f"{tracker} failed (half installed): logging to the run's folder only"
    ]


def test_a_server_that_dies_does_not_end_the_run(tmp_path):
    server = subprocess.Popen(
        [sys.executable, "tests/slow/server.py"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    assert trained(tmp_path, "wandb", WANDB_API_KEY=KEY, WANDB_BASE_URL=url) == []
    assert server.wait(10) == 0
    assert list((tmp_path / "run" / "wandb").glob("run-*/*.wandb"))  # for `wandb sync`


def limited(blocks: int, *command: object, check: int = 2) -> subprocess.CompletedProcess:
    """Run where no file may be larger than so many KiB."""
    limit = f'ulimit -f {blocks}; exec "$@"'
    return run("bash", "-c", limit, "bash", *command, check=check, cold=True)


@pytest.mark.parametrize(("blocks", "whole"), [(2, []), (80, []), (300, ["stage_0000"])])
def test_a_limit_on_files_is_one_line_and_resuming_is_said_only_where_it_does(
    blocks, whole, tmp_path
):
    """Of config.json (2.4 kB), the first LoRA (149 kB) and the optimizer's state (528 kB)."""
    command = ["bash", "train.sh", *small_run(tmp_path, 1), "--config.tracker=none"]
    said = limited(blocks, *command).stderr.splitlines()
    assert len(said) == 1 and "larger than is allowed" in said[0] and "resume" not in said[0]
    assert str(tmp_path / "run") in said[0] and said[0].endswith("and run the same command again")
    saved = sorted(p.name for p in (tmp_path / "run").glob("checkpoints/stage_????"))
    assert saved == whole
    again = run(sys.executable, "scripts/train.py", PRESET, *command[2:])
    assert ("resuming" in again.stdout) == bool(whole)
    assert (tmp_path / "run" / "checkpoints" / "stage_0001").is_dir()


def test_scripts_that_do_not_resume_do_not_say_so(tmp_path):
    sample = [sys.executable, "scripts/sample.py", "--config", "config/stage_process.py:tiny"]
    sample += ["--prompt", "x", "--no-score", "--out", tmp_path / "out"]
    said = limited(2, *sample).stderr
    assert len(said.splitlines()) == 1 and "larger than is allowed" in said
    assert "resume" not in said


def test_where_nothing_can_be_written_is_one_line_before_a_model_is_loaded(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "run").touch()
    foreign = tmp_path / "hub" / "run"
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    scripts = {name: [sys.executable, f"scripts/{name}.py"] for name in ("sample", "score")}
    sample = [*scripts["sample"], "--config", "config/stage_process.py:tiny", "--prompt", "x"]
    score = [*scripts["score"], REPOSITORY / "docs", "--prompt", "x", "--json"]
    evaluate = [sys.executable, "scripts/evaluate.py", "--out"]
    nowhere, train = Path("/proc/nowhere"), [sys.executable, "scripts/train.py", PRESET]
    for command, said in (
        ([*train, *small_run(tmp_path)], f"{tmp_path / 'run'} (config.output_dir and"),
        ([*train, *small_run(file)], f"{file / 'run'} (config.output_dir and run_name"),
        ([*train, *small_run(nowhere)], f"{nowhere / 'run'} (config.output_dir and"),
        ([*train, *small_run(foreign.parent)], f"{foreign / 'config.json'} is not wh"),
        ([*sample, "--out", file], f"--out {file}: there is a file of this name"),
        ([*evaluate, nowhere], f"--out {nowhere}: cannot be written to"),
        ([*score, tmp_path], f"--json {tmp_path}: cannot be written (is a directory)"),
        ([*score, file / "x"], f"--json {file / 'x'}: there is a file of this name"),
    ):
        refused = run(*command, check=2)
        assert len(refused.stderr.splitlines()) == 1 and said in refused.stderr, refused.stderr
        assert "plan:" not in refused.stdout
    assert os.listdir(foreign) == ["config.json"]


MET = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "SRRL_MEET_S": "4"}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "came within 4 s (SRRL_MEET_S): sta"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}, "RANK=1, LOCAL_RANK=1, at 127.0.0.1"),
        ({"WORLD_SIZE": "2", "RANK": "7", "LOCAL_RANK": "0"}, "RANK=7, LOCAL_RANK=0, at 127.0.0.1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment: a number, or unset it"),
        ({"SRRL_MEET_S": "soon"}, "SRRL_MEET_S=soon in the environment: a number, or unset it"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE= in the environment: a number, or unset it"),
        ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "PMI_SIZE=2, PMI_RANK=1, at 127.0.0.1"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2"}, None),
    ],
)
def test_a_process_that_waits_for_others_says_so_and_ends(environment, said, tmp_path):
    """As from a cluster's script that sets what belongs to another launcher."""
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, 1)]
    given = {**MET, "MASTER_PORT": str(free_port()), **environment}
    ended = run(*command, check=2 if said else 0, **given)
    if said:
        assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: ")
        assert said in ended.stderr


def test_a_process_that_waits_for_others_hears_a_signal(tmp_path):
    """Inside a library's call, in which Python's handlers are not."""
    command = [sys.executable, "-u", "scripts/train.py", PRESET, *small_run(tmp_path, 1)]
    given = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "SRRL_MEET_S": "600"}
    waiting = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **MET, "MASTER_PORT": str(free_port()), **given},
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in waiting.stdout:
        if line.startswith("waiting for the processes of WORLD_SIZE=2, RANK=0"):
            waiting.send_signal(signal.SIGTERM)
    assert waiting.wait() == 128 + signal.SIGTERM
