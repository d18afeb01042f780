"""A second method beside SRRL: a linear policy on a toy reward, by the same run, learner and
checkpoints."""

import json

import pytest
import torch
from accelerate import Accelerator
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file
from torch import nn

from srrl.config import flatten, load_config, load_saved
from srrl.errors import UserError
from srrl.learner import Learner
from srrl.methods import METHODS
from srrl.ppo import clipped_objective
from srrl.run.curves import Panel
from srrl.run.stages import Outcome, StagedRun
from srrl.run.tracking import Tracker
from tests.conftest import PRESET


class Linear:
    """Which of 5 actions to take in 3 states: a Trainee."""

    def __init__(self):
        torch.manual_seed(0)
        self.network, self.nfe = nn.Linear(3, 5), 0
        self.device, self.dtype, self.prepared = torch.device("cpu"), torch.float32, None

    def trainable(self):
        return self.network.parameters()

    def prepare(self, prompts):
        self.prepared = list(prompts)

    def weights(self):
        return {k: v.clone() for k, v in self.network.state_dict().items()}

    def save_weights(self, folder, state):
        save_file(state, folder / "linear.safetensors")

    def load_weights(self, folder, exact=None):
        self.network.load_state_dict(load_file(folder / "linear.safetensors"))

    def log_prob(self, states, actions):
        self.nfe += len(states)
        return self.network(states).log_softmax(1).gather(1, actions[:, None])[:, 0]


class Bandit(StagedRun):
    """The action that is right is the state's number."""

    phases, panels = ("sample", "update"), (Panel("the method's own", {"right": "right"}),)

    def __init__(self, config, accelerator, tracker):
        super().__init__(config, Linear(), accelerator, tracker)
        self.learner, self.baseline = Learner(config, self.trainee, accelerator, self.loss), 0.0

    def stage(self, stage):
        torch.manual_seed(stage)
        with self.timed("sample"), torch.no_grad():
            states = torch.eye(3).repeat(20, 1)
            actions = self.trainee.network(states).softmax(1).multinomial(1)[:, 0]
            old = self.trainee.log_prob(states, actions)
        rewards = (actions == states.argmax(1)).float()
        data = states, actions, old, rewards - self.baseline
        self.baseline = 0.9 * self.baseline + 0.1 * rewards.mean().item()
        with self.timed("update"):
            measured = self.learner.update(stage, data, torch.arange(60).split(30))
        metrics = {"right": rewards.mean().item(), "selected": 60, **measured}
        return Outcome({}, metrics, "bandit", [{"reward": r} for r in rewards.tolist()])

    def loss(self, data, items):
        states, actions, old, advantages = (x[items] for x in data)
        return clipped_objective(self.trainee.log_prob(states, actions), old, advantages, 0.2)

    def state(self):
        return {"baseline": self.baseline}

    def load_state(self, state):
        self.baseline = state["baseline"]

    def prompts_of(self, stage):
        return [f"stage {stage}"]


def config(folder, name) -> ConfigDict:
    c = ConfigDict({"run_name": name, "output_dir": str(folder), "stages": {"total": 30}})
    c.train = load_config([PRESET]).train
    c.train.update({"learning_rate": 0.1, "micro_batch": 7})
    c.eval = {"every": 0, "num_prompts": 1, "rounds": (1,)}
    c.checkpoint = {"every": 2, "keep_every": 0}
    c.pictures = {"every": 10, "prompts": 1, "images": False}
    return c


def bandit(folder, name) -> Bandit:
    accelerator = Accelerator()
    return Bandit(config(folder, name), accelerator, Tracker(folder / name, accelerator))


@pytest.mark.slow
def test_a_second_method_trains_and_resumes_bit_for_bit(tmp_path):
    whole = bandit(tmp_path, "whole")
    whole.run()
    lines = metrics(tmp_path / "whole")
    assert lines[0]["right"] < 0.4 and lines[-1]["right"] > 0.8
    assert [x["nfe_total"] for x in lines[:2]] == [120, 240] and "seconds/update" in lines[0]
    assert (tmp_path / "whole" / "curves.png").exists()
    assert len((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()) == 30 * 60

    stopped = bandit(tmp_path, "stopped")
    stage = stopped.stage
    stopped.stage = lambda n: stage(n) if n < 15 else (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = bandit(tmp_path, "stopped")
    resumed.run()
    assert resumed.trainee.prepared == [f"stage {n}" for n in range(14, 30)]
    for one, other in zip(whole.trainee.trainable(), resumed.trainee.trainable(), strict=True):
        assert torch.equal(one, other)
    assert resumed.baseline == whole.baseline
    assert metrics(tmp_path / "stopped") == lines


def metrics(run) -> list[dict]:
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v if not k.startswith("seconds/") else None for k, v in x.items()} for x in lines]


def test_a_runs_config_says_its_method(tmp_path):
    assert load_config([PRESET]).method == "srrl"
    with pytest.raises(UserError, match=r"config\.method belongs to its file"):
        load_config([PRESET, "--config.method=rig"])
    with pytest.raises(UserError, match=r"is of the method 'rig': give a preset of config/stage"):
        load_config(["--config=config/rig.py:tiny"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(flatten(load_config([PRESET])) | {"method": "magic"}))
    with pytest.raises(UserError, match="unknown method 'magic'"):
        load_saved(file)
    assert METHODS["srrl"].load().__module__ == "srrl.trainer"


def test_what_is_counted_is_logged_by_stage_also_where_it_begins_again(tmp_path):
    """As a reward's calls do when its worker is started anew."""
    run = bandit(tmp_path, "counting")
    told = iter([{"calls": 3}, {"calls": 5}, {"calls": 2}, {"calls": 2}])
    run.counts = lambda: next(told)
    run.config.stages.total = 4
    run.run()
    assert [line["calls"] for line in metrics(tmp_path / "counting")] == [3, 2, 2, 0]
