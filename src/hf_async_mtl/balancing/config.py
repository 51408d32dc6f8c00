"""The balancing methods: their names, their settings and the scale of their weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..modeling.configuration_multitask import ConfigurationError

__all__ = ["METHODS", "OVERS", "BalancingConfig", "Method", "Parameter"]

OVERS = ("last_layer", "encoder")
"""What the gradients of the tasks are taken over."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Parameter:
    """A setting of a method: its default, and what it may be.

    Args:
        default: The value where none is given.
        requirement: What `accepts` demands, in words.
        accepts: Whether a value will do.
    """

    default: Any
    requirement: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True)
class Method:
    """A balancing method, known without the packages that it runs on.

    Args:
        kind: ``none`` (no balancing), ``losses`` (weights from the losses), ``gradients`` (from the tasks' gradients).
        means: How often the method's own formula divides by the number of tasks: not where it adds them up, once where
            it takes their mean.
        factor: What else it multiplies each loss by.
        parameters: Name -> setting.
        overs: The values of ``over`` that it can run with; for ``gradients``.
    """

    kind: Literal["none", "losses", "gradients"]
    means: int = 1
    factor: float = 1.0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    overs: tuple[str, ...] = OVERS

    def equal_weight(self, tasks: int) -> float:
        """What the method's own formula gives each of so many tasks that it treats alike."""
        return self.factor / tasks**self.means


def _positive(default: float) -> Parameter:
    return Parameter(default, "a number above 0", lambda value: _is_number(value) and value > 0)


def _not_negative(default: float) -> Parameter:
    return Parameter(default, "a number of at least 0", lambda value: _is_number(value) and value >= 0)


_WINDOW = Parameter(
    None,
    "a whole number above 0, or null for the steps of an epoch",
    lambda value: value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0),
)
_BETA = Parameter(0.5, "a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_SCALE_MODE = Parameter(
    "min", "one of min, median, rmse", lambda value: isinstance(value, str) and value in ("min", "median", "rmse")
)

# Below, the solver's powers overflow.
_FAIRNESS = Parameter(1.0, "a number of at least 0.1", lambda value: _is_number(value) and value >= 0.1)

METHODS: dict[str, Method] = {
    "sum": Method("none"),
    # Weights from the losses: `balancing/scalarizers.py`.
    "uw": Method("losses", means=0, factor=0.5, parameters={"learning_rate": _positive(0.025)}),
    "dwa": Method("losses", means=0, parameters={"temperature": _positive(2.0), "window": _WINDOW}),
    "rlw": Method("losses"),
    "famo": Method("losses", parameters={"learning_rate": _positive(0.025), "weight_decay": _not_negative(0.001)}),
    "imtl_l": Method("losses", means=0, parameters={"learning_rate": _positive(0.025)}),
    "gls": Method("losses"),
    "stch": Method("losses", means=2, parameters={"mu": _positive(0.1)}),
    # Weights from the gradients: `balancing/aggregators.py`, `balancing/gradnorm.py`.
    "pcgrad": Method("gradients", means=0),
    "cagrad": Method("gradients", parameters={"c": _not_negative(0.5)}),
    "mgda": Method("gradients"),
    "nash_mtl": Method("gradients"),
    "aligned_mtl": Method("gradients", parameters={"scale_mode": _SCALE_MODE}),
    "imtl_g": Method("gradients"),
    "graddrop": Method("gradients", means=0, overs=("encoder",)),
    "gradvac": Method("gradients", means=0, parameters={"beta": _BETA}),
    "upgrad": Method("gradients"),
    "fairgrad": Method("gradients", parameters={"alpha": _FAIRNESS}),
    "gradnorm": Method(
        "gradients", means=0, parameters={"alpha": _not_negative(1.5), "learning_rate": _positive(0.025)}
    ),
}
"""Name -> method. ``sum`` is the weighted mean over all examples."""


@dataclass(frozen=True)
class BalancingConfig:
    """How the tasks' losses become one update.

    Args:
        method: A name in `METHODS`. ``sum``: the weighted mean over all examples. All others balance the tasks that
            still learn from labels, and need ``pip install 'hf-async-mtl[balancing]'`` (but for ``gradnorm``).
        weights: Task -> weight of its examples' losses, > 0; 1 where a task is not named. Methods that take no notice
            of a loss's scale (``gls``, ``imtl_g``, ``nash_mtl``, ...) undo it.
        over: For methods on gradients. ``last_layer``: over the parameters of the last shared layer, and the weights
            found there hold for the whole encoder; costs little. ``encoder``: over all shared parameters; costs a
            backward pass a task, and the memory of a gradient a task.
        parameters: Name -> value of the method's own settings:

            * ``uw``, ``imtl_l``: ``learning_rate`` (0.025) of the learnt scales.
            * ``dwa``: ``temperature`` (2); ``window`` (null: the steps of an epoch), the calls that an average is over.
            * ``famo``: ``learning_rate`` (0.025), ``weight_decay`` (0.001).
            * ``stch``: ``mu`` (0.1); near 0 only the worst task counts, far above the losses all count alike.
            * ``cagrad``: ``c`` (0.5); 0 is the plain mean, far above 1 is ``mgda``.
            * ``aligned_mtl``: ``scale_mode`` (min), one of min, median, rmse.
            * ``gradvac``: ``beta`` (0.5), the share of the newest cosine in its running mean.
            * ``fairgrad``: ``alpha`` (1), >= 0.1; 1 is ``nash_mtl``'s condition, towards 0 the weights become equal.
            * ``gradnorm``: ``alpha`` (1.5), ``learning_rate`` (0.025).

    Raises:
        ConfigurationError: A name is not known, or a value is out of range or has no effect.

    Examples:
        >>> BalancingConfig("cagrad", parameters={"c": 0.4}).settings
        {'c': 0.4}
        >>> BalancingConfig("famo", parameters={"weight_decay": 0}).settings
        {'learning_rate': 0.025, 'weight_decay': 0}
    """

    method: str = "sum"
    weights: Mapping[str, float] = field(default_factory=dict)
    over: str = "last_layer"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("balancing.method", self.method, METHODS)
        _check("balancing.weights", isinstance(self.weights, Mapping), "a dictionary", self.weights)
        for task, weight in self.weights.items():
            _check(f"weight of task {task}", _is_number(weight) and weight > 0, "a number above 0", weight)
        _check_choice("balancing.over", self.over, OVERS)
        _check("balancing.parameters", isinstance(self.parameters, Mapping), "a dictionary", self.parameters)
        self._check_over()
        self._check_parameters()

    @property
    def settings(self) -> dict[str, Any]:
        """The method's own settings, with its defaults where none are given."""
        return {
            name: self.parameters.get(name, parameter.default)
            for name, parameter in METHODS[self.method].parameters.items()
        }

    def _check_over(self) -> None:
        method = METHODS[self.method]
        if method.kind != "gradients" and self.over != "last_layer":
            raise ConfigurationError(
                f"`balancing.over: {self.over}` has no effect with `balancing.method: {self.method}`, which takes no "
                "gradients. Remove the key."
            )
        if method.kind == "gradients" and self.over not in method.overs:
            raise ConfigurationError(
                f"`balancing.over` must be {', '.join(method.overs)} with `balancing.method: {self.method}`, which "
                "chooses an update parameter by parameter and gives no weights that could be carried over to other "
                f"layers; found {self.over!r}. Set `balancing.over: {method.overs[0]}`."
            )

    def _check_parameters(self) -> None:
        known = METHODS[self.method].parameters
        for name, value in self.parameters.items():
            if name not in known:
                raise ConfigurationError(
                    f"Unknown key `balancing.parameters.{name}`. "
                    + (
                        f"The nearest known key of method {self.method} is `{_nearest(name, known)}`."
                        if known
                        else f"Method {self.method} has no parameters. Remove the key."
                    )
                )
            _check(f"balancing.parameters.{name}", known[name].accepts(value), known[name].requirement, value)


def _check(name: str, ok: bool, requirement: str, found: Any) -> None:
    if not ok:
        raise ConfigurationError(f"`{name}` must be {requirement}; found {found!r}.")


def _check_choice(name: str, found: Any, choices: Collection[str]) -> None:
    if found not in list(choices):  # A list, as the value may be unhashable.
        raise ConfigurationError(
            f"`{name}` must be one of {', '.join(choices)}; found {found!r}. The nearest is "
            f"{_nearest(found, choices)!r}."
        )


def _nearest(found: Any, known: Collection[str]) -> str:
    return difflib.get_close_matches(str(found), list(known), n=1, cutoff=0.0)[0]
