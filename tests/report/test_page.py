"""The page of a run: one file that loads nothing, says what the run did, and fits a phone."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands_here import done
from fake_report import fake_report

from hf_async_mtl.report.page import make_page


class Reader(HTMLParser):
    """Texts, the addresses of what is loaded, and whether every tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.images: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)
        for name, content in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(content or "")
            if name == "alt":
                self.images.append(content or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_the_page_says_what_the_run_did() -> None:
    """Bug: a figure of another task or another step, a plot that is missing, a setting that nobody finds."""
    report = fake_report()
    page = Reader(make_page(report, "my run"))
    assert page.open == []
    assert "my run" in page.texts
    for name, task in report["tasks"].items():
        assert {name, task["metric"]} <= set(page.texts)
        assert f"Validation curve of {name}" in page.images
        assert f"{report['final']['tasks'][name]['value']:.4f}" in page.texts
    assert f"The saved checkpoint is that of step {report['final']['step']}." in page.texts
    assert {"Do the tasks peak apart?", report["diagnosis"]["answer"], "-0.0123"} <= set(page.texts)
    assert "Retention of each task" in page.images


def test_an_event_of_an_earlier_version() -> None:
    """Bug: there is no page for a run of an earlier version, whose tasks could return to their labels."""
    report = fake_report()
    report["events"] = [{"step": 200, "task": "match", "event": "returned", "teacher_step": None}]
    assert "returned" in Reader(make_page(report, "run")).texts


def test_the_page_loads_nothing() -> None:
    """Bug: a page that is opened without a network, or in years, has lost its style or its plots."""
    page = make_page(fake_report(), "run")
    found = Reader(page)
    assert found.addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in found.addresses)
    assert not found.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in page
    assert "@import" not in page
    for address in found.addresses:
        svg = base64.b64decode(address.partition(",")[2]).decode()
        # Namespaces and the drawing program's own licence text are names; nothing else is looked up.
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_a_run_that_goes_on() -> None:
    """Bug: a page cannot be made before the end."""
    report = fake_report(ended=False)
    page = Reader(make_page(report, "run"))
    assert "The run is not finished." in page.texts
    assert "Do the tasks peak apart?" not in page.texts
    assert "Retention of each task" not in page.images
    assert "retention" not in page.texts


def test_names_are_no_markup() -> None:
    """Bug: a name with an angle bracket runs as a script in the reader's browser."""
    report = json.loads(json.dumps(fake_report()).replace('"match"', '"<script>alert(1)</script>"'))
    page = make_page(report, "<b>run</b>")
    assert "script" not in Reader(page).tags
    assert "<b>run</b>" in Reader(page).texts


def write_page(folder: Path) -> Path:
    folder.mkdir()
    (folder / "convergence.json").write_text(json.dumps(fake_report()))
    assert str(folder / "report.html") in done("report", folder, "--html")
    return folder / "report.html"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    """Bug: the page has another name."""
    page = write_page(tmp_path / "my-run").read_text(encoding="utf-8")
    assert "my-run" in Reader(page).texts


MEASURE = """<iframe width={width} height=900 src=report.html></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const images = [...page.images].every(image => image.complete && image.naturalWidth > 0);
  document.title = JSON.stringify([page.documentElement.scrollWidth, page.images.length, images]);
}}
</script>"""


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_in_a_browser(width: int, tmp_path: Path) -> None:
    """Bug: the page is wider than a phone, or a browser cannot draw a plot."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("There is no Chromium here.")
    page = write_page(tmp_path / "run")
    (page.parent / "measure.html").write_text(MEASURE.format(width=width))
    command: list[Any] = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    found = subprocess.run(
        [*command, page.with_name("measure.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search("<title>(.*?)</title>", found.stdout)
    assert title, found.stdout[:500]
    across, images, drawn = json.loads(title[1])
    assert across <= width
    assert images >= 5
    assert drawn
