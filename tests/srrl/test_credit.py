"""Whose credit a round's score is: the trajectory's, by its place in it, beyond the first's."""

import pytest
import torch

from srrl.budget import stage_cost, stage_decodes
from srrl.curriculum import plan_for
from tests.srrl.test_reflecting_less import check_resumed
from tests.srrl.test_trainer import batch_of, make_trainer

ALL = (
    "--config.reflect.train_rounds=all",
    "--config.reflect.rounds=3",
    "--config.select.mode=all",
)
BASELINE = (
    "--config.reflect.rounds=2",
    "--config.reflect.baseline=0.5",
    "--config.branch.count=1",
    "--config.select.mode=all",
)


@pytest.mark.slow
def test_later_rounds_count_more(tmp_path):
    even, linear = (
        make_trainer(tmp_path / name, *ALL, f"--config.train.round_weights={name}")
        for name in ("even", "linear")
    )
    plan = plan_for(even.config, 0)
    one, other = batch_of(even, plan).advantages, batch_of(linear, plan).advantages
    weights = torch.tensor([1 / 3, 2 / 3, 1]).repeat(len(one) // 3)
    torch.testing.assert_close(other, one * weights)
    assert one.abs().max() > 0.1


@pytest.mark.slow
def test_all_rounds_of_a_trajectory_have_its_advantage(tmp_path):
    trainer = make_trainer(tmp_path, *ALL, "--config.reward.rounds=mean")
    plan = plan_for(trainer.config, 0)
    prompts = trainer.draw_prompts(plan)
    scored = trainer.score(plan, trainer.sample(plan, prompts), prompts)
    advantages = trainer.select(plan, scored, prompts).advantages.view(-1, 3)
    assert (advantages == advantages[:, :1]).all() and advantages.std() > 0.1
    # The higher a trajectory's mean among its prompt's, the higher its advantage.
    means = scored.scores["shapes"].view(-1, 3).mean(1)
    for prompt in set(prompts):
        own = [i for i, p in enumerate(scored.prompt.view(-1, 3)[:, 0]) if prompts[p] == prompt]
        assert means[own].argsort().tolist() == advantages[own, 0].argsort().tolist()


@pytest.mark.slow
def test_first_rounds_that_are_judged_are_counted_and_all_go_on(tmp_path):
    trainer = make_trainer(tmp_path, *BASELINE, "--config.reflect.reuse=2")
    plain = make_trainer(tmp_path / "plain", BASELINE[0], *BASELINE[2:])
    for stage in range(2):
        plan = plan_for(trainer.config, stage)
        prompts = trainer.draw_prompts(plan)
        before = trainer.policy.nfe
        samples = trainer.sample(plan, prompts)
        cost = stage_cost(trainer.config, plan)
        assert trainer.policy.nfe - before == cost.reflect + cost.sample
        decoded = sum(x.samples * x.times for x in stage_decodes(trainer.config, plan))
        assert decoded == len(prompts) * (2 if stage == 0 else 1)
        scored = trainer.score(plan, samples, prompts)
        assert scored.first["shapes"].shape == scored.scores["shapes"].shape
        assert trainer.starts.again.all()
        if stage == 0:
            assert torch.equal(samples.images, plain.sample(plan, prompts).images)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [1, 2])
def test_a_run_with_a_baseline_is_resumed_the_same(reuse, tmp_path):
    check_resumed(tmp_path, *BASELINE, f"--config.reflect.reuse={reuse}", "--config.eval.every=0")
