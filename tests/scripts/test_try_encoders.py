"""The script that tries every type of encoder, on one type of each kind."""

import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import try_encoders as script  # noqa: E402

PAGE = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "kind", "detail"),
    [
        ("electra", "packed", "cls"),
        ("gpt_neo", "packed", "mean"),
        ("funnel", "equal lengths", "cls"),
        ("xlnet", "length groups", "cls"),  # which has no limit of positions
        ("flaubert", "length groups", "cls"),  # which asserts
        ("codegen", "length groups", "mean"),  # whose configuration has no pad token
        ("canine", "refused", "An encoder must return a state for each token id, without other inputs; one of type"),
        ("reformer", "refused", "The states of an encoder must be as wide as its `hidden_size`, 32; those of one of"),
    ],
)
def test_a_type_is_trained_or_refused(name: str, kind: str, detail: str) -> None:
    """Bug: a type of encoder ends in a traceback, and the page says that it is trained."""
    outcome = script.try_type(name)
    assert outcome is not None
    assert outcome.kind == kind
    assert outcome.detail.startswith(detail)
    assert f"`{name}`" in PAGE.split(f"## {'Refused' if kind == 'refused' else 'Trained'}")[1].split("\n## ")[0]


def test_what_is_no_text_encoder_is_not_listed() -> None:
    """Bug: the page lists models of images."""
    assert script.try_type("vit") is None
    assert "`vit`" not in PAGE


def test_the_page_names_its_version() -> None:
    """Bug: the page is of an earlier Transformers. Run `python scripts/try_encoders.py --output docs/encoders.md`."""
    assert f"Transformers {transformers.__version__}:" in PAGE
