"""Parity's answer as JUnit XML, the form in which Jenkins, GitLab and GitHub's actions read tests."""

from __future__ import annotations

import datetime
from xml.etree import ElementTree

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck
from edgetune.parity.report import COLUMNS, report_rows
from edgetune.parity.wording import cleaned, localisation_words, number, statistics, titles

CLASS_NAME = "edgetune.parity"


def report_junit(report: ParityReport) -> bytes:
    """One suite with a test case a common stage and an artifact; what was not judged is skipped.

    The figures are properties of the suite, named `TITLE: FIGURE`, and the output of each case: Jenkins' schema knows
    no properties of a case. No times: parity measures none.
    """
    report = cleaned(report)
    suite = ElementTree.Element("testsuite", {"name": CLASS_NAME, **_timestamp(report)})
    properties = ElementTree.SubElement(suite, "properties")
    _add_properties(properties, "", [("verdict", report.verdict), ("data", report.data), *report.machine.items()])
    for name, stage in zip(
        _told_apart([f"stage {stage.stage}" for stage in report.stages]), report.stages, strict=True
    ):
        _add_stage(suite, name, stage)
    names = _told_apart(titles(report))
    for title, entry, row in zip(names, report.artifacts, report_rows(report), strict=True):
        figures = [("runner", entry.runner), ("reference", entry.reference), *zip(COLUMNS[1:], row[1:], strict=True)]
        _add_properties(properties, f"{title}: ", figures)
        _add_artifact(suite, title, entry, figures)
    counts = {
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": "0",
    }
    suite.attrib.update({**counts, "skipped": str(len(suite.findall("testcase/skipped")))})
    root = ElementTree.Element("testsuites", {"name": CLASS_NAME, **counts})
    root.append(suite)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _timestamp(report: ParityReport) -> dict[str, str]:
    """ISO 8601 as the schemas want it: in UTC, without the zone."""
    try:
        created = datetime.datetime.fromisoformat(report.created)
    except ValueError:
        return {}
    utc = created.astimezone(datetime.timezone.utc) if created.tzinfo is not None else created
    return {"timestamp": utc.strftime("%Y-%m-%dT%H:%M:%S")}


def _add_properties(properties: ElementTree.Element, prefix: str, figures: list[tuple[str, str]]) -> None:
    for name, value in figures:
        ElementTree.SubElement(properties, "property", {"name": prefix + name, "value": value})


def _told_apart(names: list[str]) -> list[str]:
    """With a number from the second of a name on: CI keeps one test of each name."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, before, strict=True)]


def _add_stage(suite: ElementTree.Element, name: str, stage: StageCheck) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": CLASS_NAME, "name": name})
    _add_verdict(case, stage.verdict, [stage.reason or stage.verdict], [])
    figures = [f"max abs diff: {number(stage.max_abs_diff)}", f"limit: {number(stage.limit)}"]
    _add_output(case, figures if stage.verdict != PASS else [*figures, stage.reason])


def _add_artifact(suite: ElementTree.Element, title: str, entry: ParityEntry, figures: list[tuple[str, str]]) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": CLASS_NAME, "name": title})
    _add_verdict(case, entry.verdict, list(entry.reasons) or [entry.verdict], _details(entry))
    _add_output(case, [*(f"{name}: {value}" for name, value in figures), statistics(entry), *entry.remarks])


def _add_verdict(case: ElementTree.Element, verdict: str, reasons: list[str], details: list[str]) -> None:
    if verdict == FAIL:
        failure = ElementTree.SubElement(case, "failure", {"type": "parity", "message": "; ".join(reasons)})
        failure.text = "\n".join([*reasons, *details])
    elif verdict == NOT_RUN:
        ElementTree.SubElement(case, "skipped", {"message": "; ".join(reasons)})


def _details(entry: ParityEntry) -> list[str]:
    words = [f"differs first at the stage: {entry.stage}"] if entry.stage else []
    words += [f"likely: {entry.diagnosis}"] if entry.diagnosis else []
    if entry.localisation is not None:
        words += [*localisation_words(entry.localisation), entry.localisation.repro]
    return [word for word in words if word]


def _add_output(case: ElementTree.Element, lines: list[str]) -> None:
    ElementTree.SubElement(case, "system-out").text = "\n".join(line for line in lines if line)
