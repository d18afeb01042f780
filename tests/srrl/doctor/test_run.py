"""What the doctor says of a config's run, each fault made for real."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import wandb
from huggingface_hub import constants

from rewards.worker import TOKEN
from srrl.config import REPOSITORY, load_config
from srrl.doctor import folder, models, rewards
from srrl.doctor.rows import FAIL, OK, WARN, Row, attempted
from srrl.run import checkpoint
from srrl.run.checkpoint import Progress
from srrl.shapes.pipeline import TINY_SD
from tests.conftest import PRESET, load_policy
from tests.models import WEIGHTS, linked
from tests.rewards.server import serving

RIG = "--config=config/rig.py:tiny"


def said(check, *flags: str, preset: str = PRESET, offline: bool = True) -> list[Row]:
    """The rows of a check, by a config."""
    config = load_config([preset, *flags], methods=["srrl", "rig"])
    return [*attempted("check", lambda: check(config, offline))]


def row_of(rows: list[Row], check: str) -> Row:
    (row,) = (row for row in rows if row.check == check)
    return row


# ---------------------------------------------------------------------- prompts and models


def test_the_embedded_models_are_found():
    for preset in (PRESET, RIG):
        rows = [*said(models.prompts, preset=preset), *said(models.models, preset=preset)]
        assert {row.state for row in rows} == {OK}
        assert all("embedded" in row.found for row in rows if row.check.endswith(".model"))


def test_prompts_and_models_that_are_not_there_fail(tmp_path):
    (row,) = said(models.prompts, "--config.prompts.train=/nowhere.json")
    assert row.state == FAIL and "'/nowhere.json' does not exist" in row.remedy
    (row,) = said(models.models, "--config.pretrained.model=/nowhere")
    assert row.state == FAIL and "no such folder" in row.remedy
    cut = linked(tmp_path / "model")
    (cut / WEIGHTS["unet"]).unlink()
    flag = f"--config.pretrained.model={cut}"
    (row,) = said(models.models, flag)
    assert row.state == FAIL and "no .safetensors weights in unet" in row.remedy
    rows = said(models.models, "--config.actor.model=random:Qwen9", flag, preset=RIG)
    assert "known are random:Qwen2.5-VL-7B" in row_of(rows, "actor.model").remedy
    assert row_of(rows, "checker.model").state == OK


@contextmanager
def hub(monkeypatch, url: str):
    """Another hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    models.hub_there.cache_clear()
    yield
    models.hub_there.cache_clear()


def test_a_model_of_the_hub_has_to_be_fetched(monkeypatch):
    flag = "--config.pretrained.model=nobody/nothing"
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (row,) = said(models.models, flag)
    assert row.state == FAIL and "HF_HUB_OFFLINE is set" in row.found
    with serving() as server:
        with hub(monkeypatch, server.url):
            (row,) = said(models.models, flag, offline=False)
            assert row.state == WARN and "hf download nobody/nothing" in row.remedy
        gone = server.url
    with hub(monkeypatch, gone):
        (row,) = said(models.models, flag, offline=False)
        assert row.state == FAIL and "the hub does not answer" in row.found


def test_a_model_in_the_cache_is_found_if_it_is_whole(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    linked(snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path), raising=False)
    flag = "--config.pretrained.model=some/model"
    (row,) = said(models.models, flag)
    assert row.state == OK
    assert row.found == "some/model: StableDiffusionPipeline, in the hub's cache"
    (snapshot / WEIGHTS["unet"]).unlink()
    (row,) = said(models.models, flag)
    assert row.state == FAIL and "some/model: not here" in row.found


def test_a_vae_is_looked_for_by_itself(tmp_path):
    rows = said(models.models, f"--config.pretrained.vae={TINY_SD}")
    assert row_of(rows, "pretrained.vae") == (
        "pretrained.vae",
        f"{TINY_SD}: AutoencoderKL, embedded",
        OK,
        "",
    )
    rows = said(models.models, f"--config.pretrained.vae={tmp_path}")
    assert "its download is incomplete" in row_of(rows, "pretrained.vae").remedy


def test_a_lora_that_cannot_be_read_fails(tmp_path):
    flags = [f"--config.pretrained.lora={tmp_path}", f"--config.output_dir={tmp_path / 'runs'}"]
    row = row_of(said(models.models, *flags), "pretrained.lora")
    assert row.state == FAIL and "holds no pytorch_lora_weights.safetensors" in row.remedy


# ---------------------------------------------------------------------- rewards


def reward(name: str, options: str = "{}") -> list[str]:
    return [
        f'--config.reward.models={{"{name}": 1.0}}',
        f'--config.reward.options={{"{name}": {options}}}',
    ]


@pytest.mark.parametrize(
    ("flags", "state", "told"),
    [
        (reward("shapes"), OK, "ShapesVerifier"),
        (reward("checker"), OK, "embedded"),
        (reward("vqascore", '{"model": "random"}'), OK, "random weights"),
        (reward("vqascore"), FAIL, "hf download zhiqiulin/clip-flant5-xl"),
        (reward("clipscore", '{"model": "/nowhere"}'), FAIL, "cannot get '/nowhere'"),
        (reward("qwenvl", '{"model": "docs"}'), FAIL, "no weights in docs"),
        (reward("qwenvl", '{"modle": "x"}'), FAIL, "unexpected keyword argument"),
        (reward("nope"), FAIL, "unknown reward 'nope'"),
        (reward("no_such_module:Reward"), FAIL, "cannot import 'no_such_module:Reward'"),
        (["--config.reward.options={\"judge\": {}}"], FAIL, "options of 'judge'"),
        (["--config.reward.device=cuda:99"], FAIL, "reward device 'cuda:99'"),
        (["--config.reward.backend=original", *reward("vqascore")], FAIL, "original_rewards.sh"),
    ],
)  # fmt: skip
def test_a_reward_is_found_or_not(flags, state, told):
    (row,) = said(rewards.rewards, *flags)
    assert row.state == state and told in f"{row.found} {row.remedy}", row


def test_a_reward_that_cannot_judge_the_prompts_fails(tmp_path):
    (tmp_path / "walrus.txt").write_text("a walrus\n")
    flag = f"--config.prompts.train={tmp_path / 'walrus.txt'}"
    (row,) = said(rewards.rewards, flag)
    assert row.state == FAIL and "a walrus" in row.remedy


def test_an_api_reward_needs_its_server():
    with serving() as server:
        (row,) = said(rewards.rewards, *reward("api", f'{{"url": "{server.url}"}}'))
        assert row.state == OK and "model served-model" in row.found
    (row,) = said(rewards.rewards, *reward("api", f'{{"url": "{server.url}"}}'))
    assert row.state == FAIL and server.url in row.remedy


def test_a_workers_interpreter_needs_the_packages():
    flags = ["--config.reward.backend=worker", "--config.reward.worker.python=/bin/false"]
    row = row_of(said(rewards.rewards, *flags), "reward worker")
    assert row.state == FAIL and "/bin/false: ended with exit code 1" in row.found
    row = row_of(said(rewards.rewards, flags[0], f"{flags[1]}/nowhere"), "reward worker")
    assert row.state == FAIL and "NotADirectoryError" in row.found


@pytest.mark.slow
def test_a_worker_at_an_address_answers_those_who_know_its_token(monkeypatch):
    command = [sys.executable, "-m", "rewards.worker", "--models", '{"shapes": {}}']
    flags = ["--config.reward.backend=worker", "--config.reward.worker.address=127.0.0.1:{}"]

    def at(port: int | str) -> Row:
        (row,) = said(rewards.rewards, flags[0], flags[1].format(port))
        return row

    monkeypatch.delenv(TOKEN, raising=False)
    assert f"set {TOKEN}" in at(1).remedy
    monkeypatch.setenv(TOKEN, "secret")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [*command, "--host=127.0.0.1"], env=environment, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            port = process.stdout.readline().strip().rpartition(":")[2]
            assert at(port).state == OK
            monkeypatch.setenv(TOKEN, "guess")
            assert at(port).state == FAIL and "the token is not this worker's" in at(port).remedy
        finally:
            process.kill()
    row = at(port)
    assert row.state == FAIL and f"no reward worker at 127.0.0.1:{port}" in row.remedy


# ---------------------------------------------------------------------- disk, folder, tracker


@pytest.mark.parametrize("where", ["/proc/nowhere", "{}/file"])
def test_a_folder_that_cannot_be_made_fails(where, tmp_path):
    (tmp_path / "file").touch()
    rows = said(folder.disk, f"--config.output_dir={where.format(tmp_path)}")
    assert row_of(rows, "output_dir").state == FAIL
    assert "choose another" in row_of(rows, "output_dir").remedy


@pytest.mark.slow
def test_the_space_that_is_needed_is_told_and_no_folder_made(tmp_path):
    flag = f"--config.output_dir={tmp_path / 'runs'}"
    row = row_of(said(folder.disk, flag), "output_dir")
    assert row.state == OK and "the run needs about 2.3 MiB" in row.found
    assert not list(tmp_path.iterdir())
    huge = ("--config.lora.rank=2000", "--config.stages.total=999999", "--config.lora.alpha=2000")
    row = row_of(said(folder.disk, flag, *huge, "--config.checkpoint.keep_every=1"), "output_dir")
    assert row.state == FAIL and "the run needs about" in row.remedy


def test_a_folder_in_use_names_the_process(tmp_path):
    flags = [f"--config.output_dir={tmp_path}", "--config.run_name=run"]
    (row,) = said(folder.run, *flags)
    assert row.state == OK and "begins" in row.found
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    code = "import fcntl, os; file = open('.lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
    code += "print('process', os.getpid(), file=file, flush=True); print('in', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path / "run",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout.readline() == b"in\n"
        used, _ = said(folder.run, *flags)
        assert used.state == FAIL and f"in use by process {process.pid}" in used.remedy
        process.stdin.close()
    assert [row.state for row in said(folder.run, *flags)] == [OK]


def test_the_checkpoint_to_go_on_from_is_told_and_a_damaged_one_named(tmp_path):
    run, policy = tmp_path / "run", load_policy(lora=True)
    flags = [f"--config.output_dir={tmp_path}", "--config.run_name=run"]
    config = load_config([PRESET, *flags])
    optimizer = torch.optim.AdamW(policy.trainable()).state_dict()
    for stage in (1, 2):
        given = policy.weights(), optimizer, {}, Progress(stage, 1, 1)
        newest = checkpoint.save(run, config, policy, *given)
    (row,) = said(folder.run, *flags)
    assert row.state == OK and "goes on after 2 of" in row.found
    file = newest / checkpoint.OPTIMIZER_FILE
    os.truncate(file, file.stat().st_size // 2)
    damaged, row = said(folder.run, *flags)
    assert damaged.state == WARN and "stage_0002: optimizer.pt has" in damaged.found
    assert row.state == OK and "goes on after 1 of" in row.found and newest.exists()
    (row,) = said(folder.run, *flags, "--config.checkpoint.damaged=stop")
    assert row.state == FAIL and "--config.checkpoint.damaged=back" in row.remedy
    (row,) = said(folder.run, *flags, "--config.seed=7")
    assert row.state == FAIL and "config.seed=300, not 7" in row.remedy


def test_a_run_goes_on_without_its_tracker(tmp_path, monkeypatch):
    assert [row.state for row in said(folder.tracker, "--config.tracker=tensorboard")] == [OK]
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NETRC", str(Path(tmp_path) / "netrc"))
    wandb.teardown()
    (row,) = said(folder.tracker, "--config.tracker=wandb")
    assert row.state == WARN and "not logged in to wandb" in row.found
    assert "wandb login" in row.remedy
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert said(folder.tracker, "--config.tracker=wandb") == [Row("tracker", "wandb, offline")]
    wandb.teardown()
