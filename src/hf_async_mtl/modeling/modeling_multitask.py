"""One encoder, many heads: `MultiTaskModel` reads a mixed batch in a single forward of its encoder."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .adapters import add_lora, merge_lora
from .configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig
from .encoders import (
    build_encoder,
    check_whole,
    head_dropout,
    is_text_encoder,
    position_limit,
    public_name,
    without_pooler,
)
from .freezing import freeze
from .growing import adopt, kept_tasks
from .heads import HEADS, Head
from .packing import (
    Layout,
    Ragged,
    block_mask,
    length_groups,
    offsets_of,
    pack,
    ragged_from_mask,
    ragged_from_rows,
    segment_tokens,
    sliding_block_mask,
)

__all__ = ["MultiTaskModel", "MultiTaskOutput"]

# Arguments of `from_pretrained` that also apply to the configuration.
_HUB_KEYS = ("token", "cache_dir", "local_files_only", "revision", "subfolder", "trust_remote_code")

# What an encoder raises that was not written for a 4-D mask: a shape that does not fit, or a refusal.
_UNPACKABLE = (ValueError, RuntimeError, TypeError, IndexError)


_NEEDS_PACKAGE = "`{}` needs the package hf_async_mtl: pip install hf-async-mtl."


@dataclass
class MultiTaskOutput(ModelOutput):
    """What a `MultiTaskModel` returns.

    Args:
        loss: The mean over the examples of the batch of their supervised losses, where labels were given.
        logits: Task -> logits. ``[B, C]`` for sequences, ``[B]`` for regression, ``[B, n]`` for choices. Tokens:
            ``[T, C]`` over the task's tokens in a packed batch, ``[B, L, C]`` in a padded call (0 where
            ``attention_mask`` is 0). In a packed batch a task without an example is left out.
        losses: Task -> supervised loss of each of its examples, ``[b]``, where labels were given. In a packed batch
            every task is there: one without an example has an empty vector that is still part of the graph.
        layouts: Task -> the layout of its tokens and segments; packed batches only.
    """

    loss: Tensor | None = None
    logits: dict[str, Tensor] | None = None
    losses: dict[str, Tensor] | None = None
    layouts: dict[str, Layout] | None = None


class MultiTaskModel(PreTrainedModel):
    """A text encoder with one head a task.

    Call it as any encoder, and every head answers for every row; name ``tasks`` to ask some of them. The trainer calls
    it with packed batches of mixed tasks, for which the encoder runs once.

    Args:
        config: With an ``encoder_config`` and resolved ``tasks``.

    Raises:
        ConfigurationError: The configuration has no encoder or no tasks, or a task's labels are not known.
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
        self.encoder = build_encoder(config.encoder_config)
        width, dropout = config.encoder_config.hidden_size, head_dropout(config.encoder_config)
        self.heads = nn.ModuleDict(
            {name: HEADS[task.type](width, task, dropout, config.pooling) for name, task in config.task_configs.items()}
        )
        self._position_offset: int | None = None
        self._packs: bool | None = None
        self._encoder_inputs = set(inspect.signature(self.encoder.forward).parameters)
        self.post_init()
        if config.lora is not None:
            # Afterwards: they are drawn as peft draws them, so that an encoder answers as before.
            config.lora = add_lora(self.encoder, config.lora)

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
        """Put new heads on a pretrained encoder, or on that of a trained bundle, which keeps those that it has.

        Args:
            encoder: Hub id or folder of a text encoder whose ``AutoModel`` returns ``last_hidden_state``; or of a
                `MultiTaskModel`. The heads of its tasks that are among ``tasks``, by their names, are taken over with
                their labels or the scale of their targets; the others are dropped.
            tasks: Name -> resolved task.
            pooling: ``cls`` (the default), ``mean`` or ``max``. A trained bundle's heads know its own alone.
            packing: ``auto`` or ``off``.
            max_length: The longest sequence, in tokens, where a task does not say: 128, or a trained bundle's own.
            new_heads: Tasks that begin anew, though the trained bundle has them.
            lora: Fields of `peft.LoraConfig`: the encoder learns through low-rank layers beside its own, which are
                frozen; see `hf_async_mtl.modeling.adapters.add_lora`. Those that a trained bundle has are merged first.
            **kwargs: For ``AutoModel.from_pretrained``. Weights are float32 unless ``dtype`` says otherwise:
                half-precision master weights lose small updates; train in ``bf16`` through the training arguments.

        Raises:
            ConfigurationError: The encoder is no encoder, its checkpoint lacks weights, it has fewer positions than
                the longest sequence, or a task does not fit the head of a trained bundle.
        """
        # Left open, Transformers asks the terminal whether to run the code of a stranger.
        kwargs = {"dtype": torch.float32, "trust_remote_code": False, **kwargs}
        if not isinstance(encoder, str | os.PathLike):
            raise ConfigurationError(f"`encoder` must be a Hub id or a folder; found {encoder!r}.")
        source = str(encoder)
        hub = {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
        encoder_config = AutoConfig.from_pretrained(source, **hub)
        trained = encoder_config if isinstance(encoder_config, MultiTaskConfig) else None
        kept: list[str] = []
        tasks = dict(tasks)
        if trained is not None:
            known = trained.task_configs
            kept = kept_tasks(known, tasks, new_heads)
            tasks |= {name: adopt(name, tasks[name], known[name]) for name in kept}
            if kept and pooling not in (None, trained.pooling):
                raise ConfigurationError(
                    f"`pooling` must be {trained.pooling}, which the heads of {encoder!r} have learnt to read; found "
                    f"{pooling!r}."
                )
            pooling, max_length = pooling or trained.pooling, max_length or trained.max_length
            encoder_config = trained.encoder_config
        if not is_text_encoder(encoder_config):
            raise ConfigurationError(
                "`encoder` must be a text encoder whose AutoModel returns last_hidden_state; "
                f"{encoder!r} is of type {encoder_config.model_type!r}. Choose a model such as BERT or ModernBERT."
            )
        config = MultiTaskConfig(
            encoder_config=encoder_config,
            tasks=tasks,
            pooling=pooling or "cls",
            packing=packing,
            max_length=max_length or 128,
        )
        model = cls(config)
        limit = position_limit(model.encoder)
        longest = max([config.max_length, *(task.max_length or 0 for task in tasks.values())])
        if limit is not None and longest > limit:
            raise ConfigurationError(
                f"`max_length` must be at most {limit}, the number of positions of {encoder!r}; found {longest}. Lower "
                "it, or choose an encoder for longer texts."
            )
        if trained is None:
            encoder_class: Any = type(model.encoder)
            loaded, info = encoder_class.from_pretrained(
                source, output_loading_info=True, **without_pooler(encoder_class), **kwargs
            )
            check_whole(source, info)
        else:
            loaded, heads = cls._load_trained(source, kwargs)
            model.heads.update({name: heads[name] for name in kept})
        # One configuration, not two: what changes the encoder's must stand in `config.json`.
        model.encoder, config.encoder_config = loaded, loaded.config
        loaded.config._name_or_path = public_name(source)
        if lora is not None:
            config.lora = add_lora(loaded, lora)
        model.heads.to(loaded.dtype)
        # As `from_pretrained` leaves it; the loaded encoder is in evaluation mode already.
        return model.eval()

    @classmethod
    def _load_trained(cls, source: str, kwargs: Mapping[str, Any]) -> tuple[PreTrainedModel, nn.ModuleDict]:
        """Return the encoder of a trained model, low-rank layers merged, and its heads."""
        model, info = cls.from_pretrained(source, output_loading_info=True, **kwargs)
        check_whole(source, info)
        if model.config.lora is not None:
            model.merge_adapter()
        return model.encoder, model.heads

    def merge_adapter(self) -> None:
        """Add the low-rank updates to the encoder's own weights, in place, and remove the layers.

        A run's final model is saved merged; see `merged`. To save the adapter alone, in peft's format, call
        ``model.encoder.save_pretrained(folder)`` before merging, on a model from a checkpoint of the run.

        Raises:
            ConfigurationError: The model has no low-rank layers.
        """
        if self.config.lora is None:
            raise ConfigurationError(
                "A model that is merged must have low-rank layers; this one has none. Use it as is."
            )
        merge_lora(self.encoder)
        self.config.lora = None

    def merged(self, state_dict: Mapping[str, Tensor] | None = None) -> MultiTaskModel:
        """Return a copy on the CPU with its low-rank layers merged.

        Args:
            state_dict: The weights of this model; its own, where absent. (A sharded model's are gathered first.)
        """
        config = copy.deepcopy(self.config)
        model = type(self)(config)
        model.load_state_dict(self.state_dict() if state_dict is None else state_dict)
        # The sum is taken in float32, whatever the type of the weights.
        model.merge_adapter()
        return model.to(self.dtype).eval()

    def freeze_encoder(self, layers: int | None = None) -> None:
        """Let the encoder stay as it is in training, or its embeddings and first layers.

        Dropout goes on in what is frozen. A model that is saved and loaded is not frozen.

        Args:
            layers: So many of its first layers; None: the whole encoder.

        Raises:
            ConfigurationError: The encoder does not have so many layers.
        """
        freeze(self.encoder, layers)

    def as_sequence_classifier(self, task: str) -> PreTrainedModel:
        """Return one task as a stock model, for code such as ``transformers.pipeline("text-classification", ...)``.

        Args:
            task: A task of classification, multi-label classification or regression.

        Returns:
            A view: it shares weights and mode with this model. ``logits`` are a tensor, and its configuration has
            ``id2label`` and ``problem_type``.

        Raises:
            ConfigurationError: The task is not known, or is of another type.
            ImportError: The package ``hf_async_mtl`` is not installed.
        """
        try:
            from hf_async_mtl.inference.single_task import SequenceView
        except ImportError as error:
            raise ImportError(_NEEDS_PACKAGE.format("as_sequence_classifier")) from error
        return SequenceView(self, task)

    def as_token_classifier(self, task: str) -> PreTrainedModel:
        """Return a token classification task as a stock model, for ``transformers.pipeline("token-classification")``.

        The label of a word is that of its first sub-word: ask the pipeline for ``aggregation_strategy="first"``. See
        `as_sequence_classifier`.
        """
        try:
            from hf_async_mtl.inference.single_task import TokenView
        except ImportError as error:
            raise ImportError(_NEEDS_PACKAGE.format("as_token_classifier")) from error
        return TokenView(self, task)

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @property
    def packs(self) -> bool:
        """Whether several segments share a row. Found once, by a probe; see `probe_packing`."""
        if self._packs is None:
            self.probe_packing()
        return bool(self._packs)

    def probe_packing(self) -> bool:
        """Run the encoder on a few random tokens, padded and packed, and see whether it says the same.

        The probe also finds from where positions are counted (RoBERTa and its kin: from ``pad_token_id + 1``). It takes
        segments longer than the window of local attention, where the encoder has one, and draws from a generator of its
        own, so that it does not move the global random state. The trainer calls it before the model is wrapped.
        """
        self._packs, self._position_offset = False, 0
        if self.config.packing == "off" or "position_ids" not in self._encoder_inputs:
            return False
        if self.encoder.config._attn_implementation not in ("sdpa", "eager"):
            return False
        encoder = self.encoder
        # Layer by layer: some may be frozen in evaluation mode while the rest trains.
        modes = [(module, module.training) for module in encoder.modules()]
        encoder.eval()
        try:
            for offset in sorted({0, (encoder.config.pad_token_id or 0) + 1}):
                self._position_offset = offset
                if self._packed_equals_padded():
                    self._packs = True
                    return True
        finally:
            for module, training in modes:
                module.training = training
        self._position_offset = 0
        return False

    @torch.no_grad()
    def _packed_equals_padded(self) -> bool:
        config, device = self.encoder.config, self.encoder.device
        window = getattr(config, "sliding_window", None) or 0
        longest = min(window + 8, config.max_position_embeddings // 2)
        generator = torch.Generator().manual_seed(0)
        pad = config.pad_token_id or 0
        # Any token but padding, which may be the first of the vocabulary or the last.
        others = torch.arange(config.vocab_size)
        others = others[others != pad]
        segments = [
            others[torch.randint(len(others), (length,), generator=generator)].tolist() for length in (longest, 5, 7)
        ]
        rows = pack(segments, None, sum(map(len, segments)), pad)
        ids, places, blocks, starts, lengths = (tensor.to(device) for tensor in rows[:5])
        counts = torch.ones(len(segments), dtype=torch.long, device=device)
        try:
            with torch.autocast(device.type, enabled=False):
                packed = ragged_from_rows(self._run_packed(ids, places, blocks, None), starts, lengths, counts).states
        except _UNPACKABLE:
            return False
        with torch.autocast(device.type, enabled=False):
            padded = self._run_length_groups(ids, None, starts, lengths, counts, groups=1).states
        # Far above the rounding of the encoder's type, far below what a neighbour or a wrong position changes.
        tolerance = 1e-4 if packed.dtype == torch.float32 else 2e-2
        return bool((packed - padded).abs().max() <= tolerance * padded.abs().max())

    def _run_packed(self, ids: Tensor, places: Tensor, blocks: Tensor, token_types: Tensor | None) -> Tensor:
        config = self.encoder.config
        mask: Any = self._attention_bias(block_mask(blocks))
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            # The encoder takes a mask for each kind of layer; a single one would do away with local attention.
            local = self._attention_bias(sliding_block_mask(block_mask(blocks), config.sliding_window))
            mask = {"full_attention": mask, "sliding_attention": local}
        return self._encode(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places + (self._position_offset or 0),
            token_type_ids=token_types,
        )

    def _attention_bias(self, mask: Tensor) -> Tensor:
        if self.encoder.config._attn_implementation != "eager":
            return mask
        # Eager attention adds its mask to the scores.
        dtype = (
            torch.get_autocast_dtype(mask.device.type) if torch.is_autocast_enabled(mask.device.type) else self.dtype
        )
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def _encode(self, **inputs: Tensor | None) -> Tensor:
        given = {name: x for name, x in inputs.items() if x is not None and name in self._encoder_inputs}
        return self.encoder(**given).last_hidden_state

    def _run_length_groups(
        self, ids: Tensor, token_types: Tensor | None, starts: Tensor, lengths: Tensor, counts: Tensor, groups: int = 4
    ) -> Ragged:
        layout = Layout(offsets_of(lengths), offsets_of(counts))
        sizes = lengths.tolist()
        pad = self.encoder.config.pad_token_id or 0
        padded, padded_starts, end = [], torch.empty_like(starts), 0
        for group in length_groups(sizes, groups):
            longest = max(sizes[i] for i in group)
            members = torch.tensor(group, device=ids.device)
            column = torch.arange(longest, device=ids.device)
            mask = column < lengths[members, None]
            tokens = torch.where(mask, starts[members, None] + column, 0)
            hidden = self._encode(
                input_ids=ids.flatten()[tokens].where(mask, pad),
                attention_mask=mask.long(),
                token_type_ids=None if token_types is None else token_types.flatten()[tokens].where(mask, 0),
            )
            padded.append(hidden.flatten(0, 1))
            padded_starts[members] = end + torch.arange(len(group), device=ids.device) * longest
            end += len(group) * longest
        return Ragged(torch.cat(padded)[segment_tokens(padded_starts, lengths)], layout)

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
    ) -> MultiTaskOutput | tuple[Any, ...]:
        """Encode a batch and let the heads answer.

        Args:
            input_ids: ``[B, L]``, or ``[B, n, L]`` for multiple choice; packed: ``[R, L]``.
            attention_mask: Of the same shape; all ones, where absent. Not for packed batches.
            token_type_ids: Of the same shape.
            position_ids: ``[B, L]``, as the encoder counts them; packed: ``[R, L]``, from 0 in each segment.
            labels: Task -> targets, as the head's class says; the losses are computed where they are given.
            tasks: The heads to run on every example; all of them, where absent. Packed: where absent, an example's own.
            task_ids: Packed: ``[B]``, places in ``config.task_order``, ascending. Its presence makes the batch packed.
            segment_ids: Packed: ``[R, L]``, 0 on padding.
            segment_starts: Packed: ``[S]``, places of first tokens in the flattened rows.
            segment_lengths: Packed: ``[S]``.
            segment_counts: Packed: ``[B]``, the number of segments of each example.
            return_dict: False for a tuple without the fields that are None.

        Returns:
            A `MultiTaskOutput`.

        Raises:
            ValueError: A task is not known, or a packed batch is not whole.
        """
        if task_ids is None:
            output = self._forward_padded(input_ids, attention_mask, token_type_ids, position_ids, labels, tasks)
        else:
            output = self._forward_packed(
                input_ids,
                token_type_ids,
                position_ids,
                labels or {},
                tasks,
                task_ids,
                segment_ids,
                segment_starts,
                segment_lengths,
                segment_counts,
            )
        return output if return_dict is not False else output.to_tuple()

    def _forward_packed(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        labels: Mapping[str, Tensor],
        tasks: Sequence[str] | None,
        task_ids: Tensor,
        segment_ids: Tensor | None,
        segment_starts: Tensor | None,
        segment_lengths: Tensor | None,
        segment_counts: Tensor | None,
    ) -> MultiTaskOutput:
        if position_ids is None or segment_ids is None:
            raise ValueError("A packed batch needs `position_ids` and `segment_ids`. Make it with `MultiTaskCollator`.")
        if segment_starts is None or segment_lengths is None or segment_counts is None:
            raise ValueError("A packed batch needs `segment_starts`, `segment_lengths` and `segment_counts`.")
        if self.packs:
            hidden = self._run_packed(input_ids, position_ids, segment_ids, token_type_ids)
            ragged = ragged_from_rows(hidden, segment_starts, segment_lengths, segment_counts)
        else:
            ragged = self._run_length_groups(input_ids, token_type_ids, segment_starts, segment_lengths, segment_counts)

        logits, losses, layouts = {}, {}, {}
        parts = self._split(ragged, task_ids) if tasks is None else dict.fromkeys(tasks, ragged)
        for name, part in parts.items():
            head = self._head(name)
            scores = head(part)
            if len(part.layout.segments) > 1:
                logits[name], layouts[name] = scores, part.layout
                if name in labels:
                    losses[name] = head.loss(scores, labels[name], part.layout)
            elif labels:
                # A head without an example stays in the graph: every parameter has a gradient on every rank.
                losses[name] = scores.flatten().float()
        loss = torch.cat(list(losses.values())).sum() / len(task_ids) if losses else None
        return MultiTaskOutput(loss=loss, logits=logits, losses=losses or None, layouts=layouts)

    def _split(self, ragged: Ragged, task_ids: Tensor) -> dict[str, Ragged]:
        """The part of each task, a slice: the examples of a packed batch stand in the order of their tasks."""
        ids = task_ids.tolist()
        if ids != sorted(ids):
            raise ValueError(f"The examples of a packed batch must stand in the order of their tasks; found {ids}.")
        segments, tokens = ragged.layout.segments.tolist(), ragged.layout.tokens.tolist()
        parts, example = {}, 0
        for index, name in enumerate(self.config.task_order):
            end = example + ids.count(index)
            first, last = segments[example], segments[end]
            start, stop = tokens[first], tokens[last]
            parts[name] = Ragged(
                ragged.states[start:stop],
                Layout(
                    ragged.layout.tokens[first : last + 1] - start,
                    ragged.layout.segments[example : end + 1] - first,
                ),
            )
            example = end
        return parts

    def _forward_padded(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        labels: Mapping[str, Tensor] | None,
        tasks: Sequence[str] | None,
    ) -> MultiTaskOutput:
        choices = input_ids.shape[1] if input_ids.dim() == 3 else 1
        shape = (-1, input_ids.shape[-1])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = mask.reshape(shape)
        hidden = self._encode(
            input_ids=input_ids.reshape(shape),
            attention_mask=mask,
            token_type_ids=None if token_type_ids is None else token_type_ids.reshape(shape),
            position_ids=None if position_ids is None else position_ids.reshape(shape),
        )
        ragged = ragged_from_mask(hidden, mask, choices)
        logits, losses = {}, {}
        for name in self.config.task_order if tasks is None else tasks:
            head = self._head(name)
            scores = head(ragged)
            if labels is not None and name in labels:
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
