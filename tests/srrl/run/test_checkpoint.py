"""What stays on disk: atomic, prunable, safe to load, tied to its config."""

import json

import pytest
import torch

from srrl.advantages import ScoreHistory
from srrl.config import flatten, load_config
from srrl.errors import UserError
from srrl.models.weights import trained_weights
from srrl.run import checkpoint
from srrl.run.checkpoint import Progress, check_same_run, cut_log
from tests.conftest import PRESET, load_policy, randomise_lora


def save(run, policy, *rest):
    return checkpoint.save(run, policy.pipe, trained_weights(policy.pipe), *rest)


def test_everything_comes_back_and_a_half_written_checkpoint_is_ignored(tmp_path):
    policy, history = load_policy(lora=True), ScoreHistory(3)
    randomise_lora(policy)
    history.add(4, "a prompt", {"shapes": [0.1, 1 / 3]})
    optimizer = torch.optim.AdamW(policy.trainable())
    for p in policy.trainable():
        p.grad = torch.ones_like(p)
    optimizer.step()
    save(
        tmp_path,
        policy,
        optimizer.state_dict(),
        history,
        Progress(5, 100, 2000),
    )
    (tmp_path / "checkpoints" / "stage_0006.tmp").mkdir()
    (tmp_path / "checkpoints" / "stage_0006.tmp" / checkpoint.STATE_FILE).write_text("{")

    newest = checkpoint.newest(tmp_path)
    assert newest.name == "stage_0005"
    again, history_again = load_policy(lora=True), ScoreHistory(3)
    progress, state = checkpoint.load(newest, again.pipe, history_again)
    assert progress == Progress(5, 100, 2000) and history_again == history
    for one, other in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other)
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[n], state["state"][key][n]) for n in values)


def test_pruning_keeps_the_newest_whole_and_the_weights_of_every_fifth(tmp_path):
    policy, optimizer = load_policy(lora=True), {"state": {}}
    for stage in range(12):
        save(
            tmp_path,
            policy,
            optimizer,
            ScoreHistory(1),
            Progress(stage),
        )
        checkpoint.prune(tmp_path, stage, keep_every=5)
    kept = {p.name: {f.name for f in p.iterdir()} for p in (tmp_path / "checkpoints").iterdir()}
    weights = {"pytorch_lora_weights.safetensors"}
    assert set(kept) == {"stage_0000", "stage_0005", "stage_0010", "stage_0011"}
    assert kept["stage_0005"] == weights
    assert kept["stage_0011"] == weights | {checkpoint.STATE_FILE, checkpoint.OPTIMIZER_FILE}


def test_an_optimizer_file_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    policy = load_policy(lora=True)
    folder = save(tmp_path, policy, {}, ScoreHistory(1), Progress(1))
    torch.save({"x": Evil()}, folder / checkpoint.OPTIMIZER_FILE)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        checkpoint.load(folder, policy.pipe, ScoreHistory(1))


def test_logs_are_cut_back_and_a_torn_line_dropped(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"stage": n}) + "\n" for n in range(5)) + '{"sta')
    cut_log(log, "stage", below=3)
    assert [json.loads(x)["stage"] for x in log.read_text().splitlines()] == [0, 1, 2]
    cut_log(tmp_path / "none.jsonl", "stage", below=3)


def test_a_folder_of_another_config_is_refused_and_a_longer_run_is_not(tmp_path):
    config = load_config([PRESET])
    check_same_run(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(flatten(config)))
    check_same_run(tmp_path, config)
    check_same_run(tmp_path, load_config([PRESET, "--config.pictures.every=3"]))
    with pytest.raises(UserError, match=r"stages\.total"):  # the learning rate depends on it
        check_same_run(tmp_path, load_config([PRESET, "--config.stages.total=99"]))
    constant = [PRESET, "--config.train.final_lr_fraction=1"]
    (tmp_path / "config.json").write_text(json.dumps(flatten(load_config(constant))))
    check_same_run(tmp_path, load_config([*constant, "--config.stages.total=99"]))
    (tmp_path / "config.json").write_text(json.dumps(flatten(config)))
    with pytest.raises(UserError, match=r"config\.seed=300, not 4"):
        check_same_run(tmp_path, load_config([PRESET, "--config.seed=4"]))
