"""What must hold on a GPU. The same tests run on the CPU, so that they are right when one is there.

bash scripts/test.sh tests/gpu
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rewards.scoring import Scorer, rewards_of
from srrl.config import REPOSITORY, load_config
from srrl.curriculum import StagePlan
from srrl.learner import ratio_limit
from srrl.measure.biller import Biller
from srrl.measure.parts import MeteredTrainer
from srrl.models.policy import DTYPES, Policy
from srrl.models.weights import make_trainable
from srrl.run.tracking import Tracker
from tests.conftest import LONG, randomise_lora, small_run
from tests.slow.commands import flat, logged, lora

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
pytestmark = [pytest.mark.gpu, pytest.mark.slow]
PLAN = StagePlan(0, 2, 6)


def trainer_on(device: str, folder: Path, *flags: str) -> MeteredTrainer:
    config = load_config([*flags, f"--config.output_dir={folder}"])
    policy = Policy.from_config(config, device=device)
    make_trainable(policy.network, config)
    accelerator = Accelerator(cpu=DEVICE == "cpu")
    tracker = Tracker(folder / "run", accelerator)
    return MeteredTrainer(config, policy, rewards_of(config, device), accelerator, tracker)


def small_trainer(folder: Path, preset: str, precision: str = "no") -> MeteredTrainer:
    trainer = trainer_on(
        DEVICE,
        folder,
        f"--config=config/stage_process.py:{preset}",
        *small_run(folder),
        *LONG,
        f"--config.mixed_precision={precision}",
    )
    randomise_lora(trainer.policy)
    return trainer


@pytest.mark.parametrize("precision", DTYPES if DEVICE == "cuda" else ["no"])
@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_the_first_ratio_is_one(precision, preset, tmp_path, record_property):
    """On a CPU every precision is float32 (tests/srrl/test_precision.py has autocast there)."""
    trainer = small_trainer(tmp_path, preset, precision)
    metrics = trainer.train(PLAN).metrics
    record_property("largest deviation", metrics["ratio/first_max_dev"])
    assert metrics["selected"] > 0
    tf32 = torch.cuda.is_available() and trainer.config.allow_tf32
    assert metrics["ratio/first_max_dev"] <= ratio_limit(trainer.policy.dtype, tf32)


@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_a_stage_is_the_cpus(preset, tmp_path, record_property):
    ours, theirs = (one_stage(tmp_path, preset, device) for device in (DEVICE, "cpu"))
    levels = (ours["images"].int() - theirs["images"].int()).abs()
    score = (ours["scores"] - theirs["scores"]).abs().max().item()
    update = relative(ours["update"], theirs["update"])
    record_property("selected", len(ours["selected"]))
    record_property("pixels' largest difference in levels", levels.max().item())
    record_property("scores' largest difference", score)
    record_property("update's difference", update)
    assert ours["selected"] == theirs["selected"] != []
    assert (levels <= 1).float().mean() >= 0.999
    assert score <= 0.02
    assert update <= (1e-6 if DEVICE == "cpu" else 0.02)


def one_stage(folder: Path, preset: str, device: str) -> dict:
    """What a stage in float32 drew, scored, selected and learned, on the CPU.

    Adam's epsilon is large, so that the update is in proportion to the gradient and not to its
    sign where that is rounding.
    """
    trainer = trainer_on(
        device,
        folder,
        f"--config=config/stage_process.py:{preset}",
        f"--config.sample.batch_size={12 if DEVICE == 'cuda' else 5}",
        "--config.select.pos_threshold=0.1",
        "--config.select.neg_threshold=-0.1",
        "--config.train.adam_epsilon=0.01",
        "--config.allow_tf32=false",
    )
    before = weights_of(trainer.policy)
    prompts = trainer.draw_prompts(PLAN)
    samples = trainer.sample(PLAN, prompts)
    scored = trainer.score(PLAN, samples, prompts)
    chosen = trainer.select(PLAN, scored, prompts)
    batch = trainer.batch(samples, scored, chosen, prompts)
    trainer.update(PLAN, batch)
    taken = samples.log_probs.sum(1).cpu()
    return {
        "images": samples.images.cpu(),
        "scores": scored.scores["shapes"],
        "selected": [(taken - own).abs().argmin().item() for own in batch.log_probs.sum(1).cpu()],
        "update": weights_of(trainer.policy) - before,
    }


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten().cpu() for p in policy.trainable()])


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def test_every_tensor_of_a_stage_is_where_it_belongs(tmp_path):
    trainer = small_trainer(tmp_path, "tiny")
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
    assert {t.device.type for t in networks} == {DEVICE}
    books = (
        samples.prompt,
        samples.branch,
        samples.round,
        samples.images,
        scored.prompt,
        *scored.scores.values(),
    )
    assert {t.device.type for t in books} == {"cpu"}


def test_scoring_beside_sampling_gives_the_scores_of_scoring_in_turn(tmp_path):
    trainer = small_trainer(tmp_path, "tiny")
    prompts, scores = trainer.draw_prompts(PLAN), []
    for background in (False, True):
        trainer.scorer = Scorer(trainer.rewards, background)
        samples = trainer.sample(PLAN, prompts)
        scores.append(trainer.score(PLAN, samples, prompts).scores["shapes"])
    assert torch.equal(*scores)


@needs_gpu
@pytest.mark.parametrize("preset", ["tiny", "tiny_xl"])
def test_the_plans_peak_is_the_gpus(preset, tmp_path):
    """At full size scripts/gpu_report.py compares them; here the small tensors' rounding counts."""
    trainer = small_trainer(tmp_path, preset, "bf16")
    trainer.train(PLAN)
    planned = Biller(trainer.config, cuda=True).bill().phases["update"].peak
    assert trainer.memory["update"] == pytest.approx(planned, rel=0.35)


def begin(folder: Path, name: str) -> subprocess.Popen:
    """Start, or resume, a deterministic run of the real command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path])}
    if DEVICE == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        [
            sys.executable,
            "scripts/train.py",
            "--config=config/stage_process.py:tiny",
            *small_run(folder, 3),
            *LONG,
            f"--config.run_name={name}",
            "--config.deterministic=true",
        ],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_run_killed_and_resumed_ends_like_one_left_alone(tmp_path):
    """Bit for bit, as two runs of a command are where config.deterministic says so (on a CPU they
    always are: tests/slow/test_end_to_end.py)."""
    names = ["whole", *(["again"] if DEVICE == "cuda" else []), "killed"]
    runs = {name: begin(tmp_path, name) for name in names}
    try:
        for line in runs["killed"].stdout:
            if line.startswith("stage 2/"):
                runs["killed"].kill()
        assert runs["killed"].wait() == -signal.SIGKILL
        runs["killed"] = begin(tmp_path, "killed")
        for process in runs.values():
            output, _ = process.communicate()
            assert process.returncode == 0, output
    finally:
        for process in runs.values():
            process.kill()
    whole, *others = (flat(lora(tmp_path / name, 3)) for name in names)
    assert all(torch.equal(whole, other) for other in others)
    logs = [logged(tmp_path / name, "metrics.jsonl") for name in ("whole", "killed")]
    assert logs[0] == logs[1]
