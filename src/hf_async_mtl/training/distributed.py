"""Collectives of several ranks: broadcast, gather, and reach each other's files."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .checkpoint_files import complete_checkpoints, refuse_version_1

T = TypeVar("T")


def broadcast_from_main(value: T) -> T:
    """Broadcast a value from rank 0, so that all ranks take the same decision."""
    return broadcast_object_list([value])[0]


@cache
def _cpu_group() -> dist.ProcessGroup:
    # Flags are on the CPU; through NCCL they would wait for all work of the accelerator.
    return dist.new_group(backend="gloo")


def any_rank(flag: bool) -> bool:
    """Return whether a flag is set on any rank; all ranks call this together and get the same answer."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, group=_cpu_group())
    return bool(flags)


def leave_process_group() -> None:
    """End the threads of gloo: a process that exits while they run can abort (pytorch/pytorch#179291)."""
    PartialState().destroy_process_group()
    _cpu_group.cache_clear()


def gather_examples(accelerator: Accelerator, example_ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the examples ``[B]`` and logits ``[U, ...]`` of all ranks' batches; B and U may differ between ranks."""
    if accelerator.num_processes == 1:
        return example_ids, logits
    sizes = accelerator.gather(torch.tensor([[len(example_ids), len(logits)]], device=example_ids.device)).tolist()
    gathered = []
    for values, counts in zip((example_ids, logits), zip(*sizes, strict=True), strict=True):
        padded = values.new_zeros(max(counts), *values.shape[1:])
        padded[: len(values)] = values
        parts = accelerator.gather(padded).split(max(counts))
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]))
    return gathered[0], gathered[1]


def check_files_reach(args: AsyncMTLTrainingArguments, accelerator: Accelerator) -> None:
    """Check that every rank finds what others write into the output folder.

    Teachers and the best weights are written by the first rank, or by the first of each machine with
    ``save_on_each_node``, and read by all.
    """
    if accelerator.num_processes == 1:
        return
    folder = Path(args.output_dir)
    token, path = broadcast_from_main(secrets.token_hex(8)), folder / "_reached"
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


def newest_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest complete checkpoint of an output folder that every rank has; None if no rank has any.

    Raises:
        ConfigurationError: Only some machines have one, or version 0.1 wrote one.
    """
    for checkpoint in sorted(output_dir.glob("checkpoint-*")):
        refuse_version_1(checkpoint)
    own = complete_checkpoints(output_dir)
    have = gather_object([sorted(own)])
    common = set(have[0]).intersection(*have)
    if not common and any(have):
        rank = next(rank for rank, steps in enumerate(have) if steps)
        without = ", ".join(str(rank) for rank, steps in enumerate(have) if not steps) or "others"
        raise ConfigurationError(
            f"All machines must resume from one checkpoint; process {rank} has checkpoint-{have[rank][-1]} in "
            f"{output_dir}, and process {without} does not. Copy that folder to each machine."
        )
    return own[max(common)] if common else None


def share_rng_states(checkpoint: Path, args: AsyncMTLTrainingArguments) -> None:
    """Give each machine's checkpoint the random states of all ranks, and wait until they are written.

    With upstream each rank writes its own; a checkpoint is not complete before the last of them has.
    """
    if args.world_size == 1:
        return
    own = checkpoint / f"rng_state_{args.process_index}.pth"
    states = gather_object([(own.name, own.read_bytes())])
    if args.save_on_each_node and args.should_save:
        for name, content in states:
            (checkpoint / name).write_bytes(content)
    dist.barrier()
