"""The model as a module on padded rows: a graph has no ragged lengths."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.heads import Head
from ..modeling.modeling_multitask import MultiTaskModel
from ..modeling.packing import Layout, Ragged, forward_arguments


def pool_padded(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return one vector per row, ``[B, H]``, as `hf_async_mtl.modeling.heads.pool` returns one per segment.

    ``states`` are ``[B, L, H]``. ``mask`` ``[B, L]`` is 1 on tokens, at least one per row, and 0 on padding on either
    side.

    >>> states, mask = torch.tensor([[[9.0], [1.0], [3.0]]]), torch.tensor([[0, 1, 1]])
    >>> [pool_padded(states, mask, pooling).item() for pooling in ("cls", "mean", "max")]
    [1.0, 2.0, 3.0]
    """
    if pooling == "cls":
        first = mask.argmax(dim=1)
        return states.gather(1, first[:, None, None].expand(-1, 1, states.shape[-1])).squeeze(1)
    here = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "mean":
        return (states * here).sum(1) / here.sum(1)
    return states.masked_fill(here == 0, torch.finfo(states.dtype).min).amax(1)


class OnnxModule(nn.Module):
    """Run the encoder and the heads of a `MultiTaskModel`, whose weights it shares, on padded rows.

    Attributes:
        inputs: Names of the arguments of `forward`, in order.
        tasks: Names of the tasks whose logits `forward` returns, in order.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.pooling: str = model.config.pooling
        known = forward_arguments(type(model.encoder))
        self.inputs = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in known]
        self.tasks = list(model.config.task_order)
        heads: dict[str, nn.Module] = {}
        for name in self.tasks:
            # Pooled states arrive as sequences of one token.
            heads[name] = copy.copy(model.heads[name])
            heads[name].pooling = "cls"  # type: ignore[assignment]
            # The windows of a text are rows: the caller takes the mean or the maximum of their logits.
            heads[name].window_pooling = None  # type: ignore[assignment]
        self.heads = nn.ModuleDict(heads)
        self.eval()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return the logits of each task from inputs ``[B, L]``; a choice, or a window of a long text, is a row.

        Returns:
            ``[B, C]`` for sequences, ``[B]`` for regression, ``[B]``, a score a row, for choices, ``[B, L, C]`` for
            tokens, 0 on padding.
        """
        given: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        rows, length = input_ids.shape
        # Padding goes to the right, as in `MultiTaskModel`: absolute positions count from the first column.
        padding = attention_mask.argmax(dim=1, keepdim=True)
        columns = torch.arange(length, device=input_ids.device).expand_as(input_ids)
        there, back = columns + padding, columns - padding
        there = torch.where(there < length, there, there - length)
        back = torch.where(back < 0, back + length, back)
        given = {name: values.gather(1, there) for name, values in given.items()}
        states = self.encoder(**given).last_hidden_state
        states = states.gather(1, back.unsqueeze(-1).expand_as(states))
        each = torch.arange(rows + 1, device=input_ids.device)
        pooled = Ragged(pool_padded(states, attention_mask, self.pooling), Layout(each, each))
        tokens = Ragged(states.flatten(0, 1), Layout(each * length, each))
        logits = []
        for head in self.heads.values():
            assert isinstance(head, Head)
            if head.unit == "token":
                scores = head(tokens).unflatten(0, (rows, length))
                logits.append(scores * attention_mask.unsqueeze(-1).to(scores.dtype))
            else:
                scores = head(pooled)
                logits.append(scores.flatten() if head.has_choices else scores)
        return tuple(logits)
