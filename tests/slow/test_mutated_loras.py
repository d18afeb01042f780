"""LoRA files that something went wrong with: read exactly, or refused; nothing else."""

import random
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from srrl.errors import UserError
from srrl.models.lora import changed, read_lora
from srrl.models.lora_uses import draw_with
from srrl.models.weights import LORA_FILE, load_weights, save_weights, trained_weights
from tests.conftest import load_policy, randomise_lora
from tests.loras import diffusers, kohya, layers, merged, old_diffusers, random_delta, write

pytestmark = pytest.mark.slow
FILES = 1580  # with the checkpoints below and the models of test_mutated_models 2,000
KINDS = (torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.float8_e4m3fn)
ADDED = (
    "lora_unet_x.alpha",
    "unet.x.lora_A.weight",
    "unet.conv_in.lora_B.weight",
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
    "step",
    "unet.conv_in.lora_magnitude_vector",
    "lora_unet_conv_in.dora_scale",
    "lora_unet_conv_in.lora_mid.weight",
    "..",
    "",
    "ünet.lora_A.weight",
    "lora_A.weight",
    "unet..lora_A..weight",
)


def rename(key: str, r: random.Random) -> str:
    place = r.randrange(len(key))
    return r.choice(
        [
            key[:place] + r.choice("0123456789._abAB") + key[place + 1 :],
            key[:place] + key[place + 1 :],
            r.choice(("module.", "unet.", "base_model.model.", "lora_unet_", "x.", ".")) + key,
            key + r.choice((".weight", ".default", "2", ".")),
            key.upper(),
        ]
    )


def reshape(t: torch.Tensor, r: random.Random) -> torch.Tensor:
    t = torch.atleast_1d(t)
    return r.choice(
        [
            lambda: t[:1],
            lambda: t[..., :1],
            lambda: t[:0],
            lambda: t.flatten(),
            lambda: t[None],
            lambda: t[..., None, None],
            lambda: t.transpose(0, -1),
            lambda: torch.zeros(()),
            lambda: torch.cat([t.flatten(), t.flatten()]),
        ]
    )()


def mutated(state: dict, r: random.Random) -> dict:
    """A state with one to three changes."""
    for _ in range(r.randint(1, 3)):
        if not state:
            break
        key = r.choice(list(state))
        how = r.randrange(7)
        if how == 0:
            state = {rename(k, r) if k == key else k: v for k, v in state.items()}
        elif how == 1:
            del state[key]
        elif how == 2:
            state[r.choice(ADDED)] = r.choice(list(state.values()))
        elif how == 3:
            state[key] = reshape(state[key], r)
        elif how == 4:
            state[key] = state[key].to(r.choice(KINDS))
        elif how == 5:
            other = r.choice(list(state))
            state[key], state[other] = state[other], state[key]
        else:
            state[key] = state[key] * r.choice([float("nan"), float("inf"), 0.0, 1e-30])
    return state


def torn(content: bytes, r: random.Random) -> bytes:
    """The bytes of a file cut, or with some of its header's changed."""
    how, place = r.randrange(3), r.randrange(min(len(content), 4000))
    if how == 0:
        return content[:place]
    if how == 1:
        return content[: r.randrange(len(content))]
    changed_ = bytearray(content)
    for at in (place, r.randrange(min(len(content), 4000))):
        changed_[at] = r.randrange(256)
    return bytes(changed_)


def same_tensor(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def test_a_mutated_lora_is_refused_or_exactly_what_it_says(tmp_path):
    pipe = load_policy("sd").pipe
    known = layers(pipe)
    some = {n: w for n, w in known.items() if n.endswith(("to_q", "to_out.0", "conv1"))}
    deltas = {n: random_delta(w, 1 + i % 3, 1 + i % 4, i) for i, (n, w) in enumerate(some.items())}
    sources = [
        write(form({"unet": deltas}), tmp_path / f"{i}.safetensors")
        for i, form in enumerate((kohya, diffusers, old_diffusers))
    ]
    outcomes, file = Counter(), Path(tmp_path / "mutated.safetensors")
    for number in range(FILES):
        r = random.Random(number)
        source = r.choice(sources)
        whole = load_file(source)
        if number % 5 == 0:
            file.write_bytes(torn(source.read_bytes(), r))
            state = whole
        else:
            state = mutated(dict(whole), r)
            write(state, file)
        try:
            lora = read_lora(pipe, file, "it")
        except UserError as error:
            assert str(error).startswith("it: ") and "\n" not in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        draw_with(SimpleNamespace(**{p: deepcopy(getattr(pipe, p)) for p in lora.parts}), lora)
        read = lora.parts.get("unet", {})
        if number % 5:  # every tensor had its part in it
            magnitudes = sum(d.magnitude is not None for d in read.values())
            alphas = sum(k.endswith(".alpha") for k in state)
            mids = sum("lora_mid" in k for k in state)
            count = sum(map(len, lora.parts.values()))
            assert len(state) == 2 * count + alphas + magnitudes + mids
        before = {k: v for k, v in state.items() if k in whole and same_tensor(v, whole[k])}
        for name, delta in read.items():
            keys = [k for k in whole if name.replace(".", "_") in k.replace(".", "_")]
            if name in deltas and all(k in before for k in keys) and delta.magnitude is None:
                right = merged(known[name], deltas[name])
                torch.testing.assert_close(changed(known[name], delta), right, atol=1e-5, rtol=1e-5)
                outcomes["modules the same"] += 1
    assert outcomes["refused"] > FILES / 3 and outcomes["read"] > FILES / 20, outcomes
    assert outcomes["modules the same"] > FILES
    print(outcomes)


def test_a_mutated_checkpoint_is_refused_or_loaded_whole(tmp_path):
    policy, again = load_policy("sd", lora=True), load_policy("sd", lora=True)
    randomise_lora(policy)
    save_weights(policy.network, tmp_path, trained_weights(policy.network))
    file, outcomes = tmp_path / LORA_FILE, Counter()
    whole = {k: v.clone() for k, v in load_file(file).items()}  # not in the file
    content = file.read_bytes()
    for number in range(300):
        r = random.Random(number)
        if number % 5:
            write(mutated(dict(whole), r), file)
        else:
            file.write_bytes(torn(content, r))
        try:
            load_weights(again.network, tmp_path)
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
    assert outcomes["refused"] > 200
    file.write_bytes(content)
    load_weights(again.network, tmp_path)
    for ours, theirs in zip(policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(ours, theirs)
