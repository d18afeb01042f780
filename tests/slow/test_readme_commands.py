"""Every command of the README and the other pages, as printed: run where it can be run here, made
short by flags that come after it; refused in one line where it needs what is not here; or told why
it is left out."""

import shlex
import subprocess
import sys

import pytest
from PIL import Image

from srrl.config import REPOSITORY
from tests.conftest import small_run
from tests.rewards.server import serving
from tests.slow.commands import run as commands_run
from tests.test_readme import README_REWARD, commands

pytestmark = pytest.mark.slow
# A run of seconds, under the name it has by itself.
SHORT = [flag for flag in small_run("runs", 1) if "run_name" not in flag and "output" not in flag]
FEW = ["--num-prompts", "1", "--images", "1"]
RIG_SHORT = [
    "--config.stages.total=1",
    "--config.sample.batch_size=4",
    "--config.phase.actor.group=2",
    "--config.phase.editor.group=2",
    "--config.eval.every=0",
]
SHORTENED = {
    "train.sh": SHORT,
    "train_xl.sh": SHORT,
    "train_rig.sh": RIG_SHORT,
    "doctor.py": SHORT,
    "evaluate.py": FEW,
    "sweep.py": ["--dry-run"],
    "rig.py draw": ["--images", "1"],
    "rig.py evaluate": ["--num-prompts", "1", "--config.evaluate.images=1"],
}
LEFT_OUT = {
    "source .venv": "the shell's own",
    "bash scripts/test.sh": "it is running",
    "git clone": "the hub's",
    "pip install .": "tests/slow/test_package.py installs a wheel",
    "srrl-train": "tests/slow/test_package.py runs it, installed",
    "pytest tests/test_fidelity.py": "it is one of the tests",
    "study.py": "hours; tests/slow/test_study.py runs short ones, and the one of RESULTS.md",
    "sd14+released": "a GPU and the published models; the fast tests check its config",
    "stages.total=16": "half an hour; the one of 1 stage that is on another page is run",
    "runs/checker_300": "of that run",
    "vllm serve": "another program",
    "gpu_report.py": "tests/slow/test_report.py runs it",
    "--out runs/compare": "of two runs; tests/slow/test_report_page.py compares two",
    "runs/lr/*": "of six runs, by the shell's *; tests/slow/test_sweep.py shows a sweep again",
    "--watch": "goes on until Ctrl-C; tests/slow/test_report_page.py stops it",
    "demo.py": "goes on until Ctrl-C; tests/slow/test_demo_page.py stops it",
    "multi_node.yaml": "several hosts with GPUs",
    "fsdp.yaml": "several GPUs; tests/slow/test_processes.py runs FSDP over two CPU processes",
    "sdxl --card all": "minutes; tests/slow/test_plan.py asks for one card",
    "random:sd14": "full size; tests/slow/test_full_size.py runs the architectures",
}
SERVER = "localhost:8000"  # the pages' server, for which the test has one on a free port
REFUSED = {
    "/path/to/pipeline": "/path/to/pipeline",
    "fp16-fix": "hf download madebyollin/sdxl-vae-fp16-fix",
    "a.png b.png": "hf download",
    "cuda:1": "holds a run with config.reward.options={}",
}
EVERY = [c for c in commands() if c and not any(name in shlex.join(c) for name in LEFT_OUT)]


def arguments(command: list[str]) -> list[str]:
    """The command with its shortening flags, before accelerate's."""
    text = shlex.join(command)
    shorter = next((flags for name, flags in SHORTENED.items() if name in text), [])
    split = command.index("--") if "--" in command else len(command)
    interpreter = {"python": sys.executable}.get(command[0], command[0])
    return [interpreter, *command[1:split], *shorter, *command[split:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a user sees in the clone, with a trained runs/tiny."""
    folder = tmp_path_factory.mktemp("my clone")
    for name in ("scripts", "config", "srrl", "docs", "train.sh", "train_xl.sh", "train_rig.sh"):
        (folder / name).symlink_to(REPOSITORY / name)
    (folder / "my_reward.py").write_text(README_REWARD)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), "green").save(folder / name)
    assert run(["bash", "train.sh"], folder).returncode == 0
    return folder


def run(command: list[str], folder) -> subprocess.CompletedProcess:
    return commands_run(*arguments(command), check=None, folder=folder)


@pytest.mark.parametrize("command", EVERY, ids=shlex.join)
def test_it_does_what_the_readme_says(command, folder):
    text = shlex.join(command)
    refused = next((said for name, said in REFUSED.items() if name in text), None)
    if SERVER in text:
        with serving() as server:
            here = [part.replace(SERVER, f"localhost:{server.server_port}") for part in command]
            result = run([*here, "--config.run_name=by_api"], folder)
    else:
        result = run(command, folder)
    if refused:
        assert result.returncode == 2 and refused in result.stderr, result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    else:
        assert result.returncode == 0, result.stderr


def test_what_is_left_out_is_in_the_readme():
    texts = [shlex.join(c) for c in commands() if c]
    for name in [*LEFT_OUT, *REFUSED]:
        assert any(name in text for text in texts), name
