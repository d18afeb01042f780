"""DESIGN invariants 2: sampling equals diffusers', inverting equals DDIMInverseScheduler's."""

import math

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from srrl.ddim import denoise_mean, invert, log_prob, make_schedule
from srrl.errors import UserError
from srrl.rounds import denoise_steps, invert_steps
from srrl.shapes.pipeline import SD_SCHEDULER, build_tiny_sd, build_tiny_sdxl
from tests.conftest import BOTH, MODELS, PROMPTS, load_policy

SD_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def start_noise(policy, n: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(n, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@pytest.mark.parametrize("model", BOTH)
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("steps", [10, 20])
def test_eta_zero_sampling_equals_the_diffusers_pipeline(model, guidance, steps):
    ours = load_policy(model, num_steps=steps)
    ours.pads = False  # both make the same calls
    x = start_noise(ours, len(PROMPTS))
    latents, _ = denoise_steps(ours, x, ours.encode(PROMPTS), range(steps), guidance, 0.0)
    theirs = ours.pipe
    theirs.scheduler = DDIMScheduler.from_pretrained(MODELS[model], subfolder="scheduler")
    theirs.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "latents": x}
    expected = theirs(PROMPTS, output_type="latent", **options).images
    torch.testing.assert_close(latents[-1], expected, atol=2e-5, rtol=1e-4)
    pictures = theirs(PROMPTS, output_type="pt", **options).images
    difference = ours.decode(latents[-1]).int() - (pictures * 255).round().int()
    assert difference.abs().max() <= 1  # one grey level of rounding


@pytest.mark.parametrize(("model", "build"), [("sd", build_tiny_sd), ("sdxl", build_tiny_sdxl)])
def test_a_plain_scheduler_of_an_embedded_model_does_not_clip(model, build, tmp_path):
    assert not DDIMScheduler.from_pretrained(
        MODELS[model], subfolder="scheduler"
    ).config.clip_sample
    build(seed=0).scheduler.save_pretrained(tmp_path)
    written = (tmp_path / "scheduler_config.json").read_text()
    assert (MODELS[model] / "scheduler" / "scheduler_config.json").read_text() == written


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("alpha_one", [False, True])
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_steps_equal_both_diffusers_schedulers(spacing, prediction, alpha_one, steps):
    config = {
        **SD_CONFIG,
        "timestep_spacing": spacing,
        "prediction_type": prediction,
        "set_alpha_to_one": alpha_one,
    }
    schedule = make_schedule(config, steps, eta=0.0)
    forward, inverse = DDIMScheduler(**config), DDIMInverseScheduler(**config)
    forward.set_timesteps(steps)
    inverse.set_timesteps(steps)
    assert schedule.timesteps.tolist() == forward.timesteps.tolist()
    assert schedule.timesteps.flip(0).tolist() == inverse.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    output = torch.randn(2, 4, 8, 8, generator=generator)
    from srrl.ddim import noise_from_output

    for i, t in enumerate(forward.timesteps):
        index = torch.tensor([i, i])
        a_t, a_s, sigma = schedule.coefficients(index, 0.0)
        noise = noise_from_output(output, x, a_t, schedule.prediction)
        ours = denoise_mean(x, noise, a_t, a_s, sigma)
        torch.testing.assert_close(
            ours, forward.step(output, t, x).prev_sample, atol=1e-5, rtol=1e-5
        )
        noise = noise_from_output(output, x, a_s, schedule.prediction)
        torch.testing.assert_close(
            invert(x, noise, a_s, a_t), inverse.step(output, t, x).prev_sample, atol=1e-5, rtol=1e-5
        )


def test_sigma_and_mean_equal_the_stochastic_scheduler_on_all_but_the_clamped_step():
    schedule = make_schedule(SD_CONFIG, 20, eta=1.0)
    scheduler = DDIMScheduler(**SD_CONFIG)
    scheduler.set_timesteps(20)
    generator = torch.Generator().manual_seed(0)
    x, noise, z = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(3))
    for i, t in enumerate(scheduler.timesteps[:-1]):
        a_t, a_s, sigma = schedule.coefficients(torch.tensor([i]), 1.0)
        ours = denoise_mean(x, noise, a_t, a_s, sigma) + sigma * z
        theirs = scheduler.step(noise, t, x, eta=1.0, variance_noise=z).prev_sample
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (schedule.coefficients(torch.tensor([19]), 1.0)[2] > 0).all()


def test_log_prob_equals_the_normal_distribution_averaged():
    generator = torch.Generator().manual_seed(0)
    x, mean = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.02, 0.3, 1.0]).view(3, 1, 1, 1)
    expected = torch.distributions.Normal(mean.double(), sigma.double()).log_prob(x.double())
    torch.testing.assert_close(
        log_prob(x, mean, sigma).double(), expected.mean((1, 2, 3)), rtol=1e-5, atol=1e-5
    )
    # and it is computed in float32 whatever comes in
    assert log_prob(x.half(), mean.half(), sigma.half()).dtype == torch.float32


@pytest.mark.slow
def test_inversion_returns_to_the_start_with_an_error_that_falls_as_steps_grow():
    """Denoise and invert at equal guidance: measured, not only compared with the scheduler."""
    errors = []
    for steps in (10, 40, 100):
        policy = load_policy(num_steps=steps)
        x = start_noise(policy, 2)
        conditioning = policy.encode(PROMPTS[:2])
        x0 = denoise_steps(policy, x, conditioning, range(steps), 1.0, 0.0)[0][-1]
        back = invert_steps(policy, x0, conditioning, 1.0)
        errors.append(((back - x).norm() / x.norm()).item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.35


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"clip_sample": True}, "clip_sample"),
        ({"thresholding": True}, "thresholding"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "zero-terminal-SNR"),
        ({"steps_offset": 0}, "zero variance"),
        ({"timestep_spacing": "linspace"}, "zero variance"),
    ],
)
def test_schedules_the_log_prob_would_be_wrong_on_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        make_schedule({**SD_CONFIG, **change}, 10, eta=1.0)


def test_every_variance_is_positive_where_the_schedule_is_accepted():
    for spacing in ("leading", "trailing"):
        for steps in (5, 10, 20, 50):
            config = {**SD_CONFIG, "timestep_spacing": spacing}
            schedule = make_schedule(config, steps, eta=1.0)
            sigma = schedule.coefficients(torch.arange(steps), 1.0)[2]
            assert (sigma > 0).all() and math.isfinite(sigma.log().sum())


def test_an_old_folder_without_steps_offset_is_served_as_its_pipeline_repairs_it():
    old = {k: v for k, v in SD_SCHEDULER.items() if k != "steps_offset"}
    parts = load_policy("sd").pipe.components | {"scheduler": PNDMScheduler.from_config(old)}
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    assert pipe.scheduler.config.steps_offset == 1
    ours = make_schedule(pipe.scheduler.config, 10, 1.0)
    right = make_schedule(PNDMScheduler.from_config(SD_SCHEDULER).config, 10, 1.0)
    assert torch.equal(ours.timesteps, right.timesteps) and int(ours.timesteps[-1]) == 1
    assert torch.equal(ours.alpha_next, right.alpha_next)
