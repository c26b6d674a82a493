from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.parity.junit import report_junit
from edgetune.parity.records import ParityReport, StageCheck
from edgetune.parity.wording import visible
from tests.unit.parity.sample_reports import BAD, HOSTILE, REPORT, big_report, hostile_report

# What Jenkins' schema (junit-10.xsd of its xUnit plugin) lets each element have.
_ATTRIBUTES = {
    "testsuites": {"name", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "timestamp"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname"},
    "failure": {"type", "message"},
    "skipped": {"message"},
    "system-out": set(),
}
_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"failure", "skipped", "system-out"},
}


def _suite(report: ParityReport) -> ElementTree.Element:
    root = ElementTree.fromstring(report_junit(report))
    (suite,) = root
    return suite


def _cases(report: ParityReport) -> dict[str, ElementTree.Element]:
    return {case.get("name", ""): case for case in _suite(report).iter("testcase")}


@pytest.mark.parametrize(
    "report", [REPORT, hostile_report(), big_report(3, 10), dataclasses.replace(REPORT, artifacts=(), stages=())],
    ids=["usual", "hostile", "big", "empty"],
)  # fmt: skip
def test_it_has_the_shape_that_ci_reads(report: ParityReport) -> None:
    root = ElementTree.fromstring(report_junit(report))
    for element in root.iter():
        assert set(element.attrib) <= _ATTRIBUTES[element.tag]
        assert {child.tag for child in element} <= _CHILDREN.get(element.tag, set())
    (suite,) = root
    cases = suite.findall("testcase")
    assert len(cases) == len(report.artifacts) + len(report.stages)
    for counted in (root, suite):
        assert counted.get("tests") == str(len(cases))
        assert counted.get("failures") == str(sum(case.find("failure") is not None for case in cases))
        assert counted.get("errors") == "0"
    assert suite.get("skipped") == str(sum(case.find("skipped") is not None for case in cases))
    assert {case.get("classname") for case in cases} <= {"edgetune.parity"}


def test_a_verdict_is_a_result() -> None:
    cases = _cases(REPORT)
    assert list(cases) == [
        "stage pixels", "stage normalised", "model.onnx", "model.int8.tensorrt.onnx", "model.fp16.onnx",
    ]  # fmt: skip
    assert [child.tag for child in cases["model.onnx"]] == ["system-out"]
    failure = cases["model.int8.tensorrt.onnx"].find("failure")
    assert failure is not None
    assert failure.get("message") == "; ".join(BAD.reasons)
    assert failure.text is not None
    assert BAD.localisation is not None
    for line in (*BAD.reasons, "differs first at the stage: features", BAD.localisation.repro):
        assert line in failure.text
    skipped = cases["model.fp16.onnx"].find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "the engine needs an NVIDIA GPU, and this machine has none"


@pytest.mark.parametrize(("verdict", "tags"), [(PASS, []), (FAIL, ["failure"]), (NOT_RUN, ["skipped"])])
def test_a_common_stage_is_a_case(verdict: str, tags: list[str]) -> None:
    report = dataclasses.replace(REPORT, stages=(StageCheck("pixels", verdict, 2.0, 1.0, "the resize differs"),))
    case = _cases(report)["stage pixels"]
    assert [child.tag for child in case] == [*tags, "system-out"]
    assert all(case.find(tag).get("message") == "the resize differs" for tag in tags)  # type: ignore[union-attr]
    told = "" if tags else "\nthe resize differs"
    assert case.findtext("system-out") == "max abs diff: 2\nlimit: 1" + told


def test_checks_of_one_name_are_told_apart() -> None:
    stage = StageCheck("pixels", PASS, 0.0, 0.0)
    report = dataclasses.replace(REPORT, stages=(stage,) * 3, artifacts=(BAD, BAD))
    title = "model.int8.tensorrt.onnx on onnxruntime CPU"
    assert list(_cases(report)) == ["stage pixels", "stage pixels (2)", "stage pixels (3)", title, f"{title} (2)"]


def test_the_figures_are_properties_and_output() -> None:
    properties = {each.get("name"): each.get("value") for each in _suite(REPORT).iter("property")}
    assert properties["verdict"] == FAIL
    assert properties["data"] == "data/hymenoptera"
    assert properties["onnxruntime"] == "1.23.2"
    assert properties["model.int8.tensorrt.onnx: SQNR dB"] == "9.5"
    assert properties["model.int8.tensorrt.onnx: accuracy"] == "81.70%"
    assert properties["model.fp16.onnx: runner"] == "tensorrt-rtx 1.1"
    output = _cases(REPORT)["model.onnx"].findtext("system-out")
    assert output is not None
    assert "images: 153\n" in output
    assert "The accuracy drop is 0.00%" in output


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        ("2026-03-04T05:06:07+00:00", "2026-03-04T05:06:07"),
        ("2026-03-04T05:06:07+02:00", "2026-03-04T03:06:07"),
        ("yesterday", None),
    ],
)
def test_the_timestamp_is_utc_or_not_there(created: str, expected: str | None) -> None:
    assert _suite(dataclasses.replace(REPORT, created=created)).get("timestamp") == expected


def test_no_time_is_invented() -> None:
    assert b"time=" not in report_junit(REPORT)


def test_any_name_is_legal_and_readable_xml() -> None:
    data = report_junit(hostile_report())
    assert b"<script" not in data
    name = visible(HOSTILE)
    assert name in {case.get("name") for case in ElementTree.fromstring(data).iter("testcase")}
