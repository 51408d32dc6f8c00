"""Write ``docs/configuration.md`` from the docstrings of the settings.

    python scripts/write_configuration_page.py

A test fails when the page is not what this script writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from hf_async_mtl.balancing.config import BalancingConfig
from hf_async_mtl.cli.file_keys import TaskSection, TopLevel
from hf_async_mtl.convergence.config import ConvergenceConfig, ConvergenceSettings, ScheduleConfig
from hf_async_mtl.data.config import DataSection, MixingConfig
from hf_async_mtl.distillation.config import DistillationConfig
from hf_async_mtl.tasks.loss import LossConfig
from hf_async_mtl.training.arguments import REFUSED, AsyncMTLTrainingArguments
from hf_async_mtl.training.sections import SECTIONS

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
INTRODUCTION = """
A configuration is a YAML file; `--set key.path=value` overrides a key on the command line. Paths are relative to the
file and may contain environment variables. A wrong key, column or label is reported before training starts, with one
message and exit status 2. (This page is made by `scripts/write_configuration_page.py`.)
"""


def docstring(kind: type[Any]) -> str:
    """Return a class's docstring, without its indentation."""
    return inspect.getdoc(kind) or ""


def descriptions(kind: type[Any]) -> dict[str, str]:
    """Return the text of each argument in a class's docstring.

    Examples:
        >>> descriptions(MixingConfig)["temperature"]
        'For `temperature`, at least 1: 1 is proportional, far above 1 is uniform.'
    """
    section = re.split(r"\n(?=\S)", docstring(kind).split("\nArgs:\n")[1])[0]
    parts = re.findall(r"^    (\w+): (.*(?:\n(?:     .*)?)*)", section, re.MULTILINE)
    return {name: markdown(text) for name, text in parts}


def markdown(text: str) -> str:
    """Return a docstring's text on one line, with literals in single backticks."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def default_of(kind: type[Any], name: str) -> str:
    """Return the default of a field as YAML, or nothing where it has none."""
    (field,) = [item for item in dataclasses.fields(kind) if item.name == name]
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    if value is None or value is dataclasses.MISSING:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def table(*kinds: type[Any], leave_out: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> str:
    """Return the table of the fields that the docstrings of some classes describe."""
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for kind in kinds:
        for name, text in descriptions(kind).items():
            if name not in leave_out and (not only or name in only):
                lines.append(f"| `{name}` | {default_of(kind, name)} | {text} |")
    return "\n".join(lines)


def page() -> str:
    """Return the page."""
    own = tuple(set(descriptions(AsyncMTLTrainingArguments)) - {*SECTIONS})
    refused = "\n".join(f"* `{name}`: {reason}" for name, reason in REFUSED.items())
    sections = {
        "": INTRODUCTION.strip(),
        "Top level": table(TopLevel),
        "`tasks.<name>`": "See [task types](data.md#task-types).\n\n" + table(TaskSection),
        "`tasks.<name>.data`": markdown(docstring(DataSection).split("\n\n")[1]) + "\n\n" + table(DataSection),
        "`tasks.<name>.loss`": markdown(docstring(LossConfig).split("\n\n")[1]) + "\n\n" + table(LossConfig),
        "`schedule`": table(ScheduleConfig),
        "`convergence`": "See [criteria](methods.md#criteria) and [actions](methods.md#actions). Every key but "
        "`final_evaluations` may also stand with a task, as `tasks.<name>.convergence`.\n\n"
        + table(ConvergenceConfig, ConvergenceSettings, leave_out=("default", "tasks")),
        "`distillation`": table(DistillationConfig),
        "`mixing`": table(MixingConfig),
        "`balancing`": "See [balancing](methods.md#balancing).\n\n" + table(BalancingConfig, leave_out=("weights",)),
        "`training`": "Any field of `transformers.TrainingArguments`, and:\n\n"
        + table(AsyncMTLTrainingArguments, only=own)
        + "\n\nDefaults: `eval_strategy` is `steps`; `eval_steps` equals `logging_steps`, which is 500;\n"
        "`save_strategy` equals `eval_strategy`; `save_steps` equals `eval_steps`. If only the saving field is set,\n"
        "the evaluation field follows it. A run ends with the checkpoint of the best `eval_average`, unless\n"
        "`save_strategy` is `no` or `load_best_model_at_end` is `false`. `eval_strategy: no` and\n"
        "`hub_strategy: checkpoint` or `all_checkpoints` are refused. `reduce_lr_on_plateau` and `greedy` run in the\n"
        "direction of `metric_for_best_model`. These fields are refused:\n\n" + refused,
    }
    parts = [f"## {title}\n\n{text}" if title else f"# Configuration\n\n{text}" for title, text in sections.items()]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
