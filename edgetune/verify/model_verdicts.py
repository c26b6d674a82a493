"""Verdicts on two models' outputs, and what would explain a difference."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL
from edgetune.core.errors import TensorError
from edgetune.parity.diagnosis import explain_inputs, explain_outputs
from edgetune.parity.distance import without_labels
from edgetune.parity.gates import Gate, judge
from edgetune.parity.metrics import compare_logits
from edgetune.parity.records import LogitsPair, ParityEntry, entry_failed, entry_from_comparison
from edgetune.verify.judging import Rows, in_detail
from edgetune.verify.model_inputs import ImageSource, ModelFacts, Source, labels_of
from edgetune.verify.model_outputs import Collected, Output, Side

# Rows that sum to 1 within this, and have nothing below 0, are probabilities.
_SUM_TOLERANCE = 1e-3

_Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Judged:
    """`classes` counts the outputs that labels are read from; 0 where there are none."""

    entries: tuple[ParityEntry, ...]
    pairs: dict[str, LogitsPair]
    classes: int
    class_names: tuple[str, ...]


def judge_outputs(collected: Collected, reference: Side, candidate: Side, gate: Gate) -> Judged:
    """An entry for each output of the reference: the first that was compared under the candidate's name, others with
    the output's behind it. One that the candidate lacks fails.
    """
    classes, entries = 0, []
    class_names: tuple[str, ...] = ()
    pairs: dict[str, LogitsPair] = {}
    runners = (candidate.runner.name, f"{reference.title} on {reference.runner.name}")
    for index, output in enumerate(collected.outputs):
        title = candidate.title if index == 0 else f"{candidate.title}: {output.names[0]}"
        names = (title, *runners)
        if output is collected.logits:
            entry, pair, class_names = _judge_logits(names, collected, (reference.facts, candidate.facts), gate)
            classes, pairs[title] = pair.reference.shape[1], pair
        else:
            rule = without_labels(gate)
            comparison = output.distance.comparison()
            judgement = judge(comparison, rule)
            entry = dataclasses.replace(entry_from_comparison(names, comparison, judgement), top1_agreement=None)
        entries.append(_with_remarks(entry, output, collected.remarks if index == 0 else ()))
    entries += [
        entry_failed(f"{candidate.title}: {name}", *runners, reason, "") for name, reason in collected.missing.items()
    ]
    return Judged(tuple(entries), pairs, classes, class_names)


def _with_remarks(entry: ParityEntry, output: Output, remarks: tuple[str, ...]) -> ParityEntry:
    not_finite = output.distance.not_finite
    told = (f"NaN or infinity is in the output of the {not_finite}",) if not_finite else ()
    stage = entry.stage or ("logits" if not_finite else "")
    return dataclasses.replace(entry, remarks=(*remarks, *told, *entry.remarks), stage=stage)


def _judge_logits(
    names: tuple[str, str, str], collected: Collected, facts: tuple[ModelFacts, ModelFacts], gate: Gate
) -> tuple[ParityEntry, LogitsPair, tuple[str, ...]]:
    output = collected.logits
    if output is None:
        raise TensorError("there is no output to read labels from.")
    pair = LogitsPair(np.concatenate(output.rows[0]), np.concatenate(output.rows[1]))
    class_names = facts[0].classes or facts[1].classes
    labels, remark = _labels(collected.source, class_names, pair.reference.shape[1])
    comparison = compare_logits(pair.reference, pair.candidate, labels)
    if comparison.finite and _are_probabilities(pair.reference) and _are_probabilities(pair.candidate):
        mean, p99 = _divergence(pair)
        comparison = dataclasses.replace(comparison, kl_mean=mean, kl_p99=p99)
    entry = entry_from_comparison(names, comparison, judge(comparison, gate))
    if comparison.finite:
        entry = in_detail(entry, pair, comparison, Rows(collected.source.keys, labels))
    if entry.verdict == FAIL and comparison.finite:
        entry = dataclasses.replace(entry, diagnosis=_diagnosis(collected, pair))
    remarks = (*((remark,) if remark else ()), *entry.remarks)
    matched = class_names if len(class_names) == pair.reference.shape[1] else ()
    return dataclasses.replace(entry, remarks=remarks), pair, matched


def _labels(source: Source, classes: tuple[str, ...], outputs: int) -> tuple[_Labels | None, str]:
    if isinstance(source, ImageSource):
        return labels_of(source, classes, outputs)
    return None, "arrays have no labels, so there is no accuracy"


def _are_probabilities(rows: npt.NDArray[np.float32]) -> bool:
    return bool((rows >= 0).all() and (abs(rows.sum(axis=1, dtype=np.float64) - 1.0) < _SUM_TOLERANCE).all())


def _divergence(pair: LogitsPair) -> tuple[float, float]:
    """Kullback-Leibler of rows that are probabilities already, in nats: mean and 99th percentile. What underflowed to 0
    counts as 1e-30.
    """
    theirs, ours = (np.maximum(rows.astype(np.float64), 1e-30) for rows in (pair.reference, pair.candidate))
    divergence = np.maximum(np.sum(theirs * (np.log(theirs) - np.log(ours)), axis=1), 0.0)
    return float(divergence.mean()), float(np.quantile(divergence, 0.99))


def _diagnosis(collected: Collected, pair: LogitsPair) -> str:
    """What the candidate does to its outputs, or to the pixels it gets, if one thing explains the difference."""
    found = explain_outputs(pair.reference, pair.candidate)
    images = collected.first_images
    if found or images is None or collected.answer is None:
        return found
    return explain_inputs(collected.answer, images, pair.reference[: len(images)])
