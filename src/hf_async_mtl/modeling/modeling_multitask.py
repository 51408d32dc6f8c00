"""An encoder with one head per task. A batch of mixed tasks takes one forward of the encoder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig, from_package
from .heads import HEADS, Head, empty_loss, pooled, split_by_task
from .packing import (
    HostBatch,
    Layout,
    PackedRows,
    Ragged,
    encode,
    encode_length_groups,
    encode_rows,
    padding_changes_states,
    probe_packing,
    ragged_from_mask,
    ragged_from_rows,
)


@dataclass
class MultiTaskOutput(ModelOutput):
    """Output of a `MultiTaskModel`.

    Args:
        loss: Mean over the examples of the batch of their supervised losses, if labels were given.
        logits: Task -> logits. ``[B, C]`` for sequences, ``[B]`` for regression, ``[B, n]`` for choices. Tokens:
            ``[T, C]`` over the task's tokens in a packed batch, ``[B, L, C]`` in a padded call (0 where
            ``attention_mask`` is 0). A task without an example in a packed batch is left out.
        losses: Task -> supervised loss of each of its examples, ``[b]``, if labels were given; packed: of all tasks.
        layouts: Task -> the layout of its tokens and segments; packed batches only.
    """

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None
    layouts: dict[str, Layout] | None = None


def without_pooler(encoder_class: type[PreTrainedModel]) -> dict[str, bool]:
    """Return arguments that leave out the pooler: it would get no gradient, for which DDP waits."""
    has_pooler = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


def _head_dropout(config: Any) -> float:
    """Return the dropout that an encoder's configuration has for heads, or else for its layers."""
    names = ("classifier_dropout", "classifier_dropout_prob", "hidden_dropout_prob", "seq_classif_dropout", "dropout")
    return next((float(p) for p in (getattr(config, name, None) for name in names) if p is not None), 0.1)


class MultiTaskModel(PreTrainedModel):
    """A text encoder with one head per task.

    A plain call runs every head on every row; ``tasks`` selects heads. The trainer calls the model with packed batches
    of mixed tasks, for which the encoder runs once.

    Args:
        config: With an ``encoder_config`` and resolved ``tasks``.

    Raises:
        ConfigurationError: The configuration has no encoder, no tasks, or a task without its labels.
    """

    config_class = MultiTaskConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig) -> None:
        super().__init__(config)
        if config.encoder_config is None or not config.tasks:
            raise ConfigurationError(
                "A MultiTaskModel needs an encoder and at least one task; this configuration has "
                f"{'no encoder' if config.encoder_config is None else 'no tasks'}. Start from a plain encoder with "
                "`MultiTaskModel.from_encoder(name, tasks)`."
            )
        encoder_class = AutoModel._model_mapping[type(config.encoder_config)]
        self.encoder = AutoModel.from_config(config.encoder_config, **without_pooler(encoder_class))
        width, dropout = config.encoder_config.hidden_size, _head_dropout(config.encoder_config)
        self.heads = nn.ModuleDict(
            {name: HEADS[task.type](width, task, dropout, config.pooling) for name, task in config.task_configs.items()}
        )
        self._position_offset: int | None = None
        self._length_groups: int | None = 4
        self._is_probed = False
        self.post_init()
        if config.lora is not None:
            # After the initialization of weights: peft initializes its own.
            self._add_lora(config.lora)

    def _add_lora(self, settings: Mapping[str, Any]) -> None:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ConfigurationError(
                "This model has low-rank layers, which need peft. Run `pip install peft`, or load the merged model."
            ) from error
        self.encoder.add_adapter(LoraConfig(**settings))

    @classmethod
    def from_encoder(
        cls,
        encoder: str | os.PathLike[str],
        tasks: Mapping[str, TaskConfig],
        *,
        pooling: str | None = None,
        packing: str = "auto",
        max_length: int | None = None,
        new_heads: Collection[str] = (),
        lora: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> MultiTaskModel:
        """Return a model with new heads on a pretrained encoder, or with the heads of a trained model.

        Args:
            encoder: Hub id or folder of a text encoder whose ``AutoModel`` returns ``last_hidden_state``; or of a
                `MultiTaskModel`, whose heads are kept for the tasks of the same names, with their label names or the
                scale of their targets.
            tasks: Name -> resolved task.
            pooling: ``cls`` (the default), ``mean`` or ``max``. Heads that are kept need the pooling they have.
            packing: ``auto`` or ``off``.
            max_length: See `MultiTaskConfig`. Default: 128, or that of the trained model.
            new_heads: Tasks that get a new head although the trained model has one.
            lora: Fields of `peft.LoraConfig`: low-rank layers are trained in place of the encoder's own weights.
            **kwargs: For ``AutoModel.from_pretrained``. Weights are float32 unless ``dtype`` says otherwise: small
                updates are lost in half precision; use ``bf16`` in the training arguments instead.

        Raises:
            ConfigurationError: ``encoder`` is not a text encoder, its checkpoint lacks weights, it has fewer positions
                than the longest sequence, or a task does not fit its head in the trained model.
        """
        settings = {"pooling": pooling, "packing": packing, "max_length": max_length}
        build = from_package("building.build")
        return build.from_encoder(cls, encoder, tasks, settings=settings, new_heads=new_heads, lora=lora, **kwargs)

    def freeze_encoder(self, layers: int | None = None) -> None:
        """Freeze the encoder for training, or its embeddings and first layers; not saved. Dropout stays active.

        Args:
            layers: Number of first layers; None: the encoder.

        Raises:
            ConfigurationError: The encoder has fewer layers.
        """
        from_package("building.freezing").freeze(self.encoder, layers)

    def as_sequence_classifier(self, task: str) -> PreTrainedModel:
        """Return one task as a stock model, for code such as ``transformers.pipeline("text-classification", ...)``.

        Args:
            task: A task of classification, multi-label classification or regression.

        Returns:
            A view, which shares weights and mode with this model.

        Raises:
            ConfigurationError: The task is not known, or is of another type.
        """
        return from_package("inference.single_task").SequenceView(self, task)

    def as_token_classifier(self, task: str) -> PreTrainedModel:
        """Return a token classification task as a stock model; see `as_sequence_classifier`.

        The label of a word is that of its first sub-word: ask the pipeline for ``aggregation_strategy="first"``.
        """
        return from_package("inference.single_task").TokenView(self, task)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @property
    def packs(self) -> bool:
        """Whether several segments share a row. Found once, by a probe; see `probe_packing`."""
        if not self._is_probed:
            self.probe_packing()
        return self._position_offset is not None

    def probe_packing(self) -> bool:
        """Find out whether the encoder handles packed rows, and padding. The trainer calls this on the plain model."""
        self._position_offset = None if self.config.packing == "off" else probe_packing(self.encoder)
        if self._position_offset is None:
            # A text must have the same logits in every batch.
            self._length_groups = None if padding_changes_states(self.encoder) else 4
        self._is_probed = True
        return self._position_offset is not None

    # Compiled is the encoder alone: the parts of the heads differ from batch to batch.
    @torch.compiler.disable(recursive=False)
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Mapping[str, Tensor] | None = None,
        tasks: Sequence[str] | None = None,
        task_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        segment_starts: Tensor | None = None,
        segment_lengths: Tensor | None = None,
        segment_counts: Tensor | None = None,
        return_dict: bool | None = None,
        example_ids: Tensor | None = None,
        host: HostBatch | None = None,
    ) -> MultiTaskOutput | tuple[Any, ...]:
        """Encode a batch and compute logits, and losses if labels are given.

        Args:
            input_ids: ``[B, L]``, or ``[B, n, L]`` for multiple choice; packed: ``[R, L]``.
            attention_mask: Same shape; default: ones. Not for packed batches.
            token_type_ids: Same shape.
            position_ids: ``[B, L]``, as the encoder counts them; packed: ``[R, L]``, from 0 in each segment.
            labels: Task -> targets; see the class of its head.
            tasks: Names of the heads to run on every example. Default: all; packed: the head of the example's task.
            task_ids: Packed: ``[B]``, indices into ``config.task_order``, ascending. A batch that has them is packed.
            segment_ids: Packed: ``[R, L]``, 0 on padding.
            segment_starts: Packed: ``[S]``, indices of first tokens in the flattened rows.
            segment_lengths: Packed: ``[S]``.
            segment_counts: Packed: ``[B]``, the number of segments of each example.
            return_dict: False for a tuple without the fields that are None.
            example_ids: Not read: a batch of the trainer may be given as it is.
            host: Packed: integers of the batch. Without it they are read from the tensors, for which the host waits.

        Returns:
            A `MultiTaskOutput`.

        Raises:
            ValueError: A task is not known, or a packed batch is incomplete.
        """
        if task_ids is not None:
            if position_ids is None or segment_ids is None:
                raise ValueError("A packed batch needs `position_ids` and `segment_ids`. Use `MultiTaskCollator`.")
            if segment_starts is None or segment_lengths is None or segment_counts is None:
                raise ValueError("A packed batch needs `segment_starts`, `segment_lengths` and `segment_counts`.")
            rows = PackedRows(input_ids, position_ids, segment_ids, segment_starts, segment_lengths, token_type_ids)
            output = self._forward_packed(rows, segment_counts, task_ids, labels or {}, tasks, host)
        else:
            inputs = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
            output = self._forward_padded(inputs, attention_mask, labels or {}, tasks)
        return output if return_dict is not False else output.to_tuple()

    @torch.compiler.disable(recursive=False)
    def _forward_packed(
        self,
        rows: PackedRows,
        segment_counts: Tensor,
        task_ids: Tensor,
        labels: Mapping[str, Tensor],
        tasks: Sequence[str] | None,
        host: HostBatch | None,
    ) -> MultiTaskOutput:
        if host is None:
            host = HostBatch(*(x.tolist() for x in (task_ids, segment_counts, rows.segment_lengths)))
        sizes = host.segment_lengths
        if self.packs:
            assert self._position_offset is not None
            hidden = encode_rows(self.encoder, rows, self._position_offset)
            return self._run_heads(ragged_from_rows(hidden, rows, segment_counts, sizes), labels, tasks, host)
        ragged = encode_length_groups(self.encoder, rows, segment_counts, self._length_groups, sizes)
        return self._run_heads(ragged, labels, tasks, host)

    @torch.compiler.disable
    def _run_heads(
        self, ragged: Ragged, labels: Mapping[str, Tensor], tasks: Sequence[str] | None, host: HostBatch
    ) -> MultiTaskOutput:
        logits, losses, layouts = {}, {}, {}
        heads = {name: self._head(name) for name in (self.config.task_order if tasks is None else tasks)}
        if tasks is None:
            parts = split_by_task(ragged, host, heads, self.config.pooling)
        else:
            parts = dict.fromkeys(heads, pooled(ragged, heads.values(), self.config.pooling))
        absent = [head for name, head in heads.items() if len(parts[name].layout.segments) == 1]
        # A head without an example stays in the graph: every parameter has a gradient on every rank.
        nothing = empty_loss(absent) if absent and labels else None
        for name, head in heads.items():
            if head not in absent:
                logits[name], layouts[name] = head(parts[name]), parts[name].layout
                if name in labels:
                    losses[name] = head.loss(logits[name], labels[name], layouts[name])
            elif nothing is not None:
                losses[name] = nothing
        loss = torch.cat(list(losses.values())).sum() / len(host.task_ids) if losses else None
        return MultiTaskOutput(loss=loss, logits=logits, losses=losses or None, layouts=layouts)

    def _forward_padded(
        self,
        inputs: Mapping[str, Tensor | None],
        attention_mask: Tensor | None,
        labels: Mapping[str, Tensor],
        tasks: Sequence[str] | None,
    ) -> MultiTaskOutput:
        ids = inputs["input_ids"]
        assert ids is not None
        choices = ids.shape[1] if ids.dim() == 3 else 1
        shape = (-1, ids.shape[-1])
        mask = (torch.ones_like(ids) if attention_mask is None else attention_mask).reshape(shape)
        # Padding goes to the right: encoders with absolute positions count them from the first column.
        order = (mask == 0).long().argsort(dim=1, stable=True)
        sorted_mask = mask.gather(1, order)
        flat = {
            name: None if x is None else x.reshape(shape).expand_as(mask).gather(1, order) for name, x in inputs.items()
        }
        ragged = ragged_from_mask(encode(self.encoder, attention_mask=sorted_mask, **flat), sorted_mask, choices)
        logits, losses = {}, {}
        heads = {name: self._head(name) for name in (self.config.task_order if tasks is None else tasks)}
        ragged = pooled(ragged, heads.values(), self.config.pooling)
        for name, head in heads.items():
            scores = head(ragged)
            if name in labels:
                losses[name] = head.loss(scores, labels[name], ragged.layout)
            if head.unit == "token":
                dense = scores.new_zeros(*mask.shape, scores.shape[-1])
                scores = dense.masked_scatter(mask.bool().unsqueeze(-1), scores)
            logits[name] = scores
        loss = torch.cat(list(losses.values())).mean() if losses else None
        return MultiTaskOutput(loss=loss, logits=logits, losses=losses or None)

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            raise ValueError(f"`tasks` must be among {', '.join(self.config.task_order)}; found {name!r}.")
        head = self.heads[name]
        assert isinstance(head, Head)
        return head
