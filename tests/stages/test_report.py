"""A report says all numbers with their spreads, and opens without a network and other files."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stages import report
from stages.report import Picture, Report
from stages.tables import Table


SAMPLES = {
    "classifier_fid_500": 0.2571,
    "classifier_fid_500_std": 0.031,
    "classifier_accuracy": 0.968,
}
HELD_OUT = {"classifier_fid_359": 0.087, "classifier_accuracy": 0.9916}


class Resources(HTMLParser):
    """Collects what a browser would fetch, and whether tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path: Path) -> Report:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(tmp_path / "pictures/grid.png")
    return Report(
        title="Evaluation <1>",
        summary="Compared with & by.",
        warnings=["fid_500 is too large <script>"],
        rows=report.rows(SAMPLES, HELD_OUT),
        tables=[Table("Where", [("commit", "abc"), ("run", "http://127.0.0.1:5000/#/runs/1")])],
        pictures=[Picture("Generated images", tmp_path / "pictures/grid.png", "The first ones.")],
        folder=tmp_path,
    )


def test_scores_stand_beside_those_of_real_images_whatever_their_counts() -> None:
    fid, accuracy = report.rows(SAMPLES, HELD_OUT)
    assert (fid.label, fid.better) == ("classifier FID", "less is better")
    assert (fid.samples, fid.held_out) == ("0.257 \N{PLUS-MINUS SIGN} 0.031", "0.087")
    assert (accuracy.samples, accuracy.held_out) == ("96.8%", "99.2%")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("fid", "FID"),
        ("fid_inf", "FID, extrapolated to infinitely many images"),
        ("sfid", "sFID"),
        ("is", "Inception Score"),
        ("inception_score", "Inception Score"),
        ("fd_dinov2", "dinov2 Frechet distance"),
        ("fd_dinov2_inf", "dinov2 Frechet distance, extrapolated to infinitely many images"),
        ("precision_dinov2", "dinov2 precision"),
        ("untrained_kid", "untrained KID"),
        ("something", "something"),
    ],
)
def test_scores_have_the_names_of_the_field(name: str, label: str) -> None:
    assert [row.label for row in report.rows({name: 1.0}, {})] == [label]


def test_a_browser_fetches_nothing_and_text_stays_text(page: Report) -> None:
    html = page.html()
    parser = Resources()
    parser.feed(html)
    assert parser.open == []
    data, link = parser.found
    assert link == "http://127.0.0.1:5000/#/runs/1"  # to be clicked
    content = base64.b64decode(data.removeprefix("data:image/png;base64,"))
    assert content == page.pictures[0].path.read_bytes()
    assert "<script>" not in html
    assert "fid_500 is too large &lt;script&gt;" in html
    assert not re.search(r"url\(|@import", html)


def test_markdown_says_the_same_and_refers_to_the_pictures(page: Report) -> None:
    text = page.markdown()
    assert (
        "| classifier FID | `classifier_fid_500` | 0.257 \N{PLUS-MINUS SIGN} 0.031 | 0.087 |"
        in text
    )
    assert "![Generated images](pictures/grid.png)" in text
    assert "| commit | `abc` |" in text
    assert "**Warning:** fid_500 is too large" in text


def test_nested_settings_are_told_by_their_keys() -> None:
    found = report.facts({"seed": 0, "classifier": {"width": 16, "path": None}})
    assert found == [("seed", "0"), ("classifier.width", "16"), ("classifier.path", "none")]


def test_a_curve_is_the_same_picture_every_time(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("step,loss\n1,2.0\n2,1.5\n3,1.2\n")
    first, second = (report.curve(tmp_path / "curves.csv", "loss", "loss") for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
