"""The commands a user types. Errors are one line and exit code 2, quickly and without traces."""

import subprocess
import sys
from pathlib import Path

import pytest

from config.stage_process import PRESETS
from srrl.config import REPOSITORY

BAD = {
    "key": (["--config.sample.steps=3"], "unknown config key 'sample.steps'"),
    "preset": (["--config", "config/stage_process.py:huge"], "unknown preset 'huge'"),
    "type": (["--config.seed=abc"], "expected int"),
    "range": (["--config.sample.num_steps=0"], "out of range"),
    "branches": (["--config.branch.count=0"], "out of range"),
    "rate": (["--config.train.learning_rate=-1"], "out of range"),
    "prompts": (["--config.prompts.train=/nowhere.json"], "does not exist"),
    "model": (["--config.pretrained.model=/nowhere"], "no such folder"),
    "pickle": (["--config.pretrained.model=model.ckpt"], "may run code"),
    "two models": (["--config", "config/stage_process.py:tiny+sd14"], "sd14 chooses a model"),
    "late model": (["--config", "config/stage_process.py:ddpo+tiny"], "tiny chooses a model"),
    "held-out": (
        ["--config.prompts.train=config/prompts/shapes_unconventional_heldout.json"],
        "has the prompts that are trained on",
    ),
}


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=1800, **options
    )


def assert_one_line_error(result: subprocess.CompletedProcess, said: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], result.stderr


@pytest.mark.parametrize("case", BAD)
def test_a_bad_command_is_one_line_and_exit_2(case):
    arguments, said = BAD[case]
    launcher = [sys.executable, "scripts/launch.py", "config/stage_process.py:sd14", "tiny"]
    assert_one_line_error(command(*launcher, *arguments), said)


@pytest.mark.parametrize("case", ["key", "rate", "prompts"])
def test_also_through_train_sh(case):
    arguments, said = BAD[case]
    assert_one_line_error(command("bash", "train.sh", *arguments), said)


def test_bad_prompt_files_through_train_sh(tmp_path):
    for name, text in (("empty", "[]"), ("torn", '["a red')):
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        result = command("bash", "train.sh", f"--config.prompts.train={file}")
        assert_one_line_error(result, f"{name}.json")


@pytest.mark.slow
def test_prompts_the_reward_cannot_judge_and_unknown_rewards_through_train_sh(tmp_path):
    """Found only inside the launched process: its exit code must still arrive."""
    file = tmp_path / "walrus.json"
    file.write_text('["a walrus"]')
    out = f"--config.output_dir={tmp_path}"
    for flag, said in (
        (f"--config.prompts.train={file}", "a walrus"),
        ('--config.reward.models={"nope": 1.0}', "unknown reward 'nope'"),
    ):
        result = command("bash", "train.sh", out, flag)
        assert_one_line_error(result, said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "/nowhere", "--prompts", "x"], "/nowhere: no such folder"),
        (["--checkpoint", "config", "--prompts", "x"], "holds no pytorch_lora_weights"),
        (["--config", "config/stage_process.py:tiny"], "--prompts"),
        (["--prompts", "x"], "--checkpoint"),
        (
            ["--config", "config/stage_process.py:tiny", "--prompt", "x", "--num-steps", "2000"],
            "--num-steps 2000 is out of range",
        ),
        (["--config", "config/stage_process.py:tiny", "--prompt", "x", "--seeds", "5-2"], "empty"),
        (["--checkpoint", "README.md", "--prompt", "x"], "only .safetensors files are read"),
        (["--config", "config/stage_process.py:tiny", "--prompts-file", "/no.json"], "/no.json"),
        (
            ["--config", "config/stage_process.py:tiny", "--prompts", "x", "--rounds", "0"],
            "at least 1",
        ),
    ],
)
def test_sample_refuses_in_one_line(arguments, said):
    assert_one_line_error(command(sys.executable, "scripts/sample.py", *arguments), said)


@pytest.mark.slow
def test_a_command_without_a_gpu_says_so_and_obeys_the_preset_it_is_given(tmp_path):
    """sd14 on a machine without GPU and hub: tried, and refused for what is really missing."""
    out, reward = f"--config.output_dir={tmp_path}", '--config.reward.models={"nope": 1}'
    preset = "config/stage_process.py:sd14"
    result = command("bash", "train.sh", "--config", preset, out, reward)
    assert_one_line_error(result, "nope")
    models = '--config.reward.models={"rewards.shapes:ShapesVerifier": 1}'
    files = {"train": "conventional", "heldout": "unconventional_train"}
    shapes = [
        f"--config.prompts.{k}=config/prompts/shapes_{name}.json" for k, name in files.items()
    ]
    flags = [out, models, *shapes, "--config.mixed_precision=no"]
    result = command("bash", "train.sh", "--config", preset, *flags)
    assert_one_line_error(result, "hf download CompVis/stable-diffusion-v1-4")


SCRIPTS = [
    *(p.relative_to(REPOSITORY) for p in REPOSITORY.glob("scripts/*.py")),
    *(p.relative_to(REPOSITORY) for p in REPOSITORY.glob("scripts/*.sh") if p.name != "env.sh"),
    *(p.relative_to(REPOSITORY) for p in REPOSITORY.glob("*.sh")),
]


@pytest.mark.parametrize("script", sorted(map(str, SCRIPTS)))
def test_help_says_what_a_command_does_and_does_nothing(script, tmp_path):
    """From another folder, through a symlink to the clone whose path has a space."""
    clone, elsewhere = tmp_path / "my clone", tmp_path / "elsewhere"
    clone.symlink_to(REPOSITORY)
    elsewhere.mkdir()
    program = "bash" if script.endswith(".sh") else sys.executable
    result = subprocess.run(
        [program, clone / script, "--help"],
        cwd=elsewhere,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert Path(script).stem in result.stdout and len(result.stdout.splitlines()) > 2
    assert not list(elsewhere.iterdir())
    if script == "train.sh":
        assert all(preset in result.stdout for preset in PRESETS)
