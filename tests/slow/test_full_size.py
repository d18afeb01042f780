"""The full SD v1.4 and SDXL architectures with random weights, through a whole stage on the CPU,
and the bill's memory against a real run's. In one file: no two of them take memory at once."""

import gc
import json
import sys

import pytest
import torch
from accelerate import Accelerator

from srrl.config import load_config
from srrl.ddim import make_schedule
from srrl.measure.biller import Biller
from srrl.models.architectures import random_pipeline
from srrl.models.policy import Policy
from srrl.models.weights import LORA_FILE, load_weights, make_trainable
from srrl.run.tracking import Tracker
from srrl.trainer import Trainer
from tests.conftest import small_run
from tests.slow.commands import run
from tests.slow.peak import Redness

pytestmark = pytest.mark.slow
PARAMETERS = {"sd14": 859_520_964, "sdxl": 2_567_463_684}  # of the published UNets
FLAGS = [
    "--config=config/stage_process.py:sd14+b2diffurl",
    "--config.pretrained.model=random:sd14",
    "--config.mixed_precision=no",
    "--config.tracker=none",
    "--config.sample.resolution=128",
    '--config.reward.models={"tests.slow.peak:Redness": 1.0}',
    "--config.stages.total=1",
    "--config.sample.num_steps=2",
    "--config.interval.right=2",
    "--config.interval.steps=1",
    "--config.sample.num_batches_per_stage=1",
    "--config.sample.batch_size=1",
    "--config.branch.count=2",
    "--config.eval.every=0",
    "--config.train.num_inner_epochs=1",
    "--config.train.micro_batch=2",
    "--config.select.mode=all",
    "--config.prompts.train=config/prompts/shapes_unconventional_train.json",
    "--config.prompts.heldout=config/prompts/shapes_unconventional_heldout.json",
]


@pytest.mark.parametrize("preset", ["sd14", "sdxl"])
def test_a_full_size_model_reflects_samples_updates_saves_and_reloads(preset, tmp_path):
    """In float32: CPUs without bf16 take minutes a step in it."""
    dtype = torch.float32
    config = load_config(
        [
            f"--config=config/stage_process.py:{preset}+b2diffurl",
            *small_run(tmp_path, 1),
            '--config.reward.models={"tests.slow.peak:Redness": 1.0}',
            "--config.prompts.train=config/prompts/shapes_unconventional_train.json",
            "--config.prompts.heldout=config/prompts/shapes_unconventional_heldout.json",
            "--config.tracker=none",
            "--config.sample.num_steps=2",
            "--config.interval.left=1",
            "--config.interval.right=2",
            "--config.interval.skip_last=0",
            "--config.interval.steps=1",
            f"--config.reflect.rounds={2 if preset == 'sd14' else 1}",
            "--config.sample.resolution=64",
            "--config.sample.batch_size=1",
            "--config.branch.count=2",
            "--config.eval.every=0",
            "--config.train.num_inner_epochs=1",
            "--config.train.gradient_checkpointing=true",
            "--config.mixed_precision=no",
            "--config.sample.num_batches_per_stage=1",
            "--config.select.pos_threshold=0",
            "--config.select.neg_threshold=0",
        ]
    )
    pipe = random_pipeline(f"random:{preset}", dtype)
    assert sum(p.numel() for p in pipe.unet.parameters()) == PARAMETERS[preset]
    schedule = make_schedule(pipe.scheduler.config, 2, eta=1.0)
    policy = Policy(pipe, schedule, micro_batch=2, decode_batch=1, resolution=64, dtype=dtype)
    assert policy.latent_shape == (4, 8, 8)
    make_trainable(pipe.unet, config)
    assert pipe.unet.is_gradient_checkpointing
    accelerator = Accelerator(cpu=True)
    tracker = Tracker(tmp_path / "run", accelerator)
    trainer = Trainer(config, policy, {"tests.slow.peak:Redness": Redness()}, accelerator, tracker)
    before = [p.detach().clone() for p in policy.trainable()]
    trainer.run()
    after = list(policy.trainable())
    assert {p.dtype for p in after} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    folder = tmp_path / "run" / "checkpoints" / "stage_0001"
    assert (folder / LORA_FILE).exists()
    trained = [p.detach().clone() for p in after]
    for parameter in after:
        parameter.data.zero_()
    load_weights(pipe.unet, folder)
    assert all(torch.equal(a, b) for a, b in zip(trained, policy.trainable(), strict=True))
    del trainer, policy, pipe
    gc.collect()


@pytest.mark.parametrize("checkpointing", [True])
def test_the_predicted_peak_is_the_measured_one_within_15_percent(checkpointing, tmp_path):
    """glibc is told to give freed blocks of 1 MiB back; by itself it keeps up to a fifth more."""
    flags = [*FLAGS, f"--config.train.gradient_checkpointing={checkpointing}"]
    predicted = Biller(load_config(flags), cuda=False).bill().peak[1]
    out = tmp_path / "peak.json"
    run(
        sys.executable,
        "tests/slow/peak.py",
        out,
        *flags,
        f"--config.output_dir={tmp_path}",
        PYTHONPATH=".",
        MALLOC_MMAP_THRESHOLD_=str(2**20),
    )
    measured = json.loads(out.read_text())
    grown = measured["peak"] - measured["baseline"]
    print(
        f"checkpointing {checkpointing}: predicted {predicted / 2**30:.2f}, "
        f"measured {grown / 2**30:.2f} GiB"
    )
    assert abs(predicted - grown) <= 0.15 * grown
