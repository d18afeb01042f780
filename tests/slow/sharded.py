"""Run scripts/train.py with the UNet sharded by FSDP2 over CPU processes.

    torchrun --nproc_per_node 2 tests/slow/sharded.py [train.py's arguments]

accelerate shards on accelerators only, so its state is told here that this is one; the sharding
and everything else is real.
"""

import sys

from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from scripts import train
from srrl.errors import one_line_errors

original = AcceleratorState.__init__


def sharded(self, *arguments, **options) -> None:
    original(self, *arguments, **options)
    self.distributed_type = DistributedType.FSDP
    self.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["BasicTransformerBlock", "ResnetBlock2D"],
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )


if __name__ == "__main__":
    AcceleratorState.__init__ = sharded
    with one_line_errors():
        train.main(sys.argv[1:])
