"""The loss of a packed batch: each task's by its phase, then one update out of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..balancing.balancer import GradientBalancer, LossBalancer
from ..balancing.build import build_balancer
from ..convergence.schedule import ConvergenceSchedule
from ..data.mixing import example_places
from ..distillation.teachers import Teachers
from ..modeling.configuration_multitask import ConfigurationError
from ..modeling.freezing import last_shared_layer
from ..modeling.modeling_multitask import MultiTaskModel, MultiTaskOutput
from .arguments import AsyncMTLTrainingArguments
from .combining import add_gradients, split, weigh_losses, weighted_sum
from .nonfinite import FiniteCheck
from .task_losses import TaskLosses

if TYPE_CHECKING:
    from ..diagnostics.gradient_conflicts import GradientConflicts

__all__ = ["BatchLoss"]


class BatchLoss:
    r"""The loss of a packed batch, :math:`\frac{1}{N} \sum_i w_{task(i)} \, l_i`, with the state that it keeps.

    :math:`l_i` is the supervised loss of example i while its task learns, and its distillation loss once it distills
    (mixed with a share of the former, if one is set). N counts the examples of the whole optimizer step, so that batch
    size, accumulation and processes can be traded freely.

    With a balancing method the tasks that learn from labels are weighed by it, micro-batch by micro-batch; see
    `hf_async_mtl.training.combining.Parts`. A method on gradients adds to ``.grad`` itself: the loss that is returned
    then has no graph.

    Args:
        model: As it was given, not wrapped.
        args: Of the run.
        schedule: The phases.
        teachers: What distilling tasks learn from.
        accelerator: Of the trainer.
        draws: Training examples of an epoch, over all ranks.

    Attributes:
        sums: Adds up each task's losses, for the log.
        finite: Looks at them before an update.
        balancer: The balancing method; None for ``sum``.
        conflicts: Measures how the tasks' gradients agree; None unless ``conflict_steps`` is set.

    Raises:
        ConfigurationError: The balancing method has no parameters to work on.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        args: AsyncMTLTrainingArguments,
        schedule: ConvergenceSchedule,
        teachers: Teachers,
        accelerator: Accelerator,
        draws: int,
    ) -> None:
        self.model, self.args, self.schedule, self.teachers = model, args, schedule, teachers
        self.accelerator = accelerator
        tasks = list(schedule.tasks)
        self.sums = TaskLosses(tasks)
        calls_per_epoch = max(1, -(-draws // max(1, args.per_device_train_batch_size * args.world_size)))
        self.balancer = build_balancer(args.balancing_config, tasks, args.seed, calls_per_epoch)
        self.conflicts = _gradient_conflicts(args, tasks, model.encoder) if args.conflict_steps else None
        self.finite = FiniteCheck()
        looks_there = self.balances_gradients and args.balancing_config.over == "last_layer"
        self._last_layer = last_shared_layer(model.encoder) if looks_there else []
        if self.balances_gradients and not any(p.requires_grad for p in model.encoder.parameters()):
            raise ConfigurationError(
                f"`balancing.method: {args.balancing_config.method}` needs shared parameters that learn, and the "
                "encoder is frozen: there is nothing to balance. Use `balancing.method: sum`."
            )
        if looks_there and not self._last_layer:
            raise ConfigurationError(
                f"`balancing.method: {args.balancing_config.method}` over the last layer needs a layer that learns; "
                "all are frozen. Set `balancing.over: encoder`, or use `balancing.method: sum`."
            )

    @property
    def balances_gradients(self) -> bool:
        """Whether gradients are added to ``.grad`` here, and the loss that is returned has no graph behind it."""
        return isinstance(self.balancer, GradientBalancer)

    def count(self, batches: Sequence[Mapping[str, Any]], step: int, device: torch.device) -> Tensor:
        """N: the examples of an optimizer step, over accumulation and ranks, of the tasks that are in its loss."""
        in_loss = torch.tensor(list(self.schedule.in_loss(step).values()), device=device)
        count = sum(
            (in_loss[batch["task_ids"].to(device)] & (batch["example_ids"].to(device) >= 0)).sum() for batch in batches
        )
        return self._sum_over_ranks(torch.as_tensor(count, device=device))

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], examples: Tensor | int | None, step: int
    ) -> tuple[Tensor, MultiTaskOutput]:
        """Run a batch.

        Args:
            model: The model as the Trainer has wrapped it.
            inputs: A packed batch.
            examples: N, or None for the examples of this batch.
            step: Optimizer steps made so far.

        Returns:
            The loss, and the model's output.
        """
        inputs = dict(inputs)
        example_ids, task_ids = inputs.pop("example_ids"), inputs["task_ids"]
        # DDP would reduce each task's gradient as it comes.
        outputs: MultiTaskOutput = (self.model if self.balances_gradients else model)(**inputs)
        losses = self._by_phase(outputs, example_ids, task_ids, inputs["labels"], step)
        self.sums.add(list(losses.values()))
        if self.conflicts is not None:
            self.conflicts.observe(list(losses.values()), step)
        n = (example_ids >= 0).sum() if examples is None else torch.as_tensor(examples, device=task_ids.device)
        # DDP averages over the ranks what is to be added up.
        return self._combine(losses, n.clamp(min=1)) * self.accelerator.num_processes, outputs

    def _by_phase(
        self,
        outputs: MultiTaskOutput,
        example_ids: Tensor,
        task_ids: Tensor,
        labels: Mapping[str, Tensor],
        step: int,
    ) -> dict[str, Tensor]:
        """Task -> the losses of its examples in this batch, empty where it is not in the loss."""
        assert outputs.losses is not None
        assert outputs.logits is not None
        assert outputs.layouts is not None
        phases, in_loss = self.schedule.phases, self.schedule.in_loss(step)
        places, counts = example_places(example_ids)
        # One process has none that do not count, and need not wait for the device to say so.
        all_count = self.accelerator.num_processes == 1 or bool(counts.all())
        found: dict[str, Tensor] = {}
        for index, (name, losses) in enumerate(outputs.losses.items()):
            if len(losses) and not in_loss[name]:
                losses = outputs.logits[name][:0].flatten().float()
            elif len(losses) and phases[name] == "distilling":
                head: Any = self.model.heads[name]
                losses = self.teachers.losses(
                    name,
                    head,
                    outputs.logits[name],
                    places[task_ids == index],
                    labels[name],
                    outputs.layouts[name],
                    losses,
                )
            if len(losses):
                own = places[task_ids == index]
                if not all_count:
                    counted = counts[task_ids == index]
                    losses, own = losses[counted], own[counted]
                self.finite.add(name, losses, own)
            found[name] = losses
        return found

    def _combine(self, losses: Mapping[str, Tensor], examples: Tensor) -> Tensor:
        """One loss of this rank out of those of the tasks; see `hf_async_mtl.training.combining`."""
        weights = self.args.balancing_config.weights
        if self.balancer is None:
            return weighted_sum(losses, weights, examples)
        own = torch.cat(list(losses.values()))
        if self._sum_over_ranks((~own.detach().isfinite()).sum()):
            # `FiniteCheck` ends the run before the update; a method would fail on such numbers, and name no task.
            loss = weighted_sum(losses, weights, examples)
            return loss.detach().requires_grad_() if self.balances_gradients else loss
        learning = [name for name, phase in self.schedule.phases.items() if phase == "learning"]
        parts = split(losses, weights, examples, learning, self._sum_over_ranks)
        if isinstance(self.balancer, LossBalancer):
            return weigh_losses(parts, self.balancer)
        encoder = [p for p in self.model.encoder.parameters() if p.requires_grad]
        heads = [p for p in self.model.heads.parameters() if p.requires_grad]
        # What runs backwards here was computed under autocast, and is not to be again.
        with torch.autocast(examples.device.type, enabled=False):
            loss = add_gradients(
                parts,
                self.balancer,
                encoder,
                self._last_layer,
                heads,
                self._sum_over_ranks,
                self.accelerator.num_processes,
            )
            if self.accelerator.sync_gradients:
                for parameter in [*encoder, *heads]:
                    if parameter.grad is not None:
                        parameter.grad = self._sum_over_ranks(parameter.grad)
        return loss.requires_grad_()

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, "sum")

    def state_dict(self) -> dict[str, Any]:
        """All that later batches and the report depend on, as JSON values."""
        return {
            "conflicts": None if self.conflicts is None else self.conflicts.state_dict(),
            "balancer": None if self.balancer is None else self.balancer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: The state is another method's, or of other tasks.
        """
        if self.conflicts is not None and state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        self.sums.reset()
        if self.balancer is not None:
            self.balancer.load_state_dict(state["balancer"] or {})


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
