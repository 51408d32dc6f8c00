"""The section `balancing`: names, settings, and what is refused before training starts."""

import re
import subprocess
import sys
from typing import Any

import pytest

from hf_async_mtl import AsyncMTLTrainingArguments, balancing
from hf_async_mtl.balancing.balancer import LossBalancer, WeightingBalancer
from hf_async_mtl.balancing.build import build_balancer, check_parameters
from hf_async_mtl.balancing.config import METHODS, BalancingConfig
from hf_async_mtl.balancing.gradnorm import GradNorm
from hf_async_mtl.validation import ConfigurationError

# Another value than the default, for the parameters of the methods that have some.
OTHER: dict[str, dict[str, Any]] = {
    "uw": {"learning_rate": 0.5},
    "dwa": {"temperature": 1.0, "window": 7},
    "famo": {"learning_rate": 0.5, "weight_decay": 0},
    "imtl_l": {"learning_rate": 0.5},
    "stch": {"mu": 1.0},
    "cagrad": {"c": 0, "norm_eps": 1e-5},
    "mgda": {"epsilon": 0.01, "max_iters": 50},
    "nash_mtl": {"max_iters": 50},
    "aligned_mtl": {"scale_mode": "rmse"},
    "gradvac": {"beta": 1, "eps": 1e-7},
    "fairgrad": {"alpha": 2.0, "max_iters": 50},
    "gradnorm": {"alpha": 0, "learning_rate": 0.5},
}


def over(method: str) -> str:
    return METHODS[method].scopes[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_built_with_every_parameter(method: str) -> None:
    """Bug: a method or a parameter that the documentation names is unknown to the class behind it."""
    for parameters in ({}, OTHER.get(method, {})):
        config = BalancingConfig(method, over=over(method), parameters=parameters)
        check_parameters(config)
        balancer = build_balancer(config, ["a", "b"], seed=0, calls_per_epoch=10)
        assert (balancer is None) == (method == "sum")
        assert isinstance(balancer, LossBalancer) == (METHODS[method].kind == "losses")
        if METHODS[method].kind == "gradients" and "last_layer" in METHODS[method].scopes:
            assert isinstance(balancer, WeightingBalancer)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        (
            "cagrad",
            {"c": -0.1},
            "`balancing.parameters` must be arguments of CAGradWeighting(c=0.5, norm_eps=0.0001); found {'c': -0.1}: "
            "c must be non-negative, but got -0.1.",
        ),
        (
            "dwa",
            {"temprature": 1},
            "Unknown key `balancing.parameters.temprature`. The nearest known key is `temperature`.",
        ),
        ("gls", {"alpha": 1}, "Unknown key `balancing.parameters.alpha`. The section has no keys. Remove it."),
        ("cagrad", {"mu": 1}, "Unknown key `balancing.parameters.mu`. The known keys are c, norm_eps."),
        (
            "uw",
            {"learning_rate": "1e-2"},
            "`balancing.parameters` must be arguments of UncertaintyWeighting(learning_rate=0.025); found "
            "{'learning_rate': '1e-2'}: learning_rate must be a number above 0, but got '1e-2'.",
        ),
        ("famo", {"weight_decay": -1}, "FAMO(learning_rate=0.025, weight_decay=0.001); found {'weight_decay': -1}: "),
        ("dwa", {"window": 0}, "window must be a whole number above 0, but got 0."),
        ("dwa", {"temperature": 0}, "Parameter `temperature` should be strictly positive."),
        ("stch", {"mu": "small"}, "STCH(mu=0.1, weights=None, reference=None); found {'mu': 'small'}: "),
        ("gradvac", {"beta": 2}, "Attribute `beta` must be in [0, 1]. Found beta=2."),
        ("gradnorm", {"alpha": -1}, "GradNorm(alpha=1.5, learning_rate=0.025); found {'alpha': -1}: alpha must be"),
        # Found at the first call only.
        ("aligned_mtl", {"scale_mode": ["min"]}, "Invalid scale_mode=['min']. Expected 'min', 'median', or 'rmse'."),
        ("fairgrad", {"alpha": "fair"}, "FairGradWeighting(alpha=1.0, max_iters=None); found {'alpha': 'fair'}: "),
        ("cagrad", {"seed": 3}, "Unknown key `balancing.parameters.seed`. The known keys are c, norm_eps."),
    ],
)
def test_a_wrong_parameter_is_refused_before_training(method: str, parameters: dict[str, Any], message: str) -> None:
    """Bug: a wrong parameter is found at the first step, as a traceback out of torchjd, or never."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        check_parameters(BalancingConfig(method, parameters=parameters))
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        AsyncMTLTrainingArguments("out", use_cpu=True, balancing={"method": method, "parameters": parameters})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"method": "pcgrd"},
            "`balancing.method` must be one of sum, uw, dwa, rlw, famo, imtl_l, gls, stch, pcgrad, cagrad, mgda, "
            "nash_mtl, aligned_mtl, imtl_g, graddrop, gradvac, upgrad, fairgrad, gradnorm; found 'pcgrd'. The nearest "
            "is 'pcgrad'.",
        ),
        (
            {"method": "mgda", "over": "last"},
            "`balancing.over` must be one of last_layer, encoder; found 'last'. The nearest is 'last_layer'.",
        ),
        (
            {"method": "uw", "over": "encoder"},
            "`balancing.over: encoder` has no effect with `balancing.method: uw`, which uses no gradients. Remove the "
            "key.",
        ),
        (
            {"method": "graddrop"},
            "`balancing.over` must be encoder with `balancing.method: graddrop`, which chooses an update per "
            "parameter and gives no weights that could be used for other layers; found 'last_layer'. Set "
            "`balancing.over: encoder`.",
        ),
        (
            {"method": "sum", "parameters": {"mu": 1}},
            "`balancing.parameters` has no effect with `balancing.method: sum`. Remove the key.",
        ),
        ({"parameters": [1]}, "`balancing.parameters` must be a mapping; found [1]."),
        ({"weights": 2}, "`balancing.weights` must be a mapping; found 2."),
        ({"weights": {"rte": -1}}, "`tasks.rte.weight` must be a number above 0; found -1."),
        ({"weights": {"rte": float("nan")}}, "`tasks.rte.weight` must be a number above 0; found nan."),
    ],
)
def test_a_wrong_setting_is_refused_in_words(section: dict[str, Any], message: str) -> None:
    """Bug: a wrong setting is found at the first step, as a traceback out of torchjd, or never."""
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        BalancingConfig(**section)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sum", "gradnorm")])
def test_without_torchjd_the_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a user without the extra sees `No module named 'torchjd'`, and installs something else."""
    monkeypatch.setitem(sys.modules, "torchjd", None)
    for name in ("loss_weighting", "gradient_weighting"):
        # An earlier test may have imported them.
        monkeypatch.delitem(sys.modules, f"hf_async_mtl.balancing.{name}", raising=False)
        monkeypatch.delattr(balancing, name, raising=False)
    with pytest.raises(ConfigurationError) as caught:
        build_balancer(BalancingConfig(method, over=over(method)), ["a", "b"], seed=0, calls_per_epoch=10)
    message = str(caught.value)
    assert message.startswith(f"`balancing.method: {method}` needs packages that are not installed (")
    assert "torchjd" in message
    assert message.endswith("). Run `pip install 'hf-async-mtl[balancing]'`.")


@pytest.mark.parametrize("method", ["cagrad", "upgrad", "nash_mtl", "fairgrad"])
def test_without_a_solver_the_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: torchjd is there, its solver is not, and the first step fails hours after the start of the queue."""
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"requires \[.*\] to be installed.*'hf-async-mtl\[balancing\]'`\.$"):
        build_balancer(BalancingConfig(method), ["a", "b"], seed=0, calls_per_epoch=10)


def test_gradnorm_and_the_configuration_need_no_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a plain sum, or GradNorm, which is ours, cannot be had without an extra."""
    monkeypatch.setitem(sys.modules, "torchjd", None)
    assert isinstance(build_balancer(BalancingConfig("gradnorm"), ["a"], seed=0, calls_per_epoch=1), GradNorm)
    code = (
        "import sys; from hf_async_mtl.balancing import build, backward; "
        "print([name for name in ('torchjd', 'cvxpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
