"""Write the card and the plots of a run into its output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

from ..modeling.modeling_multitask import MultiTaskModel
from ..report.model_card import RunCard, write_card
from ..report.plots import draw
from .arguments import AsyncMTLTrainingArguments
from .sections import SECTIONS

_ARGUMENTS = (
    *("learning_rate", "head_learning_rate", "lr_scheduler_type", "warmup_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "num_train_epochs", "max_steps", "weight_decay", "bf16", "fp16", "seed"),
)


def publish(
    model: MultiTaskModel,
    args: AsyncMTLTrainingArguments,
    report: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    *,
    data: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Mapping[str, Sized]],
    model_name: str | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write ``plots/`` and ``README.md`` into the output folder.

    Without an ``all_results.json`` there, the metrics are those of ``log``. ``sets`` is split -> task -> set. Of
    ``metadata``, None leaves a key out, and ``base_model`` names the encoder.
    """
    folder = Path(args.output_dir)
    written = folder / "all_results.json"
    results = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else _final_results(report, log)
    draw(report, folder)
    encoder = model.config.encoder_config
    card = RunCard(
        data=data,
        rows={
            name: {split: len(own[name]) for split, own in sets.items() if name in own}
            for name in model.config.task_configs
        },
        model_name=model_name or folder.resolve().name,
        tasks=model.config.task_configs,
        report=report,
        results=results,
        encoder=metadata.get("base_model") or encoder._name_or_path or encoder.model_type,
        training=_settings(model, args),
    )
    further = {key: value for key, value in metadata.items() if value is not None and key != "base_model"}
    write_card(folder / "README.md", card, further)


def _final_results(report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the validation metrics of the weights that the run ended with, as they were logged."""
    step = report.get("final", {}).get("step")
    logged = [entry for entry in log if entry["step"] == step]
    return {key: value for entry in logged for key, value in entry.items() if key.startswith("eval_")}


def _settings(model: MultiTaskModel, args: AsyncMTLTrainingArguments) -> dict[str, Any]:
    found = {key: getattr(getattr(args, key), "value", getattr(args, key)) for key in _ARGUMENTS}
    sections = {key: dict(args.section(key)) for key in SECTIONS}
    trainable, total = model.num_parameters(only_trainable=True), model.num_parameters()
    return {
        **{key: value for key, value in found.items() if value not in (None, False, -1)},
        "processes": args.world_size,
        "max_length": model.config.max_length,
        "pooling": model.config.pooling,
        "packed": model.packs,
        **({} if model.config.lora is None else {"lora": model.config.lora}),
        **({} if trainable == total else {"trained_weights": f"{trainable:,} of {total:,}"}),
        **{key: value for key, value in sections.items() if value},
    }
