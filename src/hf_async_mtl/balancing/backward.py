"""One backward pass for all balanced tasks, whose gradients are combined in the shared parameters only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .balancer import GradientBalancer, WeightingBalancer
from .split import LossSplit


@dataclass(frozen=True)
class ParameterGroups:
    """The trainable parameters of a model."""

    shared: Sequence[nn.Parameter]  # of the encoder
    last_layer: Sequence[nn.Parameter]  # of the encoder's last layer, which ``over: last_layer`` compares
    heads: Sequence[nn.Parameter]


def jacobian(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Tensor:
    """Return the gradients of K scalars by n values as ``[K, n]``, in float32 at least; the graph is kept.

    A loss that does not depend on a parameter has the gradient 0. ``scale`` is that of the backward passes only.
    """
    size = sum(parameter.numel() for parameter in parameters)
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    # Filled row by row, so that the gradients of an encoder need their memory once.
    matrix = parameters[0].new_empty(len(losses), size, dtype=dtype)
    for row, loss in zip(matrix, losses, strict=True):
        gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, materialize_grads=True)
        row.copy_(torch.cat([gradient.flatten() for gradient in gradients]))
    return matrix.div_(scale)


def balanced_backward(
    split: LossSplit,
    parameters: ParameterGroups,
    balancer: GradientBalancer,
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> None:
    r"""Add the balanced gradient of several tasks, and the plain gradient of the rest, to ``.grad``.

    Shared parameters get :math:`\text{share} \sum_t \lambda_t \nabla \ell_t + \nabla \text{other}`, with the weights of
    the balancer (over the encoder: its direction in place of the sum). Heads get :math:`\frac{\text{share}}{K} \sum_t
    \nabla \ell_t + \nabla \text{other}`, as with equal weights: a head belongs to one task, and there is nothing to
    balance.

    On several ranks, each calls this with its own part of the losses. The sum of ``.grad`` over the ranks is the
    gradient of the batch of all ranks. Gradients must not be reduced while this runs (under DDP: call the unwrapped
    module). It uses `torch.autograd.grad`, so that reentrant gradient checkpointing cannot be used.
    ``reduce`` adds a tensor up over the ranks.
    """
    shared, heads = list(parameters.shared), list(parameters.heads)
    if not split.ids:
        torch.autograd.backward(split.other, inputs=[*shared, *heads])
        return
    scale = float(split.share)
    unweighted = torch.stack(split.balanced)
    if heads:
        torch.autograd.backward(scale * unweighted.mean() + split.other, inputs=heads, retain_graph=True)
    if balancer.over == "encoder":
        gradients = reduce(jacobian(split.balanced, shared, scale))
        # The direction is that of the batch of all ranks, on each of them.
        direction = balancer.direction(gradients, split.means, split.ids) * (scale / ranks)
        parts = direction.split([parameter.numel() for parameter in shared])
        for parameter, part in zip(shared, parts, strict=True):
            own = part.view_as(parameter).to(parameter.dtype)
            parameter.grad = own.clone() if parameter.grad is None else parameter.grad + own
        if split.other.requires_grad:
            torch.autograd.backward(split.other, inputs=shared)
        return
    assert isinstance(balancer, WeightingBalancer)
    gradients = reduce(jacobian(split.balanced, parameters.last_layer, scale))
    weights = balancer.weights(gradients, split.means, split.ids)
    torch.autograd.backward(scale * (weights.to(unweighted) @ unweighted) + split.other, inputs=shared)
