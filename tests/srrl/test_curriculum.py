"""The plan of the full-size run, and the evaluations it costs."""

from srrl.budget import nfe_per_step, stage_cost
from srrl.config import load_config
from srrl.curriculum import StagePlan, evaluated_stages, plan_for


def test_sd14_follows_the_released_curriculum():
    config = load_config(["--config=config/stage_process.py:sd14"])
    plans = [plan_for(config, n) for n in range(50)]
    assert [p.trained_steps for p in plans] == [1, 5, 9, 13, 17] * 10
    assert [p.rounds for p in plans] == [1 + n // 5 for n in range(50)]


def test_fixed_rounds_and_steps_replace_the_curriculum():
    config = load_config(
        [
            "--config=config/stage_process.py:sd14",
            "--config.reflect.rounds=3",
            "--config.interval.steps=20",
        ]
    )
    assert {plan_for(config, n) for n in (0, 49)} == {StagePlan(0, 3, 20), StagePlan(49, 3, 20)}


def test_rounds_stop_growing_at_max_rounds():
    config = load_config(["--config=config/stage_process.py:sd14", "--config.reflect.max_rounds=4"])
    assert max(plan_for(config, n).rounds for n in range(50)) == 4


def test_costs_of_a_stage_by_hand():
    config = load_config(["--config=config/stage_process.py:sd14"])
    cost = stage_cost(config, StagePlan(10, 3, 5))
    # 32 prompts: 2 reflections of 20 steps down and up under guidance; 15 shared and 5 x 5 steps
    assert cost.images == 160
    assert cost.reflect == 32 * 2 * 20 * (2 + 2)
    assert cost.sample == 32 * 2 * (15 + 5 * 5)
    assert cost.update_per_pass == 2 * 5
    assert [nfe_per_step(w) for w in (0, 1, 0.1, 5)] == [1, 1, 2, 2]


def test_evaluations_are_at_the_start_every_few_stages_and_at_the_end():
    config = load_config(["--config=config/stage_process.py:sd14", "--config.stages.total=12"])
    assert evaluated_stages(config) == [0, 5, 10, 12]
