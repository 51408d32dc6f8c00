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
    """Bug: a report with every phase has a legend that is wider than the page."""
    for count in (2, 4, 12):
        report = fake_report(count)
        phases = ["waiting", "stopped", "distilling", "learning"]
        for (name, task), phase in zip(report["tasks"].items(), phases, strict=False):
            task["phase"] = phase
            if phase == "waiting":
                task["converged_step"] = None
                report["events"] = [event for event in report["events"] if event["task"] != name]
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


def happened(event: str, step: int, teacher_step: int | None = None) -> dict[str, Any]:
    return {"step": step, "task": "match", "event": event, "teacher_step": teacher_step}


@pytest.mark.parametrize(
    ("phase", "events", "expected"),
    [
        ("waiting", [], [("waiting", 100, 1900)]),
        ("distilling", [], [("distilling", 100, 1900)]),  # its teacher is from outside
        ("learning", [("joined", 600)], [("waiting", 100, 600), ("learning", 600, 1900)]),
        (
            "stopped",
            [("joined", 600), ("converged", 1100), ("rolled_back", 1100)],
            [("waiting", 100, 600), ("learning", 600, 1100), ("stopped", 1100, 1900)],
        ),
        ("distilling", [("converged", 500)], [("learning", 100, 500), ("distilling", 500, 1900)]),
    ],
)
def test_each_stretch_has_the_color_of_its_phase(
    phase: str,
    events: list[tuple[str, int]],
    expected: list[tuple[str, int, int]],
    tmp_path: Path,
    figures: list[Figure],
) -> None:
    """Bug: a task that waited, or that has converged, is drawn in the one color of its last phase."""
    report = fake_report(1)
    task = report["tasks"]["match"]
    convergences = [step for event, step in events if event == "converged"]
    converged = phase in ("distilling", "stopped")
    task |= {"phase": phase, "converged_step": max([0, *convergences]) if converged else None}
    other = {**happened("converged", 300), "task": "another"}
    report["events"] = [other, *(happened(event, step) for event, step in events)]
    plots.plot_curves(report, tmp_path / "curves.png")
    lines = [line for line in figures[0].axes[0].lines if line.get_marker() == "."]
    colors = [plots._PHASE_COLORS[phase] for phase, _, _ in expected]
    assert [line.get_color() for line in lines] == colors
    history = [(step, value) for step, value in task["history"]]
    assert [data(line) for line in lines] == [[p for p in history if a <= p[0] <= b] for _, a, b in expected]
    dotted = [data(line)[0][0] for line in figures[0].axes[0].lines if line.get_linestyle() == ":"]
    assert dotted == convergences


def test_task_with_a_teacher_from_outside_has_no_star(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: a teacher that was never scored is drawn at None."""
    report = fake_report(1)
    report["events"] = []
    report["tasks"]["match"] |= {"converged_step": 0, "teacher_step": None, "teacher_value": None}
    plots.plot_curves(report, tmp_path / "curves.png")
    assert curves(figures[0], 0, "*") == []


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
    with pytest.raises(ValueError, match=r"needs a finished run"):
        plots.plot_retention(fake_report(ended=False), tmp_path / "retention.png")
    assert not list(tmp_path.iterdir())


def fake_conflicts(count: int) -> dict[str, Any]:
    """Cosines of tasks with long and short names; of the first and the last task, none was measured."""
    names = [f"task_{i}" + "_with_quite_a_long_name" * (i % 2) for i in range(count)]
    generator = np.random.default_rng(0)
    cosines = np.tanh(generator.normal(scale=0.3, size=(count, count)))
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1)
    rows = cosines.tolist()
    rows[0][-1] = rows[-1][0] = None
    return {"tasks": names, "cosines": rows}


@pytest.mark.parametrize("count", [2, 5, 9])
def test_conflicts_without_overlaps(count: int, tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: long names run over each other, the cells or off the page."""
    plots.plot_conflicts(fake_conflicts(count), tmp_path / "plots" / "conflicts.png")
    assert (tmp_path / "plots" / "conflicts.png").read_bytes().startswith(b"\x89PNG")
    assert overlap(figures[0]) == []


def test_each_pair_has_one_cell_under_its_names(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: the cosines stand in the wrong row or column, a pair stands there twice, or an unknown one as 0 or nan."""
    cosines = [[1.0, -0.004, None], [-0.004, 1.0, 0.123], [None, 0.123, 1.0]]
    plots.plot_conflicts({"tasks": ["a", "b", "c"], "cosines": cosines}, tmp_path / "conflicts.png")
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c"]
    placed = {text.get_text(): text.get_position() for text in axes.texts}
    assert {name: placed.pop(name)[0] for name in ("a", "b")} == {"a": -0.45, "b": 0.55}
    assert placed == {"0.00": (0, 0), "-": (0, 1), "0.12": (1, 1)}


def test_colors_of_conflicts_are_even_about_zero(tmp_path: Path, figures: list[Figure]) -> None:
    """Bug: white is the mean and not 0, or tiny cosines look like strong ones."""
    for cosine, limit in ((0.01, 0.2), (-0.7, 0.7)):
        plots.plot_conflicts({"tasks": ["a", "b"], "cosines": [[1, cosine], [cosine, 1]]}, tmp_path / "conflicts.png")
        assert figures[-1].axes[0].images[0].get_clim() == (-limit, limit)


def test_conflicts_are_drawn_where_there_are_some(tmp_path: Path) -> None:
    """Bug: a run that measured no conflicts, or has one task, fails at its last plot."""
    report = fake_report(2)
    assert [path.name for path in plots.draw(report, tmp_path)] == ["curves.png", "retention.png"]
    report["conflicts"] = {"tasks": ["match"], "cosines": [[1.0]]}
    assert [path.name for path in plots.draw(report, tmp_path)] == ["curves.png", "retention.png"]
    report["conflicts"] = fake_conflicts(2)
    drawn = plots.draw(report, tmp_path)
    assert drawn == [tmp_path / "plots" / name for name in ("curves.png", "retention.png", "conflicts.png")]
    assert all(path.is_file() for path in drawn)


def test_no_global_state() -> None:
    """Bug: importing the package takes over pyplot of the user's notebook, or needs a display."""
    assert not [name for name, module in vars(plots).items() if module is sys.modules.get("matplotlib.pyplot")]
