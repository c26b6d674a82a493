"""The section of parity's page about one artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from edgetune.core import html
from edgetune.parity import plots
from edgetune.parity.records import (
    BlockError,
    ClassResult,
    Flip,
    Localisation,
    LogitsPair,
    ParityEntry,
    ParityReport,
    Rung,
    StageCheck,
    Variation,
)
from edgetune.parity.wording import (
    GATE_NOTE,
    class_name,
    counted,
    decibel,
    gate_rules,
    localisation_words,
    number,
    percent,
    sqnr_text,
    statistics,
    titles,
)

MOST_FLIPS = 24
MOST_CLASSES = 30
_LONG_TABLE = 20
_MOST_BLOCKS = 400


@dataclass(frozen=True)
class Pictures:
    """What a section may show besides words: plots if `draws`, of `pair`, and thumbnails by the image's sha256."""

    draws: bool
    pair: LogitsPair | None
    thumbnails: Mapping[str, bytes]


def artifact_section(report: ParityReport, number_: int, pictures: Pictures) -> list[str]:
    """`number_` counts the report's entries from 0; every text of the report is visible already."""
    entry, title = report.artifacts[number_], titles(report)[number_]
    return [
        html.verdict_heading(title, entry.verdict, f"artifact-{number_ + 1}"),
        *_why(entry),
        *([html.paragraph(statistics(entry))] if entry.images else []),
        *_localisation(entry.localisation, pictures.draws),
        *_gate(report, entry),
        *_rung(entry.rung),
        *_variations(entry.variations),
        *_noise(entry),
        *stages_table("From file bytes to label", html.subheading, entry.stages),
        *_plots(pictures),
        *_classes(report, entry.per_class),
        *_flips(report, entry, pictures.thumbnails),
    ]


def _why(entry: ParityEntry) -> list[str]:
    words = [*entry.reasons]
    if entry.stage:
        words.append(f"differs first at the stage: {entry.stage}")
    if entry.diagnosis:
        words.append(f"likely: {entry.diagnosis}")
    body = [html.box([html.items(words)], entry.verdict)] if words else []
    return body + ([html.items(entry.remarks)] if entry.remarks else [])


def _gate(report: ParityReport, entry: ParityEntry) -> list[str]:
    rules = gate_rules(report, entry)
    if not rules:
        return []
    table = html.table(("gate", "expected", "measured"), rules)
    return [html.subheading("Gate"), table, html.paragraph(GATE_NOTE)]


def _localisation(found: Localisation | None, draws: bool) -> list[str]:
    if found is None:
        return []
    body = [html.items(localisation_words(found))]
    if found.repro:
        body += [html.paragraph("To repeat it:"), html.code(found.repro)]
    title = f"Where it breaks, on {counted(found.images, 'image')}"
    parts = [html.subheading(title), html.box(body, "FAIL" if found.culprit else "")]
    picture = plots.blocks_png(found) if draws else None
    if picture is not None:
        parts.append(html.picture(picture, "SQNR by block, in graph order"))
    return [*parts, _blocks(found)]


def _blocks(found: Localisation) -> str:
    """In graph order, the culprit marked; of a huge network, the worst."""
    numbered = list(enumerate(found.blocks, start=1))
    if len(numbered) > _MOST_BLOCKS:
        numbered = sorted(sorted(numbered, key=lambda pair: _own_db(pair[1]))[:_MOST_BLOCKS])
    rows = [
        (
            place,
            f"▸\u00a0{block.block}" if block.block == found.culprit else block.block,
            "" if block.module.endswith(block.block) else block.module,
            block.tensor,
            decibel(block.cumulative_db, missing="exact"),
            decibel(block.injected_db, missing="exact"),
            decibel(block.expected_db),
            number(block.max_abs_diff),
        )
        for place, block in numbered
    ]
    columns = ("no.", "block", "module", "tensor", "dB, all errors so far", "dB, its own error", "dB expected",
               "max abs diff")  # fmt: skip
    return _folded("blocks", columns, rows)


def _own_db(block: BlockError) -> float:
    return float("inf") if block.injected_db is None else block.injected_db


def _rung(rung: Rung | None) -> list[str]:
    if rung is None:
        return []
    columns = ("nearest relative", "verdict", "images", "max abs diff", "SQNR dB", "agreement", "steps", "note")
    row = (
        rung.reference, rung.verdict, rung.images, number(rung.max_abs_diff), sqnr_text(rung),
        percent(rung.top1_agreement), number(rung.max_lsb), "; ".join(rung.reasons),
    )  # fmt: skip
    return [html.subheading("Against its nearest relative"), _compact(columns, [row])]


def _variations(variations: Sequence[Variation]) -> list[str]:
    if not variations:
        return []
    columns = (
        "run otherwise",
        "verdict",
        "images",
        "max abs diff",
        "limit",
        "SQNR dB",
        "labels turned",
        "steps",
        "why",
    )
    rows = [
        (
            each.name, each.verdict, each.images, number(each.max_abs_diff), number(each.limit), sqnr_text(each),
            each.flips, number(each.max_lsb), each.reason,
        )
        for each in variations
    ]  # fmt: skip
    return [html.subheading("The same artifact, run otherwise"), _compact(columns, rows)]


def _noise(entry: ParityEntry) -> list[str]:
    if entry.noise_max_abs_diff is None:
        return []
    level = "" if entry.noise_sqnr_db is None else f" ({entry.noise_sqnr_db:.1f} dB)"
    told = f"Noise floor: other kernels, batches and threads move a logit by up to {number(entry.noise_max_abs_diff)}"
    return [html.paragraph(f"{told}{level}.")]


def stages_table(title: str, heading: Callable[[str], str], stages: Sequence[StageCheck]) -> list[str]:
    """Empty where no stage was checked."""
    rows = [(each.stage, each.verdict, number(each.max_abs_diff), number(each.limit), each.reason) for each in stages]
    columns = ("stage", "verdict", "max abs diff", "limit", "note")
    return [heading(title), _compact(columns, rows)] if rows else []


def _plots(pictures: Pictures) -> list[str]:
    if pictures.pair is None or not pictures.draws:
        return []
    drawn = [
        (plots.histogram_png(pictures.pair), "Histogram of the differences of all logits"),
        (plots.scatter_png(pictures.pair), "Logits of the reference against those of the candidate"),
    ]
    parts = [html.picture(png, description) for png, description in drawn if png is not None]
    return [html.subheading("Logits"), html.beside(parts)] if parts else []


def _classes(report: ParityReport, results: Sequence[ClassResult]) -> list[str]:
    """The classes that lost or gained images: those that chance does not explain first, then by their drop."""
    if not results:
        return []
    changed = sorted(
        (each for each in results if _lost(each) != 0), key=lambda each: (not each.is_proven, -_drop(each), each.index)
    )
    worse = sum(_lost(each) > 0 for each in changed)
    if not changed:
        return [html.subheading("By class"), html.paragraph("No class lost or gained an image.")]
    said = (
        f"{worse} of {len(results):,} classes lost images, {len(changed) - worse} gained some; "
        f"{sum(each.is_proven for each in results)} lost more than the gate allows and chance explains."
    )
    if len(changed) > MOST_CLASSES:
        said += f" The table has the worst {MOST_CLASSES}."
    rows = [_class_row(report, each) for each in changed[:MOST_CLASSES]]
    columns = ("class", "images", "reference right", "artifact right", "drop", "", "beyond chance")
    return [html.subheading("By class"), html.paragraph(said), html.table(columns, rows)]


def _class_row(report: ParityReport, each: ClassResult) -> tuple[object, ...]:
    drop = _drop(each)
    bar = html.bar(abs(drop), is_gain=drop < 0.0)
    right = (each.reference_right, each.candidate_right)
    return class_name(report, each.index), each.images, *right, percent(drop), bar, "yes" if each.is_proven else "no"


def _lost(each: ClassResult) -> int:
    return each.reference_right - each.candidate_right


def _drop(each: ClassResult) -> float:
    return _lost(each) / each.images


def ordered_flips(entry: ParityEntry) -> list[Flip]:
    """The images that the page shows: clear ones first, then by how far apart the reference held the labels."""
    return sorted(entry.flips, key=lambda flip: (flip.is_tie, -flip.margin))[:MOST_FLIPS]


def _flips(report: ParityReport, entry: ParityEntry, thumbnails: Mapping[str, bytes]) -> list[str]:
    if not entry.flips:
        return []
    shown = ordered_flips(entry)
    changed = len(entry.flips)
    if entry.top1_agreement is not None:  # the record does not list all of a broken model's
        changed = max(changed, round((1.0 - entry.top1_agreement) * entry.images))
    title = f"Images whose label changed: {changed:,}"
    if len(shown) < changed:
        title += f", the clearest {len(shown)} of them"
    cards = [(thumbnails.get(flip.sha256), _flip_lines(report, flip)) for flip in shown]
    return [html.subheading(title), html.cards(cards)]


def _flip_lines(report: ParityReport, flip: Flip) -> list[str]:
    return [
        "/".join(PurePath(flip.file).parts[-2:]),
        f"true: {class_name(report, flip.label)}",
        f"reference: {class_name(report, flip.reference)}",
        f"artifact: {class_name(report, flip.candidate)}",
        f"margin {number(flip.margin)}, {'near tie' if flip.is_tie else 'clear'}",
    ]


def _folded(what: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table, folded away where it has many rows, without the columns that tell nothing."""
    table = _compact(columns, rows)
    return table if len(rows) <= _LONG_TABLE else html.folded(f"All {len(rows)} {what}", table)


def _compact(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    kept = [index for index in range(len(columns)) if any(str(row[index]) not in ("", "-") for row in rows)]
    return html.table([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])
