"""One backward pass for all balanced tasks: their gradients meet in the shared parameters, and only there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .balancer import GradientBalancer, WeightingBalancer

__all__ = ["balanced_backward", "jacobian"]


def jacobian(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Tensor:
    """The gradient of each loss, as a row.

    Args:
        losses: K scalars. Their graph is kept.
        parameters: With n values in all. Where a loss does not reach one, its gradient is 0.
        scale: The losses are multiplied by it and the rows divided, so that they are those of the losses themselves.

    Returns:
        ``[K, n]``, in float32 at least.

    Examples:
        >>> w = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> jacobian([w.sum(), (w**2).sum()], [w])
        tensor([[1., 1.],
                [2., 4.]])
    """
    size = sum(parameter.numel() for parameter in parameters)
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    # Filled row by row: over an encoder there is no room for it twice.
    matrix = parameters[0].new_empty(len(losses), size, dtype=dtype)
    for row, loss in zip(matrix, losses, strict=True):
        gradients = torch.autograd.grad(loss * scale, parameters, retain_graph=True, materialize_grads=True)
        row.copy_(torch.cat([gradient.flatten() for gradient in gradients]))
    return matrix.div_(scale)


def balanced_backward(
    losses: Sequence[Tensor],
    other: Tensor,
    shared: Sequence[nn.Parameter],
    last_layer: Sequence[nn.Parameter],
    heads: Sequence[nn.Parameter],
    balancer: GradientBalancer,
    task_ids: Sequence[int],
    global_losses: Tensor,
    scale: float = 1.0,
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ranks: int = 1,
) -> None:
    r"""Add the balanced gradient of several tasks, and the plain one of all else, to ``.grad``.

    Shared parameters get :math:`\text{scale} \sum_t \lambda_t \nabla \ell_t + \nabla \text{other}`, with the balancer's
    weights (over the encoder: its direction for the sum). Heads get :math:`\frac{\text{scale}}{K} \sum_t \nabla \ell_t
    + \nabla \text{other}`, as with equal weights: a head belongs to its task alone, and there is nothing to balance.

    On several ranks, each calls this with its own part of the losses. What is then in ``.grad``, added up over the
    ranks, is the gradient of the whole batch. Gradients must not be reduced while this runs (DDP: on the unwrapped
    module).

    Works with `torch.autograd.grad`, so that reentrant gradient checkpointing cannot be used.

    Args:
        losses: K scalars, this rank's parts: they add up to the tasks' losses over the ranks. Attached to the graph,
            also where a rank has no example of a task.
        other: A scalar, this rank's part of all that is not balanced. Not scaled.
        shared: The parameters of the encoder.
        last_layer: Those of its last layer, or others that all tasks share. They are looked at ``over: last_layer``.
        heads: The parameters of the heads.
        balancer: A method on gradients. (One on losses needs no backward pass of its own: it weighs the sum.)
        task_ids: K ids, the same on every rank. Where there are none, only ``other`` is used.
        global_losses: ``[K]``, the losses added up over the ranks.
        scale: > 0, of the balanced part. It does not move the weights.
        reduce: Adds a tensor up over the ranks.
        ranks: Their number.
    """
    if not task_ids:
        torch.autograd.backward(other, inputs=[*shared, *heads])
        return
    unweighted = torch.stack(list(losses))
    torch.autograd.backward(scale * unweighted.mean() + other, inputs=list(heads), retain_graph=True)
    if balancer.over == "encoder":
        gradients = reduce(jacobian(losses, shared, scale))
        # The direction is that of the whole batch, and every rank has it.
        _add_to_grad(shared, balancer.direction(gradients, global_losses, task_ids) * (scale / ranks))
        if other.requires_grad:
            torch.autograd.backward(other, inputs=list(shared))
        return
    assert isinstance(balancer, WeightingBalancer)
    weights = balancer.weights(reduce(jacobian(losses, last_layer, scale)), global_losses, task_ids)
    torch.autograd.backward(scale * (weights.to(unweighted) @ unweighted) + other, inputs=list(shared))


def _add_to_grad(parameters: Sequence[nn.Parameter], gradient: Tensor) -> None:
    """Share a flat gradient ``[n]`` out among the parameters."""
    parts = gradient.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        own = part.view_as(parameter).to(parameter.dtype)
        parameter.grad = own.clone() if parameter.grad is None else parameter.grad + own
