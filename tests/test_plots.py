"""The plots of a run: what is drawn is looked up in the figure that is saved."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_report import fake_report
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_async_mtl.report import plots

Draw = Callable[[dict[str, Any], Path], None]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in order."""
    saved: list[Figure] = []
    save = plots._save

    def keep_and_save(figure: Figure, path: str | Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep_and_save)
    return saved


def data(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


def curves(figure: Figure, panel: int, marker: str) -> list[list[tuple[float, float]]]:
    return [data(line) for line in figure.axes[panel].lines if line.get_marker() == marker]


def overlap(figure: Figure) -> list[str]:
    """The texts of a figure that lie on each other or outside."""
    figure.canvas.draw()
    texts = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]  # type: ignore[attr-defined]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    texts = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    wrong = [
        f"{a} / {b}"
        for i, (a, box) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if box.padded(-1).overlaps(other)
    ]
    page = figure.bbox
    return wrong + [a for a, box in boxes if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
@pytest.mark.parametrize("draw", [plots.plot_curves, plots.plot_retention])
def test_png_without_overlaps(draw: Draw, count: int, tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: with many tasks or long names the titles, labels or the legend run over each other or off the page."""
    report = fake_report(count)
    for task in report["tasks"].values():
        task["history"] = [[1000 * step, value] for step, value in task["history"]]
    for old in list(report["tasks"])[::3]:
        new = old + "_with_quite_a_long_name" * 3
        report["tasks"] = {new if k == old else k: v for k, v in report["tasks"].items()}
        report["final"]["tasks"] = {new if k == old else k: v for k, v in report["final"]["tasks"].items()}
    draw(report, tmp_path / "plots" / "picture.png")
    assert (tmp_path / "plots" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert overlap(figures[0]) == []


def test_all_legend_entries_fit(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: a bundle that shows every phase has a legend that is wider than the page."""
    for count in (2, 4, 12):
        report = fake_report(count)
        phases = ["waiting", "stopped", "distilling", "learning"]
        for task, phase in zip(report["tasks"].values(), phases, strict=False):
            task["phase"] = phase
            task["converged_step"] = None if phase == "waiting" else task["converged_step"]
        plots.plot_curves(report, tmp_path / "curves.png")
        assert overlap(figures[-1]) == []


def test_curve_is_cut_at_the_switch(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: the color changes at the teacher's step, or an evaluation is lost or drawn twice around the switch."""
    report = fake_report()
    plots.plot_curves(report, tmp_path / "curves.png")
    for panel, task in enumerate(report["tasks"].values()):
        history = [(step, value) for step, value in task["history"]]
        switch = task["converged_step"]
        expected = [history]
        if switch is not None:
            expected = [[p for p in history if p[0] <= switch], [p for p in history if p[0] >= switch]]
        assert curves(figures[0], panel, ".") == expected


def test_teacher_and_saved_checkpoint_are_marked(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: the teacher is drawn at the step of convergence, or a candidate of a learning task is called a teacher."""
    report = fake_report()
    plots.plot_curves(report, tmp_path / "curves.png")
    for panel, (name, task) in enumerate(report["tasks"].items()):
        level = task["teacher_value"]
        ends = [(task["teacher_step"], level), (report["step"], level)]
        assert curves(figures[0], panel, "*") == ([] if task["converged_step"] is None else [ends])
        assert curves(figures[0], panel, "D") == [[(report["final"]["step"], report["final"]["tasks"][name]["value"])]]


def test_running_run_has_curves_without_a_checkpoint(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: curves of a running run need its end."""
    plots.plot_curves(fake_report(ended=False), tmp_path / "curves.png")
    assert "saved checkpoint" not in [text.get_text() for text in figures[0].legends[0].get_texts()]


def test_continue_keeps_one_color_and_marks_convergence(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: a task that converged and goes on learning looks distilled."""
    report = fake_report(1)
    report["tasks"]["match"]["phase"] = "learning"
    plots.plot_curves(report, tmp_path / "curves.png")
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["learning", "converged", "teacher", "saved checkpoint"]


def test_null_values_are_skipped(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: a null in the history (NaN in JSON) raises a TypeError, or a task without any value breaks the page."""
    report = fake_report(2)
    history = report["tasks"]["match"]["history"]
    history[2][1] = None
    report["tasks"]["category"] |= {
        "history": [[step, None] for step, _ in report["tasks"]["category"]["history"]],
        **dict.fromkeys(("last", "best", "best_step", "teacher_value", "teacher_step", "converged_step")),
        "phase": "learning",
    }
    report["final"]["tasks"]["category"] = {"value": None, "retention": None}
    plots.plot_curves(report, tmp_path / "curves.png")
    drawn = {point for part in curves(figures[0], 0, ".") for point in part}
    assert drawn == {(step, value) for step, value in history if value is not None}
    assert [text.get_text() for text in figures[0].axes[1].texts] == ["no value"]


def test_nothing_evaluated_yet(tmp_path: Path) -> None:
    """Bug: `report` on a run before its first evaluation warns of identical limits, or has no legend to draw."""
    report = fake_report(2, ended=False)
    report["step"] = 0
    for task in report["tasks"].values():
        task |= {**dict.fromkeys(("last", "best", "best_step", "converged_step")), "phase": "learning", "history": []}
    plots.plot_curves(report, tmp_path / "curves.png")


def test_retention_bars_are_the_values_in_order(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: bars come in reverse order under the names, and null is drawn as a number."""
    report = fake_report()
    report["final"]["tasks"]["stars"]["retention"] = None
    plots.plot_retention(report, tmp_path / "retention.png")
    axes = figures[0].axes[0]
    values = [end["retention"] for end in report["final"]["tasks"].values()]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(report["tasks"])
    assert [bar.get_width() for bar in axes.containers[1]] == [value or 0 for value in values]
    assert [text.get_text() for text in axes.texts] == [
        "not defined" if v is None else f"{100 * v:.1f}%" for v in values
    ]
    assert axes.yaxis_inverted()


def test_retention_of_a_running_run_says_what_to_do(tmp_path: Path) -> None:
    """Bug: `report` on a running run dies with a bare KeyError: 'final', or leaves an empty picture."""
    with pytest.raises(ValueError, match=r"needs a run that has ended"):
        plots.plot_retention(fake_report(ended=False), tmp_path / "retention.png")
    assert not list(tmp_path.iterdir())


def test_no_global_state() -> None:
    """Bug: importing the package takes over pyplot of the user's notebook, or needs a display."""
    assert not [name for name, module in vars(plots).items() if module is sys.modules.get("matplotlib.pyplot")]
