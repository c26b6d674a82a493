"""The records of parity: what they take over from a comparison, and their JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.run import Skipped
from edgetune.parity.gates import Judgement
from edgetune.parity.metrics import Comparison
from edgetune.parity.records import (
    ParityEntry,
    ParityReport,
    StageCheck,
    entry_from_comparison,
    entry_not_run,
    failed,
    incomplete,
    report_json,
)

COMPARISON = Comparison(
    images=200,
    finite=True,
    max_abs_diff=0.012345,
    reference_max_abs=10.0,
    sqnr_db=41.26,
    top1_agreement=0.995,
    flip_margins=(1.0,),
    reference_accuracy=0.93,
    candidate_accuracy=0.925,
    drop=0.005,
    drop_upper_bound=0.02,
)
# Programs rely on these names.
STABLE = (
    "artifact", "runner", "reference", "images", "max_abs_diff", "sqnr_db", "top1_agreement", "reference_accuracy",
    "candidate_accuracy", "certified", "verdict", "reasons",
)  # fmt: skip
NAMES = ("model.int8.onnx", "onnxruntime CPU", "torch CPU")


def _entry(verdict: str = PASS, **changes: float | None) -> ParityEntry:
    comparison = dataclasses.replace(COMPARISON, **changes)  # type: ignore[arg-type]
    return entry_from_comparison(NAMES, comparison, Judgement(verdict, ("too few <images>",), False))


def _report(*entries: ParityEntry, skipped: tuple[Skipped, ...] = ()) -> ParityReport:
    return ParityReport(1, "2026-01-02", "/data/<val>", 2, {"cpu": "A & B"}, entries, skipped)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ((), NOT_RUN),
        ((PASS,), PASS),
        ((FAIL,), FAIL),
        ((NOT_RUN,), NOT_RUN),
        ((PASS, FAIL), FAIL),
        ((FAIL, NOT_RUN), FAIL),
        ((NOT_RUN, PASS), PASS),
    ],
    ids=lambda verdicts: "+".join(verdicts) if isinstance(verdicts, tuple) else "gives " + verdicts,
)
def test_one_failure_fails_the_report(verdicts: tuple[str, ...], expected: str) -> None:
    assert _report(*(_entry(verdict) for verdict in verdicts)).verdict == expected


def test_an_entry_holds_the_figures() -> None:
    entry = _entry()
    assert (entry.artifact, entry.runner, entry.reference) == NAMES
    assert (entry.images, entry.max_abs_diff, entry.sqnr_db) == (200, 0.012345, 41.26)
    assert (entry.top1_agreement, entry.reference_accuracy, entry.candidate_accuracy) == (0.995, 0.93, 0.925)
    assert (entry.certified, entry.verdict, entry.reasons) == (False, PASS, ("too few <images>",))


def test_an_entry_of_logits_that_are_no_numbers_holds_no_figures() -> None:
    entry = _entry(FAIL, finite=False, max_abs_diff=math.inf, sqnr_db=None)
    assert (entry.max_abs_diff, entry.sqnr_db) == (None, None)
    assert (entry.top1_agreement, entry.candidate_accuracy) == (None, None)
    assert json.loads(report_json(_report(entry)))["artifacts"][0]["max_abs_diff"] is None


def test_an_infinitely_bad_sqnr_stays_out_of_the_json() -> None:
    assert _entry(FAIL, sqnr_db=-math.inf).sqnr_db is None


def test_an_artifact_that_did_not_run_says_why() -> None:
    entry = entry_not_run(*NAMES, "needs an NVIDIA GPU")
    assert (entry.verdict, entry.reasons, entry.images) == (NOT_RUN, ("needs an NVIDIA GPU",), 0)
    assert (entry.max_abs_diff, entry.top1_agreement, entry.certified) == (None, None, None)


@pytest.mark.parametrize(("before", "after"), [(PASS, NOT_RUN), (FAIL, FAIL), (NOT_RUN, NOT_RUN)])
def test_a_pass_on_a_part_is_no_pass(before: str, after: str) -> None:
    entry = incomplete(_entry(before), "9 images could not be read")
    assert entry.verdict == after
    assert entry.reasons == ("too few <images>", "9 images could not be read")


def test_the_json_holds_everything_and_the_verdict() -> None:
    content = json.loads(report_json(_report(_entry(), _entry(FAIL), skipped=(Skipped("x.gif", "no image"),))))
    assert content["verdict"] == FAIL
    assert content["schema_version"] == 1
    assert content["skipped"] == [{"path": "x.gif", "reason": "no image"}]
    entry = content["artifacts"][0]
    assert {name: entry[name] for name in STABLE} == {
        "artifact": "model.int8.onnx",
        "runner": "onnxruntime CPU",
        "reference": "torch CPU",
        "images": 200,
        "max_abs_diff": 0.012345,
        "sqnr_db": 41.26,
        "top1_agreement": 0.995,
        "reference_accuracy": 0.93,
        "candidate_accuracy": 0.925,
        "certified": False,
        "verdict": PASS,
        "reasons": ["too few <images>"],
    }


@pytest.mark.parametrize(("verdict", "expected"), [(PASS, PASS), (NOT_RUN, PASS), (FAIL, FAIL)])
def test_a_common_stage_that_fails_fails_the_report(verdict: str, expected: str) -> None:
    stage = StageCheck("pixels", verdict, 3.0, 0.0)
    assert dataclasses.replace(_report(_entry()), stages=(stage,)).verdict == expected


def test_the_first_stage_that_was_named_stays() -> None:
    once = failed(_entry(), "features differ", stage="features")
    twice = failed(once, "logits differ", stage="logits")
    assert (twice.verdict, twice.stage) == (FAIL, "features")
    assert twice.reasons == ("too few <images>", "features differ", "logits differ")
