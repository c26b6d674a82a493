"""What a report says in words, whatever it is written in."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.parity.gates import Gate
from edgetune.parity.records import Localisation, ParityEntry, ParityReport, Rung, Variation

_NAMED = 5
# `records` keeps an SQNR of -inf, noise without any signal, as -1000.
_NO_SIGNAL_DB = -1000.0
GATE_NOTE = (
    "A near tie is an image whose two labels the reference holds closer together than the noise that is allowed. Where "
    "it turns it is no loss of accuracy, unless the drop with all near ties is proven to be over the budget, and half "
    "another label. From 10 images on, one image may differ where a share of images is allowed."
)
# What a terminal obeys, XML forbids, UTF-8 cannot hold, or turns the direction of the text after it.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with control characters written out, such as `\\u202e`; new lines and tabs stay."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


def cleaned(report: ParityReport) -> ParityReport:
    """The report with every text in it visible."""
    made: ParityReport = _clean(report)
    return made


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, tuple):
        return tuple(_clean(item) for item in value)
    if isinstance(value, dict):
        return {visible(key): _clean(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{field.name: _clean(getattr(value, field.name)) for field in dataclasses.fields(value)}
        )
    return value


def titles(report: ParityReport) -> list[str]:
    """The artifact of each entry, with what ran it where several things did."""
    names = [entry.artifact for entry in report.artifacts]
    return [
        entry.artifact if names.count(entry.artifact) == 1 else f"{entry.artifact} on {entry.runner}"
        for entry in report.artifacts
    ]


def headline(report: ParityReport) -> str:
    """The verdict in one sentence."""
    by_verdict: dict[str, list[str]] = {PASS: [], FAIL: [], NOT_RUN: []}
    for title, entry in zip(titles(report), report.artifacts, strict=True):
        by_verdict[entry.verdict].append(title)
    count = counted(len(report.artifacts), "artifact")
    passed, failures, unjudged = by_verdict[PASS], by_verdict[FAIL], by_verdict[NOT_RUN]
    broken = [f"stage {stage.stage}" for stage in report.stages if stage.verdict == FAIL]
    if broken and not failures:
        return f"Before any artifact ran, this failed: {_list(broken)}."
    if failures:
        also = f"; and before any artifact ran: {_list(broken)}" if broken else ""
        return f"{len(failures)} of {count} failed: {_list(failures)}{also}."
    if not passed:
        return "Nothing could be judged."
    if unjudged:
        return f"{len(passed)} of {count} passed; not judged: {_list(unjudged)}."
    return "The artifact passed." if len(passed) == 1 else f"All {count} passed."


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def references(report: ParityReport) -> str:
    """What the artifacts were compared with."""
    return " or ".join(sorted({entry.reference for entry in report.artifacts} - {""})) or "the reference"


def statistics(entry: ParityEntry) -> str:
    """What so many images can tell of the accuracy; empty where nothing was compared."""
    if entry.images == 0:
        return ""
    said = [f"{counted(entry.images, 'image')} compared with {entry.reference}."]
    if entry.drop is not None:
        interval = entry.drop_ci95
        between = f" (95 % interval {percent(interval[0])} to {percent(interval[1])})" if interval is not None else ""
        said.append(f"The accuracy drop is {percent(entry.drop)}{between}.")
    if entry.detectable_drop is not None:
        said.append(f"So many images show a drop of {percent(entry.detectable_drop)} four times out of five.")
    said += _proof(entry)
    if entry.kl_mean is not None:
        tail = f", 99 % of the images by at most {entry.kl_p99:.3g}" if entry.kl_p99 is not None else ""
        said.append(f"The probabilities diverge by {entry.kl_mean:.3g} nats on average{tail}.")
    return " ".join(said)


def _proof(entry: ParityEntry) -> list[str]:
    if entry.certified is None or entry.gate is None or entry.gate.max_drop is None:
        return []
    budget = f"The accuracy budget of {percent(entry.gate.max_drop)}"
    if entry.certified:
        return [f"{budget} is certified: the 95 % bound of the drop keeps to it."]
    if entry.images_to_certify is not None and entry.images_to_certify > entry.images:
        return [f"{budget} is not certified, for which it would take about {entry.images_to_certify:,} images."]
    return [f"{budget} is not certified: the 95 % bound of the drop is over it."]


def gate_rules(report: ParityReport, entry: ParityEntry) -> list[tuple[str, str, str]]:
    """Each rule of the gate that applies: what it is about, what it expects, and what was measured."""
    gate = entry.gate
    if gate is None:
        return []
    rules = [
        ("SQNR of the logits", _at_least(gate.min_sqnr_db, "{:g} dB"), _with_unit(sqnr_text(entry), "dB")),
        (
            "largest difference of a logit",
            _at_most(gate.max_relative_diff, "{:g} of the reference's largest logit"),
            number(entry.max_abs_diff),
        ),
        ("labels as the reference's", _agreement_rule(gate), percent(entry.top1_agreement)),
        ("accuracy drop", _at_most(gate.max_drop, "{:.2%}, near ties apart"), percent(entry.drop)),
        ("divergence of the probabilities", _at_most(gate.max_kl, "{:g} nats"), number(entry.kl_mean)),
        ("drop of any class", _at_most(gate.max_class_drop, "{:.2%}, by more than chance"), _worst(report, entry)),
        ("steps of the last integer tensor", _at_most(gate.max_lsb, "{:g}"), "-"),
        ("noise that may turn near ties", _at_most(gate.tie_noise or None, "{:.2%} of the logits' rms"), _ties(entry)),
    ]
    return [rule for rule in rules if rule[1]]


def _agreement_rule(gate: Gate) -> str:
    if gate.min_agreement == 1.0:
        return "all, but for near ties"
    return _at_least(gate.min_agreement, "{:.2%}")


def _at_least(limit: float | None, form: str) -> str:
    return "" if limit is None else "at least " + form.format(limit)


def _at_most(limit: float | None, form: str) -> str:
    return "" if limit is None else "at most " + form.format(limit)


def _ties(entry: ParityEntry) -> str:
    return counted(entry.ties, "near tie")


def _worst(report: ParityReport, entry: ParityEntry) -> str:
    drops = [((each.reference_right - each.candidate_right) / each.images, each.index) for each in entry.per_class]
    if not drops or max(drops)[0] <= 0.0:
        return "-"
    drop, index = max(drops)
    return f"{percent(drop)} ({class_name(report, index)})"


def localisation_words(found: Localisation) -> list[str]:
    """Where it broke, why, and what keeps that block whole; the command that repeats it stands apart, in `repro`."""
    module = f" ({found.module})" if found.module and found.module != found.culprit else ""
    where = f"{found.culprit}{module}" if found.culprit else "no block stands out"
    kind = f": {found.kind}" if found.kind else ""
    words = [f"breaks at: {where}{kind}"]
    if found.explanation:
        words.append(found.explanation)
    if found.option:
        words.append(f"keeps it in float: {found.option}")
    return words


def class_name(report: ParityReport, index: int | None) -> str:
    """The class's name, or its index where the models do not tell; `-` without a label."""
    if index is None:
        return "-"
    return report.class_names[index] if 0 <= index < len(report.class_names) else f"class {index}"


def sqnr_text(entry: ParityEntry | Rung | Variation) -> str:
    return "exact" if entry.max_abs_diff == 0 else decibel(entry.sqnr_db)


def decibel(value: float | None, *, missing: str = "-") -> str:
    if value is None:
        return missing
    return "no signal" if value <= _NO_SIGNAL_DB else f"{value:.1f}"


def percent(share: float | None) -> str:
    """Without the minus sign of a negative zero."""
    return "-" if share is None else f"{round(share, 4) + 0.0:.2%}"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if text not in ("-", "exact") else text
