"""What stays on disk: atomic, prunable, safe to load, tied to its config."""

import json
import os
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from srrl.advantages import ScoreHistory
from srrl.config import REPOSITORY, flatten, load_config
from srrl.errors import UserError
from srrl.run import checkpoint, manifest
from srrl.run.checkpoint import Progress, check_same_run, cut_log, lock
from srrl.run.folder import check_space, stages
from tests.conftest import PRESET, load_policy, randomise_lora


def save(run, policy, *rest):
    return checkpoint.save(run, load_config([PRESET]), policy, policy.weights(), *rest)


def test_everything_comes_back_and_a_half_written_checkpoint_is_ignored(tmp_path):
    policy, history = load_policy(lora=True), ScoreHistory(3)
    randomise_lora(policy)
    history.add(4, "a prompt", {"shapes": [0.1, 1 / 3]})
    optimizer = torch.optim.AdamW(policy.trainable())
    for p in policy.trainable():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = {"history": history.entries}
    save(tmp_path, policy, optimizer.state_dict(), state, Progress(5, 100, 2000))
    (tmp_path / "checkpoints" / "stage_0006.tmp").mkdir()
    (tmp_path / "checkpoints" / "stage_0006.tmp" / checkpoint.STATE_FILE).write_text("{")

    newest = checkpoint.newest(tmp_path)
    assert newest.name == "stage_0005"
    again = load_policy(lora=True)
    progress, method, state = checkpoint.load(newest, again)
    assert progress == Progress(5, 100, 2000)
    assert method == json.loads(json.dumps({"history": history.entries}))
    for one, other in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other)
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[n], state["state"][key][n]) for n in values)


def test_pruning_keeps_the_two_newest_whole_and_the_weights_of_every_fifth_and_of_evaluated_ones(
    tmp_path,
):
    policy, optimizer = load_policy(lora=True), {"state": {}}
    (tmp_path / "eval.jsonl").write_text('{"stage": 3, "split": "train"}\n')
    for stage in range(12):
        save(
            tmp_path,
            policy,
            optimizer,
            {},
            Progress(stage),
        )
        checkpoint.prune(tmp_path, keep_every=5)
    kept = {p.name: {f.name for f in p.iterdir()} for p in (tmp_path / "checkpoints").iterdir()}
    weights = {"pytorch_lora_weights.safetensors"}
    assert set(kept) == {f"stage_{n:04d}" for n in (0, 3, 5, 10, 11)}
    assert kept["stage_0003"] == kept["stage_0005"] == weights
    more = {checkpoint.STATE_FILE, checkpoint.OPTIMIZER_FILE, manifest.MANIFEST}
    assert kept["stage_0010"] == kept["stage_0011"] == weights | more


def test_an_optimizer_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    policy = load_policy(lora=True)
    folder = save(tmp_path, policy, {}, {}, Progress(1))
    torch.save({"x": Evil()}, folder / checkpoint.OPTIMIZER_FILE)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        checkpoint.load(folder, policy)


def test_logs_are_cut_back_to_what_can_be_read(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": n}) + "\n" for n in range(5)]
    log.write_text("".join(lines) + '{"sta')
    assert cut_log(log, "stage", below=3) == 0  # one was being written
    assert log.read_text() == "".join(lines[:3])
    log.write_bytes("".join([lines[0], "[1, 2\n", '{"x": 1}\n', lines[1]]).encode() + b"\xff\0\n")
    assert cut_log(log, "stage", below=3) == 3
    assert log.read_text() == "".join(lines[:2])
    assert cut_log(tmp_path / "none.jsonl", "stage", below=3) == 0


def test_the_newest_is_by_number_and_of_stages_alone(tmp_path):
    for name in ("stage_9999", "stage_10000", "stage_10001.tmp", "stage_20000.bak", "stage_x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "stage_99999").touch()
    assert [folder.name for folder in stages(tmp_path)] == ["stage_10000", "stage_9999"]


def test_a_lost_config_is_no_licence_for_another_seed(tmp_path):
    save(tmp_path, load_policy(lora=True), {}, {}, Progress(2))
    with pytest.raises(UserError, match=r"config\.seed=300, not 4"):
        check_same_run(tmp_path, load_config([PRESET, "--config.seed=4"]))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.seed=300, not 4"):
        check_same_run(tmp_path, load_config([PRESET, "--config.seed=4"]))
    check_same_run(tmp_path, load_config([PRESET]))


def test_a_run_goes_on_with_what_does_not_change_its_weights(tmp_path):
    config = load_config([PRESET])
    check_same_run(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(flatten(config)))
    batches = ["--config.sample.num_batches_per_stage=4", "--config.sample.batch_size=12"]
    for flags in (
        [],
        ["--config.pictures.every=3"],
        ["--config.eval.seeds=2", "--config.eval.rounds=[1,2]"],
        ["--config.tracker=wandb"],
        ["--config.train.micro_batch=3"],
        batches,
        ["--config.reward.backend=worker", "--config.reward.device=cuda:1"],
        ["--config.stages.total=99"],
        ["--config.stages.total=9"],
    ):
        check_same_run(tmp_path, load_config([PRESET, *flags]))


def test_a_folder_of_another_run_is_refused_by_all_that_differs(tmp_path):
    before = flatten(load_config([PRESET]))
    del before["train.positive_weight"]  # of an earlier version
    (tmp_path / "config.json").write_text(json.dumps(before))
    changes = [PRESET, "--config.seed=4", "--config.sample.batch_size=3"]
    with pytest.raises(UserError) as error:
        check_same_run(tmp_path, load_config(changes))
    for said in ("config.seed=300, not 4", "sample.batch_size=48, not 3", "no config.train.posi"):
        assert said in str(error.value)


def test_a_run_is_not_made_shorter_than_it_is(tmp_path):
    save(tmp_path, load_policy(lora=True), {}, {}, Progress(9))
    (tmp_path / "config.json").write_text(json.dumps(flatten(load_config([PRESET]))))
    check_same_run(tmp_path, load_config([PRESET, "--config.stages.total=9"]))
    with pytest.raises(UserError, match=r"stages.total=16, not 8; 9 stages done"):
        check_same_run(tmp_path, load_config([PRESET, "--config.stages.total=8"]))


@pytest.mark.slow
def test_a_folder_is_locked_while_its_process_lives_and_no_longer(tmp_path):
    code = (
        "import sys; from pathlib import Path; from srrl.run.checkpoint import lock\n"
        "kept = lock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match=f"in use by process {other.pid} on {socket.gethostname()}"):
        lock(tmp_path)
    (tmp_path / ".lock").write_text("")  # as where it has not written yet
    with pytest.raises(UserError, match="in use by another process"):
        lock(tmp_path)
    other.kill()  # no time to clean up
    other.wait()
    with lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


def test_a_disk_that_is_too_small_is_said_before_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    check_space(tmp_path, 3 * 2**20)
    with pytest.raises(UserError, match=r"needs about 4\.0 MiB more, and 3\.0 MiB are free"):
        check_space(tmp_path, 4 * 2**20)
