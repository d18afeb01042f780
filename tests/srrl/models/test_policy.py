"""The pipeline behind the policy: guidance, evaluations, LoRA in and out."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DiffusionPipeline
from safetensors.torch import load_file

from srrl.errors import UserError
from srrl.models.weights import LORA_FILE, add_lora, load_weights, save_weights, trained_weights
from srrl.rounds import denoise_steps
from tests.conftest import BOTH, LORA, MODELS, PROMPTS, load_policy, randomise_lora


def like(policy, **options):
    """A fresh policy of the same model."""
    return load_policy("sdxl" if policy.is_xl else "sd", **options)


def noise_at(policy, guidance, seed=0):
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))
    step = torch.tensor([0, 3, 6, 9])
    with torch.no_grad():
        return policy.predict(x, step, policy.encode(PROMPTS), guidance)


def test_guidance_is_linear_between_the_single_evaluations(policy):
    empty, text = noise_at(policy, 0.0), noise_at(policy, 1.0)
    torch.testing.assert_close(
        noise_at(policy, 3.0), empty + 3 * (text - empty), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("guidance", "each"), [(0.0, 1), (1.0, 1), (0.1, 2), (5.0, 2)])
def test_evaluations_are_counted(policy, guidance, each):
    before = policy.nfe
    noise_at(policy, guidance)
    assert policy.nfe - before == 4 * each


@pytest.mark.parametrize("model", BOTH)
def test_each_prompt_is_encoded_once_and_the_encoders_can_go(model, monkeypatch):
    policy = load_policy(model)
    seen = []
    original = policy.pipe.encode_prompt
    monkeypatch.setattr(
        policy.pipe, "encode_prompt", lambda p, *a, **k: seen.append(p) or original(p, *a, **k)
    )
    first = policy.encode(PROMPTS[:2])
    again = policy.encode([PROMPTS[1], PROMPTS[0], PROMPTS[2]])
    assert seen == [[PROMPTS[0]], [PROMPTS[1]], [PROMPTS[2]]]
    assert torch.equal(first.text[0], again.text[1]) and torch.equal(first.empty, again.empty[:2])
    policy.prepare([])
    assert policy.text_encoders == []
    assert torch.equal(policy.encode(PROMPTS[:2]).pooled, first.pooled)
    with pytest.raises(RuntimeError, match="released"):
        policy.encode(["a new prompt"])


@pytest.mark.parametrize("model", BOTH)
def test_prompts_that_no_encoder_reads_whole_are_said_once_with_their_number(model, capfd):
    policy = load_policy(model)
    most = policy.pipe.tokenizer.model_max_length
    longer = [" ".join([PROMPTS[0]] * n) for n in (20, 30)]
    tokens = len(policy.pipe.tokenizer(longer[1]).input_ids)
    read = policy.pipe.tokenizer(longer[1], truncation=True).input_ids
    said = policy.prepare([PROMPTS[0], *longer, longer[1]])
    assert f"2 of 3 prompts are longer than the {most} tokens" in said
    assert f"up to {tokens}:" in said and tokens > most == len(read)
    assert said.count(PROMPTS[0]) == 1 and len(said) < 250
    assert torch.equal(*policy.encode(longer).text)  # their beginnings are the same
    assert load_policy(model).prepare(PROMPTS) == ""
    assert capfd.readouterr().err == ""  # the libraries', one for each


def test_a_fresh_lora_changes_nothing(lora_policy):
    assert torch.equal(noise_at(like(lora_policy), 5.0), noise_at(lora_policy, 5.0))


def test_only_lora_parameters_are_trainable_and_float32(lora_policy):
    names = [n for n, p in lora_policy.pipe.unet.named_parameters() if p.requires_grad]
    assert names and all("lora_" in n for n in names)
    assert {p.dtype for p in lora_policy.trainable()} == {torch.float32}
    for module in (lora_policy.pipe.vae, *lora_policy.text_encoders):
        assert not any(p.requires_grad for p in module.parameters())


def test_lora_weights_stay_float32_on_a_half_precision_base():
    policy = load_policy(dtype=torch.bfloat16)
    add_lora(policy.network, LORA, seed=0)
    assert {p.dtype for p in policy.trainable()} == {torch.float32}
    assert policy.pipe.unet.conv_in.weight.dtype == torch.bfloat16
    assert noise_at(policy, 5.0).dtype == torch.float32


def test_a_lora_comes_back_exactly(lora_policy, tmp_path):
    randomise_lora(lora_policy)
    save_weights(lora_policy.network, tmp_path, trained_weights(lora_policy.network))
    again = like(lora_policy, lora=True)
    load_weights(again.network, tmp_path)
    for one, other in zip(lora_policy.trainable(), again.trainable(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(noise_at(lora_policy, 5.0), noise_at(again, 5.0))


@pytest.mark.slow
def test_a_plain_diffusers_pipeline_loads_the_lora_and_draws_the_same(lora_policy, tmp_path):
    randomise_lora(lora_policy)
    save_weights(lora_policy.network, tmp_path, trained_weights(lora_policy.network))
    x = torch.randn(4, *lora_policy.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = lora_policy.encode(PROMPTS)
    ours = denoise_steps(lora_policy, x, conditioning, range(10), 5.0, 0.0)[0][-1]

    folder = MODELS["sdxl" if lora_policy.is_xl else "sd"]
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 10, "guidance_scale": 5.0, "output_type": "latent"}
    without = pipe(PROMPTS, latents=x, **options).images
    pipe.load_lora_weights(tmp_path, weight_name=LORA_FILE)
    theirs = pipe(PROMPTS, latents=x, **options).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)  # another memory layout
    assert (theirs - without).abs().max() > 0.01


def test_a_lora_that_does_not_fit_is_refused(lora_policy, tmp_path):
    save_weights(lora_policy.network, tmp_path, trained_weights(lora_policy.network))
    state = load_file(tmp_path / LORA_FILE)
    from safetensors.torch import save_file

    save_file({k: v for k, v in state.items() if "mid_block" not in k}, tmp_path / LORA_FILE)
    with pytest.raises(UserError, match="do not fit"):
        load_weights(like(lora_policy, lora=True).network, tmp_path)


def test_a_model_that_is_not_there_is_one_clear_line():
    with pytest.raises(UserError, match="no/such-model"):
        load_policy_from("no/such-model")


def test_a_resolution_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"sample\.resolution=36 does not fit .* a multiple of \d+"):
        load_policy(resolution=36)


def load_policy_from(model):
    from srrl.models.policy import Policy

    return Policy.load(model, num_steps=10, eta=1.0, micro_batch=4)


def test_one_step_is_the_schedules(policy):
    """For an index for each sample, and one for all; and one step back is its inverse at the same
    noise, which is nearly so where the steps are small."""
    x, cond = torch.randn(4, *policy.latent_shape), policy.encode(PROMPTS)
    with torch.no_grad():
        mean, sigma = policy.step(x, torch.tensor([2, 2, 2, 2]), cond, 5.0, 1.0)
        again, _ = policy.step(x, 2, cond, 5.0, 1.0)
        down, none = policy.step(x, 2, cond, 1.0, 0.0)
    assert torch.equal(mean, again) and (none == 0).all() and (sigma > 0).all()
    scheduler = DDIMScheduler.from_config(policy.pipe.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[2]
    output = policy.predict(x, torch.full((4,), 2), cond, 1.0).detach()
    expected = scheduler.step(output, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(down, expected, atol=1e-5, rtol=1e-5)
    inverse = DDIMInverseScheduler.from_config(policy.pipe.scheduler.config, clip_sample=False)
    inverse.set_timesteps(10)
    with torch.no_grad():
        back = policy.step_back(down, 2, cond, 1.0)
        output = policy.predict(down, torch.full((4,), 2), cond, 1.0)
    place = inverse.timesteps.tolist().index(int(t))
    expected = inverse.step(output, inverse.timesteps[place], down).prev_sample
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=1e-5)


def overflowing(dtype: torch.dtype):
    """A policy whose VAE decodes through activations that fp16 cannot hold; its weights fit."""
    policy = load_policy("sd", dtype=dtype)
    first = policy.pipe.vae.decoder.conv_in
    with torch.no_grad():
        factor = 3e4 / max(p.abs().max().item() for p in first.parameters())
        for parameter in first.parameters():
            parameter *= factor
    return policy


@pytest.mark.slow
def test_a_batch_that_overflows_the_vae_is_decoded_again_in_float32():
    latents = 3 * torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    half, whole = overflowing(torch.float16), overflowing(torch.float32)
    with torch.no_grad():
        assert not torch.isfinite(half.pixels(latents)).all()
    pictures, expected = half.decode(latents), whole.decode(latents)
    assert (pictures.int() - expected.int()).abs().max() <= 8  # weights were rounded to fp16
    assert next(half.pipe.vae.parameters()).dtype == torch.float16  # and again in half precision


def test_latents_that_are_not_finite_are_one_clear_line(policy):
    with pytest.raises(UserError, match="not finite, in float32 as well") as caught:
        policy.decode(torch.full((1, *policy.latent_shape), float("nan")))
    assert "\n" not in str(caught.value) and "pretrained.vae" in str(caught.value)
