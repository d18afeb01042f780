"""Reflection-GRPO's arithmetic against independent float64 computations."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from srrl.models.vlm import VLM
from srrl.rig.actor import TINY_ACTOR
from srrl.rig.grpo import group, likeness, parted
from srrl.rig.phases import Words, words_objective
from srrl.shapes.scenes import parse, render
from tests.conftest import PROMPTS


def test_advantages_are_of_a_group_alone_and_clamped():
    rewards = torch.tensor([[0.0, 1 / 3, 1.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.1]])
    gained = torch.tensor([[False, True, True], [False] * 3, [False] * 3])
    found = group(rewards, gained, clip=5.0, need_gain=True)
    values = [0.0, 1 / 3, 1.0]
    mean = sum(values) / 3
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    expected = torch.tensor([(v - mean) / (std + 1e-4) for v in values])
    assert torch.allclose(found.advantages[0], expected, atol=1e-6)
    assert found.advantages[1].tolist() == [0, 0, 0]
    assert found.tied.tolist() == [False, True, False]
    assert found.hopeless.tolist() == [False, False, True]
    assert found.kept.tolist() == [True, False, False]
    assert group(rewards, gained, 5.0, need_gain=False).kept.tolist() == [True, False, True]
    assert group(rewards, gained, 0.5, need_gain=True).advantages.abs().max() == 0.5
    with pytest.raises(ValueError, match="group of one"):
        group(rewards[:, :1], gained[:, :1], 5.0, True)
    assert group(rewards[:0], gained[:0], 5.0, True).kept.shape == (0,)


def test_likeness_is_of_the_half_that_changed_least():
    before = torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)
    after = before.clone()
    after[1, :, :16] = 255  # an edit of half of it
    after[2] += 51
    after[3, :, :24] += 51  # of three quarters: half of what is compared has changed
    assert likeness(before, after).tolist() == pytest.approx([1, 1, 0.8, 0.9], abs=1e-6)
    assert likeness(after[:, :, :20, :20], before[:, :, :20, :20]).shape == (4,)
    assert likeness(before[:0], after[:0]).shape == (0,)


def test_they_part_where_the_checker_rises_and_the_truth_falls():
    n = torch.linspace(-0.02, 0.02, 24)
    low, high = 0.4 + n, 0.6 - n
    assert parted([low, high, high + 0.2], [low, high, low]) == 1
    assert parted([low, high, high + 0.2], [low, high, high + 0.1]) is None  # both rise
    assert parted([low, high, low], [low, high, low]) is None  # both fall
    noise = (torch.arange(24) % 2 - 0.6) * 0.5
    assert parted([low, low + 0.1], [high, high + noise]) is None


@pytest.fixture(scope="module")
def actor() -> VLM:
    vlm = VLM.load(TINY_ACTOR, batch_size=8)
    vlm.add_lora(rank=4, alpha=8, seed=0)
    with torch.no_grad():
        for name, parameter in vlm.network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return vlm


def pictures(count: int) -> torch.Tensor:
    drawn = render([parse(p) for p in PROMPTS[:count]], torch.Generator().manual_seed(0))
    return (drawn * 255).round().to(torch.uint8)


def words(vlm: VLM) -> Words:
    """Five completions of two states, as they were written, a little off the policy."""
    images = pictures(2)
    asked = [f"prompt: {p}. failed: is there a red circle? write an edit." for p in PROMPTS[:2]]
    state = torch.tensor([0, 0, 0, 1, 1])
    written = vlm.write(
        images[state],
        [asked[i] for i in state.tolist()],
        max_tokens=40,
        generators=[torch.Generator().manual_seed(i) for i in range(5)],
    )
    noise = torch.randn(written.log_probs.shape, generator=torch.Generator().manual_seed(1))
    old = (written.log_probs + 0.3 * noise) * written.mask
    advantages = torch.tensor([1.2, -0.7, -0.4, 0.9, -1.1])
    mean = written.mask.sum(1).float().mean().item()
    return Words(images, asked, state, written.tokens, written.mask, old, advantages, mean)


@pytest.mark.parametrize("kl_weight", [0.0, 0.3])
def test_loss_and_gradient_equal_a_float64_computation(actor, kl_weight):
    made = words(actor)
    c = SimpleNamespace(clip_range=0.2, clip_range_high=0.28, kl_weight=kl_weight)
    objective = partial(words_objective, c, actor, 1.0, made)
    actor.network.zero_grad()
    loss = 0.0
    for items in torch.arange(5)[:, None].split(2):  # micro-batches, as the learner has them
        part = objective(items)
        (part.loss * (len(items) / 5)).backward()
        loss += part.loss.item() * len(items) / 5
    ours = {n: p.grad.clone() for n, p in actor.network.named_parameters() if p.grad is not None}

    exact = copy.copy(actor)
    exact.network = copy.deepcopy(actor.network).double()
    exact.dtype = torch.float64
    exact.network.zero_grad()

    def log_probs(i: int) -> torch.Tensor:
        """Of a completion's tokens, without batches or padding."""
        vision = exact.look(made.images[made.state[i]][None])
        asked = exact.talk.rows([made.requests[made.state[i]]], exact.visual_tokens(vision))[0]
        own = made.tokens[i][made.mask[i]]
        ids = torch.tensor([[*asked, *own.tolist()]])
        every = torch.ones_like(ids)
        logits = exact.logits(ids, every, exact.positions(ids, every, vision), vision)[0]
        logits[:, exact.unwritten] = -torch.inf
        chances = logits.log_softmax(-1)
        return torch.stack([chances[len(asked) - 1 + k, t] for k, t in enumerate(own)])

    total, count = torch.zeros((), dtype=torch.float64), 0
    for i in range(5):
        now, old = log_probs(i), made.log_probs[i][made.mask[i]].double()
        with torch.no_grad(), exact.bare():
            reference = log_probs(i)
        a = made.advantages[i].double()
        for p, before, base in zip(now, old, reference, strict=True):
            ratio = (p - before).exp()
            total = total - torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            total = total + kl_weight * ((base - p).exp() - (base - p) - 1)
            count += 1
    expected = total / count
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    theirs = {n: p.grad for n, p in exact.network.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys() and all("lora_" in name for name in ours)
    scale = max(g.abs().max() for g in theirs.values())
    for name, grad in theirs.items():
        assert (ours[name] - grad).abs().max() < 2e-4 * scale, name


def test_without_its_lora_a_vlm_answers_as_before(actor):
    images = pictures(1)
    plain = VLM.load(TINY_ACTOR)
    asked = [["is there a red circle?", "is there a blue square?"]]
    adapted, before = actor.p_yes(images, asked)[0], plain.p_yes(images, asked)[0]
    assert (adapted - before).abs().max() > 1e-4
    other = actor.sharing(batch_size=4, side=None)
    other.adapted = False
    assert torch.equal(other.p_yes(images, asked)[0], before)
    assert torch.equal(actor.p_yes(images, asked)[0], adapted)  # the LoRA is on again
    assert any(p.requires_grad for p in actor.network.parameters())
    ours = other.write(images, ["describe the picture."], max_tokens=12)
    assert ours.texts == plain.write(images, ["describe the picture."], max_tokens=12).texts
