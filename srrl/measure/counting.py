"""Operations and memory of code run on fake tensors: real shapes, strides and types, no numbers.

The network, autocast, gradient checkpointing and the loss run as they do in training; below them
every operation only says what it would return. So nothing is estimated but what happens inside one
operation (a convolution's workspace) and how the allocator rounds.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import (
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop,
    sdpa_flop,
)

aten = torch.ops.aten


# The fused attention of CPUs, which FlopCounterMode lacks.
FUSED: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
for operator, formula in FUSED.items():
    if operator not in flop_registry:
        register_flop_formula(operator, get_raw=True)(formula)


class Count(TorchDispatchMode):
    """Counts, while it is entered,

    flops  floating-point operations of matrix products, convolutions and attention (fused: the
           matrix of attention weights is never in memory), a multiply-add as two
    operators  torch's operators, of which each is launched by itself
    peak   the most bytes that storages made here took at once; `now`, those that are left

    Storages of `resident` tensors were there before and do not count.
    """

    def __init__(self, resident: Iterable[Tensor] = ()):
        super().__init__()
        self.flops = self.operators = self.now = self.peak = 0
        self._alive: dict[int, object] = {}
        for tensor in resident:
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()

        def freed(_: object) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Lets autocast on a CPU keep in float32 what it keeps in float32 on a GPU."""

    def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return function(*args, **kwargs)
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return function(*args, **kwargs)

        return run

    with ExitStack() as stack:
        for name in ("group_norm", "layer_norm", "softmax"):
            stack.enter_context(patch.object(F, name, in_float32(getattr(F, name))))
        yield


def make_fake(module: nn.Module) -> None:
    """Replace a module's parameters and buffers, made on the meta device, by fake ones on the CPU.

    Layout, type, requires_grad and sharing are kept. Must be called under a FakeTensorMode.
    """
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            if isinstance(tensor, nn.Parameter):
                new = nn.Parameter(new, requires_grad=tensor.requires_grad)
            made[id(tensor)] = new
        return made[id(tensor)]

    for part in module.modules():
        stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for tensors in stores:
            tensors.update({k: fake(t) for k, t in tensors.items() if t is not None})


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, shared ones once."""
    distinct = {id(t): t for t in tensors}.values()
    return sum(t.numel() * t.element_size() for t in distinct)
