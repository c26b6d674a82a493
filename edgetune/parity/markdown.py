"""Parity's answer as Markdown, for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edgetune.core.bundle import FAIL, PASS
from edgetune.parity.records import ParityEntry, ParityReport
from edgetune.parity.report import COLUMNS, report_rows
from edgetune.parity.wording import (
    cleaned,
    counted,
    headline,
    localisation_words,
    number,
    one_line,
    references,
    sqnr_text,
    statistics,
    titles,
)

# GitHub takes 65,536 characters.
MOST_CHARACTERS = 60_000
_ROOM_FOR_TABLE = 25_000
_LONGEST_NAME = 120
_LONGEST_TEXT = 600
_LONGEST_COMMAND = 2_000
_MOST_ROWS = 30
# Everything that Markdown or HTML could take for more than itself; what stays is plain in every renderer.
_SPECIAL = re.compile(r"[^\w ,.;%()/=+'\"?:-]|_|:(?=//)|(?<=www)\.")
_LIST_MARK = re.compile(r"^(\d*)([-+=.)])")
_CUT = "The rest did not fit; parity.json and parity.html have all of it."


def report_markdown(report: ParityReport) -> str:
    """At most `MOST_CHARACTERS`; what does not fit is left out, and the text says so."""
    report = cleaned(report)
    blocks = [f"## Parity: {report.verdict}\n\n{_text(headline(report))}\n\n{_where(report)}\n"]
    blocks.append(_table(COLUMNS, [(_name(row[0]), *row[1:]) for row in report_rows(report)], _ROOM_FOR_TABLE))
    blocks += [
        f"- stage {_name(stage.stage)}: {stage.verdict}. {_text(stage.reason)}\n"
        for stage in report.stages
        if stage.verdict != PASS
    ]
    for title, entry in zip(titles(report), report.artifacts, strict=True):
        blocks += _entry(title, entry)
    return _fitted(blocks)


def _fitted(blocks: Sequence[str]) -> str:
    room = MOST_CHARACTERS - len(_CUT) - 2
    for count, block in enumerate(blocks):
        room -= len(block) + 1
        if room < 0:
            return "\n".join([*blocks[:count], _CUT, ""])
    return "\n".join(blocks)


def _where(report: ParityReport) -> str:
    return f"Every artifact against {_text(references(report))}, from file bytes to label, on {_name(report.data)}."


def _entry(title: str, entry: ParityEntry) -> list[str]:
    """What failed is told in full; of the rest, why it was not judged."""
    if entry.verdict == PASS:
        return []
    lines = [f"### {_name(title)}: {entry.verdict}\n"]
    lines += [f"- {_text(text)}" for text in (*entry.reasons, *entry.remarks)]
    if entry.verdict != FAIL:
        return ["\n".join([*lines, ""])]
    lines += [f"- differs first at the stage: {_text(entry.stage)}"] if entry.stage else []
    lines += [f"- likely: {_text(entry.diagnosis)}"] if entry.diagnosis else []
    if entry.localisation is not None:
        lines += [f"- {_text(words)}" for words in localisation_words(entry.localisation)]
    blocks = ["\n".join([*lines, ""]), f"{_text(statistics(entry))}\n"]
    if entry.localisation is not None and entry.localisation.repro:
        blocks.append(_code(entry.localisation.repro))
    return [*blocks, *_details(entry)]


def _details(entry: ParityEntry) -> list[str]:
    stages = [
        (_text(each.stage), each.verdict, number(each.max_abs_diff), number(each.limit), _text(each.reason))
        for each in entry.stages
    ]
    variations = [
        (
            _text(each.name), each.verdict, str(each.images), number(each.max_abs_diff), number(each.limit),
            sqnr_text(each), str(each.flips), _text(each.reason),
        )
        for each in entry.variations
    ]  # fmt: skip
    variation_columns = (
        "run otherwise",
        "verdict",
        "images",
        "max abs diff",
        "limit",
        "SQNR dB",
        "labels turned",
        "note",
    )
    return [
        *_folded(counted(len(stages), "stage"), ("stage", "verdict", "max abs diff", "limit", "note"), stages),
        *_folded(counted(len(variations), "variation"), variation_columns, variations),
    ]


def _folded(summary: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [f"<details><summary>{summary}</summary>\n\n{_table(columns, rows, _ROOM_FOR_TABLE)}\n</details>\n"]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], room: int) -> str:
    """Rows that do not fit are counted below; cells are escaped already."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    made = [" | ".join(cell or " " for cell in row) for row in rows]
    for count, line in enumerate(made):
        room -= len(line) + 5
        if room < 0 or count == _MOST_ROWS:
            lines.append(" | ".join([f"and {len(made) - count} more", *(" " for _ in columns[1:])]))
            break
        lines.append(line)
    return "".join(f"| {line} |\n" for line in lines)


def _text(text: str) -> str:
    """One line that shows as it is; a mention of somebody stays a word."""
    return _escaped(_clipped(one_line(text), _LONGEST_TEXT)).replace("&#64;", "&#64;&#8203;")


def _name(name: str) -> str:
    """As code, in which nothing is taken for a mention or a reference to an issue."""
    return f"<code>{_escaped(_clipped(one_line(name), _LONGEST_NAME)) or ' '}</code>"


def _escaped(text: str) -> str:
    """By character references: Markdown takes none of them for its own marks, also within a table."""
    safe = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};" if found[0].isascii() else found[0], text)
    return _LIST_MARK.sub(lambda found: f"{found[1]}&#{ord(found[2])};", safe)


def _code(text: str) -> str:
    """Within a fence that is longer than any in the text."""
    clipped = text if len(text) <= _LONGEST_COMMAND else text[:_LONGEST_COMMAND] + "\n..."
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", clipped)), 3)
    return f"{fence}sh\n{clipped}\n{fence}\n"


def _clipped(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
