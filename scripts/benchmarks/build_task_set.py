"""Build a task set of the comparison of methods: its rows, its split and its label noise, all drawn by a seed.

    python scripts/benchmarks/build_task_set.py noisy5 --data DATA --seed 0 --output-dir FOLDER [--noise 0.3]

``DATA`` holds ``glue``, ``ecommerce`` and ``weak``, each with one folder per task and JSON lines with the columns of
the Hub. ``FOLDER`` gets ``TASK/{train,validation,test}.jsonl``, which ``scripts/configs/<task set>.yaml`` reads.

* Training and validation rows are drawn from the source's training rows. No row is in both.
* Test is up to 2,000 rows: the official test and development rows, then training rows that were not drawn.
* Noise: a share of the training and validation labels of a noisy task is replaced by labels that are drawn from that
  split's own labels. Some draws give the old label again. Test keeps its labels. Validation is as noisy as training:
  clean validation labels would be a leak (Zhu et al., "Weaker Than You Think", ACL 2023).
* Weak labels: chemprot is labelled by rules and wikigold by distant tags. Their validation rows are the small gold set,
  as people have it who label by rules.

The same seed gives the same rows at every noise level.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_async_mtl.utils import write_atomic

VALIDATION_ROWS = 400
TEST_ROWS = 2000
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class TaskRows:
    """Where a task's rows come from. ``noisy``: its labels get noise. ``gold``: validation is the source's gold set."""

    source: str
    train: int
    label: str = "label"
    noisy: bool = False
    gold: bool = False
    official_test: Sequence[str] = ("test", "validation")


STSB = "glue/stsb"
COUNTERFACTUAL = "ecommerce/counterfactual"
STARS = "ecommerce/stars"
QNLI_TEST = ("validation",)  # the labels of its official test rows are not public
TASK_SETS: dict[str, dict[str, TaskRows]] = {
    "noisy5": {
        "stsb": TaskRows(STSB, 500, noisy=True),
        "counterfactual": TaskRows(COUNTERFACTUAL, 500, noisy=True),
        "stars": TaskRows(STARS, 500, noisy=True),
        "sst2": TaskRows("glue/sst2", 8000),
        "qnli": TaskRows("glue/qnli", 8000, official_test=QNLI_TEST),
    },
    "natural5": {
        "mrpc": TaskRows("glue/mrpc", 500),
        "counterfactual": TaskRows(COUNTERFACTUAL, 600),
        "aspects": TaskRows("ecommerce/aspects", 500, label="tags"),
        "stars": TaskRows(STARS, 6000),
        "sst2": TaskRows("glue/sst2", 6000),
    },
    "distant5": {
        "chemprot": TaskRows("weak/chemprot", 1500, gold=True, official_test=("test",)),
        "wikigold": TaskRows("weak/wikigold", 892, label="tags", gold=True, official_test=("test",)),
        "stsb": TaskRows(STSB, 4949),
        "qnli": TaskRows("glue/qnli", 6000, official_test=QNLI_TEST),
        "sst2": TaskRows("glue/sst2", 6000),
    },
}


def build(task_set: str, data: Path, folder: Path, seed: int, noise: float = 0.0) -> None:
    """Write the files of a task set; a folder that is complete already stays as it is.

    Args:
        task_set: A key of `TASK_SETS`.
        data: The folder of ``glue``, ``ecommerce`` and ``weak``.
        folder: Where ``TASK/SPLIT.jsonl`` are written.
        seed: Of the drawn rows and labels.
        noise: Share of the labels of noisy tasks that are replaced, from 0 to 1.
    """
    complete = folder / "complete.json"
    if complete.is_file():
        return
    for place, (name, task) in enumerate(TASK_SETS[task_set].items()):
        splits = draw_splits(task, data / task.source, np.random.default_rng([seed, place]))
        if task.noisy:
            rng = np.random.default_rng([seed, place, 1])
            for split in ("train", "validation"):
                replace_labels(splits[split], task.label, noise, rng)
        for split, rows in splits.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomic(folder / name / f"{split}.jsonl", lines, unique=True)
    write_atomic(complete, json.dumps({"task_set": task_set, "seed": seed, "noise": noise}) + "\n", unique=True)


def draw_splits(task: TaskRows, source: Path, rng: np.random.Generator) -> dict[str, Rows]:
    """Return split -> rows, without noise; those of train are in random order."""
    pool = shuffled(read(source / "train.jsonl"), rng)
    train, rest = pool[: task.train], pool[task.train :]
    if task.gold:
        validation = read(source / "gold.jsonl")
        test = read(source / "test.jsonl")
    else:
        validation, rest = rest[:VALIDATION_ROWS], rest[VALIDATION_ROWS:]
        test = [row for split in task.official_test for row in shuffled(read(source / f"{split}.jsonl"), rng)] + rest
    return {"train": train, "validation": validation, "test": test[:TEST_ROWS]}


def replace_labels(rows: Rows, column: str, noise: float, rng: np.random.Generator) -> None:
    """Replace a share of the labels in place, by draws with replacement from the labels of these rows."""
    order, drawn = rng.permutation(len(rows)), rng.integers(len(rows), size=len(rows))
    labels = [row[column] for row in rows]
    for index in order[: round(noise * len(rows))]:
        rows[index][column] = labels[drawn[index]]


def read(path: Path) -> Rows:
    """Return the rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Return the rows in random order."""
    return [rows[index] for index in rng.permutation(len(rows))]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task_set", choices=TASK_SETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    args = parser.parse_args()
    build(args.task_set, args.data, args.output_dir, args.seed, args.noise)


if __name__ == "__main__":
    main()
