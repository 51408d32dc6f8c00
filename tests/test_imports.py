"""Imports go in one direction: the table of packages, held against the modules."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_async_mtl

ROOT = Path(hf_async_mtl.__file__).parent
PACKAGE = "hf_async_mtl"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# "" is the package's own `__init__`.
MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
FOLDERS = {name for name, path in MODULES.items() if path.name == "__init__.py"}

# Folder or module -> what it may import of ours. The longest entry that a module begins with counts; a folder that is
# allowed stands for all that is in it.
TABLE: dict[str, set[str]] = {
    "utils": set(),
    "registration": set(),
    "validation": {"utils"},
    "modeling": {"modeling"},
    "tasks": {"tasks", "validation", "modeling", "utils"},
    "building": {"building", "validation", "tasks", "modeling", "utils"},
    "data": {"data", "validation", "tasks", "modeling", "utils"},
    "span_metrics": set(),
    "metrics": {"span_metrics", "tasks", "modeling", "utils", "validation"},
    "significance": {"metrics", "span_metrics", "tasks", "modeling"},
    "diagnosis": {"metrics", "significance"},
    "convergence": {"convergence", "validation"},
    "inference": {"inference", "validation", "data", "tasks", "building", "modeling", "utils"},
    "distillation": {"distillation", "validation", "inference", "data", "tasks", "building", "modeling", "utils"},
    "balancing": {"balancing", "validation", "modeling", "utils"},
    "diagnostics": {"diagnostics", "balancing", "validation", "modeling", "utils"},
    "report": {"report", "convergence", "tasks", "modeling", "utils"},
    "training": {
        *("training", "report", "diagnostics", "balancing", "distillation", "inference", "convergence"),
        *("diagnosis", "significance", "metrics", "data", "tasks", "building", "modeling", "utils", "validation"),
    },
    "export": {"export", "validation", "inference", "data", "tasks", "building", "modeling", "utils"},
    "demo": {"demo", "utils"},
    "run": {
        *("cli.config_file", "training", "distillation", "balancing", "convergence", "metrics", "data"),
        *("tasks", "building", "modeling", "utils", "validation"),
    },
    "cli": {
        *("", "cli", "run", "demo", "export", "training", "report", "balancing", "distillation", "inference"),
        *("convergence", "significance", "metrics", "data", "tasks", "building", "modeling", "utils", "validation"),
    },
    "__main__": {"cli"},
    # The public names, imported when they are asked for.
    "": {
        *("balancing", "convergence", "data", "diagnostics", "distillation", "inference", "metrics", "modeling"),
        *("registration", "run", "tasks", "training", "validation"),
    },
}


def inside(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + ".")


def origin(name: str, node: ast.ImportFrom) -> str | None:
    """The module of ours that a module's `from ... import` reads; None where it is not ours."""
    base = node.module or ""
    if node.level:
        package = name if name in FOLDERS else name.rpartition(".")[0]
        parts = [PACKAGE, *filter(None, package.split("."))]
        base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
    return base.removeprefix(PACKAGE).removeprefix(".") if inside(base, PACKAGE) else None


def statements(name: str) -> Iterator[ast.AST]:
    """The nodes of a module. What travels with a model may import the package inside ``try``, where it is installed."""
    waiting: list[ast.AST] = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        yield node
        if not (inside(name, "modeling") and isinstance(node, ast.Try)):
            waiting += ast.iter_child_nodes(node)


def imports_of(name: str) -> set[str]:
    """Our modules that a module imports, wherever in it the statement stands."""
    found = set()
    for node in statements(name):
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix(PACKAGE).removeprefix(".")
                for alias in node.names
                if inside(alias.name, PACKAGE)
            }
        elif isinstance(node, ast.ImportFrom) and (base := origin(name, node)) is not None:
            members = {f"{base}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {member if member in MODULES else base for member in members}
    return found


def allowed(name: str) -> set[str]:
    return TABLE[max((entry for entry in TABLE if entry and inside(name, entry)), key=len, default="")]


def test_every_module_is_in_the_table() -> None:
    """Bug: a new folder is not in the table, and may import anything."""
    missing = [name for name in MODULES if name and not any(entry and inside(name, entry) for entry in TABLE)]
    assert missing == []


@pytest.mark.parametrize("name", MODULES)
def test_packages_import_what_the_table_allows(name: str) -> None:
    """Bug: a lower package imports a higher one, and neither can be read, or sent to the Hub, without the other."""
    wrong = {module for module in imports_of(name) if not any(inside(module, entry) for entry in allowed(name))}
    assert wrong == set()


def test_there_is_no_cycle() -> None:
    """Bug: two modules of one folder import each other, and which is whole depends on who was asked first."""
    graph = {name: {module for module in imports_of(name) if module != name} for name in MODULES}
    # A module may import its package's `__init__`, which may re-export it; that is a cycle too.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_the_model_folder_is_flat() -> None:
    """Bug: the folder that goes to the Hub imports something that does not go with it."""
    for name in MODULES:
        if inside(name, "modeling") and name != "modeling":
            assert MODULES[name].parent == ROOT / "modeling"
            for node in statements(name):
                if isinstance(node, ast.ImportFrom) and (node.level or inside(node.module or "", PACKAGE)):
                    assert node.level == 1, (name, ast.unparse(node))


def test_the_public_names_stand_in_one_list() -> None:
    """Bug: a second list of public names says something else than the package's own."""
    lists = {
        name
        for name, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    }
    assert lists == {"", "convergence"}
    assert len(hf_async_mtl.__all__) == len(set(hf_async_mtl.__all__)) <= 40


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_module(name: str) -> None:
    """Bug: a module uses a private name of another one, which its author may change."""
    borrowed = {
        f"{origin(name, node)}.{alias.name}"
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and origin(name, node) is not None
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    }
    assert borrowed == set()


def test_the_package_names_what_is_there() -> None:
    """Bug: a name in `__all__`, or one that is imported when it is asked for, does not exist."""
    for name in hf_async_mtl.__all__:
        assert getattr(hf_async_mtl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'AsyncTrainer'"):
        _ = hf_async_mtl.AsyncTrainer


def test_inference_imports_the_model_alone() -> None:
    """Bug: to use a model one needs accelerate, datasets and evaluate, or waits for them."""
    code = (
        "import sys, hf_async_mtl; hf_async_mtl.MultiTaskModel; "
        "heavy = ('datasets', 'evaluate', 'matplotlib', 'sklearn', 'seqeval', 'hf_async_mtl.training'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_the_slow_tests_are_there() -> None:
    """Bug: a slow test file is renamed, and what a developer runs at each change takes minutes."""
    from conftest import SLOW

    assert [name for name in SLOW if not (Path(__file__).parent / name).exists()] == []
