"""The loss of a packed batch: each task's by its phase, then one update for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..balancing.backward import ParameterGroups, balanced_backward
from ..balancing.balancer import GradientBalancer, LossBalancer
from ..balancing.build import build_balancer
from ..balancing.config import BalancingConfig
from ..balancing.split import LossSplit, split_losses, weighted_sum
from ..building.freezing import last_shared_layer
from ..convergence.schedule import ConvergenceSchedule
from ..data.dataset import decode_example_ids
from ..distillation.teachers import Teachers
from ..modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
from ..modeling.packing import HostBatch, to_device
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .nonfinite import FiniteCheck

if TYPE_CHECKING:
    from ..diagnostics.gradient_conflicts import GradientConflicts


class MultiTaskLoss:
    r"""Compute the loss of a batch, :math:`\frac{1}{N} \sum_i w_{task(i)} \, l_i`.

    :math:`l_i` is the supervised loss of example i while its task learns from labels, and its distillation loss once
    the task distills. N counts the examples of the optimizer step over accumulation and ranks, so that batch size,
    accumulation and number of processes can be traded with the same gradient.

    With a balancing method, the tasks that learn from labels are balanced, one micro-batch at a time; see `LossSplit`.
    Gradient balancing adds to ``.grad`` itself, and the returned loss then has no graph.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        args: AsyncMTLTrainingArguments,
        schedule: ConvergenceSchedule,
        teachers: Teachers,
        accelerator: Accelerator,
        epoch_size: int,
    ) -> None:
        self.model, self.schedule, self.teachers, self.accelerator = model, schedule, teachers, accelerator
        self.task_weights = args.balancing_config.weights
        tasks = list(schedule.tasks)
        self.running, self.finite = RunningTaskLoss(tasks), FiniteCheck(is_deferred=accelerator.device.type == "cuda")
        calls_per_epoch = max(1, -(-epoch_size // max(1, args.per_device_train_batch_size * args.world_size)))
        self.balancer = build_balancer(args.balancing_config, tasks, args.seed, calls_per_epoch)
        if isinstance(self.balancer, GradientBalancer):
            self._parameters = _parameter_groups(model, args.balancing_config)
        self.conflicts = _gradient_conflicts(args, tasks, model.encoder) if args.conflict_steps else None

    @property
    def balances_gradients(self) -> bool:
        """Whether a call adds to ``.grad``, and returns a loss without a graph."""
        return isinstance(self.balancer, GradientBalancer)

    def count(self, batches: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """Return N: the examples of an optimizer step, over accumulation and ranks, whose tasks are in the loss."""
        in_loss = list(self.schedule.in_loss.values())
        if not all("host" in batch for batch in batches):
            raise ValueError("A batch must have `host`, a `HostBatch`. Use the data collator of the trainer.")
        hosts: list[HostBatch] = [batch["host"] for batch in batches]
        pairs = (pair for host in hosts for pair in zip(host.task_ids, host.example_ids, strict=True))
        count = sum(in_loss[task] and example >= 0 for task, example in pairs)
        return self._sum_over_ranks(torch.full((), count, dtype=torch.int64, device=device))

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], num_examples: Tensor | int | None, step: int
    ) -> tuple[Tensor, MultiTaskOutput]:
        """Run the wrapped model on a packed batch; N defaults to the examples of this batch."""
        # DDP would reduce each task's gradient separately.
        outputs: MultiTaskOutput = (self.model if self.balances_gradients else model)(**inputs)
        losses = self._task_losses(outputs, inputs)
        self.running.add(list(losses.values()))
        if self.conflicts is not None:
            self.conflicts.observe(list(losses.values()), step)
        device = inputs["example_ids"].device
        n = sum(example >= 0 for example in inputs["host"].example_ids) if num_examples is None else num_examples
        n = n.to(device) if isinstance(n, Tensor) else torch.full((), n, device=device)
        # DDP takes the mean over the ranks, and N counts the examples of all of them.
        return self._combine(losses, n.clamp(min=1)) * self.accelerator.num_processes, outputs

    def _task_losses(self, outputs: MultiTaskOutput, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return task -> the losses of its examples by its phase, empty if the task is not in the loss."""
        assert outputs.losses is not None
        assert outputs.logits is not None
        assert outputs.layouts is not None
        in_loss, phases = self.schedule.in_loss, self.schedule.phases
        host: HostBatch = inputs["host"]
        found: dict[str, Tensor] = {}
        for (name, losses), (own, _, _) in zip(outputs.losses.items(), host.slices(len(in_loss)), strict=True):
            if len(losses) and not in_loss[name]:
                losses = outputs.logits[name][:0].flatten().float()
            if len(losses):
                examples, counted = decode_example_ids(host.example_ids[own])
                if phases[name] == "distilling":
                    head: Any = self.model.heads[name]
                    logits, labels, layout = outputs.logits[name], inputs["labels"][name], outputs.layouts[name]
                    losses = self.teachers.losses(name, head, logits, examples, labels, layout, losses)
                if len(counted) < len(examples):
                    losses = losses.index_select(0, to_device(torch.tensor(counted, dtype=torch.int64), losses.device))
                    examples = [examples[position] for position in counted]
                self.finite.add(name, losses, examples)
            found[name] = losses
        return found

    def _combine(self, losses: Mapping[str, Tensor], num_examples: Tensor) -> Tensor:
        """Return this rank's loss of all tasks."""
        if self.balancer is None:
            return weighted_sum(losses, self.task_weights) / num_examples
        own = torch.cat(list(losses.values()))
        if self._sum_over_ranks((~own.detach().isfinite()).sum()):
            # `FiniteCheck` ends the run, and names the task; a balancing method would fail first.
            loss = weighted_sum(losses, self.task_weights) / num_examples
            return loss.detach().requires_grad_() if self.balances_gradients else loss
        learning = [name for name, phase in self.schedule.phases.items() if phase == "learning"]
        split = split_losses(losses, self.task_weights, num_examples, learning, self._sum_over_ranks)
        if isinstance(self.balancer, LossBalancer):
            if not split.ids:
                return split.other
            weights = self.balancer.weights(split.means, split.ids)
            return split.share * (weights @ torch.stack(split.balanced)) + split.other
        return self._balance_gradients(split, self.balancer)

    def _balance_gradients(self, split: LossSplit, balancer: GradientBalancer) -> Tensor:
        """Add the gradients of a batch to ``.grad``; return this rank's loss with equal weights, without a graph."""
        parameters, ranks = self._parameters, self.accelerator.num_processes
        # The forward pass ran under autocast where it applies; the backward pass must not.
        with torch.autocast(split.other.device.type, enabled=False):
            balanced_backward(split, parameters, balancer, self._sum_over_ranks, ranks)
            if self.accelerator.sync_gradients:
                for parameter in [*parameters.shared, *parameters.heads]:
                    if parameter.grad is not None:
                        parameter.grad = self._sum_over_ranks(parameter.grad)
            loss = split.other.detach()
            if split.ids:
                loss = loss + split.share * torch.stack(split.balanced).detach().mean()
        return loss.requires_grad_()

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "sum")

    def logs(self) -> dict[str, float]:
        """Return ``<task>_loss``, means over all ranks since the last call, and ``weight/<task>`` of balanced tasks."""
        logs = self.running.take(self.accelerator)
        weights = {} if self.balancer is None else self.balancer.latest
        phases = self.schedule.phases
        return logs | {f"weight/{name}": weight for name, weight in weights.items() if phases[name] == "learning"}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later batches and the report depend on, as JSON values."""
        return {
            "conflicts": None if self.conflicts is None else self.conflicts.state_dict(),
            "balancer": None if self.balancer is None else self.balancer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, and start the means of the log again."""
        if self.conflicts is not None and state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        self.running.reset()
        self.finite.reset()
        if self.balancer is not None:
            self.balancer.load_state_dict(state["balancer"] or {})


class RunningTaskLoss:
    """Add up each task's losses on the device, so that no training step waits for a number.

    Losses that are not finite are left out: `FiniteCheck` ends the run.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = list(tasks)
        self.reset()

    def reset(self) -> None:
        """Set all sums to 0."""
        # Sums of losses, numbers of examples.
        self._totals = torch.zeros(2, len(self.tasks))

    def add(self, losses: Sequence[Tensor]) -> None:
        """Add the losses of a batch: for each task a vector, empty if it has no example."""
        values = torch.cat([task_losses.detach() for task_losses in losses])
        tasks = torch.tensor([task for task, own in enumerate(losses) for _ in range(len(own))], dtype=torch.int64)
        finite = values.isfinite()
        added = torch.stack([values.where(finite, 0.0), finite.to(values.dtype)])
        self._totals = self._totals.to(values.device).index_add(1, to_device(tasks, values.device), added)

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return ``<task>_loss``, the mean over all ranks since the last call, of each task with an example."""
        # New sums are on the CPU, where not every backend can add them up.
        sums, counts = accelerator.reduce(self._totals.to(accelerator.device), "sum").tolist()
        self.reset()
        return {
            f"{name}_loss": total / count for name, total, count in zip(self.tasks, sums, counts, strict=True) if count
        }


def _parameter_groups(model: MultiTaskModel, config: BalancingConfig) -> ParameterGroups:
    shared, heads = ([p for p in part.parameters() if p.requires_grad] for part in (model.encoder, model.heads))
    if not shared:
        raise ConfigurationError(
            f"`balancing.method: {config.method}` needs shared parameters that learn, and the encoder is frozen: there "
            "is nothing to balance. Use `balancing.method: sum`."
        )
    last_layer = last_shared_layer(model.encoder) if config.over == "last_layer" else []
    if config.over == "last_layer" and not last_layer:
        raise ConfigurationError(
            f"`balancing.method: {config.method}` over the last layer needs a layer that learns; all are frozen. Set "
            "`balancing.over: encoder`, or use `balancing.method: sum`."
        )
    return ParameterGroups(shared, last_layer, heads)


def _gradient_conflicts(args: AsyncMTLTrainingArguments, tasks: Sequence[str], encoder: nn.Module) -> GradientConflicts:
    from ..diagnostics.gradient_conflicts import GradientConflicts

    for name, given in (
        ("gradient_checkpointing", args.gradient_checkpointing),
        ("torch_compile", args.torch_compile),
        (f"{args.sharded_by}", args.sharded_by),
    ):
        if given:
            raise ConfigurationError(
                f"`training.conflict_steps` needs gradients of chosen parameters, which {name} does not give. Remove "
                "one of the two."
            )
    return GradientConflicts(tasks, last_shared_layer(encoder), args.conflict_steps)
