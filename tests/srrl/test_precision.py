"""Half precision: the ratio at the start, gradients against float32's, overflow."""

import pytest
import torch

from srrl import learner as learning
from srrl.curriculum import StagePlan
from srrl.errors import UserError
from srrl.learner import LOSS_SCALE, ratio_limit
from tests.conftest import LONG, randomise_lora
from tests.srrl.test_trainer import batch_of, make_trainer

pytestmark = pytest.mark.slow  # CPUs without half precision take minutes
PLAN = StagePlan(0, 2, 6)
HALF = {torch.bfloat16: 0.2, torch.float16: 0.05}  # and their gradients' relative error


def trainer_of(folder, *flags, **options):
    return make_trainer(folder, *LONG, *flags, **options)


def gradient(trainer, batch) -> torch.Tensor:
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(PLAN.trained_steps))
    trainer.learner.backward(batch, pairs)
    grads = torch.cat([p.grad.flatten() for p in trainer.policy.trainable()])
    trainer.learner.optimizer.zero_grad()
    return grads


@pytest.mark.parametrize(
    ("model", "dtype"), [("sd", torch.float16), ("sdxl", torch.bfloat16)], ids=str
)
def test_the_first_ratio_is_one_and_gradients_are_float32s(model, dtype, tmp_path):
    whole, half = (
        trainer_of(
            tmp_path / str(kind),
            "--config.train.micro_batch=7",
            "--config.sample.micro_batch=5",
            model=model,
            dtype=kind,
        )
        for kind in (torch.float32, dtype)
    )
    for trainer in (whole, half):
        randomise_lora(trainer.policy)
    batch = batch_of(whole, PLAN)
    exact, ours = gradient(whole, batch), gradient(half, batch)
    assert ours.dtype == torch.float32
    assert (ours - exact).norm() <= HALF[dtype] * exact.norm()
    pairs = torch.cartesian_prod(torch.arange(2), torch.arange(PLAN.trained_steps))
    update = half.learner.optimizer_step(batch_of(half, PLAN), pairs, first=True)
    assert update.ratio_max_dev <= 2e-2


def test_small_gradients_survive_fp16_by_scaling_the_loss(tmp_path):
    """At SD's 16,384 latent dimensions a gradient is 64 times smaller than here: let it be so."""
    whole, half = (
        trainer_of(tmp_path / str(kind), dtype=kind) for kind in (torch.float32, torch.float16)
    )
    for trainer in (whole, half):
        randomise_lora(trainer.policy)
    batch = batch_of(whole, PLAN)
    batch.advantages.div_(64)
    exact, scaled = gradient(whole, batch), gradient(half, batch)
    half.learner.loss_scale = 1.0
    unscaled = gradient(half, batch)
    error, lost = ((g - exact).norm() / exact.norm() for g in (scaled, unscaled))
    assert error <= 0.05 and lost > 2 * error


def test_an_update_that_overflows_is_repeated_at_half_the_scale_not_lost(tmp_path):
    usual, high = (trainer_of(tmp_path / name, dtype=torch.float16) for name in ("a", "b"))
    batch = batch_of(usual, PLAN)
    high.learner.loss_scale = 2.0**32
    pairs = torch.tensor([[0, 0], [0, 1], [1, 4], [1, 5]])
    updates = [t.learner.optimizer_step(batch, pairs, first=True) for t in (usual, high)]
    assert 1 < high.learner.loss_scale < 2.0**32
    assert updates[0].grad_norm == pytest.approx(updates[1].grad_norm, rel=0.02)
    one, two = (torch.cat([p.flatten() for p in t.policy.trainable()]) for t in (usual, high))
    assert (one - two).norm() <= 0.01 * one.norm()
    state = high.learner.state_dict()
    usual.learner.load_state_dict(state)
    assert usual.learner.loss_scale == high.learner.loss_scale


def test_8_bit_adam_without_its_package_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        trainer_of(tmp_path, "--config.train.use_8bit_adam=true")


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plain, saving = (trainer_of(tmp_path / name) for name in ("a", "b"))
    saving.policy.pipe.unet.enable_gradient_checkpointing()
    for trainer in (plain, saving):
        randomise_lora(trainer.policy)
    batch = batch_of(plain, PLAN)
    one, two = gradient(plain, batch), gradient(saving, batch)
    assert (one - two).norm() <= 1e-5 * one.norm()


def test_a_loss_scale_that_fell_grows_again_up_to_the_first(tmp_path, monkeypatch):
    every = 4
    monkeypatch.setattr(learning, "GROWTH_INTERVAL", every)
    trainer = trainer_of(tmp_path, dtype=torch.float16)
    learner, batch = trainer.learner, batch_of(trainer, PLAN)
    learner.loss_scale = first = LOSS_SCALE / 4
    pairs = torch.tensor([[0, 0], [1, 1]])
    scales = []
    for _ in range(3 * every):
        learner.optimizer_step(batch, pairs, first=False)
        scales.append(learner.loss_scale)
    doubled = [first] * (every - 1) + [2 * first] * every
    assert scales == doubled + [4 * first] * (every + 1)
    assert learner.loss_scale == LOSS_SCALE


@pytest.mark.parametrize(
    ("dtype", "tf32", "limit"),
    [
        (torch.float32, False, 1e-4),
        (torch.float32, True, 2e-2),  # 2.6e-4 was seen on a GPU with the embedded model
        (torch.float16, False, 2e-2),
        (torch.bfloat16, True, 2e-2),
    ],
)
def test_the_first_ratios_limit_is_that_of_the_arithmetic(dtype, tf32, limit):
    assert ratio_limit(dtype, tf32) == limit
