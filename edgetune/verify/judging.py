"""From tables of logits to parity's entries: which gate, which reference, and what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import TensorError
from edgetune.parity.compare import LogitsTable
from edgetune.parity.gate_set import GateSet
from edgetune.parity.gates import Gate, class_is_proven_worse, judge, tie_margin
from edgetune.parity.metrics import Comparison, compare_logits
from edgetune.parity.records import (
    ClassResult,
    Flip,
    LogitsPair,
    ParityEntry,
    entry_failed,
    entry_from_comparison,
    entry_not_run,
    incomplete,
)
from edgetune.runners.ort_providers import TENSORRT_EP
from edgetune.verify.reference import StoredReference

_LISTED_FLIPS = 200
_NO_REFERENCE = "no PyTorch reference: neither torch with the run, nor stored logits of these images"


def arithmetic_of(precision: str, kind: str) -> str:
    """What a runner of this kind computes an artifact of this precision in: ONNX Runtime's TensorRT provider has no
    option that keeps it from TF32.
    """
    return "tf32" if precision == "fp32" and kind == TENSORRT_EP else precision


@dataclass(frozen=True)
class Candidate:
    """What is judged: an artifact's file name and precision, what runs it, and the name of that."""

    artifact: str
    precision: str
    kind: str
    runner: str

    @property
    def arithmetic(self) -> str:
        """The gate's name."""
        return arithmetic_of(self.precision, self.kind)


@dataclass(frozen=True)
class Reference:
    """PyTorch's logits float32 `(len(rows), classes)` of those rows of the table that it knows."""

    name: str
    rows: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


def live_reference(name: str, logits: npt.NDArray[np.float32]) -> Reference:
    return Reference(name, np.arange(len(logits)), logits)


def known_reference(table: LogitsTable, stored: StoredReference) -> Reference:
    """The stored logits of those images that the store knows by their content."""
    rows = np.array([row for row, sha256 in enumerate(table.hashes) if sha256 in stored.rows], dtype=np.int64)
    logits = [stored.rows[table.hashes[row]] for row in rows]
    return Reference(stored.name, rows, np.stack(logits) if logits else np.zeros((0, 0), np.float32))


def judge_table(
    table: LogitsTable, reference: Reference, candidates: Mapping[str, Candidate], gates: GateSet
) -> tuple[dict[str, ParityEntry], dict[str, LogitsPair]]:
    """An entry and the compared logits for each candidate, by its name in the table."""
    entries: dict[str, ParityEntry] = {}
    pairs: dict[str, LogitsPair] = {}
    for name, candidate in candidates.items():
        titles = (candidate.artifact, candidate.runner, reference.name)
        if name in table.failures:
            entries[name] = entry_failed(*titles, table.failures[name], "logits")
            continue
        if len(reference.rows) == 0:
            entries[name] = entry_not_run(*titles, _NO_REFERENCE)
            continue
        pair = LogitsPair(reference.logits, table.logits[name][reference.rows])
        gate = gates.named(candidate.arithmetic)
        entry = _judge_pair(titles, pair, table, reference.rows, gate)
        if entry.top1_agreement is not None:
            pairs[name] = pair
        if len(reference.rows) < len(table.hashes):
            missing = len(table.hashes) - len(reference.rows)
            entry = incomplete(entry, f"{missing} of {len(table.hashes)} images have no stored reference logits")
        entries[name] = entry
    return entries, pairs


def _judge_pair(
    titles: tuple[str, str, str], pair: LogitsPair, table: LogitsTable, rows: npt.NDArray[np.int64], gate: Gate
) -> ParityEntry:
    try:
        comparison = compare_logits(pair.reference, pair.candidate, table.labels[rows])
    except TensorError as error:
        return entry_failed(*titles, error.message, "logits")
    entry = entry_from_comparison(titles, comparison, judge(comparison, gate))
    if not comparison.finite:
        return dataclasses.replace(entry, stage="logits")
    keys = [("/".join(table.files[row].path.parts[-2:]), table.hashes[row]) for row in rows]
    return in_detail(entry, pair, comparison, Rows(keys, table.labels[rows]))


@dataclass(frozen=True)
class Rows:
    """File and sha256 of each compared row, and labels, None where there are none."""

    keys: Sequence[tuple[str, str]]
    labels: npt.NDArray[np.int64] | None


def in_detail(entry: ParityEntry, pair: LogitsPair, comparison: Comparison, rows: Rows) -> ParityEntry:
    """The entry with the rows whose label differs, the clearest first and not all of a broken model's, and the classes,
    by the gate that judged it.
    """
    gate = entry.gate if entry.gate is not None else Gate()
    tie = tie_margin(comparison, gate)
    marked = sorted(zip(comparison.flip_margins, comparison.flip_rows, strict=True), reverse=True)
    flips = tuple(
        Flip(
            *rows.keys[row],
            label=None if rows.labels is None else int(rows.labels[row]),
            reference=int(pair.reference[row].argmax()),
            candidate=int(pair.candidate[row].argmax()),
            margin=margin,
            is_tie=margin <= tie,
        )
        for margin, row in marked[:_LISTED_FLIPS]
    )
    per_class = tuple(
        ClassResult(
            count.index, count.images, count.reference_right, count.candidate_right,
            class_is_proven_worse(count, comparison, gate),
        )
        for count in comparison.per_class
    )  # fmt: skip
    return dataclasses.replace(entry, flips=flips, per_class=per_class)
