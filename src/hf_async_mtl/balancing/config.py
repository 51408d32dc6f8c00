"""The section ``balancing``, and the methods that it can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..validation import MAPPING, ConfigurationError, check, check_fields, number, one_of, setting

SCOPES = ("last_layer", "encoder")
"""The parameters over which the tasks' gradients are compared."""


@dataclass(frozen=True)
class Method:
    """A balancing method, described without the packages that it runs on."""

    kind: Literal["none", "losses", "gradients"]  # what the weights are computed from
    torchjd: str | None = None  # the class whose arguments are the parameters; None if a class of ours has its own
    means: int = 1  # how often the formula of the paper divides by the number of tasks: 0 for a sum, 1 for a mean
    factor: float = 1.0  # a further constant by which the formula multiplies each loss
    normalize: bool = False  # whether the weights, whose scale is that of an inverse gradient, are divided by their sum
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of parameters that torchjd requires
    scopes: tuple[str, ...] = SCOPES  # the values of ``over`` that the method supports

    def equal_weight(self, tasks: int) -> float:
        """Return the weight that the paper's formula gives each of n tasks that it treats alike."""
        return self.factor / tasks**self.means


METHODS: dict[str, Method] = {
    "sum": Method("none"),
    # Loss weighting.
    "uw": Method("losses", means=0, factor=0.5),
    "dwa": Method("losses", means=0),
    "rlw": Method("losses", "Random"),
    "famo": Method("losses"),
    "imtl_l": Method("losses", means=0),
    "gls": Method("losses", "GeometricMean"),
    "stch": Method("losses", "STCH", means=2, defaults={"mu": 0.1}),
    # Gradient balancing.
    "pcgrad": Method("gradients", "PCGradWeighting", means=0),
    "cagrad": Method("gradients", "CAGradWeighting", defaults={"c": 0.5}),
    "mgda": Method("gradients", "MGDAWeighting"),
    # torchjd's own NashMTL returns its starting point for some gradients that conflict, without an error. Nash-MTL is
    # FairGrad with alpha = 1.
    "nash_mtl": Method("gradients", "FairGradWeighting", normalize=True, defaults={"alpha": 1.0}),
    "aligned_mtl": Method("gradients", "AlignedMTLWeighting"),
    "imtl_g": Method("gradients", "IMTLGWeighting"),
    "graddrop": Method("gradients", "GradDrop", means=0, scopes=("encoder",)),
    "gradvac": Method("gradients", "GradVacWeighting", means=0),
    "upgrad": Method("gradients", "UPGradWeighting"),
    "fairgrad": Method("gradients", "FairGradWeighting", normalize=True, defaults={"alpha": 1.0}),
    "gradnorm": Method("gradients", means=0),
}
"""Name -> method. ``sum`` is the weighted mean over all examples."""


@dataclass(frozen=True)
class BalancingConfig:
    """How the tasks' losses become one update.

    Args:
        method: A name in `METHODS`. ``sum``: the weighted mean over all examples. All others balance the tasks that
            still learn from labels, and need ``pip install 'hf-async-mtl[balancing]'`` (except ``gradnorm``).
        weights: Task -> weight of its examples' losses, > 0; 1 for a task that is not named. Methods that are invariant
            to the scale of a loss (``gls``, ``imtl_g``, ``nash_mtl``, ...) undo it.
        over: For gradient balancing. ``last_layer``: compare gradients over the parameters of the last shared layer,
            and use the weights found there for the whole encoder; cheap. ``encoder``: over all shared parameters; costs
            one backward pass per task, and the memory of one gradient per task.
        parameters: Arguments of the method, by name: those of the torchjd class (`STCH`, `CAGradWeighting`,
            `MGDAWeighting`, `AlignedMTLWeighting`, `GradVacWeighting`, `FairGradWeighting`, ...), or of
            `UncertaintyWeighting` (``uw``), `IMTLL` (``imtl_l``), `DWA` (``dwa``), `FAMO` (``famo``) and `GradNorm`
            (``gradnorm``). They are checked by `build_balancer`.

    Raises:
        ConfigurationError: A name is not known, or a value is out of range or has no effect.
    """

    method: str = setting("sum", one_of(*METHODS))
    weights: Mapping[str, float] = setting({}, MAPPING)
    over: str = setting("last_layer", one_of(*SCOPES))
    parameters: Mapping[str, Any] = setting({}, MAPPING)

    def __post_init__(self) -> None:
        check_fields("balancing", self)
        for task, weight in self.weights.items():
            check(f"tasks.{task}.weight", weight, number(0, exclusive=True))
        scopes = METHODS[self.method].scopes
        if self.kind == "none" and self.parameters:
            raise ConfigurationError(
                f"`balancing.parameters` has no effect with `balancing.method: {self.method}`. Remove the key."
            )
        if self.kind != "gradients" and self.over != "last_layer":
            raise ConfigurationError(
                f"`balancing.over: {self.over}` has no effect with `balancing.method: {self.method}`, which uses no "
                "gradients. Remove the key."
            )
        if self.kind == "gradients" and self.over not in scopes:
            raise ConfigurationError(
                f"`balancing.over` must be {', '.join(scopes)} with `balancing.method: {self.method}`, which chooses "
                "an update per parameter and gives no weights that could be used for other layers; found "
                f"{self.over!r}. Set `balancing.over: {scopes[0]}`."
            )

    @property
    def kind(self) -> Literal["none", "losses", "gradients"]:
        """What the method looks at."""
        return METHODS[self.method].kind
