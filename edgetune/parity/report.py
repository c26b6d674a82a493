"""Parity's answer as a record, as JSON, and as one self-contained page."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edgetune.core import html
from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.config import to_dict
from edgetune.core.files import pretty_json
from edgetune.core.run import Skipped
from edgetune.parity.gates import Judgement
from edgetune.parity.metrics import Comparison

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ParityEntry:
    """One artifact against its reference; figures are None where nothing ran or nothing finite came out.

    `sqnr_db` is also None when the two do not differ at all, which `max_abs_diff` 0 tells.
    """

    artifact: str
    runner: str
    reference: str
    images: int
    max_abs_diff: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    reference_accuracy: float | None
    candidate_accuracy: float | None
    certified: bool | None
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ParityReport:
    schema_version: int
    created: str
    data: str
    classes: int
    machine: dict[str, str]
    artifacts: tuple[ParityEntry, ...]
    skipped: tuple[Skipped, ...]

    @property
    def verdict(self) -> str:
        """FAIL if any artifact failed; NOT-RUN if none was judged; else PASS."""
        verdicts = {entry.verdict for entry in self.artifacts}
        if FAIL in verdicts:
            return FAIL
        return PASS if PASS in verdicts else NOT_RUN


def entry_from_comparison(names: tuple[str, str, str], comparison: Comparison, judgement: Judgement) -> ParityEntry:
    """`names` are the artifact's, its runner's and the reference's."""
    artifact, runner, reference = names
    return ParityEntry(
        artifact=artifact,
        runner=runner,
        reference=reference,
        images=comparison.images,
        max_abs_diff=_finite(comparison.max_abs_diff),
        sqnr_db=_finite(comparison.sqnr_db),
        top1_agreement=comparison.top1_agreement if comparison.finite else None,
        reference_accuracy=comparison.reference_accuracy,
        candidate_accuracy=comparison.candidate_accuracy if comparison.finite else None,
        certified=judgement.certified,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
    )


def entry_not_run(artifact: str, runner: str, reference: str, reason: str) -> ParityEntry:
    return ParityEntry(
        artifact, runner, reference, 0, None, None, None, None, None, None, NOT_RUN, (reason,)
    )  # fmt: skip


def incomplete(entry: ParityEntry, reason: str) -> ParityEntry:
    """An entry over a part of the images only: a PASS on a part is not a PASS, a FAIL stays one."""
    verdict = NOT_RUN if entry.verdict == PASS else entry.verdict
    return dataclasses.replace(entry, verdict=verdict, reasons=(*entry.reasons, reason))


def report_json(report: ParityReport) -> bytes:
    content: dict[str, Any] = to_dict(report)
    return pretty_json({**content, "verdict": report.verdict})


COLUMNS = ("artifact", "verdict", "images", "max abs diff", "SQNR dB", "agreement", "accuracy", "PyTorch accuracy")


def titles(report: ParityReport) -> list[str]:
    """The artifact of each entry, with what ran it where several things did."""
    names = [entry.artifact for entry in report.artifacts]
    return [
        entry.artifact if names.count(entry.artifact) == 1 else f"{entry.artifact} on {entry.runner}"
        for entry in report.artifacts
    ]


def report_rows(report: ParityReport) -> list[tuple[str, ...]]:
    return [
        (
            title,
            entry.verdict,
            str(entry.images),
            "-" if entry.max_abs_diff is None else f"{entry.max_abs_diff:.3g}",
            _sqnr_text(entry),
            _percent(entry.top1_agreement),
            _percent(entry.candidate_accuracy),
            _percent(entry.reference_accuracy),
        )
        for title, entry in zip(titles(report), report.artifacts, strict=True)
    ]


def remarks(report: ParityReport) -> list[tuple[str, str]]:
    """Each entry's title with each of its reasons."""
    entries = zip(titles(report), report.artifacts, strict=True)
    return [(title, reason) for title, entry in entries for reason in entry.reasons]


def report_html(report: ParityReport) -> bytes:
    lead = f"Every artifact against the PyTorch model, from file bytes to logits, on {report.data}. {report.created}"
    reasons = remarks(report)
    compared = [(entry.artifact, entry.runner, entry.reference) for entry in report.artifacts]
    body = [html.table(COLUMNS, report_rows(report))]
    if reasons:
        body += [html.heading("Remarks"), html.table(("artifact", "remark"), reasons)]
    body += [html.heading("What ran"), html.table(("artifact", "candidate", "reference"), compared)]
    body += [html.heading("Machine"), html.table(("part", "here"), report.machine.items())]
    if report.skipped:
        body += [
            html.heading("Skipped files"),
            html.table(("file", "reason"), [(s.path, s.reason) for s in report.skipped]),
        ]
    return html.page(f"Parity: {report.verdict}", lead, body)


def _sqnr_text(entry: ParityEntry) -> str:
    if entry.max_abs_diff == 0:
        return "exact"
    return "-" if entry.sqnr_db is None else f"{entry.sqnr_db:.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
