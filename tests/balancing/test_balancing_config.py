"""The section `balancing`: names, settings, and what is refused before training starts."""

import re
import subprocess
import sys
from typing import Any

import pytest

from hf_async_mtl.balancing.balancer import LossBalancer, WeightingBalancer
from hf_async_mtl.balancing.config import METHODS, BalancingConfig
from hf_async_mtl.balancing.gradnorm import GradNorm
from hf_async_mtl.balancing.making import make_balancer
from hf_async_mtl.modeling.configuration_multitask import ConfigurationError

# Another value than the default, for each parameter of each method.
OTHER = {
    "learning_rate": 0.5,
    "temperature": 1.0,
    "window": 7,
    "weight_decay": 0.0,
    "mu": 1.0,
    "c": 0.0,
    "scale_mode": "rmse",
    "beta": 1,
    "alpha": 2.0,
}


def over(method: str) -> str:
    return METHODS[method].overs[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_made_with_every_setting(method: str) -> None:
    """Bug: a method or a setting that the table names is unknown to the class behind it."""
    own = METHODS[method].parameters
    for parameters in ({}, {name: OTHER[name] for name in own}):
        config = BalancingConfig(method, over=over(method), parameters=parameters)
        assert config.settings == {**{name: of.default for name, of in own.items()}, **parameters}
        balancer = make_balancer(config, ["a", "b"], seed=0, calls_per_epoch=10)
        assert (balancer is None) == (method == "sum")
        assert isinstance(balancer, LossBalancer) == (METHODS[method].kind == "losses")
        if METHODS[method].kind == "gradients" and "last_layer" in METHODS[method].overs:
            assert isinstance(balancer, WeightingBalancer)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_in_range(method: str) -> None:
    """Bug: a default that its own check refuses, once it is written out in a file."""
    settings = BalancingConfig(method, over=over(method)).settings
    assert BalancingConfig(method, over=over(method), parameters=settings).settings == settings


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
            "`balancing.over: encoder` has no effect with `balancing.method: uw`, which takes no gradients. Remove the "
            "key.",
        ),
        (
            {"method": "graddrop"},
            "`balancing.over` must be encoder with `balancing.method: graddrop`, which chooses an update parameter by "
            "parameter and gives no weights that could be carried over to other layers; found 'last_layer'. Set "
            "`balancing.over: encoder`.",
        ),
        (
            {"method": "dwa", "parameters": {"temprature": 1}},
            "Unknown key `balancing.parameters.temprature`. The nearest known key of method dwa is `temperature`.",
        ),
        (
            {"method": "gls", "parameters": {"alpha": 1}},
            "Unknown key `balancing.parameters.alpha`. Method gls has no parameters. Remove the key.",
        ),
        (
            {"method": "cagrad", "parameters": {"c": -0.1}},
            "`balancing.parameters.c` must be a number of at least 0; found -0.1.",
        ),
        (
            {"method": "uw", "parameters": {"learning_rate": "1e-2"}},
            "`balancing.parameters.learning_rate` must be a number above 0; found '1e-2'.",
        ),
        (
            {"method": "uw", "parameters": {"learning_rate": True}},
            "`balancing.parameters.learning_rate` must be a number above 0; found True.",
        ),
        (
            {"method": "dwa", "parameters": {"window": 0}},
            "`balancing.parameters.window` must be a whole number above 0, or null for the steps of an epoch; found 0.",
        ),
        (
            {"method": "aligned_mtl", "parameters": {"scale_mode": ["min"]}},
            "`balancing.parameters.scale_mode` must be one of min, median, rmse; found ['min'].",
        ),
        ({"parameters": [1]}, "`balancing.parameters` must be a dictionary; found [1]."),
        ({"weights": 2}, "`balancing.weights` must be a dictionary; found 2."),
        ({"weights": {"rte": -1}}, "`weight of task rte` must be a number above 0; found -1."),
        ({"weights": {"rte": float("nan")}}, "`weight of task rte` must be a number above 0; found nan."),
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
    with pytest.raises(ConfigurationError) as caught:
        make_balancer(BalancingConfig(method, over=over(method)), ["a", "b"], seed=0, calls_per_epoch=10)
    message = str(caught.value)
    assert message.startswith(f"`balancing.method: {method}` needs packages that are not installed (")
    assert "torchjd" in message
    assert message.endswith("). Run `pip install 'hf-async-mtl[balancing]'`.")


@pytest.mark.parametrize("method", ["cagrad", "upgrad", "nash_mtl", "fairgrad"])
def test_without_a_solver_the_extra_is_named(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: torchjd is there, its solver is not, and the first step fails hours after the start of the queue."""
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"requires \[.*\] to be installed.*'hf-async-mtl\[balancing\]'`\.$"):
        make_balancer(BalancingConfig(method), ["a", "b"], seed=0, calls_per_epoch=10)


def test_gradnorm_and_the_configuration_need_no_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a plain sum, or GradNorm, which is ours, cannot be had without an extra."""
    monkeypatch.setitem(sys.modules, "torchjd", None)
    assert isinstance(make_balancer(BalancingConfig("gradnorm"), ["a"], seed=0, calls_per_epoch=1), GradNorm)
    code = (
        "import sys; from hf_async_mtl.balancing import making, backward; "
        "print([name for name in ('torchjd', 'cvxpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
