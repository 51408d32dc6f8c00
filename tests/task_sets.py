"""Tiny task sets on disk: an encoder, the data of some tasks, and a configuration file, as a user has them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tiny import raw_sets, task_configs, tiny_encoder

Settings = dict[str, Any]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(folder: Path, config: Mapping[str, Any], name: str = "config") -> Path:
    """Write a configuration file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    return path


def task_set_config(tasks: Sequence[str] = ("polarity", "overlap")) -> Settings:
    """A configuration: tasks of `tiny.task_configs` that converge at once, in twelve steps."""
    sections = {}
    for name in tasks:
        task = task_configs()[name]
        sections[name] = {
            "type": task.type,
            "text_columns": task.text_columns,
            "label_column": task.label_column,
            "data": {split: f"data/{name}/{split}.jsonl" for split in ("train", "validation", "test")},
            **({"max_length": task.max_length, "doc_stride": task.doc_stride} if task.max_length else {}),
        }
    return {
        "encoder": "encoder",
        "seed": 3,
        "max_length": 32,
        "tasks": sections,
        "convergence": {"criterion": "plateau", "patience": 1, "final_evaluations": None},
        "training": {
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 8,
            "max_steps": 12,
            "eval_steps": 4,
            "logging_steps": 4,
            "use_cpu": True,
        },
    }


def write_data(folder: Path, tasks: Sequence[str], rows: int = 24) -> None:
    """Write the splits of some tasks, as `task_set_config` names them."""
    for seed, split in enumerate(("train", "validation", "test")):
        for name, data in raw_sets(rows, seed).items():
            if name in tasks:
                write_rows(folder / "data" / name / f"{split}.jsonl", data)


def write_task_set(folder: Path, tasks: Sequence[str] = ("polarity", "overlap"), rows: int = 24) -> Path:
    """Write an encoder, data and a configuration file, and return the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_encoder(folder / "encoder")
    write_data(folder, tasks, rows)
    return write_config(folder, task_set_config(tasks))
