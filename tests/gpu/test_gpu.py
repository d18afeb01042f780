"""What must hold on a GPU. The same tests run on the CPU, so that they are right when one is there.

bash scripts/test.sh tests/gpu
"""

import json
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rewards.scoring import Scorer, rewards_of
from srrl.config import load_config
from srrl.curriculum import StagePlan
from srrl.measure import checks
from srrl.measure.biller import Biller
from srrl.measure.job import Job
from srrl.measure.stages import Metered
from srrl.models.policy import DTYPES, Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from tests.conftest import randomise_lora, small_run

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CUDA = pytest.param("cuda", marks=needs_gpu)
pytestmark = [pytest.mark.gpu, pytest.mark.slow]
on_both = pytest.mark.parametrize("device", ["cpu", CUDA])
PLAN = StagePlan(0, 2, 6)


def job(device: str, folder: Path) -> Job:
    return Job("test", device, True, folder, time.monotonic() + 3600)


def trainer_on(device: str, folder: Path, preset: str, precision: str = "no") -> Metered:
    config = load_config(
        [
            f"--config=config/stage_process.py:{preset}",
            *small_run(folder),
            f"--config.mixed_precision={precision}",
        ]
    )
    policy = Policy.from_config(config, device=device)
    make_trainable(policy.network, config)
    randomise_lora(policy)
    accelerator = Accelerator(cpu=device == "cpu")
    tracker = Tracker(folder / "run", accelerator)
    return Metered(config, policy, rewards_of(config, device), accelerator, tracker)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "no"), *(pytest.param("cuda", kind, marks=needs_gpu) for kind in DTYPES)],
)
@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_the_first_ratio_is_one(device, precision, preset, tmp_path):
    """On a CPU every precision is float32 (tests/srrl/test_precision.py has autocast there)."""
    metrics = trainer_on(device, tmp_path, preset, precision).train(PLAN).metrics
    assert metrics["selected"] > 0
    assert metrics["ratio/first_max_dev"] <= (1e-4 if precision == "no" else 2e-2)


@on_both
@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_a_stage_is_the_cpus(device, preset, tmp_path):
    found = checks.against_cpu(job(device, tmp_path), preset)
    assert found["same_selection"] and found["selected"] > 0
    assert found["pixels_within_one_level"] >= 0.999
    assert found["score_max_difference"] <= 0.02
    assert found["update_difference"] <= (1e-6 if device == "cpu" else 0.02)


@on_both
def test_every_tensor_of_a_stage_is_where_it_belongs(device, tmp_path):
    trainer = trainer_on(device, tmp_path, "tiny")
    prompts = trainer.draw_prompts(PLAN)
    samples = trainer.sample(PLAN, prompts)
    scored = trainer.score(PLAN, samples, prompts)
    chosen = trainer.select(PLAN, scored, prompts)
    batch = trainer.batch(samples, scored, chosen, prompts)
    pipe, kept = trainer.policy.pipe, vars(batch.conditioning).values()
    networks = (
        samples.latents,
        samples.log_probs,
        batch.latents,
        batch.log_probs,
        batch.advantages,
        *kept,
        *trainer.policy.network.parameters(),
        *pipe.vae.parameters(),
    )
    assert {t.device.type for t in networks} == {device}
    books = (
        samples.prompt,
        samples.branch,
        samples.round,
        samples.images,
        scored.prompt,
        *scored.scores.values(),
    )
    assert {t.device.type for t in books} == {"cpu"}


@on_both
def test_scoring_beside_sampling_gives_the_scores_of_scoring_in_turn(device, tmp_path):
    trainer = trainer_on(device, tmp_path, "tiny")
    prompts, scores = trainer.draw_prompts(PLAN), []
    for background in (False, True):
        trainer.scorer = Scorer(trainer.rewards, background)
        samples = trainer.sample(PLAN, prompts)
        scores.append(trainer.score(PLAN, samples, prompts).scores["shapes"])
    assert torch.equal(*scores)


@needs_gpu
def test_a_run_killed_and_resumed_ends_like_one_left_alone(tmp_path):
    """Bit for bit, as two runs of a command are where config.deterministic says so."""
    work = job("cuda", tmp_path)
    checks.resume(work)
    found = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])
    assert "error" not in found, found
    assert found["killed_by"] == 9
    assert found["two_runs_difference"] == 0 and found["resumed_difference"] == 0
    assert found["resumed_logs_equal"]


@needs_gpu
@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_the_plans_peak_is_the_gpus(preset, tmp_path):
    """At full size scripts/gpu_report.py compares them; here the small tensors' rounding counts."""
    trainer = trainer_on("cuda", tmp_path, preset, "bf16")
    trainer.train(PLAN)
    planned = Biller(trainer.config, cuda=True).bill().phases["update"].peak
    assert trainer.memory["update"] == pytest.approx(planned, rel=0.35)
