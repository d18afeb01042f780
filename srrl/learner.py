"""The update: an objective's gradient over shuffled samples, on one or more processes."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

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

from srrl.errors import UserError
from srrl.models.trainee import Trainee
from srrl.models.weights import WHOLE
from srrl.ppo import Objective
from srrl.run.distributed import all_sum

# The loss scale in fp16, and after how many updates without an overflow a lowered one doubles.
LOSS_SCALE, GROWTH_INTERVAL = 2.0**16, 20
Data = TypeVar("Data")


@dataclass(frozen=True)
class Update:
    """What one optimizer step measured; ratio_max_dev is max |ratio - 1| over its pairs."""

    loss: float
    grad_norm: float
    clip_fraction: float
    ratio_max_dev: float


class Learner(Generic[Data]):
    """Owns the optimizer; `update` trains on a stage's data.

    objective(data, items) is the Objective of some of the data's items, int64 [B, ...]; what an
    item is, a trajectory's step say, is the method's affair. Every process takes its share of each
    update's micro-batches and the gradients are summed over the processes before each optimizer
    step, so the weights stay the same on all of them. In fp16 the loss is scaled so that small
    gradients survive; an update that overflows is repeated at half the scale, not lost. One whose
    loss or gradient is not finite changes nothing: it is left out, `train.max_bad_steps` times in a
    run, and then ends it.
    """

    def __init__(
        self,
        config: ConfigDict,
        trainee: Trainee,
        accelerator: Accelerator,
        objective: Callable[[Data, Tensor], Objective],
    ):
        self.config, self.trainee, self.accelerator = config, trainee, accelerator
        self.objective = objective
        self.largest_scale = LOSS_SCALE if trainee.dtype == torch.float16 else 1.0
        self.loss_scale, self.since_overflow = self.largest_scale, 0
        self.skipped = 0
        t = config.train
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        optimizer = adamw(t.use_8bit_adam)(
            trainee.trainable(),
            lr=t.learning_rate,
            betas=(t.adam_beta1, t.adam_beta2),
            weight_decay=t.adam_weight_decay,
            eps=t.adam_epsilon,
        )
        if self.sharded:
            network: Any = trainee.network  # torch has no type for a `to` of a memory format
            network.to(memory_format=torch.contiguous_format)
            _, prepared = accelerator.prepare(trainee.network, optimizer)  # in place
            optimizer = prepared.optimizer
        self.optimizer = optimizer

    def update(self, stage: int, data: Data, steps: Iterable[Tensor]) -> dict[str, float]:
        """Train on the items int64 [B, ...] of each of a stage's optimizer steps."""
        updates: list[Update] = []
        skipped = self.skipped
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(stage)
        for items in steps:
            update = self.optimizer_step(data, items, first=not updates)
            updates += [update] if update else []
        counted = {"skipped": self.skipped - skipped} if self.config.train.max_bad_steps else {}
        n = max(len(updates), 1)
        return {
            "updates": len(updates),
            "ratio/first_max_dev": updates[0].ratio_max_dev if updates else 0.0,
            "ratio/max_dev": max((u.ratio_max_dev for u in updates), default=0.0),
            "clip_fraction": sum(u.clip_fraction for u in updates) / n,
            "loss": sum(u.loss for u in updates) / n,
            "grad_norm": sum(u.grad_norm for u in updates) / n,
            "lr": self.optimizer.param_groups[0]["lr"],
            **counted,
        }

    def learning_rate(self, stage: int) -> float:
        """The rate of a stage: linear from learning_rate to final_lr_fraction of it."""
        t, total = self.config.train, self.config.stages.total
        return t.learning_rate * (1 - (1 - t.final_lr_fraction) * stage / total)

    def optimizer_step(self, data: Data, items: Tensor, first: bool) -> Update | None:
        """One update on some items int64 [B, ...], in micro-batches; None if it was left out.

        Raises UserError where its loss or gradient is not finite and no more may be left out, or
        where the weights are not afterwards.
        """
        scale = self.loss_scale, self.since_overflow
        while True:
            loss, clipped, deviation = self.backward(data, items)
            total = torch.nn.utils.clip_grad_norm_(
                self.trainee.trainable(), self.config.train.max_grad_norm
            )
            norm = (total.full_tensor() if isinstance(total, DTensor) else total).item()
            if first:
                self.check_first_ratio(deviation)
            if math.isfinite(norm) or not math.isfinite(loss) or self.loss_scale <= 1:
                break
            self.loss_scale, self.since_overflow = self.loss_scale / 2, 0
            self.optimizer.zero_grad(set_to_none=True)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.optimizer.zero_grad(set_to_none=True)
            if self.skipped < self.config.train.max_bad_steps:
                self.skipped += 1
                self.loss_scale, self.since_overflow = scale  # it was not too high
                return None
            raise UserError(
                f"loss {loss} or gradient norm {norm} is not finite: the weights were not changed "
                f"by it; try a lower train.learning_rate, mixed_precision 'bf16' or 'no', or let "
                f"some pass by train.max_bad_steps (after {self.skipped} that were left out)"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.check_finite()
        self.since_overflow += 1
        if self.since_overflow >= GROWTH_INTERVAL and self.loss_scale < self.largest_scale:
            self.loss_scale, self.since_overflow = self.loss_scale * 2, 0
        return Update(loss, norm, clipped, deviation)

    def backward(self, data: Data, items: Tensor) -> tuple[float, float, float]:
        """Leave the gradient of the items' mean loss in .grad, summed over the processes.

        Returns the loss, the share of clipped ratios and max |ratio - 1|, of all processes too.
        """
        loss = clipped = deviation = 0.0
        processes = self.accelerator.num_processes
        for part, counts in self.own_micro_batches(items):
            counted = self.trainee.nfe
            objective = self.objective(data, part)
            if not counts:
                self.trainee.nfe = counted
            share = counts * len(part) / len(items)
            scale = self.loss_scale * (processes if self.sharded else 1)  # sharded ones average
            (objective.loss * (share * scale)).backward()
            loss += objective.loss.item() * share
            clipped += objective.clipped.float().mean().item() * share
            deviation = max(deviation, (objective.ratio - 1).abs().max().item())
        parameters = list(self.trainee.trainable())
        for parameter in parameters:
            if parameter.grad is None:  # this process had no micro-batch
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.div_(self.loss_scale)
        if processes == 1:
            return loss, clipped, deviation
        if not self.sharded:
            sum_gradients(self.accelerator, parameters)
        measured = torch.tensor([[loss, clipped, deviation]], device=self.trainee.device)
        measured = self.accelerator.gather(measured)
        return (*measured[:, :2].sum(0).tolist(), measured[:, 2].max().item())

    def own_micro_batches(self, items: Tensor) -> Iterator[tuple[Tensor, int]]:
        """This process's micro-batches of an update, and 1 for each: every N-th one of those that
        one process would make. Where the UNet is spread over the processes they all must call it
        equally often: a process short of one gets the last one again, with 0.
        """
        parts, n = items.split(self.config.train.micro_batch), self.accelerator.num_processes
        for i in range(self.accelerator.process_index, -(-len(parts) // n) * n, n):
            if i < len(parts):
                yield parts[i], 1
            elif self.sharded:
                yield parts[-1], 0

    def check_finite(self) -> None:
        """Raise UserError if an update has made a weight that is not finite, on any process."""
        sizes = torch._foreach_norm([local(p.detach()) for p in self.trainee.trainable()])
        bad = int(not torch.stack(sizes).isfinite().all())
        if all_sum(self.accelerator, bad):
            raise UserError(
                "an update has made weights that are not finite, and memory holds them now: they "
                "are not saved, the same command goes on from the last checkpoint; try a lower "
                "train.learning_rate first"
            )

    def check_first_ratio(self, deviation: float) -> None:
        """Stop if sampling and training disagree: before a stage's first update, ratio is 1."""
        limit = self.config.train.max_first_ratio_dev
        if limit is None:
            tf32 = self.trainee.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
            limit = ratio_limit(self.trainee.dtype, tf32)
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
            network = self.trainee.network
            optimizer = get_optimizer_state_dict(network, self.optimizer, options=WHOLE)
        else:
            optimizer = self.optimizer.state_dict()
        return {
            "optimizer": optimizer,
            "loss_scale": self.loss_scale,
            "since_overflow": self.since_overflow,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        optimizer = state["optimizer"]
        if not self.sharded:
            self.optimizer.load_state_dict(optimizer)
        elif optimizer:
            network = self.trainee.network
            set_optimizer_state_dict(network, self.optimizer, optimizer, options=WHOLE)
        self.loss_scale, self.since_overflow = state["loss_scale"], state["since_overflow"]
        self.skipped = state.get("skipped", 0)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be spread over them."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def ratio_limit(dtype: torch.dtype, tf32: bool) -> float:
    """How far |ratio - 1| may be before a stage's first update, where it is 0 but for the rounding
    of calls of different sizes. TF32 rounds factors to as many bits as fp16: 2.6e-4 was seen."""
    return 1e-4 if dtype == torch.float32 and not tf32 else 2e-2


def sum_gradients(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """Replace each .grad by its sum over the processes, in one reduction."""
    grads = [p.grad for p in parameters if p.grad is not None]
    assert len(grads) == len(parameters)  # all ranks sum the same
    flat = accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
    for grad, whole in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(whole.view_as(grad))


def adamw(use_8bit: bool) -> Callable[..., torch.optim.Optimizer]:
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
