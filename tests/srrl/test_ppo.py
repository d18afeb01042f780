"""The clipped objective and its gradient against an independent float64 computation."""

import math

import pytest
import torch

from srrl.ppo import clipped_objective


def independent(log_p, old, advantage, eps):
    """Loss and d loss / d log p, case by case from the definition, in Python floats."""
    loss, gradient = 0.0, []
    n = len(log_p)
    for lp, lo, a in zip(log_p, old, advantage, strict=True):
        ratio = math.exp(lp - lo)
        clipped = min(max(ratio, 1 - eps), 1 + eps)
        loss += max(-a * ratio, -a * clipped) / n
        active = -a * ratio >= -a * clipped
        gradient.append(-a * ratio / n if active else 0.0)
    return loss, gradient


@pytest.mark.parametrize("eps", [1e-4, 0.1])
def test_loss_and_gradient(eps):
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(64, generator=generator, dtype=torch.float64)
    log_p = (
        old + 0.15 * torch.randn(64, generator=generator, dtype=torch.float64)
    ).requires_grad_()
    advantage = 2 * torch.randn(64, generator=generator, dtype=torch.float64)
    objective = clipped_objective(log_p, old, advantage, eps)
    objective.loss.backward()
    loss, gradient = independent(log_p.tolist(), old.tolist(), advantage.tolist(), eps)
    assert objective.loss.item() == pytest.approx(loss, abs=1e-12)
    assert log_p.grad.tolist() == pytest.approx(gradient, abs=1e-12)


def test_clipping_binds_only_in_the_direction_of_the_advantage():
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5])
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    objective = clipped_objective(ratio.log(), torch.zeros(4), advantage, 0.1)
    assert objective.clipped.tolist() == [True, False, False, True]
    torch.testing.assert_close(objective.ratio, ratio)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient():
    log_p = torch.zeros(3, requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5])
    clipped_objective(log_p, torch.zeros(3), advantage, 0.1).loss.backward()
    torch.testing.assert_close(log_p.grad, -advantage / 3)
