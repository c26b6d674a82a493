from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.data.image_folder import ImageFile
from edgetune.parity.compare import LogitsTable
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import ClassResult, ParityEntry
from edgetune.verify.judging import Candidate, judge_table, known_reference, live_reference
from edgetune.verify.reference import StoredReference

EXACT = np.tile(np.array([[4.0, 0.0], [0.0, 4.0]], np.float32), (10, 1))
LABELS = np.tile(np.array([0, 1]), 10)
FP32 = Candidate("model.onnx", "fp32", "cpu", "onnxruntime CPU")


def _table(failures: dict[str, str] | None = None, **logits: npt.NDArray[np.float32]) -> LogitsTable:
    files = tuple(ImageFile(Path(f"/data/val/{'ab'[index % 2]}/{index}.jpg"), index % 2) for index in range(20))
    return LogitsTable(files, tuple(f"hash {row}" for row in range(20)), LABELS, logits, (), failures or {})


def _judge(table: LogitsTable, candidate: Candidate = FP32) -> ParityEntry:
    entries, _ = judge_table(table, live_reference("torch cpu", EXACT), {"one": candidate}, DEFAULT_GATES)
    return entries["one"]


def test_the_same_logits_pass_with_their_gate_and_both_names() -> None:
    entry = _judge(_table(one=EXACT))
    assert (entry.artifact, entry.runner, entry.reference) == ("model.onnx", "onnxruntime CPU", "torch cpu")
    assert (entry.verdict, entry.max_abs_diff, entry.drop, entry.kl_mean) == (PASS, 0.0, 0.0, 0.0)
    assert entry.gate == DEFAULT_GATES.fp32
    assert entry.per_class == (ClassResult(0, 10, 10, 10, False), ClassResult(1, 10, 10, 10, False))


def test_images_that_change_their_label_are_listed_the_clearest_first() -> None:
    logits, reference = EXACT.copy(), EXACT.copy()
    reference[2] = [0.5, 0.0]
    logits[[2, 5]] = [[0.0, 0.5], [4.0, 0.0]]
    entries, pairs = judge_table(
        _table(one=logits), live_reference("torch cpu", reference), {"one": FP32}, DEFAULT_GATES
    )
    flips = entries["one"].flips
    assert [(flip.file, flip.sha256, flip.margin) for flip in flips] == [
        ("b/5.jpg", "hash 5", 4.0), ("a/2.jpg", "hash 2", 0.5),
    ]  # fmt: skip
    assert [(flip.label, flip.reference, flip.candidate, flip.is_tie) for flip in flips] == [
        (1, 1, 0, False), (0, 0, 1, False),
    ]  # fmt: skip
    np.testing.assert_array_equal(pairs["one"].candidate, logits)


def test_a_runner_that_failed_has_failed() -> None:
    entry = _judge(_table(failures={"one": "out of memory"}))
    assert (entry.verdict, entry.reasons, entry.stage) == (FAIL, ("out of memory",), "logits")


def test_logits_of_other_classes_have_failed() -> None:
    entry = _judge(_table(one=np.zeros((20, 3), np.float32)))
    assert (entry.verdict, entry.stage) == (FAIL, "logits")
    assert entry.reasons == ("the reference's logits are (20, 2), the candidate's (20, 3).",)


def test_nan_has_failed_and_has_no_figures() -> None:
    logits = EXACT.copy()
    logits[3, 0] = np.nan
    entry = _judge(_table(one=logits))
    assert (entry.verdict, entry.stage, entry.max_abs_diff, entry.kl_mean) == (FAIL, "logits", None, None)


def test_stored_logits_of_a_part_do_not_make_a_pass() -> None:
    stored = StoredReference("torch cpu, stored", {f"hash {row}": EXACT[row] for row in range(5, 20)})
    table = _table(one=EXACT)
    entries, pairs = judge_table(table, known_reference(table, stored), {"one": FP32}, DEFAULT_GATES)
    assert (entries["one"].verdict, entries["one"].images) == (NOT_RUN, 15)
    assert entries["one"].reasons == ("5 of 20 images have no stored reference logits",)
    np.testing.assert_array_equal(pairs["one"].candidate, EXACT[5:])


def test_a_candidate_is_compared_on_the_rows_that_the_store_knows() -> None:
    stored = StoredReference("stored", {"hash 3": EXACT[3]})
    logits = np.full_like(EXACT, 9.0)
    logits[3] = EXACT[3]
    table = _table(one=logits)
    entries, _ = judge_table(table, known_reference(table, stored), {"one": FP32}, DEFAULT_GATES)
    assert (entries["one"].images, entries["one"].max_abs_diff) == (1, 0.0)


def test_without_any_reference_nothing_is_judged() -> None:
    table = _table(one=EXACT)
    entries, _ = judge_table(table, known_reference(table, StoredReference("", {})), {"one": FP32}, DEFAULT_GATES)
    assert entries["one"].verdict == NOT_RUN
    assert "no PyTorch reference" in entries["one"].reasons[0]


def test_a_provider_that_may_use_tf32_has_its_own_gate() -> None:
    moved = EXACT * np.float32(1.0005)
    assert _judge(_table(one=moved)).verdict == FAIL
    entry = _judge(_table(one=moved), Candidate("model.onnx", "fp32", "tensorrt-ep", "onnxruntime TensorRT"))
    assert (entry.verdict, entry.gate) == (PASS, DEFAULT_GATES.tf32)
