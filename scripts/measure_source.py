"""Measure the size and shape of the source, from its syntax trees alone.

    python scripts/measure_source.py [--source src/hf_async_mtl]

Prints a Markdown table. Nothing of the package is imported. A line counts as it stands in the file, with docstrings,
comments and blank lines.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASK_TYPES = (
    *("classification", "multilabel", "regression", "token_classification"),
    *("multiple_choice", "question_answering"),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(folder: Path) -> dict[Path, ast.Module]:
    """Parse every module below a folder."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}


def line_count(path: Path) -> int:
    """Return the number of lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.Module) -> list[Function]:
    """Return all functions and methods of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(node: ast.stmt) -> int:
    """Return the number of lines of a statement, its decorators left out."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def find_class(modules: dict[Path, ast.Module], name: str) -> ast.ClassDef | None:
    """Return the class of a name, or None."""
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
    return None


def class_chain(modules: dict[Path, ast.Module], name: str) -> list[ast.ClassDef]:
    """Return a class and those of its parents that the same modules define."""
    found = find_class(modules, name)
    if found is None:
        return []
    parents = [base.id for base in found.bases if isinstance(base, ast.Name)]
    return [found, *(node for parent in parents for node in class_chain(modules, parent))]


def upstream_methods() -> set[str]:
    """Return the names of the methods of ``transformers.Trainer``."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise SystemExit("transformers must be installed: the overridden methods are those of its Trainer.")
    file = Path(spec.origin).with_name("trainer.py")
    trainer = find_class({file: ast.parse(file.read_text(encoding="utf-8"))}, "Trainer")
    return {node.name for node in trainer.body if isinstance(node, Function)} if trainer else set()


def calls_super(method: Function) -> bool:
    """Return whether a method calls the method of the same name of its parent."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == method.name
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == "super"
        for node in ast.walk(method)
    )


def measure_trainer(modules: dict[Path, ast.Module]) -> dict[str, str]:
    """Measure ``AsyncMTLTrainer`` with the parents that are ours."""
    chain, names = class_chain(modules, "AsyncMTLTrainer"), upstream_methods()
    methods = [node for owner in chain for node in owner.body if isinstance(node, Function) and node.name in names]
    private = [node for node in methods if node.name.startswith("_") and not node.name.startswith("__")]
    alone = [node for node in methods if not calls_super(node)]
    return {
        "Trainer methods overridden / private / without `super()`": f"{len(methods)} / {len(private)} / {len(alone)}",
        "lines of the Trainer / classes": f"{sum(map(length, chain))} / {len(chain)}",
    }


def is_task_type(node: ast.AST) -> bool:
    """Return whether a node is the name of a task type as a string."""
    return isinstance(node, ast.Constant) and node.value in TASK_TYPES


def branches_on_type(tree: ast.Module) -> bool:
    """Return whether a module compares something with the name of a task type."""
    return any(
        is_task_type(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.MatchValue)
        for part in ast.walk(node)
    )


def model_loops(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the loops in which a model is called, and the calls of the Trainer's own loop."""
    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.While):
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ("model", "_model"):
                    yield node
                    break


def configuration_keys() -> int:
    """Return the number of configuration keys that are ours, from the page that is made from the settings."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    return sum(line.startswith("| `") for line in page.splitlines())


def measure(source: Path) -> dict[str, str]:
    """Measure a source folder.

    Args:
        source: The package's folder.

    Returns:
        What is measured -> its figure, as text.
    """
    modules = trees(source)
    sizes = {path: line_count(path) for path in modules}
    lengths = [length(node) for tree in modules.values() for node in functions(tree)]
    remote = [path for path in modules if path.parent.name in ("modeling", "model") and path.name != "__init__.py"]
    literals = {path: sum(map(is_task_type, ast.walk(tree))) for path, tree in modules.items()}
    branching = [path for path, tree in modules.items() if branches_on_type(tree)]
    elsewhere = [path for path in branching if path.parent.name != "tasks" and path.name != "heads.py"]
    loops = sum(1 for tree in modules.values() for _ in model_loops(tree))
    longest, size = max(sizes.items(), key=lambda item: item[1])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        "source files / lines": f"{len(sizes)} / {sum(sizes.values()):,}",
        "file lines: median / longest": f"{statistics.median(sizes.values()):.0f} / {size} ({longest.name})",
        "functions": f"{len(lengths)}",
        "function lines: median / longest": f"{statistics.median(lengths):.0f} / {max(lengths)}",
        "files above 350 lines / functions above 60": (
            f"{sum(size > 350 for size in sizes.values())} / {sum(size > 60 for size in lengths)}"
        ),
        **measure_trainer(modules),
        "files and lines in the folder that travels": f"{len(remote)} / {sum(sizes[path] for path in remote):,}",
        "files that compare with a task type / outside tasks and heads / literals": (
            f"{len(branching)} / {len(elsewhere)} / {sum(literals.values())}"
        ),
        "loops that run a model over rows": f"{loops}",
        "own configuration keys": f"{configuration_keys()}",
        "README words / lines": f"{len(readme.split()):,} / {len(readme.splitlines())}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=ROOT / "src" / "hf_async_mtl", help="default: this package")
    figures = measure(parser.parse_args().source)
    print("| what | figure |\n| --- | ---: |")
    for what, figure in figures.items():
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
