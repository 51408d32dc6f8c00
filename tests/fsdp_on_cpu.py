"""``scripts/train.py``, sharded on the processor: accelerate shards on accelerators, and is told these are such."""

import os
import sys
from typing import Any

os.environ["ACCELERATE_USE_CPU"] = "true"

from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from hf_async_mtl.cli.commands import main

begin = AcceleratorState.__init__


def begin_as_accelerators(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
    if not AcceleratorState._shared_state:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    begin(self, *args, **kwargs)


if __name__ == "__main__":
    AcceleratorState.__init__ = begin_as_accelerators  # type: ignore[method-assign]
    sys.exit(main(["train", *sys.argv[1:]]))
