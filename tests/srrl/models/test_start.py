"""A warm start: the LoRA of a file, in every format, has its source's effect before training."""

import pytest
import torch
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from srrl.config import load_config
from srrl.errors import UserError
from srrl.models.lora_uses import KOHYA_FILE, export_kohya
from srrl.models.start import start_file, start_from
from srrl.models.weights import (
    LORA_FILE,
    add_lora,
    save_weights,
    trained_weights,
)
from srrl.rollout import rollout
from srrl.rounds import rollout_settings
from tests.conftest import LORA, PRESET, PROMPTS, load_policy, randomise_lora
from tests.loras import kohya, layers, merged, random_delta, write

PLAIN = "plain.safetensors"


def lora_settings(**changes):
    settings = LORA.copy_and_resolve_references()
    settings.update(changes)
    return settings


def source(model: str, folder, **changes):
    """A policy whose LoRA has an effect, and its file in each format."""
    policy = load_policy(model)
    add_lora(policy.network, lora_settings(**changes), seed=5)
    randomise_lora(policy)
    save_weights(policy.network, folder, trained_weights(policy.network))
    export_kohya(policy.pipe, folder / KOHYA_FILE)
    # As diffusers' own training scripts write it: without our header, alpha is the rank.
    save_file(load_file(folder / LORA_FILE), folder / PLAIN)
    return policy


def images(policy) -> torch.Tensor:
    settings = rollout_settings(load_config([PRESET]), branches=1)
    return rollout(
        policy,
        policy.encode(PROMPTS[:2]),
        settings,
        rounds=2,
        trained_steps=0,
        seed=1,
        stage=0,
        prompts=[0, 1],
    ).images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "file"), [("sd", LORA_FILE), ("sd", KOHYA_FILE), ("sdxl", PLAIN)]
)
def test_a_start_gives_the_images_of_its_source(model, file, tmp_path):
    alpha = 4 if file == PLAIN else 10  # a bare file says nothing of alpha
    before = source(model, tmp_path, alpha=alpha)
    policy = load_policy(model, lora=True)
    start_from(policy.pipe, str(tmp_path / file))
    assert list(policy.pipe.unet.peft_config) == ["default"]
    assert policy.trainable() and all(p.dtype == torch.float32 for p in policy.trainable())
    ours, theirs = images(policy), images(before)
    assert (ours.int() - theirs.int()).abs().max() <= 1  # the two scalings round differently
    if alpha == 4:
        assert torch.equal(ours, theirs)
        states = [get_peft_model_state_dict(p.pipe.unet) for p in (policy, before)]
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(ours, images(load_policy(model, lora=True)))


@pytest.mark.slow
def test_a_start_of_lower_rank_leaves_the_rest_to_be_learned(tmp_path):
    before = source("sd", tmp_path, rank=2, alpha=2, target_modules=("to_q", "to_v"))
    policy = load_policy("sd", lora=True)
    start_from(policy.pipe, str(tmp_path))
    assert (images(policy).int() - images(before).int()).abs().max() <= 1
    module = policy.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert module.lora_A["default"].weight[2:].abs().min() > 0  # so that these learn, too


def test_a_start_keeps_its_float32_under_a_half_precision_unet(tmp_path):
    before = source("sd", tmp_path)
    policy = load_policy("sd", lora=True, dtype=torch.bfloat16)
    start_from(policy.pipe, str(tmp_path))
    states = [get_peft_model_state_dict(p.pipe.unet) for p in (policy, before)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"rank": 8, "alpha": 8}, "rank 8: raise config.lora.rank"),
        ({"target_modules": ("to_q", "proj_in")}, "proj_in: add it to config.lora.target_modules"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line_and_leaves_no_trace(changes, match, tmp_path):
    source("sd", tmp_path, **changes)
    policy = load_policy("sd", lora=True)
    before = get_peft_model_state_dict(policy.pipe.unet)
    before = {k: v.clone() for k, v in before.items()}
    with pytest.raises(UserError, match=match):
        start_from(policy.pipe, str(tmp_path / LORA_FILE))
    assert list(policy.pipe.unet.peft_config) == ["default"]
    after = get_peft_model_state_dict(policy.pipe.unet)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_what_is_no_lora_of_this_model_is_one_line(tmp_path):
    policy = load_policy("sd", lora=True)
    with pytest.raises(UserError, match="no such folder or file: give a run"):
        start_from(policy.pipe, str(tmp_path / "nothing"))
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        start_from(policy.pipe, str(tmp_path / "torn.safetensors"))
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no LoRA, but 1 other tensors, as 'x'"):
        start_from(policy.pipe, str(tmp_path / "other.safetensors"))
    source("sdxl", tmp_path)
    with pytest.raises(UserError, match="does not fit"):
        start_from(policy.pipe, str(tmp_path / LORA_FILE))


def test_a_start_takes_each_modules_own_rank_and_alpha(tmp_path):
    policy = load_policy("sd", lora=True)
    plain = {n: w for n, w in layers(load_policy("sd").pipe).items() if n.endswith("to_q")}
    deltas = {n: random_delta(w, 1 + i % 4, 2 + i % 3, i) for i, (n, w) in enumerate(plain.items())}
    said = policy.start(str(write(kohya({"unet": deltas}), tmp_path / "lora.safetensors")))
    assert said.endswith(f"{len(deltas)} modules of rank 1 to 4, alpha 2 to 4, kohya")
    for name, delta in deltas.items():
        module = policy.network.get_submodule(name)
        ours = module.get_base_layer().weight + module.get_delta_weight("default")
        torch.testing.assert_close(ours, merged(plain[name], delta), atol=1e-5, rtol=1e-5)


def test_what_only_sampling_can_hold_is_refused_before_a_model_is_loaded(tmp_path):
    weight = torch.zeros(4, 4)
    delta = random_delta(weight, 2, 2, 0)
    dora = kohya({"unet": {"x": delta}}) | {"lora_unet_x.dora_scale": torch.ones(4, 1)}
    with pytest.raises(UserError, match=r"is a DoRA, .*: merge it first"):
        start_file(str(write(dora, tmp_path / "dora.safetensors")))
    both = kohya({"unet": {"x": delta}, "text_encoder": {"y": delta}})
    with pytest.raises(UserError, match="of its text_encoder: only the UNet is trained"):
        start_file(str(write(both, tmp_path / "both.safetensors")))
