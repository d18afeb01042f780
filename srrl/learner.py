"""The update: the clipped policy gradient over selected trajectories, on one or more processes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from ml_collections import ConfigDict
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from srrl.curriculum import StagePlan
from srrl.ddim import denoise_mean, log_prob
from srrl.errors import UserError
from srrl.models.policy import Conditioning, Policy
from srrl.models.weights import WHOLE
from srrl.ppo import Objective, clipped_objective
from srrl.rollout import generator

FIRST_LOSS_SCALE = 2.0**16  # torch.amp.GradScaler's


@dataclass(frozen=True)
class Selection:
    """The S trajectories to train on, the same on every process.

    latents float32 [S, m + 1, C, h, w], log_probs float32 [S, m], advantages float32 [S],
    conditioning of S rows.
    """

    latents: Tensor
    log_probs: Tensor
    advantages: Tensor
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.advantages)


@dataclass(frozen=True)
class Update:
    """What one optimizer step measured; ratio_max_dev is max |ratio - 1| over its pairs."""

    loss: float
    grad_norm: float
    clip_fraction: float
    ratio_max_dev: float


class Learner:
    """Owns the optimizer; `update` trains the policy on a stage's selection.

    Every process takes its share of each update's micro-batches and the gradients are summed over
    the processes before each optimizer step, so the weights stay the same on all of them. In fp16
    the loss is scaled so that small gradients survive; an update that overflows is repeated at
    half the scale, not lost.
    """

    def __init__(self, config: ConfigDict, policy: Policy, accelerator: Accelerator):
        self.config, self.policy, self.accelerator = config, policy, accelerator
        self.loss_scale = FIRST_LOSS_SCALE if policy.dtype == torch.float16 else 1.0
        t = config.train
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        optimizer = adamw(t.use_8bit_adam)(
            policy.trainable(),
            lr=t.learning_rate,
            betas=(t.adam_beta1, t.adam_beta2),
            weight_decay=t.adam_weight_decay,
            eps=t.adam_epsilon,
        )
        if self.sharded:
            policy.pipe.unet.to(memory_format=torch.contiguous_format)
            _, prepared = accelerator.prepare(policy.pipe.unet, optimizer)  # in place
            optimizer = prepared.optimizer
        self.optimizer = optimizer

    def update(self, plan: StagePlan, selection: Selection) -> dict[str, float]:
        """num_inner_epochs passes of the clipped policy gradient over the selection."""
        updates: list[Update] = []
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(plan.stage)
        for pairs in shuffled_pairs(self.config, plan, len(selection)):
            updates.append(self.optimizer_step(selection, pairs, first=not updates))
        n = max(len(updates), 1)
        return {
            "updates": len(updates),
            "ratio/first_max_dev": updates[0].ratio_max_dev if updates else 0.0,
            "ratio/max_dev": max((u.ratio_max_dev for u in updates), default=0.0),
            "clip_fraction": sum(u.clip_fraction for u in updates) / n,
            "loss": sum(u.loss for u in updates) / n,
            "grad_norm": sum(u.grad_norm for u in updates) / n,
            "lr": self.optimizer.param_groups[0]["lr"],
        }

    def learning_rate(self, stage: int) -> float:
        """The rate of a stage: linear from learning_rate to final_lr_fraction of it."""
        t, total = self.config.train, self.config.stages.total
        return t.learning_rate * (1 - (1 - t.final_lr_fraction) * stage / total)

    def optimizer_step(self, selection: Selection, pairs: Tensor, first: bool) -> Update:
        """One update on (trajectory, trained step) pairs int64 [B, 2], in micro-batches."""
        while True:
            loss, clipped, deviation = self.backward(selection, pairs)
            norm = torch.nn.utils.clip_grad_norm_(
                self.policy.trainable(), self.config.train.max_grad_norm
            )
            norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
            if first:
                self.check_first_ratio(deviation)
            if math.isfinite(norm) or not math.isfinite(loss) or self.loss_scale <= 1:
                break
            self.loss_scale /= 2
            self.optimizer.zero_grad(set_to_none=True)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"loss {loss} or gradient norm {norm} is not finite: the weights were not "
                f"changed; try a lower train.learning_rate or mixed_precision 'bf16' or 'no'"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(loss, norm, clipped, deviation)

    def backward(self, selection: Selection, pairs: Tensor) -> tuple[float, float, float]:
        """Leave the gradient of the pairs' mean loss in .grad, summed over the processes.

        Returns the loss, the share of clipped pairs and max |ratio - 1|, of all processes too.
        """
        loss = clipped = deviation = 0.0
        processes = self.accelerator.num_processes
        for part, counts in self.own_micro_batches(pairs):
            counted = self.policy.nfe
            objective = selection_objective(
                self.config, self.policy, selection, part.to(self.policy.device)
            )
            if not counts:
                self.policy.nfe = counted
            share = counts * len(part) / len(pairs)
            scale = self.loss_scale * (processes if self.sharded else 1)  # sharded ones average
            (objective.loss * (share * scale)).backward()
            loss += objective.loss.item() * share
            clipped += objective.clipped.float().mean().item() * share
            deviation = max(deviation, (objective.ratio - 1).abs().max().item())
        parameters = list(self.policy.trainable())
        for parameter in parameters:
            if parameter.grad is None:  # this process had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(self.loss_scale)
        if processes == 1:
            return loss, clipped, deviation
        if not self.sharded:
            sum_gradients(self.accelerator, parameters)
        measured = torch.tensor([[loss, clipped, deviation]], device=self.policy.device)
        measured = self.accelerator.gather(measured)
        return (*measured[:, :2].sum(0).tolist(), measured[:, 2].max().item())

    def own_micro_batches(self, pairs: Tensor) -> Iterator[tuple[Tensor, int]]:
        """This process's micro-batches of an update, and 1 for each: every N-th one of those that
        one process would make. Where the UNet is spread over the processes they all must call it
        equally often: a process short of one gets the last one again, with 0.
        """
        parts, n = pairs.split(self.config.train.micro_batch), self.accelerator.num_processes
        for i in range(self.accelerator.process_index, -(-len(parts) // n) * n, n):
            if i < len(parts):
                yield parts[i], 1
            elif self.sharded:
                yield parts[-1], 0

    def check_first_ratio(self, deviation: float) -> None:
        """Stop if sampling and training disagree: before a stage's first update, ratio is 1."""
        limit = self.config.train.max_first_ratio_dev
        if limit is None:
            limit = 1e-4 if self.policy.dtype == torch.float32 else 2e-2
        if not deviation <= limit:
            raise UserError(
                f"|ratio - 1| is {deviation:.2e} before the first update of a stage, above "
                f"{limit:.0e}: sampling and training disagree. Look for dropout, a guidance scale "
                f"or precision that differs between them, or latents stored in half precision"
            )

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the weights; every process takes part."""
        if self.sharded and not self.optimizer.state:
            optimizer = {}  # torch would make one by a step, and count it
        elif self.sharded:
            unet = self.policy.pipe.unet
            optimizer = get_optimizer_state_dict(unet, self.optimizer, options=WHOLE)
        else:
            optimizer = self.optimizer.state_dict()
        return {"optimizer": optimizer, "loss_scale": self.loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer = state["optimizer"]
        if not self.sharded:
            self.optimizer.load_state_dict(optimizer)
        elif optimizer:
            unet = self.policy.pipe.unet
            set_optimizer_state_dict(unet, self.optimizer, optimizer, options=WHOLE)
        self.loss_scale = state["loss_scale"]


def shuffled_pairs(c: ConfigDict, plan: StagePlan, selected: int) -> Iterator[Tensor]:
    """The (trajectory, trained step) pairs int64 [B, 2] of each of a stage's optimizer steps.

    train.updates "even" splits each pass evenly; "full" lets steps of exactly
    trajectories_per_update trajectories run on across the passes and drops what is left.
    """
    t, most = c.train, c.train.trajectories_per_update
    parts: list[tuple[Tensor, torch.Generator]] = []
    for epoch in range(t.num_inner_epochs if selected else 0):
        shuffle = generator(c.seed, plan.stage, epoch, 0, 0, "updates")
        order = torch.randperm(selected, generator=shuffle)
        if t.updates == "full":
            parts.append((order[: selected // 2 * 2], shuffle))
        else:
            parts += [(part, shuffle) for part in order.tensor_split(-(-selected // most))]
    if t.updates == "full" and parts:
        whole = torch.cat([order for order, _ in parts])
        shuffle = parts[0][1]
        parts = [(part, shuffle) for part in whole.split(most) if len(part) == most]
    for part, shuffle in parts:
        pairs = torch.cartesian_prod(part, torch.arange(plan.trained_steps))
        yield pairs[torch.randperm(len(pairs), generator=shuffle)]


def selection_objective(
    c: ConfigDict, policy: Policy, selection: Selection, pairs: Tensor
) -> Objective:
    """The clipped objective of (trajectory, trained step) pairs int64 [B, 2]."""
    schedule, row, j = policy.schedule, pairs[:, 0], pairs[:, 1]
    x, x_next = selection.latents[row, j], selection.latents[row, j + 1]
    step = schedule.num_steps - c.interval.skip_last - selection.log_probs.shape[1] + j
    a_t, a_s, sigma = schedule.coefficients(step, c.sample.eta)
    conditioning = selection.conditioning.rows(row)
    noise = policy.noise(x, step, a_t, conditioning, c.sample.guidance_scale)
    log_p = log_prob(x_next, denoise_mean(x, noise, a_t, a_s, sigma), sigma)
    return clipped_objective(
        log_p, selection.log_probs[row, j], selection.advantages[row], c.train.clip_range
    )


def sum_gradients(accelerator: Accelerator, parameters: list[Tensor]) -> None:
    """Replace each .grad by its sum over the processes, in one reduction."""
    flat = accelerator.reduce(torch.cat([p.grad.flatten() for p in parameters]), "sum")
    for parameter, grad in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad.copy_(grad.view_as(parameter))


def adamw(use_8bit: bool) -> type[torch.optim.Optimizer]:
    """AdamW, with 8-bit states if asked. Raises UserError if the package for it is missing."""
    if not use_8bit:
        return torch.optim.AdamW
    try:
        import bitsandbytes
    except ImportError:
        raise UserError(
            "config.train.use_8bit_adam=True needs the package bitsandbytes: "
            "pip install bitsandbytes, or leave it off"
        ) from None
    return bitsandbytes.optim.AdamW8bit
