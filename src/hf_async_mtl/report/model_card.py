"""The model card of a run: rendered once from its facts, and given the id of the repository when it is pushed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in an __all__

from ..tasks.registry import TASK_TYPES
from ..tasks.windows import CARD_NOTE as WINDOW_NOTE
from .tables import DIAGNOSIS_COLUMNS, MISSING, diagnosis_cells, percent_text, step_text, value_text

if TYPE_CHECKING:
    from ..modeling.configuration_multitask import TaskConfig

TAGS = ["hf_async_mtl", "multi-task", "knowledge-distillation"]
TEMPLATE = Path(__file__).with_name("card_template.md")
PACKAGES = ("hf_async_mtl", "torch", "transformers", "datasets", "accelerate", "tokenizers")
LABELS_SHOWN = 8

_MIXING = {
    "proportional": "An epoch contains each training row of each task once.",
    "temperature": "Small tasks were drawn more often than in proportion to their rows (see the temperature below).",
    "uniform": "All tasks were drawn equally often.",
}
_HUB_METRICS = {
    **{f"{average}_f1": "f1" for average in ("macro", "micro", "weighted", "squad", "seqeval")},
    **{f"{average}_precision": "precision" for average in ("macro", "micro", "seqeval")},
    **{f"{average}_recall": "recall" for average in ("macro", "micro", "seqeval")},
    "seqeval_accuracy": "accuracy",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


@dataclass
class RunCard:
    """The content of a model card.

    Of folders, only the last name is published, and of the data only what is on the Hub. A relative folder that does
    not exist in the working directory is read as a Hub id. A missing result, None and NaN are shown as a dash.
    """

    model_name: str  # or that of its repository, such as ``user/model``
    tasks: Mapping[str, TaskConfig]  # with their labels
    report: Mapping[str, Any]  # the content of ``convergence.json``
    results: Mapping[str, Any]  # the content of ``all_results.json``
    encoder: str  # Hub id or folder
    training: Mapping[str, Any] = field(default_factory=dict)  # settings to show, which may be nested
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # the ``data`` sections of the tasks
    rows: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # task -> split -> number of rows
    versions: Mapping[str, str] = field(default_factory=lambda: installed_versions())

    def to_model_card(self) -> ModelCard:
        """Return the card, with its metadata; ``save(path)`` writes it."""
        phases = [task["phase"] for task in self.report["tasks"].values()]
        # A task whose input is a plain call of the tokenizer.
        plain = next((name for name, task in self.tasks.items() if TASK_TYPES[task.type].problem_type), None)
        card: ModelCard = ModelCard.from_template(
            self.metadata(),
            template_path=str(TEMPLATE),
            title=_last_name(self.model_name),
            # Only the last name of an absolute path: local folders stay private.
            model_id=_last_name(self.model_name) if _is_absolute(self.model_name) else self.model_name,
            encoder=_last_name(self.encoder) if self.base_model is None else self.encoder,
            encoder_url=None if self.base_model is None else f"https://huggingface.co/{self.base_model}",
            task_count=len(self.tasks),
            tasks_table=self._tasks_table(),
            results_table=self._results_table(),
            convergence_table=self._convergence_table(),
            diagnosis=self.report.get("diagnosis", {}).get("answer"),
            diagnosis_table=self._diagnosis_table(),
            has_conflicts="conflicts" in self.report and len(self.tasks) > 1,
            examples="\n\n".join(
                "\n".join([f"# {name}", *TASK_TYPES[task.type].card_example(name, task)])
                for name, task in self.tasks.items()
            ),
            data_table=self._data_table(),
            mixing=_MIXING[(self.training.get("mixing") or {}).get("strategy", "proportional")],
            training_table=_markdown_table(
                ["Setting", "Value"], [[_code(name), _setting(value)] for name, value in self.training.items()]
            ),
            versions=", ".join(f"{name} {version}" for name, version in self.versions.items()),
            distilled=phases.count("distilling"),
            stopped=phases.count("stopped"),
            converged=sum(task["converged_step"] is not None for task in self.report["tasks"].values()),
            final_step=self.report["final"]["step"] if "final" in self.report else None,
            last_step=self.report["step"],
            has_test=any(_is_number(self.results.get(f"test_{key}")) for key in self._metric_keys()),
            notes=self._notes(),
            # The final model is merged; a checkpoint is not.
            has_lora="lora" in self.training and "final" not in self.report,
            example_task=plain,
            example_inputs=TASK_TYPES[self.tasks[plain].type].tokenizer_call(self.tasks[plain]) if plain else "",
        )
        return card

    def _notes(self) -> list[str]:
        kinds = [(TASK_TYPES[task.type], task) for task in self.tasks.values()]
        notes = [kind.card_note for kind, _ in kinds]
        notes += [WINDOW_NOTE if kind.reads_windows(task) else None for kind, task in kinds]
        return [note for note in dict.fromkeys(notes) if note is not None]

    def metadata(self) -> ModelCardData:
        """Return the YAML block; its model index has the test results, or the validation results if there are none."""
        return ModelCardData(
            model_name=_last_name(self.model_name),
            base_model=self.base_model,
            datasets=sorted({data["hub"] for data in self.data.values() if "hub" in data}) or None,
            library_name="transformers",
            metrics=sorted({_HUB_METRICS.get(m, m) for task in self.tasks.values() for m in task.metrics or ()}),
            tags=TAGS,
            eval_results=self._eval_results() or None,
        )

    @property
    def base_model(self) -> str | None:
        """Hub id of the encoder; None for a folder."""
        try:
            validate_repo_id(self.encoder)
        except HFValidationError:
            return None
        return None if Path(self.encoder).is_dir() else self.encoder

    def _metric_keys(self) -> list[str]:
        return [f"{name}_{metric}" for name, task in self.tasks.items() for metric in task.metrics or ()]

    def _eval_results(self) -> list[EvalResult]:
        # One split per task: the Hub merges entries of the same dataset and split, and rows that were split off another
        # split have no name there.
        results = []
        for name, task in self.tasks.items():
            tested = any(_is_number(self.results.get(f"test_{name}_{metric}")) for metric in task.metrics or ())
            prefix, split = ("test", "test") if tested else ("eval", "validation")
            data = self.data.get(name, {})
            named = data.get(split) if "hub" in data else None
            for metric in task.metrics or ():
                value = self.results.get(f"{prefix}_{name}_{metric}")
                if _is_number(value):
                    results.append(
                        EvalResult(
                            task_type=TASK_TYPES[task.type].hub_name,
                            task_name=name,
                            dataset_type=data.get("hub", name),
                            dataset_name=name,
                            dataset_config=data.get("name") if "hub" in data else None,
                            dataset_split=named if isinstance(named, str) else split,
                            metric_type=_HUB_METRICS.get(metric, metric),
                            metric_name=f"{name} {metric}",
                            metric_value=float(value),
                        )
                    )
        return results

    def _tasks_table(self) -> str:
        rows = [
            [_code(name), task.type.replace("_", " "), _inputs(task), _labels(task)]
            for name, task in self.tasks.items()
        ]
        return _markdown_table(["Task", "Type", "Inputs", "Labels"], rows)

    def _data_table(self) -> str:
        rows = []
        for name in self.tasks:
            data, counts = self.data.get(name, {}), self.rows.get(name, {})
            source = ", ".join(_code(data[key]) for key in ("hub", "name") if key in data) if "hub" in data else MISSING
            rows.append([_code(name), source, *(step_text(counts.get(split)) for split in ("train", "validation"))])
        return _markdown_table(["Task", "Dataset of the Hub", "Training rows", "Validation rows"], rows, numbers_from=2)

    def _results_table(self) -> str:
        final = self.report.get("final", {"average": self.results.get("eval_average"), "tasks": {}})
        rows = []
        for name, task in self.tasks.items():
            for metric in task.metrics or ():
                validation, best, retention = self.results.get(f"eval_{name}_{metric}"), "", ""
                if metric == task.monitored:
                    end = final["tasks"].get(name, {"value": validation, "retention": None})
                    validation, retention = end["value"], percent_text(end["retention"])
                    best = value_text(self.report["tasks"][name]["best"])
                shown = _code(name) if metric == task.monitored else ""
                test = value_text(self.results.get(f"test_{name}_{metric}"))
                rows.append([shown, _metric(task, metric), value_text(validation), best, retention, test])
        test = value_text(self.results.get("test_average"))
        rows.append(["**average**", "monitored", value_text(final["average"]), "", "", test])
        header = ["Task", "Metric", "Validation", "Best in the run", "Retention", "Test"]
        return _markdown_table(header, rows, numbers_from=2)

    def _convergence_table(self) -> str:
        rows = []
        for name, task in self.report["tasks"].items():
            teacher = task if task["converged_step"] is not None else {"teacher_step": None, "teacher_value": None}
            steps = [step_text(task["converged_step"]), step_text(teacher["teacher_step"])]
            values = [value_text(teacher["teacher_value"]), step_text(task["best_step"]), value_text(task["best"])]
            rows.append([_code(name), task["phase"], *steps, *values])
        header = ["Task", "Phase at the end", "Converged", "Teacher's step", "Teacher's value", "Best at step", "Best"]
        return _markdown_table(header, rows, numbers_from=2)

    def _diagnosis_table(self) -> str:
        tasks = self.report.get("diagnosis", {"tasks": {}})["tasks"]
        rows = [[_code(name), *diagnosis_cells(task)] for name, task in tasks.items()]
        return _markdown_table(["Task", *(name.capitalize() for name in DIAGNOSIS_COLUMNS)], rows, numbers_from=1)


# Last line of a generated card: a hash of the text above it, which reveals a card that its author has edited.
_SIGNATURE = "\n<!-- generated by hf_async_mtl: {digest} -->\n"
_MODEL_ID = re.compile(r'from_pretrained\("([^"]+)"')


def write_card(path: Path, card: RunCard, metadata: Mapping[str, str | list[str]] | None = None) -> None:
    """Write ``README.md``, with further keys of its metadata; a value is added to a list that the card has."""
    rendered = card.to_model_card()
    for key, value in (metadata or {}).items():
        known = getattr(rendered.data, key, None)
        both = known + ([value] if isinstance(value, str) else value) if isinstance(known, list) else value
        setattr(rendered.data, key, sorted(set(both)) if isinstance(both, list) else both)
    path.write_bytes(_signed(str(rendered)).encode())


def card_for_repository(card: str, repository: str) -> str:
    """Return a generated card with the id of the repository that it is pushed to; an edited card is unchanged."""
    body, _, _ = card.rpartition(_SIGNATURE.partition("{")[0])
    found = _MODEL_ID.search(body)
    if found is None or _signed(body) != card:
        return card
    old, old_title, title = found[1], _last_name(found[1]), _last_name(repository)
    for context in ('from_pretrained("{}"', "hf-async-mtl predict {} --input"):
        body = body.replace(context.format(old), context.format(repository))
    renamed = ModelCard(body.replace(f"\n# {old_title}\n", f"\n# {title}\n", 1))
    renamed.data["model_name"] = title
    return _signed(str(renamed))


def _signed(body: str) -> str:
    return body + _SIGNATURE.format(digest=hashlib.sha256(body.encode()).hexdigest())


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that produced a model, if they are installed."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # this package, in a source tree that is not installed
            continue
    return versions


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int | None = None) -> str:
    """Return a table whose columns from index ``numbers_from`` on are right-aligned."""
    first_number = len(header) if numbers_from is None else numbers_from
    rule = ["---" if i < first_number else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def _code(text: object) -> str:
    """Return a code span for any text, also in the cell of a table."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    return f"`` {flat} ``" if "`" in flat else f"`{flat}`"


def _inputs(task: TaskConfig) -> str:
    if isinstance(task.text_columns, Mapping):
        prompt, choices = (", ".join(map(_code, task.text_columns[key])) for key in ("prompt", "choices"))
        return f"{prompt} with each of {choices}"
    return ", ".join(map(_code, task.text_columns))


def _metric(task: TaskConfig, metric: str) -> str:
    name = TASK_TYPES[task.type].class_of_metric(task, metric)
    return _code(metric) if name is None else f"{_code(metric)} of {_code(name)}"


def _labels(task: TaskConfig) -> str:
    if not task.label_names:
        return MISSING
    shown = ", ".join(_code(label) for label in task.label_names[:LABELS_SHOWN])
    return shown if len(task.label_names) <= LABELS_SHOWN else f"{shown}, ... ({len(task.label_names)} in all)"


def _setting(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_setting(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(inner) for inner in value)
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else MISSING
    if isinstance(value, Path) or (isinstance(value, str) and _is_absolute(value)):
        return _code(_last_name(str(value)))
    return _code(value) if isinstance(value, str) else str(value)


def _is_absolute(text: str) -> bool:
    return bool(re.match(r"[/\\~]|[A-Za-z]:[/\\]|file:", text))


def _last_name(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)
