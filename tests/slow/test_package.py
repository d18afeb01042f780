"""The wheel: what is in it, and that it trains, draws, evaluates and scores without a checkout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from PIL import Image

from srrl.config import REPOSITORY
from tests import lines
from tests.conftest import PROMPTS, small_run
from tests.slow.commands import logged
from tests.test_readme import README_REWARD

pytestmark = pytest.mark.slow
COPIED = ("srrl", "rewards", "config", "scripts", "tests", "docs")
SHIPPED = {"srrl": "*", "rewards": "*.py", "config": "*", "scripts": "*.py"}
PROJECT = ("pyproject.toml", "README.md", "LICENSE")
WITHOUT_PATH = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
HELDOUT = "config/prompts/shapes_unconventional_heldout.json"
# Of each process of the environment, in {folder}: the project's modules, and where they are.
RECORD = """
import atexit, os, sys

def record():
    ours = ("srrl", "rewards", "config", "scripts")
    with open(f"{folder}/{os.getpid()}", "w") as file:
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in ours and getattr(module, "__file__", None):
                print(module.__file__, file=file)

atexit.register(record)
"""


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    # With the checkout on the path pip would find the project there.
    done = subprocess.run(command, env=WITHOUT_PATH, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project's files by themselves."""
    folder = tmp_path_factory.mktemp("copy")
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in PROJECT:
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(copy, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", copy, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """One with the wheel, which finds this one's other packages, but not what is installed as
    editable here; its processes leave their record in its folder `record`."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "shared.pth").write_text("\n".join(shared))
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (folder / "record").mkdir()
    (site / "recorded.py").write_text(f"folder = {str(folder / 'record')!r}\n{RECORD}")
    (site / "recorded.pth").write_text("import recorded\n")
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def run(
    environment: Path, folder: Path, command: str, *arguments: object, code: int = 0
) -> subprocess.CompletedProcess:
    """A console command in a folder, which must end with an exit code."""
    done = subprocess.run(
        [environment / "bin" / command, *map(str, arguments)],
        cwd=folder,
        env=WITHOUT_PATH,
        capture_output=True,
        text=True,
    )
    lines.shown(done.stdout + done.stderr)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_wheel_has_the_code_and_its_data_and_nothing_else(copy, wheel):
    files = [
        file.relative_to(copy)
        for room, wanted in SHIPPED.items()
        for file in (copy / room).rglob(wanted)
        if file.is_file() and file.suffix != ".md"
    ]
    below = {"config": "srrl/repository/", "scripts": "srrl/repository/"}
    expected = {below.get(file.parts[0], "") + str(file) for file in files}
    shipped = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert shipped == expected
    assert wheel.stat().st_size < 32 * 2**20


def test_it_trains_draws_evaluates_and_scores_without_a_checkout(environment, elsewhere):
    """Two processes train. Prompt files and rewards are found here, then in the package."""
    flags = [flag for flag in small_run(elsewhere, 1) if "output_dir" not in flag]
    run(environment, elsewhere, "srrl-train", *flags, "--", "--num_processes", 2)
    folder = elsewhere / "runs" / "run"
    assert [line["stage"] for line in logged(folder, "metrics.jsonl")] == [1]
    (made,) = json.loads((folder / "environment.json").read_text())
    assert made["command"].startswith("srrl-train ") and made["processes"] == 2
    assert made["commit"] is None

    given = ["--limit", 1, "--seeds", 0, "--rounds", 1]
    given += ["--prompts-file", HELDOUT]
    run(environment, elsewhere, "srrl-sample", "--checkpoint", "runs/run", *given)
    (drawn,) = json.loads((elsewhere / "outputs" / "samples.json").read_text())
    assert drawn["prompt"] == json.loads((REPOSITORY / HELDOUT).read_text())[0]
    assert Image.open(elsewhere / "outputs" / drawn["image"]).size == (32, 32)

    (elsewhere / "mine.json").write_text(json.dumps(PROMPTS[:1]))
    given = ["--prompts", "mine.json", "--images", 1, "--samplers", "plain"]
    run(environment, elsewhere, "srrl-evaluate", "--checkpoints", "runs/run", *given)
    table = json.loads((elsewhere / "runs" / "evaluation" / "table.json").read_text())
    assert table and (elsewhere / "runs" / "evaluation" / "grid.png").exists()

    (elsewhere / "my_reward.py").write_text(README_REWARD)
    rewards = ["shapes", "my_reward.py:Brightness"]
    given = ["--rewards", *rewards, "--json", "scores.json"]
    run(environment, elsewhere, "srrl-score", "outputs", *given)
    (scored,) = json.loads((elsewhere / "scores.json").read_text())
    assert scored["shapes"] == pytest.approx(drawn["scores"][-1]["shapes"], abs=1e-5)
    assert set(rewards) <= scored.keys()

    files = {
        Path(line)
        for record in (environment / "record").iterdir()
        for line in record.read_text().splitlines()
    }
    assert {"trainer.py", "elastic.py", "sample.py"} <= {file.name for file in files}
    assert not [file for file in files if not file.is_relative_to(environment)]


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        ("srrl-train", ["--config.seed=x"], "--config.seed=x: expected int"),
        ("srrl-sample", ["--nope"], "`srrl-sample --help` shows"),
        ("srrl-evaluate", ["--images", 0], "--images 0: at least 1"),
        ("srrl-score", ["none.png", "--prompt", "x"], "'none.png'"),
        ("srrl-doctor", ["--config", "none.py"], "no file 'none.py'"),
    ],
)
def test_bad_input_is_one_line(command, arguments, said, environment, tmp_path):
    done = run(environment, tmp_path, command, *arguments, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_the_doctor_reads_the_pins_off_the_package(environment, tmp_path):
    code = "import json, srrl.doctor.machine as m; print(json.dumps(m.pins()))"
    done = run(environment, tmp_path, "python", "-c", code)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert json.loads(done.stdout) == dict(pin.split("==") for pin in project["dependencies"])
