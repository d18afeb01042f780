"""LoRAs and whole UNets out and in again, in the formats other programs read."""

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from srrl.config import load_config
from srrl.errors import UserError
from srrl.models.lora_uses import KOHYA_FILE, export_kohya
from srrl.models.weights import (
    UNET_FILE,
    add_lora,
    load_weights,
    make_trainable,
    save_weights,
    trained_weights,
)
from tests.conftest import BOTH, LORA, MODELS, PRESET, load_policy, randomise_lora


@pytest.mark.parametrize("alpha", [4, 10])
@pytest.mark.parametrize("model", BOTH)
def test_a_kohya_lora_comes_back_exactly_through_plain_diffusers(model, alpha, tmp_path):
    policy = load_policy(model)
    settings = LORA.copy_and_resolve_references()
    settings.alpha = alpha
    add_lora(policy.network, settings, seed=0)
    randomise_lora(policy)
    export_kohya(policy.pipe, tmp_path / KOHYA_FILE)

    state = load_file(tmp_path / KOHYA_FILE)
    parts = {key.partition(".")[2] for key in state}
    assert parts == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert all(key.startswith("lora_unet_") for key in state)
    pipe = DiffusionPipeline.from_pretrained(MODELS[model], torch_dtype=torch.float32)
    pipe.load_lora_weights(tmp_path, weight_name=KOHYA_FILE)
    (name,) = pipe.unet.peft_config
    ours = get_peft_model_state_dict(policy.pipe.unet)
    theirs = get_peft_model_state_dict(pipe.unet, adapter_name=name)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    scale = [m.scaling for m in policy.pipe.unet.modules() if hasattr(m, "scaling")]
    assert [m.scaling[name] for m in pipe.unet.modules() if hasattr(m, "scaling")] == [
        s["default"] for s in scale
    ]


def with_lora(alpha: int):
    policy, settings = load_policy(), LORA.copy_and_resolve_references()
    settings.alpha = alpha
    add_lora(policy.network, settings, seed=0)
    return policy


@pytest.mark.parametrize("alpha", [4, 16, 3])
def test_a_lora_comes_back_exactly_or_with_a_rounding(alpha, tmp_path):
    policy, again = with_lora(alpha), with_lora(alpha)
    randomise_lora(policy)
    save_weights(policy.network, tmp_path, trained_weights(policy.network))
    load_weights(again.network, tmp_path)
    for ours, theirs in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(ours, theirs) or alpha == 3
        torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=0)


def test_a_lora_of_earlier_versions_with_alpha_in_its_header_still_loads(tmp_path):
    policy, again = with_lora(16), with_lora(16)
    randomise_lora(policy)
    state = trained_weights(policy.network)
    policy.pipe.save_lora_weights(
        tmp_path,
        unet_lora_layers=convert_state_dict_to_diffusers(state),
        unet_lora_adapter_metadata=policy.pipe.unet.peft_config["default"].to_dict(),
    )
    load_weights(again.network, tmp_path)
    for ours, theirs in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_same_weights_give_the_same_bytes_for_anybody_to_read(tmp_path):
    files = []
    for name in ("a", "b"):
        policy = with_lora(16)
        randomise_lora(policy)
        save_weights(policy.network, tmp_path / name, trained_weights(policy.network))
        export_kohya(policy.pipe, tmp_path / name / KOHYA_FILE)
        files.append(sorted((tmp_path / name).iterdir()))
    (tmp_path / "ordinary").touch()
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_whole_unet_comes_back_exactly_and_diffusers_reads_it(tmp_path):
    config = load_config([PRESET, "--config.use_lora=false"])
    policy = load_policy("sdxl")
    make_trainable(policy.network, config)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter += 0.01
    (tmp_path / "unet").mkdir()
    save_weights(policy.network, tmp_path, trained_weights(policy.network))
    again = load_policy("sdxl")
    make_trainable(again.network, config)
    load_weights(again.network, tmp_path)
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    for other in (again.pipe.unet, plain):
        for a, b in zip(policy.pipe.unet.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(UserError, match="not a LoRA"):
        export_kohya(policy.pipe, tmp_path / "x")
    with pytest.raises(UserError, match="do not fit"):
        other = load_policy("sd")
        make_trainable(other.network, config)
        load_weights(other.network, tmp_path)
    (tmp_path / UNET_FILE).write_bytes(b"{")
    with pytest.raises(UserError, match=r"cannot read the weights in .*: "):
        load_weights(other.network, tmp_path)


def test_modules_that_are_not_there_are_refused():
    settings = LORA.copy_and_resolve_references()
    settings.target_modules = ("to_x",)
    with pytest.raises(UserError, match="to_x"):
        add_lora(load_policy().network, settings, seed=0)
