"""Two gloo processes give what one gives, and a process that dies ends the run clearly."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from srrl.config import REPOSITORY
from srrl.doctor.meet import free_port
from srrl.models.weights import UNET_FILE
from srrl.prompts import load_prompts, stage_prompts
from tests.conftest import PRESET, PROMPTS, small_run
from tests.lines import shown
from tests.slow.commands import flat, logged, lora, run, warm_path

pytestmark = pytest.mark.slow
STAGES = 3  # of 1, 2 and 3 rounds
TWO = ["--", "--num_processes", "2"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # other thread counts round differently
SCRIPTS = {"sd": "train.sh", "sdxl": "train_xl.sh"}


def assert_same_run(one: Path, two: Path, stages: int) -> None:
    """Same images, scores, selections and logs; LoRA weights within 1e-5 relative."""
    for ours, theirs in zip(*(logged(f, "metrics.jsonl") for f in (one, two)), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            tolerance = 1e-5 if key.startswith("ratio/") else 1e-4 * max(1, abs(value))
            assert theirs[key] == pytest.approx(value, abs=tolerance), (key, ours["stage"])
    for ours, theirs in zip(*(logged(f, "eval.jsonl") for f in (one, two)), strict=True):
        assert theirs["scores"] == pytest.approx(ours["scores"], abs=1e-4)
    drawn = [sorted(p.relative_to(f) for p in (f / "samples").rglob("*.png")) for f in (one, two)]
    assert drawn[0] == drawn[1] and drawn[0]
    for page in drawn[0]:
        ours, theirs = (np.asarray(Image.open(f / page), int) for f in (one, two))
        assert (ours == theirs).all(), page
    ours, theirs = flat(lora(one, stages)), flat(lora(two, stages))
    assert (ours - theirs).norm() <= 1e-5 * ours.norm()
    changed = flat(lora(one, 0))
    assert (ours - changed).norm() > 1e-3 * ours.norm()


def one_and_two(folder: Path, stages: int, *options: str, model: str = "sd", **given: str) -> str:
    """The same run by one process and by two, in the folders "one" and "two"; what the two say."""
    preset = {"sd": PRESET, "sdxl": f"{PRESET}_xl"}[model]
    alone = [sys.executable, "scripts/train.py", preset, *small_run(folder / "one", stages)]
    said = run(*alone, *options, **ONE_THREAD, **given).stdout
    assert "1 process" in said
    both = ["bash", SCRIPTS[model], *small_run(folder / "two", stages), *options, *TWO]
    said = run(*both, **ONE_THREAD, **given).stdout
    assert "2 process" in said
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run of two processes, beside one of one; nobody is logged in to wandb."""
    folder = tmp_path_factory.mktemp("two")
    nobody = {"HOME": str(folder), "WANDB_API_KEY": ""}
    said = one_and_two(folder, STAGES, "--config.tracker=wandb", **nobody)
    assert said.count("not logged in to wandb") == 1
    return folder


def test_two_processes_give_what_one_gives(two):
    assert_same_run(two / "one" / "run", two / "two" / "run", STAGES)
    assert not [*two.rglob("wandb_id.txt")]


def test_also_of_sdxl(tmp_path):
    one_and_two(tmp_path, 1, "--config.reflect.max_rounds=3", model="sdxl")
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run", 1)


WAYS = {
    "shared, of what failed": (
        "reflect.rounds=2",
        "reflect.reuse=2",
        "reflect.when=failed",
        "reflect.threshold=0.05",
        "reflect.clamp=true",
    ),
    "beyond the first round": (
        "reflect.rounds=2",
        "reflect.reuse=2",
        "reflect.baseline=0.5",
        "branch.count=1",
        "select.mode=all",
    ),
    "every round by their mean": (
        "reflect.rounds=2",
        "reflect.train_rounds=all",
        "reward.rounds=mean",
        "train.round_weights=linear",
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_also_whatever_is_reflected_and_has_the_credit(name, tmp_path):
    one_and_two(tmp_path, 2, *(f"--config.{value}" for value in WAYS[name]))
    one = tmp_path / "one" / "run"
    assert_same_run(one, tmp_path / "two" / "run", 2)
    if name == "shared, of what failed":
        assert 0 < logged(one, "metrics.jsonl")[0]["reflected"] < 1


def test_two_processes_know_each_others_answers(tmp_path):
    options = ['--config.reward.models={"checker": 1.0}', "--config.reward.backend=worker"]
    one_and_two(tmp_path, 1, *options)
    ours, theirs = (logged(tmp_path / n / "run", "samples.jsonl") for n in ("one", "two"))
    assert len(ours) == len(theirs) == 9
    for one, two in zip(ours, theirs, strict=True):
        answers = one["details"]["checker"]
        assert two["details"]["checker"] == pytest.approx(answers, abs=1e-3) and len(answers) == 3


def test_also_when_one_process_selects_nothing(tmp_path):
    """Only the first prompt's images differ in score, and they are the first process's."""
    prompts = load_prompts("config/prompts/shapes_unconventional_train.json")
    first = stage_prompts(prompts, 0, 3, seed=300)[0]
    (tmp_path / "uneven.py").write_text(
        "class Uneven:\n"
        "    def score(self, images, prompts):\n"
        f"        told = [p == {first!r} for p in prompts]\n"
        "        mean = images.float().mean((1, 2, 3)) / 255\n"
        "        return mean * mean.new_tensor(told)\n"
    )
    models = '--config.reward.models={"uneven:Uneven": 1.0}'
    one_and_two(tmp_path, 1, models, PYTHONPATH=str(tmp_path))
    assert 0 < logged(tmp_path / "one" / "run", "metrics.jsonl")[0]["selected"] <= 2
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run", 1)


def test_a_unet_spread_over_two_processes_trains_like_a_whole_one_and_resumes(tmp_path):
    """All weights of the UNet under FSDP2: the same gradients, images and checkpoints."""

    def train(name: str, stages: int, sharded: bool) -> None:
        options = [
            "--config.use_lora=false",
            "--config.reflect.when=always",
            "--config.sample.batch_size=4",
            "--config.eval.num_prompts=4",
            "--config.train.learning_rate=1e-3",
            "--config.train.adam_epsilon=1e-2",  # else rounding of tiny gradients counts
            "--config.train.final_lr_fraction=1",
            "--config.train.num_inner_epochs=1",
            "--config.train.trajectories_per_update=64",
        ]
        script = ["scripts/train.py"]
        if sharded:
            script = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                "2",
                "tests/slow/sharded.py",
            ]
        run(
            sys.executable,
            *script,
            PRESET,
            *small_run(tmp_path / name, stages),
            *options,
            ACCELERATE_USE_CPU="true",
            **ONE_THREAD,
        )

    train("one", 2, sharded=False)
    train("two", 2, sharded=True)
    shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "run" / "checkpoints" / "stage_0002")
    train("resumed", 2, sharded=True)  # from the first stage's
    one, two, resumed = (tmp_path / name / "run" for name in ("one", "two", "resumed"))
    for ours, theirs in zip(*(logged(f, "metrics.jsonl") for f in (one, two)), strict=True):
        for key, value in ours.items():
            # The second stage draws by weights that have been rounded apart: its scores, which are
            # steep in the pictures, and what is counted are near; the weights are, below.
            if ours["stage"] == 1 or isinstance(value, int) or key.startswith("reward/"):
                loose = {1: 1e-3, 2: 1e-2}[ours["stage"]] * max(1, abs(value))
                assert theirs[key] == pytest.approx(value, abs=loose), (key, ours["stage"])
    unets = [load_file(f / "checkpoints" / "stage_0002" / UNET_FILE) for f in (one, two, resumed)]
    assert (flat(unets[0]) - flat(unets[1])).norm() <= 1e-4 * flat(unets[0]).norm()
    assert all(torch.equal(unets[1][k], unets[2][k]) for k in unets[1])
    start = load_file(one / "checkpoints" / "stage_0000" / UNET_FILE)
    changed = (flat(unets[0]) - flat(start)).norm()
    assert (flat(unets[0]) - flat(unets[1])).norm() <= 0.02 * changed
    images = ["scripts/sample.py", "--checkpoint", two, "--prompts", PROMPTS[0], "--seeds", 3]
    run(sys.executable, *images, "--rounds", 2, "--out", tmp_path / "images")
    assert (tmp_path / "images" / "grid.png").exists()


def process_of_rank(rank: int, run_folder: Path) -> int | None:
    """The pid of a training process of the run, of all its machines; None where there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        here = f"--config.output_dir={run_folder}".encode() in command
        script = len(command) > 2 and b"train.py" in b" ".join(command[1:3])
        if here and script and f"RANK={rank}".encode() in environment:
            return int(folder.name)
    return None


def start(folder: Path, stages: int, *launcher: str, **given: str) -> subprocess.Popen:
    """`bash train.sh` of small_run in a folder, running."""
    return subprocess.Popen(
        ["bash", "train.sh", *small_run(folder, stages), "--config.tracker=none", *launcher],
        cwd=REPOSITORY,
        env={**os.environ, **ONE_THREAD, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, the last line on stderr), which says the same command's way on and is no
    traceback's."""
    _, errors = process.communicate(timeout=1800)
    assert "Traceback" not in errors
    return process.returncode, shown(errors).strip().splitlines()[-1]


def signalled(process: subprocess.Popen, folder: Path, number: int, rank: int = 1) -> None:
    """Send a training process a signal in the third stage."""
    for line in process.stdout:
        if line.startswith("stage 2/"):
            return os.kill(process_of_rank(rank, folder), number)
    raise AssertionError(process.stderr.read())


def test_a_process_killed_mid_stage_ends_the_run_clearly_and_the_same_command_resumes(
    two, tmp_path
):
    process = start(tmp_path, STAGES, *TWO)
    signalled(process, tmp_path, signal.SIGKILL)
    code, last = ended(process)  # it does not wait for the dead one
    assert code == 1
    assert "process 1 was killed by signal 9" in last and "the same command resumes" in last
    again = start(tmp_path, STAGES, *TWO, **warm_path())
    said, _ = again.communicate(timeout=1800)
    assert again.returncode == 0 and "resuming" in said
    whole, killed = two / "two" / "run", tmp_path / "run"
    assert logged(killed, "metrics.jsonl") == logged(whole, "metrics.jsonl")
    assert (flat(lora(whole, STAGES)) == flat(lora(killed, STAGES))).all()


def test_a_process_that_is_stopped_is_named_and_one_alone_goes_on(two, tmp_path):
    process = start(tmp_path, STAGES, "--config.process_timeout=20", *TWO)
    signalled(process, tmp_path, signal.SIGSTOP)
    code, last = ended(process)
    assert code == 2 and last.startswith("error: process 1 of 2 did not answer within 20 s (config")
    assert process_of_rank(1, tmp_path) is None
    alone = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, STAGES)]
    assert "resuming" in run(*alone, "--config.tracker=none", **ONE_THREAD).stdout
    assert_same_run(two / "one" / "run", tmp_path / "run", STAGES)


def test_a_process_that_is_slow_is_named_and_the_same_command_resumes(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "class Slow:\n"
        "    def score(self, images, prompts):\n"
        f"        go = {str(tmp_path / 'go')!r}\n"
        "        while os.environ['RANK'] == '1' and not os.path.exists(go):\n"
        "            time.sleep(0.1)\n"
        "        return images.float().mean((1, 2, 3)) / 255\n"
    )
    given = ['--config.reward.models={"slow:Slow": 1.0}', "--config.eval.every=0"]
    given += ["--config.process_timeout=20", *TWO]
    code, last = ended(start(tmp_path, 1, *given, PYTHONPATH=str(tmp_path)))
    assert code == 2 and last.startswith("error: process 1 of 2 did not answer within 20 s (config")
    (tmp_path / "go").touch()
    again = start(tmp_path, 1, *given, PYTHONPATH=str(tmp_path), **warm_path())
    again.communicate(timeout=1800)
    assert again.returncode == 0 and len(logged(tmp_path / "run", "metrics.jsonl")) == 1


def test_two_nodes_give_what_one_process_gives_and_say_where_one_has_died(two, tmp_path):
    """Two launchers on this machine, by config/accelerate/multi_node.yaml."""

    def nodes(**given: str) -> list[subprocess.Popen]:
        port = free_port()
        flags = ["--", "--config_file", "config/accelerate/multi_node.yaml", "--num_processes=2"]
        flags += ["--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
        return [start(tmp_path, STAGES, *flags, f"--machine_rank={n}", **given) for n in range(2)]

    cpu = {"ACCELERATE_USE_CPU": "true"}
    first, second = nodes(**cpu)
    signalled(first, tmp_path, signal.SIGKILL)
    code, last = ended(second)
    assert code == 1 and "process 1 was killed by signal 9" in last
    code, last = ended(first)
    assert code == 2 and last.startswith("error: process 1 of 2 has ended: its own launcher says")
    for node in nodes(**cpu, **warm_path()):
        node.stdout.read()
        assert node.wait(timeout=1800) == 0, node.stderr.read()
    assert_same_run(two / "one" / "run", tmp_path / "run", STAGES)


def test_a_config_file_for_gpus_without_them_is_one_line(tmp_path):
    text = (REPOSITORY / "config" / "accelerate" / "multi_gpu.yaml").read_text()
    (tmp_path / "two.yaml").write_text(text.replace("num_processes: 8", "num_processes: 2"))
    result = run(
        "bash",
        "train.sh",
        f"--config.output_dir={tmp_path / 'runs'}",
        "--",
        "--config_file",
        tmp_path / "two.yaml",
        check=2,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 2 processes were started, but they found no GPUs")
    assert "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


def test_weights_that_have_come_apart_are_not_saved(tmp_path):
    """One parameter of one process by a millionth: the run stops at the save, the start is kept."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "tests/slow/apart.py", PRESET, *small_run(tmp_path, 1)]
    environment = {**os.environ, **ONE_THREAD, "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "error: the processes' weights have come apart, at " in shown(done.stderr)
    assert "lora_A" in done.stderr and "and 0 more: not saved" in done.stderr
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["stage_0000"]
