"""The keys of the configuration file: at its top, and of a task. ``docs/configuration.md`` is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..validation import ConfigurationError, Requirement, check_fields, optional, setting, whole_number

_SEED = whole_number(0, 2**32 - 1)  # NumPy takes no greater one.
_FREEZE = Requirement(
    "`encoder`, or a number of its first layers",
    lambda value: value in (None, "encoder") or whole_number(1).accepts(value),
)


@dataclass(frozen=True)
class TopLevel:
    """The keys at the top of the configuration file.

    Args:
        encoder: Hub id or folder of a text encoder whose ``AutoModel`` returns ``last_hidden_state`` (see
            [encoders](encoders.md)), or of a trained multi-task model, whose heads are kept (see
            [growing](growing.md)).
        tasks: Name -> task; see below.
        data: Where the splits of the tasks are that have no ``data`` of their own or of their preset, as for one table
            with a column of labels per task (see [data](data.md#one-table-for-several-tasks)).
        seed: Seed of the model, the order and dropout.
        data_seed: Seed of samples and of the rows that are split off the training rows. Default: ``seed``.
        max_length: Maximum length of a sequence in tokens, at least 8, where a task does not say. Default: 128, or that
            of the trained model.
        pooling: What a sequence head reads: ``cls``, ``mean`` or ``max``. Default: ``cls``, or that of the trained
            model.
        packing: ``auto``: pack several sequences into a row where the encoder can; ``off``: never.
        freeze: ``encoder``, or the number of its first layers that are frozen together with the embeddings.
        lora: ``r``, ``lora_alpha``, ``lora_dropout``, ``target_modules``, ``layers_to_transform``, ``use_rslora`` and
            ``use_dora`` of peft's ``LoraConfig``, such as ``{r: 8, lora_alpha: 16}``: low-rank layers are trained in
            place of the encoder. Needs ``pip install 'hf-async-mtl[lora]'``.
        schedule: When the tasks join the run; see below.
        convergence: When a task has converged, and what happens then; see below.
        distillation: How a converged task learns from its teacher; see below.
        mixing: How often each task is drawn; see below.
        balancing: How the tasks' losses become one update; see below.
        training: Training arguments; see below.
    """

    encoder: str
    tasks: Mapping[str, Any]
    data: Any = None
    seed: int = setting(42, _SEED)
    data_seed: int | None = setting(None, optional(_SEED))
    max_length: int | None = setting(None, optional(whole_number(8)))
    pooling: str | None = None
    packing: str = "auto"
    freeze: int | str | None = setting(None, _FREEZE)
    lora: Mapping[str, Any] | None = None
    schedule: Mapping[str, Any] | None = None
    convergence: Mapping[str, Any] | None = None
    distillation: Mapping[str, Any] | None = None
    mixing: Mapping[str, Any] | None = None
    balancing: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_fields("", self)
        if self.lora is not None and self.freeze is not None:
            raise ConfigurationError(
                "`freeze` and `lora` exclude each other: with low-rank layers the encoder itself is frozen. Remove one "
                "of them; `lora.layers_to_transform` selects the layers to train."
            )


@dataclass(frozen=True)
class TaskSection:
    """The keys of a task.

    Args:
        preset: A well-known task, such as ``glue/mrpc`` or ``super_glue/boolq``. It sets the keys below; those of the
            section replace them.
        type: ``classification``, ``multilabel``, ``regression``, ``token_classification``, ``multiple_choice`` or
            ``question_answering``. Required without a preset.
        data: Where the splits are; see below. Required without a preset, or ``data`` at the top of the file.
        text_columns: ``[column]``, or two for a pair; ``[tokens]`` for ``token_classification``;
            ``[question, context]``; ``{prompt: [...], choices: [...]}``. Required without a preset.
        label_column: A column of strings or integers; of lists, or several 0/1 columns, for ``multilabel``; ``answers``
            for ``question_answering``. Default: ``label``.
        label_names: Names of the classes, in the order of the logits. Default: found in the training rows.
        positive_label: Of two classes, the one that ``f1``, ``precision``, ``recall`` and ``average_precision`` are
            those of. Default: the one that the names say (yes, true, 1, positive, or spam beside not_spam), or the
            rarer one.
        metrics: Names of metrics; the first is monitored. Default: that of the type. See [data](data.md#metrics).
        max_samples: Largest number of rows of a split, such as ``{train: 2000}``: a seeded sample.
        max_length: Maximum length of a sequence in tokens. Default: that at the top of the file.
        doc_stride: Number of tokens that two windows of a long text share (see [long texts](data.md#long-texts)).
            Default: 32 for ``question_answering``; other texts are cut at ``max_length``.
        doc_pooling: How the windows' logits become those of a text: ``mean`` (the default) or ``max``.
        weight: Weight of the task's examples in the loss, above 0. Default: 1.
        loss: Options of the loss on the labels, such as ``{class_weights: balanced}``; see below.
        convergence: Overrides of the section ``convergence``.
        head: For a trained ``encoder`` that has the task: ``kept`` (the default), ``new`` (start with a new head) or
            ``frozen``.
    """

    preset: str | None = None
    type: str | None = None
    data: Any = None
    text_columns: Any = None
    label_column: Any = None
    label_names: Any = None
    positive_label: Any = None
    metrics: Any = None
    max_samples: Any = None
    max_length: int | None = None
    doc_stride: int | None = None
    doc_pooling: str | None = None
    weight: float | None = None
    loss: Any = None
    convergence: Any = None
    head: str | None = None
