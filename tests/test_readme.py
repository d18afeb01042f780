"""What the README prints works as printed."""

import re
import shlex
import sys

import pytest

from srrl.config import REPOSITORY, load_config
from srrl.methods import METHODS
from tests.conftest import PRESET, small_run
from tests.slow.commands import run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
README_REWARD = next(block for block in BLOCKS if "score(" in block)


def commands() -> list[list[str]]:
    """Every command of the README's bash blocks, without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


TINY = {
    "train.sh": "config/stage_process.py:tiny",
    "train_xl.sh": "config/stage_process.py:tiny_xl",
    "train_rig.sh": "config/rig.py:tiny",
}


def test_every_training_command_has_a_valid_config():
    training = [c for c in commands() if c[:1] == ["bash"] and c[1] in TINY]
    assert len(training) >= 6
    for command in training:
        split = command.index("--") if "--" in command else len(command)
        load_config(command[2:split], default=TINY[command[1]], methods=[*METHODS])


def test_every_script_and_file_it_names_exists():
    named = re.findall(r"(?:scripts|srrl|config|docs)/[\w/.*]+\w", README)
    for path in named:
        assert list(REPOSITORY.glob(path)), path


@pytest.mark.slow
def test_the_users_reward_trains_as_printed(tmp_path):
    assert len(README_REWARD.splitlines()) < 15
    (tmp_path / "my_reward.py").write_text(README_REWARD)
    command = next(c for c in commands() if "shapes" in " ".join(c) and "my_reward" in " ".join(c))
    models = next(a for a in command if "reward.models" in a)
    command = [sys.executable, "scripts/train.py", PRESET, *small_run(tmp_path, 1), models]
    run(*command, PYTHONPATH=f"{REPOSITORY}:{tmp_path}")
    assert "reward/my_reward:Brightness/mean" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert_every_script_finds_it(tmp_path)


def assert_every_script_finds_it(folder):
    """As a user who is in the folder with the reward and the run, and has no PYTHONPATH."""
    scripts, reward, checkpoint = REPOSITORY / "scripts", "my_reward:Brightness", folder / "run"
    prompt = "a blue circle above a red square"
    for command in (
        ["sample.py", "--checkpoint", checkpoint, "--prompt", prompt, "--seeds", "0"],
        ["score.py", "outputs", "--rewards", reward],
        ["score.py", "outputs", "--checkpoint", checkpoint],
        [
            "evaluate.py",
            "--checkpoints",
            checkpoint,
            "--num-prompts",
            "1",
            "--images",
            "1",
            "--rewards",
            reward,
            "--samplers",
            "plain",
        ],
        [
            "evaluate.py",
            "--checkpoints",
            checkpoint,
            "--num-prompts",
            "1",
            "--images",
            "1",
            "--rewards",
            f"{folder / 'my_reward.py'}:Brightness",
            "--samplers",
            "plain",
        ],
    ):
        said = run(sys.executable, scripts / command[0], *command[1:], folder=folder).stdout
        assert "Brightness" in said
