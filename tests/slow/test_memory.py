"""The bill's memory against a real run's, at full size on the CPU."""

import json
import sys

import pytest

from srrl.config import load_config
from srrl.measure.biller import Biller
from tests.slow.commands import run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("big")]
FLAGS = [
    "--config=config/stage_process.py:sd14+b2diffurl", "--config.pretrained.model=random:sd14",
    "--config.mixed_precision=no", "--config.tracker=none", "--config.sample.resolution=256",
    '--config.reward.models={"tests.slow.peak:Redness": 1.0}', "--config.stages.total=1",
    "--config.sample.num_steps=2", "--config.interval.right=2", "--config.interval.steps=1",
    "--config.sample.num_batches_per_stage=1", "--config.branch.count=2",
    "--config.eval.num_prompts=1", "--config.eval.seeds=1", "--config.train.num_inner_epochs=1",
    "--config.train.micro_batch=2", "--config.select.mode=all",
    "--config.prompts.train=config/prompts/shapes_unconventional_train.json",
    "--config.prompts.heldout=config/prompts/shapes_unconventional_heldout.json",
]  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_predicted_peak_is_the_measured_one_within_15_percent(checkpointing, tmp_path):
    """glibc is told to give freed blocks of 1 MiB back; by itself it keeps up to a fifth more."""
    flags = [*FLAGS, f"--config.train.gradient_checkpointing={checkpointing}"]
    predicted = Biller(load_config(flags), cuda=False).bill().peak[1]
    out = tmp_path / "peak.json"
    run(sys.executable, "tests/slow/peak.py", out, *flags, f"--config.output_dir={tmp_path}",
        PYTHONPATH=".", MALLOC_MMAP_THRESHOLD_=str(2**20))  # fmt: skip
    measured = json.loads(out.read_text())
    grown = measured["peak"] - measured["baseline"]
    print(f"checkpointing {checkpointing}: predicted {predicted / 2**30:.2f}, "
          f"measured {grown / 2**30:.2f} GiB")  # fmt: skip
    assert abs(predicted - grown) <= 0.15 * grown
