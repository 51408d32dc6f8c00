"""Hand-written training loops for the weights of a `MultiTaskModel`: packed, padded, and one task a batch.

They use the encoder, the linear layers and the sampler of this package, and none of its packing, heads, losses or
Trainer. A test checks that the loss and the gradient of a batch are those of `MultiTaskModel`. Heads read the mean of
the states (``pooling: mean``); the types of task are classification, regression and token classification.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import get_linear_schedule_with_warmup

from hf_async_mtl import MultiTaskModel

Example = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """The inputs of an encoder, and where the tokens of the examples are.

    ``tokens`` ``[T]`` are indices into the flattened rows, example by example; ``owners`` ``[T]`` the examples of these
    tokens; ``lengths`` ``[B]``. The examples are sorted by task: ``parts`` has the first and last + 1 example and token
    of each task, and its labels.
    """

    inputs: dict[str, Tensor]
    tokens: Tensor
    owners: Tensor
    lengths: Tensor
    parts: dict[str, tuple[slice, slice, Tensor]]


def padded(examples: Sequence[Example], names: Sequence[str]) -> Batch:
    """Pad each example to the longest one: one example per row."""
    examples = sorted(examples, key=lambda example: example["task_id"])
    ids = pad_sequence([torch.tensor(example["input_ids"][0]) for example in examples], batch_first=True)
    types = pad_sequence([torch.tensor(example["token_type_ids"][0]) for example in examples], batch_first=True)
    lengths = torch.tensor([len(example["input_ids"][0]) for example in examples])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask.long()}
    return _batch(inputs, mask.flatten().nonzero().squeeze(1), lengths, examples, names)


def packed(examples: Sequence[Example], names: Sequence[str], row_length: int) -> Batch:
    """Put several examples into a row, longest first, each into the first row with room; a block-diagonal mask."""
    examples = sorted(examples, key=lambda example: example["task_id"])
    sizes = [len(example["input_ids"][0]) for example in examples]
    rows: list[list[int]] = []
    used: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((row for row, length in enumerate(used) if length + sizes[index] <= row_length), len(used))
        if row == len(used):
            rows.append([])
            used.append(0)
        rows[row].append(index)
        used[row] += sizes[index]
    shape = (len(rows), max(used))
    ids, types, positions, blocks = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    starts = [0] * len(sizes)
    for row, members in enumerate(rows):
        column = 0
        for number, index in enumerate(members, start=1):
            place = (row, slice(column, column + sizes[index]))
            ids[place], types[place] = examples[index]["input_ids"][0], examples[index]["token_type_ids"][0]
            positions[place], blocks[place] = np.arange(sizes[index]), number
            starts[index] = row * shape[1] + column
            column += sizes[index]
    block = torch.from_numpy(blocks)
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "token_type_ids": torch.from_numpy(types),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": (block[:, :, None] == block[:, None, :]).unsqueeze(1),
    }
    tokens = np.concatenate([np.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    return _batch(inputs, torch.from_numpy(tokens), torch.tensor(sizes), examples, names)


def _batch(
    inputs: dict[str, Tensor], tokens: Tensor, lengths: Tensor, examples: Sequence[Example], names: Sequence[str]
) -> Batch:
    """Return a batch of examples that are sorted by task."""
    ends, parts, first = [0, *lengths.cumsum(0).tolist()], {}, 0
    for task_id, name in enumerate(names):
        labels = [example["labels"] for example in examples if example["task_id"] == task_id]
        last = first + len(labels)
        flat = [label for row in labels for label in row] if labels and isinstance(labels[0], list) else labels
        if labels:
            parts[name] = (slice(first, last), slice(ends[first], ends[last]), torch.tensor(flat))
        first = last
    owners = torch.repeat_interleave(torch.arange(len(examples)), lengths)
    return Batch(inputs, tokens, owners, lengths, parts)


def forward(model: MultiTaskModel, batch: Batch) -> dict[str, Tensor]:
    """Return the logits of each task in a batch: ``[b, C]``; regression ``[b]``, standardized; tokens ``[t, C]``."""
    states = model.encoder(**batch.inputs).last_hidden_state.flatten(0, 1)[batch.tokens]
    sums = torch.zeros(len(batch.lengths), states.shape[-1]).index_add(0, batch.owners, states.float())
    means = sums / batch.lengths[:, None]
    logits = {}
    for name, (rows, tokens, _) in batch.parts.items():
        head: Any = model.heads[name]
        task = model.config.task_configs[name]
        read = states[tokens] if task.type == "token_classification" else means[rows]
        scores = head.linear(head.dropout(read)).float()
        logits[name] = scores.squeeze(-1) if task.type == "regression" else scores
    return logits


def mean_loss(model: MultiTaskModel, batch: Batch) -> Tensor:
    """Return the mean over the examples of their losses; that of tags is the mean over the words of an example."""
    total = torch.zeros(())
    for name, scores in forward(model, batch).items():
        rows, tokens, labels = batch.parts[name]
        task = model.config.task_configs[name]
        if task.type == "regression":
            total = total + F.mse_loss(scores, (labels.float() - task.target_mean) / task.target_std, reduction="sum")
        elif task.type == "token_classification":
            losses = F.cross_entropy(scores, labels, reduction="none")
            owners, known = batch.owners[tokens] - rows.start, (labels != -100).float()
            sums, counts = torch.zeros(2, rows.stop - rows.start).index_add(1, owners, torch.stack([losses, known]))
            total = total + (sums / counts.clamp(min=1)).sum()
        else:
            total = total + F.cross_entropy(scores, labels, reduction="sum")
    return total / len(batch.lengths)


def batches_of_one_task(sets: Sequence[Sequence[Example]], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Yield the batches of an epoch, each of one task, in random order."""
    dice = random.Random(seed)
    batches = []
    for examples in sets:
        order = dice.sample(range(len(examples)), len(examples))
        batches += [
            [examples[i] for i in order[first : first + batch_size]] for first in range(0, len(order), batch_size)
        ]
    dice.shuffle(batches)
    yield from batches


def train(
    model: MultiTaskModel,
    batches: Iterable[Sequence[Example]],
    collate: Callable[[Sequence[Example]], Batch],
    steps: int,
    settings: Any,
    end_step: Callable[[], None],
) -> None:
    """Train on batches of examples with AdamW, clipping and a linear schedule.

    Args:
        model: Trained in place.
        batches: Examples of each step.
        collate: `padded` or `packed`.
        steps: Number of batches.
        settings: Training arguments, of which the learning rates, the weight decay, the warm-up and ``bf16`` are read.
        end_step: Called after each step.
    """
    rates = ((model.encoder, settings.learning_rate), (model.heads, settings.head_learning_rate))
    groups = [
        {"params": [p for p in part.parameters() if (p.dim() > 1) == is_matrix], "lr": rate, "weight_decay": decay}
        for part, rate in rates
        for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, settings.get_warmup_steps(steps), steps)
    model.train()
    for examples in batches:
        batch = collate(examples)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss = mean_loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        end_step()


@torch.no_grad()
def predict(
    model: MultiTaskModel,
    examples: Sequence[Example],
    collate: Callable[[Sequence[Example]], Batch],
    batch_size: int,
    bf16: bool,
) -> Any:
    """Return the logits of the examples of one task: ``[N, C]`` or ``[N]``; of tags, a list of ``[t, C]``."""
    model.eval()
    found: list[Tensor] = []
    for first in range(0, len(examples), batch_size):
        batch = collate(examples[first : first + batch_size])
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            ((name, scores),) = forward(model, batch).items()
        is_tags = model.config.task_configs[name].type == "token_classification"
        found += scores.split(batch.lengths.tolist()) if is_tags else [scores]
    return [scores.numpy() for scores in found] if is_tags else torch.cat(found).numpy()
