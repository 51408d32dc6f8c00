"""The tables of a run, on a terminal and in a file."""

import io
import re

import pytest
from fake_report import fake_report

from hf_async_mtl.report.tables import PHASE_STYLES, final_table, final_tables, progress_table, render


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "JPY_PARENT_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def rows(text: str) -> list[list[str]]:
    """The cells below the rule, row by row."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if set(line) == {"-"})
    return [line.split() for line in lines[rule + 1 :]]


def test_progress_shows_every_task_with_its_own_figures() -> None:
    """Bug: a row shows another task's value, or best and last are swapped."""
    report = fake_report()
    expected = [
        [
            name,
            task["phase"],
            task["metric"],
            f"{task['last']:.4f}",
            f"{task['best']:.4f}",
            str(task["best_step"]),
            "-" if task["converged_step"] is None else str(task["converged_step"]),
        ]
        for name, task in report["tasks"].items()
    ]
    assert rows(render(progress_table(report), io.StringIO())) == expected


def test_progress_title_is_one_line_with_step_epoch_and_average() -> None:
    """Bug: the title breaks over two lines, or shows an epoch that nobody gave."""
    report = fake_report()
    with_epoch = render(progress_table(report, epoch=2.314), io.StringIO()).splitlines()[0]
    without = render(progress_table(report), io.StringIO()).splitlines()[0]
    assert with_epoch == f"step {report['step']}   epoch 2.31   average {report['average']:.4f}"
    assert without == f"step {report['step']}   average {report['average']:.4f}"


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_values_are_a_dash(missing: float | None) -> None:
    """Bug: a metric that is undefined at the first evaluation kills the run in a format string, or prints 'nan'."""
    report = fake_report(ended=False)
    report["average"] = missing
    report["tasks"]["match"] |= {"last": missing, "best": missing, "best_step": None, "converged_step": None}
    text = render(progress_table(report), io.StringIO())
    assert text.splitlines()[0].endswith("average -")
    assert rows(text)[0][3:] == ["-", "-", "-", "-"]


def test_file_gets_plain_ascii() -> None:
    """Bug: a log file is full of escape codes, or a pipe with an ASCII encoding raises UnicodeEncodeError."""
    report = fake_report(12)
    report["tasks"]["a_name" * 20] = report["tasks"].pop("stars")
    for part in ("final", "diagnosis"):
        report[part]["tasks"]["a_name" * 20] = report[part]["tasks"].pop("stars")
    for table in (progress_table(report, epoch=1.0), final_tables(report)):
        text = render(table, io.StringIO())
        assert text.isascii()
        assert "\x1b" not in text
        assert all(line == line.rstrip() and len(line) <= 100 for line in text.splitlines())


def test_terminal_gets_a_color_for_each_phase() -> None:
    """Bug: two phases look alike on a terminal, or the phase is not colored at all."""
    report = fake_report(4)
    for task, phase in zip(report["tasks"].values(), PHASE_STYLES, strict=True):
        task["phase"] = phase
    text = render(progress_table(report), Terminal())
    codes = {phase: text.split(phase)[0].rsplit("\x1b[", 1)[1] for phase in PHASE_STYLES}
    assert len(set(codes.values())) == len(PHASE_STYLES)
    assert all(code.endswith("m") and code != "0m" for code in codes.values())


@pytest.mark.parametrize("width", [60, 80])
def test_terminal_is_never_overrun(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: lines longer than the terminal wrap, and no column stands under its header any more."""
    monkeypatch.setenv("COLUMNS", str(width))
    for table in (progress_table(fake_report(12)), final_tables(fake_report(12))):
        text = re.sub(r"\x1b\[[0-9;]*m", "", render(table, Terminal()))
        assert max(len(line) for line in text.splitlines()) <= width


def test_eighty_columns_hold_the_longest_metric_on_one_line() -> None:
    """Bug: at the usual width a row folds over two lines, because of one long metric name."""
    for table in (progress_table(fake_report()), final_table(fake_report())):
        assert len(render(table, Terminal()).splitlines()) == 3 + 5


def test_names_in_brackets_are_no_markup() -> None:
    """Bug: rich takes a metric such as `org/metric[v2]` for a style and drops half of its name."""
    report = fake_report(1)
    report["tasks"]["match"]["metric"] = "org/metric[bold]"
    assert "org/metric[bold]" in render(progress_table(report), io.StringIO())


def test_final_table_shows_the_saved_checkpoint() -> None:
    """Bug: the final table shows the last evaluation in place of the saved checkpoint."""
    report = fake_report()
    report["final"]["tasks"]["category"]["retention"] = None
    text = render(final_table(report), io.StringIO())
    final = report["final"]
    assert text.splitlines()[0] == f"final checkpoint: step {final['step']}   average {final['average']:.4f}"
    for row, (name, end) in zip(rows(text), final["tasks"].items(), strict=True):
        retention = "-" if end["retention"] is None else f"{100 * end['retention']:.1f}%"
        assert (row[0], row[2], row[-1]) == (name, f"{end['value']:.4f}", retention)


def test_the_end_of_a_run_answers_whether_its_tasks_peak_apart() -> None:
    """A task had the headroom of another, the sentence was cut, or a run of version 0.1 had no table any more."""
    report = fake_report()
    report["diagnosis"]["tasks"]["stars"] = dict.fromkeys(report["diagnosis"]["tasks"]["stars"])
    text = render(final_tables(report), io.StringIO())
    first, second = text.split("\n\n")
    assert first == render(final_table(report), io.StringIO())
    table, answer = second.splitlines()[:-2], " ".join(second.splitlines()[-2:])
    assert table[0] == "Do the tasks peak apart?"
    assert rows("\n".join(table)) == [
        [name, *(["-"] * 4 if name == "stars" else [str(task["teacher_step"]), "2.5", "-0.0123", "0.0042"])]
        for name, task in report["tasks"].items()
    ]
    assert answer == report["diagnosis"]["answer"]
    del report["diagnosis"]
    assert render(final_tables(report), io.StringIO()) == first


def test_final_table_of_a_running_run_says_what_to_use() -> None:
    """Bug: `report` on a running run dies with a bare KeyError: 'final'."""
    with pytest.raises(ValueError, match=r"Use progress_table"):
        final_table(fake_report(ended=False))
