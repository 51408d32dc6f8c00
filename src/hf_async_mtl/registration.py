"""Register the classes of this package with Transformers, without importing Transformers.

``import hf_async_mtl`` must be cheap, and ``AutoModel``, ``AutoConfig`` and ``pipeline`` must then know our classes,
in whatever order the two packages are imported. So the configuration class that is registered imports the real one on
demand, and an import hook registers it as soon as the module of Transformers that holds the table is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "hf_async_mtl"


def _register_config() -> None:
    auto: Any = sys.modules["transformers.models.auto.configuration_auto"]
    if MODEL_TYPE not in auto.CONFIG_MAPPING:
        auto.AutoConfig.register(MODEL_TYPE, ConfigOnDemand)


def _register_pipeline() -> None:
    importlib.import_module(f"{__package__}.inference.pipeline")


_ACTIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.pipelines": _register_pipeline,
}
"""Module of Transformers -> what is done when it has been imported."""


class _OnDemand(type):
    """The type of a class that stands for `MultiTaskConfig`; its first use imports and registers the model classes."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return _config_class()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(_config_class(), name)


class ConfigOnDemand(metaclass=_OnDemand):
    """`MultiTaskConfig` in ``AutoConfig``, until it is used for the first time."""


def _config_class() -> Any:
    return importlib.import_module(f"{__package__}.modeling").MultiTaskConfig


class _Finder(MetaPathFinder):
    """Find the modules of `_ACTIONS` as Python does, and run their action once they have been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _ACTIONS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _ACTIONS[fullname]()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def register_with_transformers() -> None:
    """Register our classes, now or when Transformers' own are imported."""
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
