"""Random weights for a network of any size, to try a machine without a checkpoint."""

import math

import torch
from torch import nn

RANDOM = "random"  # in place of a model's name
POOL = 1_048_583  # prime, so that rows of a matrix differ


def fill_random(
    module: nn.Module, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> nn.Module:
    """Give a module made on the meta device random weights of usual sizes, and return it.

    Matrices are uniform within 1 / sqrt(inputs), scales one, biases zero. The numbers come from a
    pool, over and over: billions take seconds.
    """
    nn.Module.to(module, dtype).to_empty(device=device)
    pool = (torch.rand(POOL, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            numbers = pool / math.sqrt(parameter[0].numel())
            for part in parameter.data.view(-1).split(POOL):
                part.copy_(numbers[: len(part)])
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return module.eval()
