"""DDIM (arXiv 2010.02502) as SRRL uses it: schedule, denoise step, invert step, log-probability.

Pure functions of tensors. a_t is alpha-bar at timestep t and s = t - 1000/T the timestep before
it; on the last denoising step s < 0. All arithmetic is float32 whatever the network's precision.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor

from srrl.errors import UserError

# Whose models predict epsilon or v at the discrete timesteps of their betas, so that DDIM can stand
# for them. They differ in how they sample, which is ours to choose.
DISCRETE = {kind.name for kind in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"} | {
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "SASolverScheduler",
}
PREDICTIONS = ("epsilon", "v_prediction")
ONLY = "only models that predict epsilon or v at discrete timesteps can be sampled and trained"
# What others are, by what their names contain.
OTHERS = {
    "FlowM": "flow matching",
    "EDM": "EDM preconditioning",
    "CosineDPM": "EDM preconditioning",
    "LCM": "a consistency-distilled model",
    "TCD": "a consistency-distilled model",
    "CMStochastic": "a consistency-distilled model",
}


@dataclass(frozen=True)
class Schedule:
    """The T denoising steps, in the order they are taken.

    timesteps   int64 [T], descending: t_1 > ... > t_T
    alpha       float32 [T], a_t
    alpha_next  float32 [T], a_s; on the last step the scheduler's final alpha-bar
    alpha_0     alpha-bar at timestep 0, which stands in for a_s < 0 when eta > 0
    prediction  what the network predicts: "epsilon" or "v_prediction"
    """

    timesteps: Tensor
    alpha: Tensor
    alpha_next: Tensor
    alpha_0: float
    prediction: str

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device) -> "Schedule":
        return Schedule(
            self.timesteps.to(device),
            self.alpha.to(device),
            self.alpha_next.to(device),
            self.alpha_0,
            self.prediction,
        )

    def thinned(self, steps: int) -> "Schedule":
        """The same of fewer steps, evenly taken: it begins and ends as this one does."""
        index = torch.arange(steps, device=self.timesteps.device) * self.num_steps // steps
        alpha = self.alpha[index]
        return replace(
            self,
            timesteps=self.timesteps[index],
            alpha=alpha,
            alpha_next=torch.cat([alpha[1:], self.alpha_next[-1:]]),
        )

    def coefficients(self, steps: Tensor, eta: float) -> tuple[Tensor, Tensor, Tensor]:
        """(a_t, a_s, sigma), each [B, 1, 1, 1], of the denoising steps with indices [B].

        sigma is equation 16 of DDIM. With eta > 0 the last step's s is clamped to 0, as DDPO
        does, so sigma > 0 there and the log-probability is finite; with eta = 0 the step is
        exactly that of diffusers' DDIMScheduler.
        """
        a_t = self.alpha[steps].view(-1, 1, 1, 1)
        a_s = self.alpha_next[steps].view(-1, 1, 1, 1)
        if eta > 0:
            last = (steps == self.num_steps - 1).view(-1, 1, 1, 1)
            a_s = torch.where(last, torch.full_like(a_s, self.alpha_0), a_s)
        sigma = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
        return a_t, a_s, sigma


def scheduler_fault(config: Mapping[str, Any]) -> str | None:
    """What a published scheduler says of its model that DDIM cannot stand for, None if it can.

    A config without its class is taken for one of DISCRETE.
    """
    name = config.get("_class_name", "DDIMScheduler")
    prediction = config.get("prediction_type", "epsilon")
    what = next((meant for part, meant in OTHERS.items() if part in str(name)), None)
    if what:
        return f"a {name}, which stands for {what}"
    if name not in DISCRETE:
        return f"a {name}, which is not known as a scheduler"
    if config.get("use_flow_sigmas") or prediction == "flow_prediction":
        return f"a {name} of flow sigmas, which stand for flow matching"
    if config.get("timestep_type", "discrete") != "discrete":
        return f"a {name} of timestep_type={config['timestep_type']!r}, which stands for EDM"
    if prediction not in PREDICTIONS:
        return f"a {name} of prediction_type={prediction!r}"
    return None


def make_schedule(scheduler_config: Mapping[str, Any], num_steps: int, eta: float) -> Schedule:
    """The DDIM schedule for a pipeline published with any epsilon- or v-prediction scheduler.

    Raises UserError for configurations that the policy gradient cannot be right on: what DDIM
    cannot stand for, clipped or thresholded predictions, a signal-to-noise ratio of zero, a step of
    zero variance.
    """
    config = dict(scheduler_config)
    # Old SD folders lack it; their pipeline sets it to 1, which from_config would take back.
    given = config.get("_use_default_values") or ()
    config["_use_default_values"] = [key for key in given if key != "steps_offset"]
    if fault := scheduler_fault(config):
        raise UserError(f"the model has {fault}: {ONLY}: choose another pretrained.model")
    for key in ("clip_sample", "thresholding"):
        if config.get(key):
            raise UserError(
                f"scheduler config has {key}=True, which the log-probabilities do not model: "
                f"set it to false in the model's scheduler_config.json"
            )
    try:
        scheduler = DDIMScheduler.from_config(config, clip_sample=False)
        scheduler.set_timesteps(num_steps)
    except Exception as error:  # betas of any type come from a file
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"DDIM cannot be made for {num_steps} steps of the model's scheduler_config.json "
            f"({type(error).__name__}: {reason}): mend it, or take fewer steps"
        ) from error
    timesteps = scheduler.timesteps.long()
    alphas = scheduler.alphas_cumprod.float()
    if not bool(((alphas >= 0) & (alphas < 1)).all()):
        raise UserError("the betas of the model's scheduler_config.json are none: mend them")
    if alphas[timesteps[0]] <= 1e-6:
        raise UserError(
            f"scheduler config has zero signal at its first timestep {int(timesteps[0])} "
            f"(zero-terminal-SNR): the noise prediction is undefined there; use "
            f"timestep_spacing='leading' or rescale_betas_zero_snr=False"
        )
    before = timesteps - scheduler.config.num_train_timesteps // num_steps
    final = torch.as_tensor(scheduler.final_alpha_cumprod, dtype=torch.float32)
    alpha_next = torch.where(before >= 0, alphas[before.clamp(min=0)], final)
    schedule = Schedule(
        timesteps, alphas[timesteps], alpha_next, float(alphas[0]), scheduler.config.prediction_type
    )
    if eta > 0 and not bool((schedule.coefficients(torch.arange(num_steps), eta)[2] > 0).all()):
        raise UserError(
            f"scheduler config gives a denoising step of zero variance (timesteps "
            f"{int(timesteps[0])} ... {int(timesteps[-1])}, "
            f"spacing {scheduler.config.timestep_spacing!r}): in the model's scheduler_config.json "
            f"use steps_offset=1 with timestep_spacing 'leading' or 'trailing'"
        )
    return schedule


def noise_from_output(output: Tensor, x: Tensor, alpha: Tensor, prediction: str) -> Tensor:
    """The network's output at x [B, C, H, W] of level alpha [B, 1, 1, 1] as predicted noise."""
    if prediction == "v_prediction":
        return alpha.sqrt() * output + (1 - alpha).sqrt() * x
    return output


def denoise_mean(x: Tensor, noise: Tensor, a_t: Tensor, a_s: Tensor, sigma: Tensor) -> Tensor:
    """mu of p(x_s | x_t) [B, C, H, W], DDIM equation 12.

    mu = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) e  with  x_0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t)
    """
    x0 = (x - (1 - a_t).sqrt() * noise) / a_t.sqrt()
    return a_s.sqrt() * x0 + (1 - a_s - sigma**2).clamp(min=0).sqrt() * noise


def invert(x: Tensor, noise: Tensor, a_s: Tensor, a_t: Tensor) -> Tensor:
    """x_t [B, C, H, W] from x_s, the step of diffusers' DDIMInverseScheduler.

    x_t = sqrt(a_t) (x_s - sqrt(1 - a_s) e) / sqrt(a_s) + sqrt(1 - a_t) e,  e evaluated at (x_s, t)
    """
    x0 = (x - (1 - a_s).sqrt() * noise) / a_s.sqrt()
    return a_t.sqrt() * x0 + (1 - a_t).sqrt() * noise


def log_prob(x_s: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """log N(x_s; mean, sigma^2) [B], averaged over C, H, W (as DDPO's code does) in float32."""
    x_s, mean, sigma = x_s.float(), mean.float(), sigma.float()
    density = -((x_s - mean) ** 2) / (2 * sigma**2) - sigma.log() - 0.5 * math.log(2 * math.pi)
    return density.mean(dim=(1, 2, 3))
