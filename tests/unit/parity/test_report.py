from __future__ import annotations

import dataclasses

import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck
from edgetune.parity.report import COLUMNS, remark_lines, remarks, report_rows, titles
from tests.unit.parity.sample_reports import BAD, GOOD, REPORT, UNJUDGED, hostile_report


def _report(*entries: ParityEntry) -> ParityReport:
    return dataclasses.replace(REPORT, artifacts=entries)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (BAD, (FAIL, "153", "3.91", "9.5", "84.97%", "81.70%", "95.42%")),
        (
            dataclasses.replace(GOOD, max_abs_diff=0.0, sqnr_db=None),
            (PASS, "153", "0", "exact", "100.00%", "95.42%", "95.42%"),
        ),
        (
            dataclasses.replace(GOOD, reference_accuracy=None, candidate_accuracy=None),
            (PASS, "153", "5.25e-06", "127.4", "100.00%", "-", "-"),
        ),
        (UNJUDGED, (NOT_RUN, "0", "-", "-", "-", "-", "-")),
    ],
    ids=["figures", "exact", "no labels", "not run"],
)
def test_a_row_of_the_table_is_readable(entry: ParityEntry, expected: tuple[str, ...]) -> None:
    (row,) = report_rows(_report(entry))
    assert row == (entry.artifact, *expected)
    assert len(row) == len(COLUMNS)


def test_an_artifact_that_several_things_ran_is_told_apart() -> None:
    on_gpu = dataclasses.replace(BAD, artifact=GOOD.artifact, runner="tensorrt")
    report = _report(GOOD, UNJUDGED, on_gpu)
    expected = ["model.onnx on onnxruntime CPU", "model.fp16.onnx", "model.onnx on tensorrt"]
    assert titles(report) == expected
    assert [row[0] for row in report_rows(report)] == expected
    assert list(dict.fromkeys(title for title, _ in remarks(report))) == expected


def test_remarks_go_from_reasons_to_the_command_that_repeats_the_fault() -> None:
    said = [text for _, text in remarks(_report(BAD))]
    assert said == [
        *BAD.reasons,
        *BAD.remarks,
        "differs first at the stage: features",
        f"likely: {BAD.diagnosis}",
        "breaks at: blocks.3.0 (backbone.blocks.3.0): saturation",
        "31 % of the values lie beyond the range that calibration chose (-2.1 to 2.1; seen -9.8 to 11.3)",
        "keeps it in float: --keep-float blocks.3.0",
        "repeat it: python repro/run_block.py --block blocks.3.0 --images repro/images.npy # compares 8 images",
    ]


def test_a_localisation_without_a_culprit_says_so() -> None:
    assert BAD.localisation is not None
    found = dataclasses.replace(BAD.localisation, culprit="", module="", kind="", option="", repro="")
    said = [text for _, text in remarks(_report(dataclasses.replace(BAD, localisation=found)))]
    assert said[-2:] == ["breaks at: no block stands out", found.explanation]


def test_a_common_stage_is_told_of_unless_it_passed() -> None:
    stages = (StageCheck("pixels", PASS, 0.0, 0.0), StageCheck("normalised", FAIL, 0.5, 0.1, "mean differs"))
    report = dataclasses.replace(_report(GOOD), stages=stages)
    assert remarks(report)[0] == ("stage normalised", "FAIL: mean differs")
    assert not any(title == "stage pixels" for title, _ in remarks(report))


def test_remark_lines_stand_below_their_titles_and_keep_to_the_width() -> None:
    lines = remark_lines(REPORT)
    assert [line for line in lines if not line.startswith(" ")] == [
        "model.onnx:",
        "model.int8.tensorrt.onnx:",
        "model.fp16.onnx:",
    ]
    assert max(map(len, lines)) <= 100
    assert "  differs first at the stage: features" in lines
    joined = " ".join(" ".join(lines).split())
    assert all(" ".join(text.split()) in joined for _, text in remarks(REPORT))


def test_a_long_word_is_not_broken() -> None:
    command = "python " + "x" * 150
    assert BAD.localisation is not None
    found = dataclasses.replace(BAD.localisation, repro=command)
    lines = remark_lines(_report(dataclasses.replace(BAD, localisation=found)))
    assert "    " + "x" * 150 in lines


def test_no_name_reaches_the_terminal_with_what_it_obeys() -> None:
    report = hostile_report()
    text = "\n".join([*remark_lines(report), *(cell for row in report_rows(report) for cell in row)])
    assert not set(text) & {"\x1b", "\x00", "\u202e", "\udc80"}
    assert "\\u001b[31m" in text
    assert "\\u202egpj.exe" in text
    assert all("\n" not in cell for row in report_rows(report) for cell in row)
