from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser

import pytest

from edgetune.core.run import Skipped
from edgetune.parity import page, plots
from edgetune.parity.page import report_html
from edgetune.parity.records import ClassResult, Flip, ParityEntry, ParityReport
from edgetune.parity.wording import titles
from tests.unit.parity.sample_reports import (
    BAD,
    BLOCKS,
    GOOD,
    HOSTILE,
    REPORT,
    UNJUDGED,
    big_report,
    hostile_report,
    logits_pair,
    thumbnail,
)

_VOID = {"meta", "img"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take half a second each; a test that is about them asks for `drawing`."""
    monkeypatch.setattr(page, "can_draw", lambda: False)


@pytest.fixture
def drawing(_quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(page, "can_draw", plots.can_draw)


class _Reader(HTMLParser):
    """What a browser would see: elements that are opened and closed in order, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _text(report: ParityReport) -> str:
    return report_html(report).decode()


def _only(entry: ParityEntry) -> ParityReport:
    return dataclasses.replace(REPORT, artifacts=(entry,))


def test_the_verdict_comes_first_with_one_sentence_and_the_table() -> None:
    words = _Reader(_text(REPORT)).words
    assert words.index("Parity: FAIL", 1) < words.index("1 of 3 artifacts failed: model.int8.tensorrt.onnx.")
    assert words.index("1 of 3 artifacts failed: model.int8.tensorrt.onnx.") < words.index("reference accuracy")
    assert "Every artifact against torch cpu, from file bytes to label, on data/hymenoptera." in _text(REPORT)


def test_the_table_leads_to_a_section_an_artifact() -> None:
    text = _text(REPORT)
    for number, (title, entry) in enumerate(zip(titles(REPORT), REPORT.artifacts, strict=True), start=1):
        assert f"<a href='#artifact-{number}'>{title}</a>" in text
        assert f"<h2 id='artifact-{number}'>{title} <span class='{entry.verdict}'>{entry.verdict}</span></h2>" in text


@pytest.mark.parametrize(
    "words",
    [
        *BAD.reasons,
        *BAD.remarks,
        "differs first at the stage: features",
        f"likely: {BAD.diagnosis}",
        "The accuracy drop is 13.73% (95 % interval 7.95% to 18.82%).",
        "Where it breaks, on 16 images",
        "breaks at: blocks.3.0 (backbone.blocks.3.0): saturation",
        "keeps it in float: --keep-float blocks.3.0",
        "python repro/run_block.py --block blocks.3.0 --images repro/images.npy",
        "5 steps, expected at most 4",
        "this machine has one core",
        "the same graph in exact integers",
        "9.4 dB, expected at least 20 dB",
        "2 of 2 classes lost images, 0 gained some; 1 lost more than the gate allows and chance explains.",
        "Images whose label changed: 23",
        "ants/1000_ab12cd34.jpg",
        "margin 3, clear",
        "margin 0.136, near tie",
        "val/ants/imageNotFound.gif",
        "the engine needs an NVIDIA GPU, and this machine has none",
    ],
)
def test_the_page_tells(words: str) -> None:
    assert words in "\n".join(_Reader(_text(REPORT)).words)


def test_what_was_not_measured_has_no_heading() -> None:
    text = _text(dataclasses.replace(_only(UNJUDGED), skipped=(), stages=()))
    headings = re.findall("<h[23][^>]*>([^<]*)", text)
    assert headings == ["model.fp16.onnx ", "What ran", "Machine"]


def test_a_column_without_any_value_is_left_out() -> None:
    (table,) = re.findall("From file bytes to label</h3>(<table>.*?</table>)", _text(_only(GOOD)))
    assert re.findall("<th(?: [^>]*)?>([^<]*)", table) == ["stage", "verdict", "max abs diff", "limit"]


def test_the_culprit_is_marked_and_a_long_table_folded_away() -> None:
    assert "▸\u00a0blocks.3.0" in _text(REPORT)
    assert "<details>" not in _text(REPORT)
    assert BAD.localisation is not None
    found = dataclasses.replace(BAD.localisation, blocks=(*BLOCKS, *BLOCKS))
    assert "<summary>All 36 blocks</summary>" in _text(_only(dataclasses.replace(BAD, localisation=found)))


def test_of_a_huge_network_the_worst_blocks_are_shown_in_graph_order() -> None:
    assert BAD.localisation is not None
    blocks = tuple(
        dataclasses.replace(BLOCKS[1], block=f"block{number}", injected_db=float(number))
        for number in range(600, 0, -1)
    )
    found = dataclasses.replace(BAD.localisation, blocks=blocks)
    shown = [
        int(number)
        for number in re.findall(r"<td>block(\d+)</td>", _text(_only(dataclasses.replace(BAD, localisation=found))))
    ]
    assert shown == list(range(400, 0, -1))


def test_classes_that_chance_does_not_explain_come_first_and_then_the_worst() -> None:
    results = (
        ClassResult(0, 10, 9, 9, is_proven=False),
        ClassResult(1, 10, 9, 8, is_proven=True),
        ClassResult(2, 10, 9, 4, is_proven=False),
        ClassResult(3, 10, 5, 9, is_proven=False),
    )
    report = dataclasses.replace(_only(dataclasses.replace(BAD, per_class=results)), class_names=tuple("abcd"))
    (table,) = re.findall("By class</h3>.*?<tbody>(.*?)</tbody>", _text(report))
    assert re.findall("<tr><td>([^<]*)", table) == ["b", "c", "d"]
    assert "<div class='bar' style='width:50%'>" in table
    assert "<div class='bar gain' style='width:40%'>" in table


def test_clear_flips_come_first_and_at_most_24() -> None:
    flips = (
        *(Flip(f"tie{number}.jpg", "0", 0, 0, 1, 9.0, is_tie=True) for number in range(10)),
        *(Flip(f"clear{number:02d}.jpg", "0", 0, 0, 1, float(number), is_tie=False) for number in range(20)),
    )
    entry = dataclasses.replace(BAD, flips=flips, images=100, top1_agreement=0.6)
    text = _text(_only(entry))
    shown = re.findall("<div>((?:tie|clear)[^<]*).jpg</div>", text)
    assert shown == [*(f"clear{number:02d}" for number in range(19, -1, -1)), "tie0", "tie1", "tie2", "tie3"]
    assert "Images whose label changed: 40, the clearest 24 of them" in text


def test_a_thumbnail_stands_with_its_image() -> None:
    jpeg = thumbnail()
    (first, *_) = BAD.flips
    text = report_html(REPORT, {}, {first.sha256: jpeg}).decode()
    (data, words) = re.findall("data:image/jpeg;base64,([^']*)' alt=''><div>([^<]*)", text)[0]
    assert base64.b64decode(data) == jpeg
    assert first.file.endswith(words)


def test_nothing_hostile_gets_through() -> None:
    text = report_html(hostile_report(), {}, {}).decode()
    assert "<script" not in text
    assert not re.search(r"https?:|@import|<link", text)
    assert not set(text) & {"\x1b", "\x00", "\u202e"}
    reader = _Reader(text)
    assert reader.open == []
    assert reader.tags <= {
        "html", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th",
        "td", "ul", "li", "pre", "details", "summary", "a", "figure", "img", "span",
    }  # fmt: skip
    assert any("<script>alert(1)</script>" in words for words in reader.words)


def test_skipped_files_are_listed_as_far_as_somebody_would_read() -> None:
    report = dataclasses.replace(REPORT, skipped=tuple(Skipped(f"{number}.gif", "no image") for number in range(130)))
    text = _text(report)
    assert text.count("no image") == 100
    assert "And 30 more." in text


@pytest.mark.usefixtures("drawing")
def test_plots_are_drawn_of_the_pair_with_the_artifacts_title() -> None:
    title = titles(hostile_report())[0]
    assert title == HOSTILE
    with_plots = report_html(hostile_report(), {title: logits_pair()}).decode()
    assert with_plots.count("data:image/png") == 3  # blocks, histogram, scatter
    assert report_html(hostile_report(), {"another": logits_pair()}).decode().count("data:image/png") == 1


def test_without_matplotlib_the_page_has_tables_and_one_line_that_says_so() -> None:
    text = report_html(REPORT, {"model.onnx": logits_pair()}).decode()
    assert text.count("matplotlib cannot be imported here") == 1
    assert "data:image/png" not in text
    assert "matplotlib" not in _text(_only(GOOD))


@pytest.mark.usefixtures("drawing")
def test_a_page_of_ten_artifacts_with_a_thousand_classes_can_be_sent_about() -> None:
    two = big_report(2)
    pairs = {title: logits_pair(200, 1000) for title in titles(two)}
    drawn = report_html(two, pairs)
    assert drawn.count(b"data:image/png") == 6
    pictures = {f"{number:064x}": thumbnail(number) for number in range(60)}
    ten = report_html(big_report(10), {}, pictures)
    assert ten.count(b"data:image/jpeg") > 50
    assert 5 * len(drawn) + (len(ten) - len(report_html(big_report(10)))) < 1_500_000


def test_a_thumbnail_that_is_huge_is_left_out() -> None:
    (first, second, *_) = BAD.flips
    jpegs = {first.sha256: b"x" * 5_000_000, second.sha256: thumbnail()}
    data = report_html(REPORT, {}, jpegs)
    assert data.count(b"data:image/jpeg") == 1
    assert len(data) < 1_000_000
