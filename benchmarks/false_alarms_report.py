"""The tables that `false_alarms.py` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.parity_journal import Record, markdown_table, shown
from edgetune.core.bundle import FAIL, NOT_RUN, PASS

Entry = dict[str, Any]

_HEAD = ("bundle", "artifact", "verdict", "images", "PyTorch", "drop", "95 % interval", "agreement", "ties", "KL mean",
         "KL p99", "SQNR dB")  # fmt: skip
# The figures that gates look at, and which end of them is the bad one.
_FIGURES: tuple[tuple[str, Callable[[Sequence[float]], float], str], ...] = (
    ("sqnr_db", min, ".1f"),
    ("max_abs_diff", max, ".2e"),
    ("top1_agreement", min, ".2%"),
    ("drop", max, ".2%"),
    ("kl_mean", max, ".2e"),
    ("kl_p99", max, ".2e"),
)


def to_markdown(records: Sequence[Record]) -> str:
    done = [record for record in records if not record["error"]]
    pairs = [(record, entry) for record in done for entry in record["artifacts"]]
    parts = [
        _summary(records, done),
        markdown_table(_HEAD, [_row(record["name"], entry) for record, entry in pairs]),
        *(
            f"{_weights(weights).capitalize()}, closest to the gates:\n\n"
            + _extremes([entry for record, entry in pairs if record["brief_training"] is weights])
            for weights in (False, True)
        ),
        _alarms(pairs),
    ]
    parts += [f"{record['name']}: {record['error']}\n" for record in records if record["error"]]
    parts += [f"{record['name']}: stage {stage}\n" for record in done for stage in record["stages"]]
    return "\n".join(parts)


def _summary(records: Sequence[Record], done: Sequence[Record]) -> str:
    lines = []
    for weights in (False, True):
        bundles = [record for record in done if record["brief_training"] is weights]
        entries = [entry for record in bundles for entry in record["artifacts"]]
        counts = "; ".join(
            f"{len(of)} {word}: {_count(of)}" for word, of in (("bundles", bundles), ("artifacts", entries))
        )
        lines.append(f"- {_weights(weights)}: {counts}")
    if len(done) < len(records):
        lines.append(f"- {len(records) - len(done)} bundles could not be made or judged")
    return "\n".join(lines) + "\n"


def _count(judged: Sequence[dict[str, Any]]) -> str:
    found = Counter(each["verdict"] for each in judged)
    return ", ".join(f"{found[verdict]} {verdict}" for verdict in (PASS, FAIL, NOT_RUN))


def _weights(are_brief: bool) -> str:
    return "trained here" if are_brief else "published weights"


def _row(name: str, entry: Entry) -> list[str]:
    return [
        name,
        entry["artifact"],
        entry["verdict"],
        str(entry["images"]),
        shown(entry["reference_accuracy"], ".2%"),
        shown(entry["drop"], "+.2%"),
        _interval(entry["drop_ci95"]),
        shown(entry["top1_agreement"], ".2%"),
        str(entry["ties"]),
        shown(entry["kl_mean"], ".2e"),
        shown(entry["kl_p99"], ".2e"),
        shown(entry["sqnr_db"], ".1f"),
    ]


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:+.1%} to {ends[1]:+.1%}"


def _extremes(entries: Sequence[Entry]) -> str:
    rows = []
    for artifact in dict.fromkeys(entry["artifact"] for entry in entries):
        same = [entry for entry in entries if entry["artifact"] == artifact]
        rows.append([artifact, *(_extreme(same, *figure) for figure in _FIGURES)])
    return markdown_table(("artifact", *(f"{worst.__name__} {name}" for name, worst, _ in _FIGURES)), rows)


def _extreme(entries: Sequence[Entry], name: str, worst: Callable[[Sequence[float]], float], form: str) -> str:
    values = [float(entry[name]) for entry in entries if entry[name] is not None]
    return shown(worst(values), form) if values else "-"


def _alarms(pairs: Sequence[tuple[Record, Entry]]) -> str:
    alarms = [_alarm(record, entry) for record, entry in pairs if entry["verdict"] != PASS]
    return "\n".join(alarms) if alarms else "No alarm.\n"


def _alarm(record: Record, entry: Entry) -> str:
    """The reasons, and the evidence: a drop that excludes 0, or one that held-out training images show too, is real."""
    name = f"{record['name']} ({_weights(record['brief_training'])})"
    text = f"{entry['verdict']}: {name}, {entry['artifact']}: {'; '.join(entry['reasons'])}"
    held_out = record["held_out"].get(entry["artifact"])
    if held_out is not None:
        head = "refitted_head" if held_out["refit_wins"] else "float_head"
        text += f"; {shown(held_out[head], '+.2%')} lost on {held_out['images']} held-out training images"
        text += f", {held_out['kept_float']} layers in float"
    return text + "\n"
