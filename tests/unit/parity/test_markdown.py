from __future__ import annotations

import dataclasses
import re

import pytest

from edgetune.core.bundle import NOT_RUN
from edgetune.parity.markdown import MOST_CHARACTERS, report_markdown
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck
from tests.unit.parity.sample_reports import BAD, GOOD, HOSTILE, REPORT, big_report, hostile_report


def _only(entry: ParityEntry) -> ParityReport:
    return dataclasses.replace(REPORT, artifacts=(entry,))


def _cells(line: str) -> list[str]:
    """A row's cells as Markdown splits them: at every bar that no backslash stands before."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_verdict_comes_first_then_the_table() -> None:
    lines = report_markdown(REPORT).splitlines()
    assert lines[0] == "## Parity: FAIL"
    assert lines[2] == "1 of 3 artifacts failed: model.int8.tensorrt.onnx."
    table = [_cells(line) for line in lines if line.startswith("|")][:5]
    assert table[0][:3] == ["artifact", "verdict", "images"]
    assert table[1] == ["---"] * 8
    assert table[3] == [
        "<code>model.int8.tensorrt.onnx</code>", "FAIL", "153", "3.91", "9.5", "84.97%", "81.70%", "95.42%",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "### <code>model.int8.tensorrt.onnx</code>: FAIL",
        "- accuracy drops by 13.73% (21 of 153 images), expected at most 1.00%",
        "- differs first at the stage: features",
        "- likely: one block is far below what calibration recorded; the ranges are of other images",
        "- breaks at: blocks.3.0 (backbone.blocks.3.0): saturation",
        "- keeps it in float: --keep-float blocks.3.0",
        "```sh",
        "python repro/run_block.py --block blocks.3.0 --images repro/images.npy",
        "<details><summary>3 variations</summary>",
        "<details><summary>4 stages</summary>",
        "### <code>model.fp16.onnx</code>: NOT-RUN",
        "- the engine needs an NVIDIA GPU, and this machine has none",
    ],
)
def test_a_failure_is_told_in_full(line: str) -> None:
    assert line in report_markdown(REPORT).splitlines()


def test_what_passed_has_its_row_and_nothing_else() -> None:
    text = report_markdown(_only(GOOD))
    assert "###" not in text
    assert text.count("model.onnx") == 1


def test_every_table_has_rows_of_one_length_whatever_the_names_are() -> None:
    for report in (REPORT, hostile_report()):
        tables = re.findall(r"(?:^\|.*\n)+", report_markdown(report), re.MULTILINE)
        assert len(tables) == 3
        for table in tables:
            assert len({len(_cells(line)) for line in table.splitlines()}) == 1


def test_names_neither_become_html_nor_markdown() -> None:
    text = re.sub(r"```+sh\n.*?\n```+\n", "", report_markdown(hostile_report()), flags=re.DOTALL)
    assert set(re.findall("<[^>]*>", text)) == {
        "<code>",
        "</code>",
        "<details>",
        "</details>",
        "<summary>",
        "</summary>",
    }
    assert "`" not in text
    assert "*" not in text
    assert not set(text) & {"\x1b", "\x00", "\u202e", "\udc80"}
    assert "&#64;octocat" not in re.sub("<code>.*?</code>", "", text)  # no mention outside of code
    assert "&#60;script&#62;alert(1)&#60;/script&#62;&#124;&#96;x&#96;&#42;&#95;" in text


@pytest.mark.parametrize(
    "start", ["- x", "+ x", "1. x", "12) x", "= x", "# x", "> x", "~~~ x", "* x", "www.x.y", "a://b"]
)
def test_a_reason_is_text_whatever_it_starts_with(start: str) -> None:
    text = report_markdown(_only(dataclasses.replace(BAD, reasons=(start,), remarks=())))
    assert f"- {start}" not in text
    mark = re.search(r"^- (\d*&#\d+;|www&#46;|a&#58;)", text, re.MULTILINE)
    assert mark is not None


def test_the_fence_is_longer_than_any_in_the_command() -> None:
    assert BAD.localisation is not None
    found = dataclasses.replace(BAD.localisation, repro="a\n````\nb")
    assert "`````sh\na\n````\nb\n`````\n" in report_markdown(_only(dataclasses.replace(BAD, localisation=found)))


def test_a_common_stage_that_failed_is_told() -> None:
    report = dataclasses.replace(REPORT, stages=(StageCheck("pixels", "FAIL", 9.0, 0.0, "resize|differs"),))
    assert "- stage <code>pixels</code>: FAIL. resize&#124;differs" in report_markdown(report)


@pytest.mark.parametrize("artifacts", [10, 60, 400])
def test_it_fits_into_a_comment_and_says_what_did_not(artifacts: int) -> None:
    text = report_markdown(big_report(artifacts, classes=10))
    assert len(text) <= MOST_CHARACTERS
    assert text.startswith("## Parity: FAIL")
    assert ("The rest did not fit" in text) is (artifacts > 10)
    if artifacts == 400:
        assert "| and 370 more |" in text


def test_long_hostile_texts_still_fit() -> None:
    long = "|" * 20_000
    entry = dataclasses.replace(BAD, artifact=long, reasons=(long,) * 20, variations=(), stages=())
    report = dataclasses.replace(REPORT, artifacts=(entry,) * 9, data=long)
    assert len(report_markdown(report)) <= MOST_CHARACTERS
    quiet = dataclasses.replace(entry, verdict=NOT_RUN, artifact=HOSTILE)
    assert len(report_markdown(dataclasses.replace(report, artifacts=(quiet,) * 9))) <= MOST_CHARACTERS
