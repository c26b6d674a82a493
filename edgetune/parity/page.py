"""Parity's answer as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping

from edgetune.core import html
from edgetune.parity.page_artifact import Pictures, artifact_section, ordered_flips, stages_table
from edgetune.parity.plots import can_draw
from edgetune.parity.records import LogitsPair, ParityEntry, ParityReport
from edgetune.parity.report import COLUMNS, report_rows
from edgetune.parity.wording import cleaned, headline, references, titles

_MOST_SKIPPED = 100
# All thumbnails together: a page of ten artifacts is still small enough to be sent about.
_THUMBNAIL_BYTES = 400_000


def report_html(
    report: ParityReport, pairs: Mapping[str, LogitsPair] | None = None, thumbnails: Mapping[str, bytes] | None = None
) -> bytes:
    """`pairs` are by title of the artifact, `thumbnails` (JPEG, about 128 px) by the image's sha256.

    Without matplotlib the page has tables only, and says so.
    """
    by_title = [(pairs or {}).get(title) for title in titles(report)]
    report = cleaned(report)
    lead = f"Every artifact against {references(report)}, from file bytes to label, on {report.data}. {report.created}"
    body = [html.box([html.paragraph(headline(report))], report.verdict), _overview(report)]
    body += stages_table("Before any artifact", html.heading, report.stages)
    drawing = can_draw()
    if not drawing and (pairs or any(entry.localisation for entry in report.artifacts)):
        body.append(html.paragraph("matplotlib cannot be imported here, so this page has tables and no plots."))
    room = _THUMBNAIL_BYTES // max(1, sum(bool(entry.flips) for entry in report.artifacts))
    for number, (entry, pair) in enumerate(zip(report.artifacts, by_title, strict=True)):
        body += artifact_section(report, number, Pictures(drawing, pair, _affordable(entry, thumbnails or {}, room)))
    return html.page(f"Parity: {report.verdict}", lead, [*body, *_circumstances(report)])


def _overview(report: ParityReport) -> str:
    rows = [
        (html.link(row[0], f"artifact-{number}"), *row[1:]) for number, row in enumerate(report_rows(report), start=1)
    ]
    return html.table(COLUMNS, rows)


def _affordable(entry: ParityEntry, thumbnails: Mapping[str, bytes], room: int) -> dict[str, bytes]:
    """The thumbnails of the images that the page lists, as far as they fit into so many bytes."""
    taken: dict[str, bytes] = {}
    for flip in ordered_flips(entry):
        jpeg = thumbnails.get(flip.sha256)
        if jpeg is not None and sum(map(len, taken.values())) + len(jpeg) <= room:
            taken[flip.sha256] = jpeg
    return taken


def _noise(report: ParityReport) -> list[tuple[str, str]]:
    return [] if report.noise_db is None else [("PyTorch's own float32 against float64", f"{report.noise_db:.1f} dB")]


def _circumstances(report: ParityReport) -> list[str]:
    compared = [(entry.artifact, entry.runner, entry.reference) for entry in report.artifacts]
    body = [html.heading("What ran"), html.table(("artifact", "candidate", "reference"), compared)]
    body += [html.heading("Machine"), html.table(("part", "here"), [*report.machine.items(), *_noise(report)])]
    if report.skipped:
        rows = [(file.path, file.reason) for file in report.skipped[:_MOST_SKIPPED]]
        body += [html.heading("Skipped files"), html.table(("file", "reason"), rows)]
    if len(report.skipped) > _MOST_SKIPPED:
        body.append(html.paragraph(f"And {len(report.skipped) - _MOST_SKIPPED:,} more."))
    return body
