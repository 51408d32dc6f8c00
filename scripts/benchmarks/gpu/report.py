"""Write the tables of the GPU benchmark into the page about performance.

    PYTHONPATH=scripts/benchmarks python scripts/benchmarks/gpu/report.py [--results model_cards/gpu] [--page PAGE.md]

The results are the four JSON files of ``run.sh``, and ``tasks.json``, a measurement of ``fast.py`` that was made later.
The section stands between ``<!-- gpu -->`` and ``<!-- /gpu -->`` in ``docs/performance.md``. A part that has no file is
left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pages import replaced, table
from report_quality import estimate

ROOT = Path(__file__).parents[3]
NOT_MEASURED = "Not measured on a GPU yet."
COMPARISONS = {
    "bert_base": "BERT-base, full rows, one task",
    "glue": "MiniLM, GLUE-5",
    "tasks": "MiniLM, number of tasks",
    "compiled": "MiniLM, `torch_compile`",
}
SHOWN_WAITS = (
    *("cudaStreamSynchronize", "cudaEventSynchronize"),
    *("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH (Device -> Pinned)"),
)
ONCE_IN_TWO_STEPS = 0.5  # what is rarer is no part of a steady step
Found = Mapping[str, Any]


def section(found: Mapping[str, Found]) -> str:
    """Return the text between the markers, from part -> its file."""
    if not found:
        return NOT_MEASURED
    if any(part.get("quick") for part in found.values()):
        raise SystemExit("The results must be those of a full run; found some of `run.sh --quick`. Run it without.")
    ran = [part for part in found.values() if "card" in part]  # one that failed at once has no more than its error
    machines = sorted({f"{part['card']}, torch {part['torch']}, {part['date'][:10]}" for part in ran})
    results = {name: part["results"] for name, part in found.items()}
    blocks = [f"Measured on {'; '.join(machines)}."]
    blocks += [checks({**results.get("smoke", {}), **results.get("right", {})})]
    blocks += [speed({**results.get("fast", {}), **results.get("tasks", {})})]
    blocks += [stalls(results.get("fast", {})), quality(results.get("quality", {}))]
    blocks += [failures(found)]
    return "\n\n".join(block for block in blocks if block)


def checks(results: Found) -> str:
    """Return the table of what was checked."""
    rows = []
    for name, entry in worst_cases(results):
        value = entry.get("difference", entry.get("ratio"))
        number = "{:.1e}" if "difference" in entry else "{:.2f}"
        shown, limit = ("" if x is None else number.format(x) for x in (value, entry.get("limit")))
        rows.append([name, shown, limit, "yes" if entry["holds"] else "**no**"])
    return table(["check", "found", "limit", "holds"], rows) if rows else ""


def worst_cases(results: Found) -> Iterator[tuple[str, Found]]:
    """Yield each check and what it found; of its cases in fp32 and in bf16, the one nearest to its limit."""
    for name, result in results.items():
        if "cases" not in result:
            yield name, result
            continue
        cases = result["cases"]
        for dtype in sorted({case.split()[-1] for case in cases}):
            own = [entry for case, entry in cases.items() if case.endswith(dtype)]
            worst = max(own, key=lambda entry: entry["difference"] / entry["limit"])
            yield f"{name}, {dtype} ({len(own)} cases)", {**worst, "holds": all(entry["holds"] for entry in own)}


def speed(results: Found) -> str:
    """Return the table of the comparisons of loops."""
    rows = [row for name, title in COMPARISONS.items() if name in results for row in loops(title, results[name])]
    if not rows:
        return ""
    shown = table(["measurement", "loop", "examples/s", "tokens/s", "ratio (range)", "share of matmul rate"], rows)
    rate = results.get("matmul", {}).get("flops")
    return shown if rate is None else f"{shown}\n\nbf16 matrix multiplication: {rate / 1e12:.0f} TFLOP/s."


def loops(title: str, result: Found) -> Iterator[list[str]]:
    """Yield a row for each loop of a comparison."""
    for loop, entry in result["loops"].items():
        low, high = entry["ratio_range"]
        tokens, share = entry.get("tokens_per_second"), entry.get("share")
        yield [
            *(title, loop, f"{entry['examples_per_second']:.0f}"),
            "" if tokens is None else f"{tokens:.0f}",
            f"{entry['ratio']:.2f} ({low:.2f}-{high:.2f})",
            "" if share is None else f"{share:.1%}",
        ]


def stalls(results: Found) -> str:
    """Return the table of waits per step."""
    per_step = {loop: counts for loop, counts in results.get("stalls", {}).get("per_step", {}).items() if counts}
    if not per_step:
        return ""
    names = [name for name in SHOWN_WAITS if name in next(iter(per_step.values()))]
    rows = [[loop, *(f"{counts[name]:.1f}" for name in names)] for loop, counts in per_step.items()]
    shown = table(["waits per step", *(f"`{name}`" for name in names)], rows)
    places = [
        [loop, f"`{place}`", f"{number:.1f}"]
        for loop, counts in per_step.items()
        for place, number in counts["waits_at"].items()
        if number >= ONCE_IN_TWO_STEPS
    ]
    return f"{shown}\n\n{table(['loop', 'PyTorch waits at', 'per step'], places)}" if places else shown


def quality(results: Found) -> str:
    """Return a sentence on the pair of methods."""
    pair = results.get("pair")
    if not pair or not pair["pairs"]:
        return ""
    gains = (estimate(gain / 100 for gain in pair["points"][kind]["each"]) for kind in ("best_average", "last"))
    best, last = (gain.text(sign=True) for gain in gains)
    return (
        f"`noisy5`, `distill` minus `sum` on {pair['split']}, {pair['pairs']} seeds: {best} points at the checkpoint "
        f"with the best average, {last} at the last one. See [Results](results.md) for all runs."
    )


def failures(found: Mapping[str, Found]) -> str:
    """Return a sentence on what failed."""
    names = [f"{part}, {name}" for part, content in found.items() for name in content["errors"]]
    return f"Failed, see the files: {'; '.join(names)}." if names else ""


def renew(page: str, results: Path) -> str:
    """Return the page with the section on the results of a folder."""
    if "<!-- gpu -->" not in page or "<!-- /gpu -->" not in page:
        raise SystemExit(
            "The page must have the lines <!-- gpu --> and <!-- /gpu -->, between which the section stands."
        )
    files = {name: results / f"{name}.json" for name in ("smoke", "right", "fast", "tasks", "quality")}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    return replaced(page, "gpu", section(found))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "model_cards" / "gpu")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md")
    args = parser.parse_args()
    args.page.write_text(renew(args.page.read_text(encoding="utf-8"), args.results), encoding="utf-8")


if __name__ == "__main__":
    main()
