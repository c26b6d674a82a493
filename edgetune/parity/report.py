"""Parity's answer as text for a terminal."""

from __future__ import annotations

import textwrap

from edgetune.core.bundle import PASS
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck
from edgetune.parity.wording import localisation_words, number, one_line, percent, sqnr_text
from edgetune.parity.wording import titles as titles

COLUMNS = ("artifact", "verdict", "images", "max abs diff", "SQNR dB", "agreement", "accuracy", "reference accuracy")


def report_rows(report: ParityReport) -> list[tuple[str, ...]]:
    return [
        (
            one_line(title),
            entry.verdict,
            str(entry.images),
            number(entry.max_abs_diff),
            sqnr_text(entry),
            percent(entry.top1_agreement),
            percent(entry.candidate_accuracy),
            percent(entry.reference_accuracy),
        )
        for title, entry in zip(titles(report), report.artifacts, strict=True)
    ]


def remarks(report: ParityReport) -> list[tuple[str, str]]:
    """What is to be said of each common stage that did not pass, and of each entry, by its title; one line each."""
    stages = [(f"stage {one_line(stage.stage)}", one_line(_stage_words(stage))) for stage in report.stages]
    told = [stage for stage, check in zip(stages, report.stages, strict=True) if check.verdict != PASS]
    entries = zip(titles(report), report.artifacts, strict=True)
    return told + [(one_line(title), one_line(text)) for title, entry in entries for text in _entry_words(entry)]


def remark_lines(report: ParityReport, width: int = 100) -> list[str]:
    """The remarks below their titles, in lines of at most `width` characters where words allow."""
    lines: list[str] = []
    last = None
    for title, text in remarks(report):
        if title != last:
            lines.append(f"{title}:")
            last = title
        lines += textwrap.wrap(
            text, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    return lines


def _stage_words(stage: StageCheck) -> str:
    return f"{stage.verdict}: {stage.reason}" if stage.reason else stage.verdict


def _entry_words(entry: ParityEntry) -> list[str]:
    words = [*entry.reasons, *entry.remarks]
    if entry.stage:
        words.append(f"differs first at the stage: {entry.stage}")
    if entry.diagnosis:
        words.append(f"likely: {entry.diagnosis}")
    if entry.localisation is not None:
        words += localisation_words(entry.localisation)
        words += [f"repeat it: {entry.localisation.repro}"] if entry.localisation.repro else []
    return words
