from __future__ import annotations

import dataclasses

import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import ParityReport, StageCheck
from edgetune.parity.wording import (
    class_name,
    cleaned,
    decibel,
    gate_rules,
    headline,
    percent,
    references,
    statistics,
    visible,
)
from tests.unit.parity.sample_reports import BAD, GOOD, HOSTILE, REPORT, UNJUDGED, hostile_report


def _named(*verdicts: str) -> ParityReport:
    entries = tuple(
        dataclasses.replace(GOOD, artifact=f"m{number}", verdict=verdict) for number, verdict in enumerate(verdicts)
    )
    return dataclasses.replace(REPORT, artifacts=entries, stages=())


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((PASS,), "The artifact passed."),
        ((PASS, PASS), "All 2 artifacts passed."),
        ((PASS, NOT_RUN), "1 of 2 artifacts passed; not judged: m1."),
        ((PASS, FAIL, FAIL), "2 of 3 artifacts failed: m1, m2."),
        ((FAIL,) * 7, "7 of 7 artifacts failed: m0, m1, m2, m3, m4 and 2 more."),
        ((NOT_RUN, NOT_RUN), "Nothing could be judged."),
        ((), "Nothing could be judged."),
    ],
)
def test_the_headline_says_how_many_and_which(verdicts: tuple[str, ...], expected: str) -> None:
    assert headline(_named(*verdicts)) == expected


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (PASS, "Before any artifact ran, this failed: stage pixels."),
        (FAIL, "1 of 1 artifact failed: m0; and before any artifact ran: stage pixels."),
    ],
)
def test_the_headline_names_a_common_stage_that_failed(verdict: str, expected: str) -> None:
    report = dataclasses.replace(_named(verdict), stages=(StageCheck("pixels", FAIL, 9.0, 0.0),))
    assert headline(report) == expected


def test_statistics_are_said_out_loud() -> None:
    assert statistics(BAD) == (
        "153 images compared with torch cpu. The accuracy drop is 13.73% (95 % interval 7.95% to 18.82%). "
        "So many images show a drop of 8.71% four times out of five. "
        "The accuracy budget of 1.00% is not certified, for which it would take about 4,012 images. "
        "The probabilities diverge by 0.41 nats on average, 99 % of the images by at most 2.9."
    )
    assert statistics(UNJUDGED) == ""


@pytest.mark.parametrize(
    ("certified", "needed", "expected"),
    [
        (True, 100, "is certified: the 95 % bound of the drop keeps to it."),
        (False, 154, "is not certified, for which it would take about 154 images."),
        (False, 153, "is not certified: the 95 % bound of the drop is over it."),
        (False, None, "is not certified: the 95 % bound of the drop is over it."),
    ],
)
def test_the_budget_is_certified_or_it_is_said_what_it_would_take(
    certified: bool, needed: int | None, expected: str
) -> None:
    entry = dataclasses.replace(GOOD, certified=certified, images_to_certify=needed)
    assert f"The accuracy budget of 1.00% {expected}" in statistics(entry)


def test_without_labels_nothing_is_said_of_accuracy() -> None:
    entry = dataclasses.replace(GOOD, drop=None, drop_ci95=None, detectable_drop=None, certified=None, kl_mean=None)
    assert statistics(entry) == "153 images compared with torch cpu."


def test_the_rules_of_a_gate_stand_beside_what_was_measured() -> None:
    assert gate_rules(REPORT, GOOD) == [
        ("SQNR of the logits", "at least 100 dB", "127.4 dB"),
        ("largest difference of a logit", "at most 0.0001 of the reference's largest logit", "5.25e-06"),
        ("labels as the reference's", "all, but for near ties", "100.00%"),
        ("accuracy drop", "at most 1.00%, near ties apart", "0.00%"),
    ]
    assert gate_rules(REPORT, BAD) == [
        ("labels as the reference's", "at least 97.00%", "84.97%"),
        ("accuracy drop", "at most 1.00%, near ties apart", "13.73%"),
        ("divergence of the probabilities", "at most 0.05 nats", "0.41"),
        ("drop of any class", "at most 10.00%, by more than chance", "27.14% (ants)"),
        ("noise that may turn near ties", "at most 5.00% of the logits' rms", "2 near ties"),
    ]
    assert gate_rules(REPORT, UNJUDGED) == []


def test_every_rule_that_a_gate_may_have_is_told() -> None:
    names = {field.name for field in dataclasses.fields(DEFAULT_GATES.fp32)}
    every = dataclasses.replace(DEFAULT_GATES.fp32, **dict.fromkeys(names, 0.5))
    assert len(gate_rules(REPORT, dataclasses.replace(GOOD, gate=every))) == len(names)


def test_a_class_without_a_name_has_its_number() -> None:
    assert [class_name(REPORT, index) for index in (0, 1, 2, None)] == ["ants", "bees", "class 2", "-"]


def test_references_are_named_once() -> None:
    assert references(REPORT) == "torch cpu"
    assert references(dataclasses.replace(REPORT, artifacts=())) == "the reference"


@pytest.mark.parametrize(("value", "expected"), [(None, "-"), (41.26, "41.3"), (-1000.0, "no signal"), (-3.04, "-3.0")])
def test_decibels(value: float | None, expected: str) -> None:
    assert decibel(value) == expected


@pytest.mark.parametrize(("share", "expected"), [(None, "-"), (-1e-9, "0.00%"), (0.12345, "12.35%"), (-0.02, "-2.00%")])
def test_a_share_in_percent_has_no_negative_zero(share: float | None, expected: str) -> None:
    assert percent(share) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 日本 🐜 a\u200db", "plain é 日本 🐜 a\u200db"),
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31m\x00\r", "\\u001b[31m\\u0000\\u000d"),
        ("\u202egpj.exe\u2066", "\\u202egpj.exe\\u2066"),
        ("\udc80\ufffe", "\\udc80\\ufffe"),
    ],
)
def test_only_what_cannot_be_seen_is_written_out(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_a_cleaned_report_holds_no_text_that_is_not_visible() -> None:
    report = cleaned(hostile_report())
    assert HOSTILE not in repr(report)
    assert report.artifacts[0].localisation is not None
    assert report.artifacts[0].localisation.blocks[0].block == visible(HOSTILE)
    assert report.machine == {visible(HOSTILE): visible(HOSTILE)}
    assert cleaned(REPORT) == REPORT
