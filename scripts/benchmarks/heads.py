"""Measure the time of several heads on a text, compared with one head, and with one model per task.

    python scripts/benchmarks/heads.py --encoder ENCODER [--texts 256] [--rounds 15] [--output FILE.json]

The model has eight heads: six for classification, one for regression, one for tags on words. The pipeline predicts one
task, five tasks, seven tasks (without the tags, which Transformers' own code aggregates word by word) and all eight, on
the same random texts of 5 to 40 words, in turns: one round of each, then the next. ``five models`` predict the five
tasks with a model of its own for each. Ratios are computed within each round, relative to one task. The heads are not
trained, which does not change the time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed

from hf_async_mtl import MultiTaskModel, MultiTaskPipeline, TaskConfig

WORDS = ["the", "a", "good", "bad", "shoe", "hat", "is", "was", "not", "very", "small", "red", "it", "price", "of"]
LABELS = ["no", "maybe", "yes"]
CLASSES = [f"class_{number}" for number in range(6)]
TASKS = {
    **{name: TaskConfig("classification", ["text"], label_names=LABELS) for name in CLASSES},
    "score": TaskConfig("regression", ["text"], target_mean=0.0, target_std=1.0),
    "tags": TaskConfig("token_classification", ["tokens"], label_names=["O", "B-x", "I-x"]),
}
FIVE = [*CLASSES[:4], "score"]
ASKED = {"one head": CLASSES[:1], "five heads": FIVE, "seven heads": [*CLASSES, "score"], "eight heads": list(TASKS)}


def random_texts(count: int) -> list[str]:
    """Return texts of common words, the same at each call."""
    dice = random.Random(0)
    return [" ".join(dice.choices(WORDS, k=dice.randint(5, 40))) for _ in range(count)]


def pipeline_of(encoder: str, tasks: Sequence[str]) -> MultiTaskPipeline:
    """Return a pipeline whose model has new heads for some tasks."""
    set_seed(0)
    model = MultiTaskModel.from_encoder(encoder, {name: TASKS[name] for name in tasks}, max_length=48)
    return MultiTaskPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(encoder))


def measure(
    ways: Mapping[str, Sequence[tuple[MultiTaskPipeline, list[str]]]], texts: list[str], rounds: int
) -> dict[str, dict[str, Any]]:
    """Predict in turns; return the seconds of each round and the encoder passes per round.

    Args:
        ways: Name -> pipelines that run one after the other, each with the tasks that it is asked for.
        texts: The texts.
        rounds: Number of rounds after a warm-up.
    """
    passes = [0]
    for encoder in {id(pipe): pipe.model.encoder for way in ways.values() for pipe, _ in way}.values():
        encoder.register_forward_pre_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "passes": 0} for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            passes[0], begun = 0, time.perf_counter()
            for pipe, tasks in way:
                for _ in pipe(texts, tasks=tasks, batch_size=32):
                    pass
            if number:
                found[name]["seconds"].append(time.perf_counter() - begun)
            found[name]["passes"] = passes[0]
    one = found["one head"]["seconds"]
    for figures in found.values():
        ratios = [ours / theirs for ours, theirs in zip(figures["seconds"], one, strict=True)]
        figures["ratio"], figures["range"] = statistics.median(ratios), [min(ratios), max(ratios)]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=os.environ.get("ENCODER"), help="folder or Hub id; default: $ENCODER")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("heads.json"), metavar="FILE.json")
    args = parser.parse_args(argv)
    if args.encoder is None:
        parser.error("--encoder must be given, or its environment variable set")
    pipe, load = pipeline_of(args.encoder, list(TASKS)), os.getloadavg()
    ways: dict[str, Any] = {name: [(pipe, tasks)] for name, tasks in ASKED.items()}
    ways["five models"] = [(pipeline_of(args.encoder, [name]), [name]) for name in FIVE]
    found = measure(ways, random_texts(args.texts), args.rounds)
    print("| asked | passes of the encoder | texts/s | time | range |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, figures in found.items():
        low, high = figures["range"]
        rate = args.texts / statistics.median(figures["seconds"])
        print(f"| {name} | {figures['passes']} | {rate:.0f} | {figures['ratio']:.2f} | {low:.2f}-{high:.2f} |")
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "load": load,
        "texts": args.texts,
        "rounds": args.rounds,
        "asked": found,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
