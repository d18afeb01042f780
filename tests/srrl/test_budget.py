"""How often the network is called, and how that depends on the split of a stage's prompts."""

import pytest

from srrl.budget import plan_for, sampling_calls, stage_calls, stage_cost
from srrl.config import load_config
from srrl.curriculum import StagePlan
from tests.srrl.test_trainer import make_trainer


def split(preset: str, batches: int, prompts: int):
    return load_config(
        [
            f"--config=config/stage_process.py:{preset}",
            f"--config.sample.num_batches_per_stage={batches}",
            f"--config.sample.batch_size={prompts}",
        ]
    )


def test_the_presets_split_saves_three_quarters_of_the_calls():
    preset = load_config(["--config=config/stage_process.py:sd14"])
    one, four, eight = (split("sd14", n, 32 // n) for n in (32, 8, 4))
    assert [sampling_calls(c) for c in (one, four, eight)] == [320_000, 83_600, 43_600]
    assert sampling_calls(preset) == sampling_calls(four)
    plan = plan_for(preset, 20)
    assert stage_cost(one, plan) == stage_cost(four, plan)  # the work is the same


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "prompts"), [(3, 1), (1, 3)])
def test_calls_are_those_of_a_real_stage(batches, prompts, tmp_path):
    trainer = make_trainer(
        tmp_path,
        f"--config.sample.num_batches_per_stage={batches}",
        f"--config.sample.batch_size={prompts}",
        "--config.sample.micro_batch=4",
        micro_batch=4,
    )
    plan, counted = StagePlan(0, 2, 2), []
    trainer.policy.pipe.unet.register_forward_hook(lambda *_: counted.append(1))
    trainer.sample(plan, trainer.draw_prompts(plan))
    calls = stage_calls(trainer.config, plan)
    assert len(counted) == sum(x.network_calls(4) for x in calls)
