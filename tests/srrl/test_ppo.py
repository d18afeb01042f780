"""The clipped objective and its gradient against an independent float64 computation."""

import math

import pytest
import torch

from srrl.ppo import clipped_objective, kl_k3


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


def tokens(seed=0, b=5, n=7):
    """Log-probs, old and reference ones [b, n], advantages [b], and a mask, in float64."""
    generator = torch.Generator().manual_seed(seed)
    log_p, old, reference = (
        -1 + 0.3 * torch.randn(b, n, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    advantage = torch.randn(b, generator=generator, dtype=torch.float64)
    mask = torch.rand(b, n, generator=generator) < 0.6
    mask[:, 0] = True
    return log_p, old, reference, advantage, mask


def test_of_tokens_the_mean_is_over_those_that_count_with_two_clips_and_k3():
    log_p, old, reference, advantage, mask = tokens()
    given = log_p.clone().requires_grad_()
    objective = clipped_objective(
        given,
        old,
        advantage,
        0.2,
        clip_range_high=0.3,
        mask=mask,
        reference_log_prob=reference,
        kl_weight=0.04,
    )
    terms, binding = [], []
    for b in range(5):
        for i in range(7):
            if mask[b, i]:
                a = advantage[b].item()
                ratio = math.exp(log_p[b, i] - old[b, i])
                clipped = min(max(ratio, 0.8), 1.3)
                d = (reference[b, i] - log_p[b, i]).item()
                terms.append(max(-a * ratio, -a * clipped) + 0.04 * (math.exp(d) - d - 1))
                binding.append(-a * clipped > -a * ratio)
    assert objective.loss.item() == pytest.approx(sum(terms) / len(terms), abs=1e-12)
    assert objective.clipped.tolist() == binding and True in binding
    objective.loss.backward()
    assert (given.grad[~mask] == 0).all() and (given.grad[mask] != 0).any()


def test_what_is_masked_is_not_read():
    log_p, old, _, advantage, mask = tokens()
    spoilt = torch.where(mask, log_p, torch.nan)
    one, other = (clipped_objective(x, old, advantage, 0.2, mask=mask) for x in (log_p, spoilt))
    assert torch.equal(one.loss, other.loss) and torch.equal(one.ratio, other.ratio)


def test_micro_batches_of_answers_give_the_mean_over_all_tokens():
    log_p, old, _, advantage, mask = tokens(b=6)
    whole = clipped_objective(log_p, old, advantage, 0.2, mask=mask).loss
    mean_tokens = mask.sum().item() / 6
    parts = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        given = log_p[rows], old[rows], advantage[rows], 0.2
        part = clipped_objective(*given, mask=mask[rows], mean_tokens=mean_tokens)
        parts += part.loss * (rows.stop - rows.start) / 6
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


def test_k3_is_unbiased_and_never_negative():
    """Over every outcome of a small distribution, weighted by its probability, it is the KL."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    estimates = kl_k3(p.log(), q.log())
    assert (estimates >= 0).all() and estimates[1] == 0
    torch.testing.assert_close((p * estimates).sum(), (p * (p / q).log()).sum())
