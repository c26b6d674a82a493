from __future__ import annotations

import base64
import re

import pytest

from edgetune.core import html


def test_a_page_is_self_contained_and_escapes_its_words() -> None:
    text = html.page("<b>title", "lead & more", [html.heading("<h>"), html.paragraph("a < b")]).decode()
    assert text.startswith("<!doctype html>")
    assert "<h1>&lt;b&gt;title</h1>" in text
    assert "lead &amp; more" in text
    assert "<h2>&lt;h&gt;</h2><p>a &lt; b</p>" in text
    assert not re.search(r"<script|<link|https?:|src=|@import", text)


def test_a_table_sets_numbers_right_and_colours_verdicts() -> None:
    table = html.table(("file<", "images", "verdict"), [("a&b", 3, "PASS"), ("c", "1,024", "NOT-RUN")])
    assert table == (
        "<table><thead><tr><th>file&lt;</th><th class='number'>images</th><th>verdict</th></tr></thead><tbody>"
        "<tr><td>a&amp;b</td><td class='number'>3</td><td class='PASS'>PASS</td></tr>"
        "<tr><td>c</td><td class='number'>1,024</td><td class='NOT-RUN'>NOT-RUN</td></tr></tbody></table>"
    )


@pytest.mark.parametrize(
    ("value", "is_set_right"),
    [
        (7, True),
        (0.5, True),
        ("97.50%", True),
        ("1.2e-05", True),
        ("-", True),
        ("-3.5", True),
        ("3 files", False),
        ("a1", False),
    ],
)
def test_only_numbers_are_set_right(value: object, is_set_right: bool) -> None:
    assert ("<td class='number'>" in html.table(("column",), [(value,)])) is is_set_right


def test_a_table_without_rows_has_its_header() -> None:
    assert html.table(("a",), []) == "<table><thead><tr><th>a</th></tr></thead><tbody></tbody></table>"


def test_a_row_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        html.table(("a",), [(1, 2)])


def test_a_picture_carries_its_bytes() -> None:
    picture = html.picture(b"\x89PNG bytes", "it's <b>")
    (data,) = re.findall(r"src='data:image/png;base64,([^']*)'", picture)
    assert base64.b64decode(data) == b"\x89PNG bytes"
    assert "alt='it&#x27;s &lt;b&gt;'" in picture


def test_a_fragment_in_a_table_is_taken_as_it_is_and_its_words_are_escaped() -> None:
    table = html.table(("a", "b"), [(html.link("<x>", "there"), html.bar(0.25))])
    assert "<td><a href='#there'>&lt;x&gt;</a></td>" in table
    assert "<div class='bar' style='width:25%'></div>" in table
    assert "&lt;a" in html.table(("a",), [("<a>",)])


@pytest.mark.parametrize(
    "made",
    [
        html.verdict_heading("<b>&", "PASS", "x"),
        html.subheading("<b>&"),
        html.items(["<b>&"]),
        html.code("<b>&"),
        html.folded("<b>&", ""),
        html.cards([(None, ["<b>&"])]),
        html.box([html.paragraph("<b>&")], "FAIL"),
    ],
)
def test_every_part_escapes_its_words(made: str) -> None:
    assert "&lt;b&gt;&amp;" in made
    assert "<b>" not in made


def test_a_box_has_the_colour_of_its_verdict() -> None:
    kinds = [html.box([], verdict) for verdict in ("PASS", "FAIL", "NOT-RUN", "")]
    assert [re.findall("class='([^']*)'", box) for box in kinds] == [
        ["box good"],
        ["box bad"],
        ["box unknown"],
        ["box"],
    ]


def test_a_card_carries_its_picture() -> None:
    made = html.cards([(b"jpeg bytes", ["one"]), (None, ["two"])])
    (data,) = re.findall(r"src='data:image/jpeg;base64,([^']*)'", made)
    assert base64.b64decode(data) == b"jpeg bytes"
    assert made.count("class='card'") == 2
