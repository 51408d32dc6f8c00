"""What several processes do together: agree, gather what they have shared out, and find each other's files."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ..model.configuration_multitask import ConfigurationError
from .arguments import AsyncMTLTrainingArguments

__all__ = ["agreed", "check_files_reach", "gather_examples"]

T = TypeVar("T")


def agreed(value: T) -> T:
    """The first process's value, on all: what is decided on it is decided once.

    Args:
        value: Can be pickled; it comes from a process of the same run.
    """
    return broadcast_object_list([value])[0]


def gather_examples(accelerator: Accelerator, example_ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The examples of all processes' batches, one process's after the other.

    Args:
        accelerator: Of the trainer.
        example_ids: ``[B]``; B may differ from process to process.
        logits: ``[U, ...]``, the examples' units one after the other.

    Returns:
        ``[sum of the B]`` and ``[sum of the U, ...]``, the same on all processes.
    """
    if accelerator.num_processes == 1:
        return example_ids, logits
    sizes = accelerator.gather(torch.tensor([[len(example_ids), len(logits)]], device=example_ids.device)).tolist()
    whole = []
    for values, counts in zip((example_ids, logits), zip(*sizes, strict=True), strict=True):
        padded = values.new_zeros(max(counts), *values.shape[1:])
        padded[: len(values)] = values
        parts = accelerator.gather(padded).split(max(counts))
        whole.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    return whole[0], whole[1]


def check_files_reach(args: AsyncMTLTrainingArguments, accelerator: Accelerator) -> None:
    """Check that every process will find what others write into the output folder.

    Teachers and the best weights are written by the first process, or by the first of each machine with
    ``save_on_each_node``, and read by all.

    Raises:
        ConfigurationError: On all processes, where a machine has a folder of its own and nobody writes there, or where
            two machines would write into the same folder at once.
    """
    if accelerator.num_processes == 1:
        return
    folder = Path(args.output_dir)
    token, path = agreed(secrets.token_hex(8)), folder / "_reached"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(token, encoding="utf-8")
    accelerator.wait_for_everyone()
    found = path.is_file() and path.read_text(encoding="utf-8") == token
    sees = gather_object([(accelerator.local_process_index, found)])
    if accelerator.is_main_process:
        path.unlink()
    if not args.save_on_each_node and not all(seen for _, seen in sees):
        raise ConfigurationError(
            f"The output folder {folder} must be on a file system that all machines share; it is not. Give such a "
            "folder, or set `training.save_on_each_node: true`: each machine then keeps teachers and checkpoints of "
            "its own."
        )
    if args.save_on_each_node and sum(local == 0 and seen for local, seen in sees) > 1:
        raise ConfigurationError(
            f"`training.save_on_each_node: true` is for machines with folders of their own; {folder} is one that they "
            "share, and they would write the same files at once. Remove the key."
        )
