"""The commands a user types. Errors are one line and exit code 2, quickly and without traces."""

import json
import runpy
import socket
import subprocess
import sys
import tomllib
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from config.stage_process import PRESETS
from scripts import plan, sample, train
from scripts.launch import found_config
from srrl.config import REPOSITORY, flatten, load_config
from srrl.errors import UserError
from srrl.models.weights import LORA_FILE
from srrl.run.folder import STATE_FILE
from tests.slow.commands import run

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
    "processes": (["--", "--num_processes=x"], "--num_processes x: expected a number"),
    "held-out": (
        ["--config.prompts.train=config/prompts/shapes_unconventional_heldout.json"],
        "has the prompts that are trained on",
    ),
}


def command(*arguments: str) -> subprocess.CompletedProcess:
    return run(*arguments, check=None)


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


TINY = ["--config", "config/stage_process.py:tiny"]
FILE = ["--prompts-file", "config/prompts/shapes_conventional.json"]
PICTURE = "docs/images/stage.png"


APART = [
    ("sample", [*TINY, "--prompt", "x", "--export", "kohya"], "--export kohya: give the --che"),
    ("sample", [*TINY, "--prompt", "x", *FILE], "give either --prompt or --prompts-file"),
    ("sample", [*TINY, "--prompt", " "], "--prompt: an empty prompt: fill it"),
    ("sample", [*TINY, "--prompt", "x", "--eta", "2"], "--eta 2.0 is out of range: 0 to 1"),
    ("sample", [*TINY, "--prompt", "x", "--seeds", "-1"], "--seeds -1: expected a number"),
    ("sample", [*TINY, "--nope"], "unknown argument '--nope': expected --config.KEY=VALUE, or"),
    ("score", ["x", "--prompt", "x", *FILE], "give either --prompt or --prompts-file"),
    ("score", ["x", "--checkpoint", "x", "--rewards", "x"], "give either --checkpoint, for"),
    ("score", ["x", "--checkpoint", "x", "--config.seed=1"], "--config.seed=1: not with"),
    ("score", ["x", "--options", "[]"], "--options []: expected JSON"),
    ("score", ["tests/slow", "--prompt", "x"], "tests/slow: no pictures (.png"),
    ("score", [PICTURE], "has no prompt in it: give --prompt"),
    ("score", [PICTURE, *FILE], "prompts for 1 images: give one for each"),
    ("study", ["--budget-minutes", "0"], "--budget-minutes 0.0: above 0"),
    ("sweep", ["--seeds", "1,2"], "--name '': expected a folder's name, as lr"),
    ("sweep", ["--name", "a/b"], "--name 'a/b': expected a folder's name, as lr"),
    ("sweep", ["--name", "a", "--parallel", "0"], "--parallel 0: at least 1"),
    ("evaluate", ["--checkpoints", "x", "--config.seed=1"], "--config.seed=1: only for the"),
    ("evaluate", ["--rewrads", "shapes"], "unknown argument '--rewrads': expected --config.KEY"),
    ("evaluate", ["--rewards", "shapes", "--options", "{x"], "--options {x: expected JSON like"),
    ("plan", ["--config=config/rig.py:tiny", "--fsdp"], "--share are of trainings: leave them out"),
]


@pytest.mark.parametrize(
    ("script", "arguments", "said"), APART, ids=[f"{script}, {said}" for script, _, said in APART]
)
def test_what_does_not_go_together_is_one_line(
    script, arguments, said, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(REPOSITORY)
    arguments = [*arguments, *["--out", str(tmp_path)] * (script in ("sample", "evaluate"))]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.delenv("SRRL_STATUS_FILE", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPOSITORY / "scripts" / f"{script}.py"), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("error: ") and said in line


def test_a_run_has_its_own_config(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoints" / "stage_0001"
    checkpoint.mkdir(parents=True)
    (checkpoint / LORA_FILE).touch()
    (tmp_path / "config.json").write_text(json.dumps(flatten(load_config([f"--config={TINY[1]}"]))))
    given = ["--checkpoint", str(tmp_path), "--prompt", "x", "--config.seed=1"]
    monkeypatch.setattr(sys, "argv", ["sample", *given])
    with pytest.raises(UserError, match=r"--config\.seed=1: only beside --config; a run has its"):
        sample.main()


def test_the_plan_of_a_method_that_it_does_not_know_is_refused(monkeypatch):
    config = load_config([f"--config={TINY[1]}"])
    config.method = "toy"
    monkeypatch.setattr(plan, "load_config", lambda *_, **__: config)
    with pytest.raises(UserError, match=r"^config\.method='toy': plans are known of srrl"):
        plan.main([])


def test_every_console_command_is_a_function_of_a_script():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for name, target in project["scripts"].items():
        function = EntryPoint(name, target, "console_scripts").load()
        assert Path(function.__code__.co_filename).parent == REPOSITORY / "scripts"


def test_a_console_command_says_its_own_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/srrl-sample", "--nope"])
    with pytest.raises(UserError, match=r"or what `srrl-sample --help` shows"):
        sample.main()


def test_a_config_file_of_accelerates_is_looked_for_here_and_then_in_the_project(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    named = "config/accelerate/fsdp.yaml"
    found = str(REPOSITORY / named)
    assert found_config(["--config_file", named, "--cpu"]) == ["--config_file", found, "--cpu"]
    assert found_config([f"--config-file={named}"]) == ["--config-file", found]
    assert found_config(["--config_file", "own.yaml"]) == ["--config_file", "own.yaml"]
    (tmp_path / "config" / "accelerate").mkdir(parents=True)
    (tmp_path / named).touch()
    assert found_config(["--config_file", named]) == ["--config_file", named]


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU")
def test_half_precision_needs_a_gpu(tmp_path):
    flags = [
        f"--config={TINY[1]}",
        f"--config.output_dir={tmp_path}",
        "--config.mixed_precision=bf16",
    ]
    with pytest.raises(UserError, match=r"mixed_precision='bf16' needs a GPU, and there is none"):
        train.main(flags)
    assert not list(tmp_path.iterdir())


def test_deepspeed_is_refused_also_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match=r"spread the UNet by config/accelerate/fsdp\.yaml"):
        train.main([f"--config={TINY[1]}", f"--config.output_dir={tmp_path}"])


@pytest.mark.parametrize("saved", [False, True])
def test_a_launcher_that_ends_before_training_says_so(saved, tmp_path):
    run = tmp_path / "run"
    if saved:
        checkpoint = run / "checkpoints" / "stage_0001"
        checkpoint.mkdir(parents=True)
        (checkpoint / STATE_FILE).touch()
    launcher = [sys.executable, "scripts/launch.py", "config/stage_process.py:sd14", "tiny"]
    flags = [f"--config.output_dir={tmp_path}", "--config.run_name=run", "--", "--nope"]
    ended = command(*launcher, *flags)
    last = ended.stderr.splitlines()[-1]
    resumes = f": the same command resumes {run}" if saved else ""
    assert ended.returncode == 2 and last == f"error: training ended early{resumes}"


@pytest.mark.slow
def test_processes_that_cannot_meet_say_why(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": 2, "RANK": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in told.items():
        monkeypatch.setenv(name, str(value))
    said = rf"of WORLD_SIZE=2, RANK=1, at 127\.0\.0\.1:{port} cannot meet \(.*timed out"
    with pytest.raises(UserError, match=said), train.meeting():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=1))


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
    result = run(program, clone / script, "--help", folder=elsewhere)
    assert Path(script).stem in result.stdout and len(result.stdout.splitlines()) > 2
    assert not list(elsewhere.iterdir())
    if script == "train.sh":
        assert all(preset in result.stdout for preset in PRESETS)
