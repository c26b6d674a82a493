"""Two ONNX files on the same arrays."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.errors import UsageError
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.verify.compare_models import CompareOptions
from tests.unit.verify.onnx_pairs import (
    FLOAT,
    HALF,
    WEIGHTS,
    X,
    compare,
    linear,
    only,
    write,
)


def test_a_model_is_at_parity_with_itself(tmp_path: Path, rows: Path) -> None:
    path = linear(tmp_path / "a.onnx")
    found = compare(path, path, rows)
    entry = only(found)
    assert (entry.artifact, entry.verdict, entry.images, entry.max_abs_diff) == ("a.onnx", PASS, 20, 0.0)
    assert (entry.top1_agreement, entry.sqnr_db, entry.diagnosis) == (1.0, None, "")
    assert "both are the same file" in entry.remarks
    assert "judged by the gate for fp32, which a.onnx computes in" in entry.remarks
    assert "arrays have no labels, so there is no accuracy" in entry.remarks
    assert (found.report.verdict, found.report.classes, found.report.class_names) == (PASS, 3, ())
    np.testing.assert_allclose(found.pairs["a.onnx"].candidate, X @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_figures_are_those_of_the_products_by_numpy(tmp_path: Path, rows: Path) -> None:
    other = WEIGHTS + np.random.default_rng(9).normal(size=WEIGHTS.shape).astype(np.float32) * 0.3
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", other), rows))
    theirs, ours = X.astype(np.float64) @ WEIGHTS, X.astype(np.float64) @ other
    assert entry.verdict == FAIL
    assert entry.max_abs_diff == pytest.approx(np.abs(theirs - ours).max(), rel=1e-5)
    assert entry.sqnr_db == pytest.approx(10 * np.log10((theirs**2).sum() / ((theirs - ours) ** 2).sum()), rel=1e-5)
    flipped = np.flatnonzero(theirs.argmax(axis=1) != ours.argmax(axis=1))
    assert len(flipped) > 0
    assert entry.top1_agreement == 1 - len(flipped) / 20
    assert sorted(flip.file for flip in entry.flips) == sorted(f"row {row}" for row in flipped)
    assert entry.flips[0].margin == max(flip.margin for flip in entry.flips)
    assert entry.gate == DEFAULT_GATES.fp32


def test_what_explains_a_failure_is_told(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", WEIGHTS[:, [1, 0, 2]]), rows))
    assert entry.verdict == FAIL
    assert entry.diagnosis.startswith("the outputs are permuted: 0 is the candidate's 1, 1 is the candidate's 0 would")


def test_one_npy_is_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx"), tmp_path / "x.npy")).images == 20


def test_a_fixed_batch_is_filled_up(tmp_path: Path, rows: Path) -> None:
    """20 rows are not a multiple of 8, nor of 3."""
    found = compare(linear(tmp_path / "a.onnx", batch=3), linear(tmp_path / "b.onnx", batch=1), rows)
    assert (only(found).verdict, only(found).images) == (PASS, 20)
    np.testing.assert_allclose(found.pairs["b.onnx"].reference, X @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_outputs_of_other_ranks_are_judged_by_distance(tmp_path: Path, rows: Path) -> None:
    found = compare(linear(tmp_path / "a.onnx", extra=True), linear(tmp_path / "b.onnx", extra=True), rows)
    maps, logits = found.report.artifacts
    assert [entry.artifact for entry in found.report.artifacts] == ["b.onnx", "b.onnx: y"]
    assert (maps.top1_agreement, maps.verdict, maps.max_abs_diff) == (None, PASS, 0.0)
    assert (logits.top1_agreement, logits.verdict) == (1.0, PASS)
    assert set(found.pairs) == {"b.onnx: y"}


def test_logits_come_first_and_what_the_candidate_lacks_fails(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True, output="logits")
    found = compare(reference, linear(tmp_path / "b.onnx", output="logits"), rows)
    logits, lacking = found.report.artifacts
    assert (logits.artifact, logits.verdict, logits.top1_agreement) == ("b.onnx", PASS, 1.0)
    assert (lacking.artifact, lacking.verdict, lacking.images) == ("b.onnx: map", FAIL, 0)
    assert lacking.reasons == ("the candidate lacks the reference's output map float32 (any, 2, 2)",)
    assert lacking.remarks == ()
    assert found.report.verdict == FAIL
    assert set(found.pairs) == {"b.onnx"}


def test_what_the_candidate_alone_makes_is_said(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", extra=True), rows))
    assert (entry.artifact, entry.verdict) == ("b.onnx", PASS)
    assert "not compared, as the candidate alone makes them: map" in entry.remarks


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, PASS), (1.5, FAIL)])
def test_one_output_left_on_each_side_is_a_pair(tmp_path: Path, rows: Path, factor: float, verdict: str) -> None:
    """What both call `map` is equal; it must not speak for what they call otherwise."""
    reference = linear(tmp_path / "a.onnx", extra=True, output="logits")
    candidate = linear(tmp_path / "b.onnx", WEIGHTS * np.float32(factor), extra=True, output="scores")
    logits, maps = compare(reference, candidate, rows).report.artifacts
    assert (logits.artifact, logits.verdict, logits.images) == ("b.onnx", verdict, 20)
    assert "the candidate's only other output 'scores' is taken for the reference's 'logits'" in logits.remarks
    assert (maps.artifact, maps.verdict) == ("b.onnx: map", PASS)


def test_a_pair_of_two_names_goes_by_the_references(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True, output="y")
    found = compare(reference, linear(tmp_path / "b.onnx", extra=True, output="scores"), rows)
    assert [entry.artifact for entry in found.report.artifacts] == ["b.onnx", "b.onnx: y"]
    assert set(found.pairs) == {"b.onnx: y"}


def _second_output(path: Path, node: onnx.NodeProto, kind: int = FLOAT) -> Path:
    """`y` = x W, and what the node makes of x."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), node]
    outputs = {"y": FLOAT, node.output[0]: kind}
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, outputs, {"w": WEIGHTS, "axes": np.array([1])})


@pytest.mark.parametrize(
    ("node", "kind", "reason"),
    [
        (("Unsqueeze", ["x", "axes"], ["b"]), FLOAT, "the candidate lacks the reference's output a float32 (any, 4)"),
        (("Identity", ["y"], ["b"]), FLOAT, "the candidate lacks the reference's output a float32 (any, 4)"),
        (
            ("Cast", ["x"], ["a"]),
            TensorProto.STRING,
            "the reference's output is a float32 (any, 4), the candidate's a ",
        ),
    ],
    ids=["rank", "size", "kind"],
)
def test_what_cannot_be_the_same_output_is_no_pair(
    tmp_path: Path, rows: Path, node: tuple[str, list[str], list[str]], kind: int, reason: str
) -> None:
    reference = _second_output(tmp_path / "a.onnx", helper.make_node("Relu", ["x"], ["a"]))
    to: dict[str, Any] = {"to": kind} if node[0] == "Cast" else {}
    found = compare(reference, _second_output(tmp_path / "b.onnx", helper.make_node(*node, **to), kind), rows)
    compared, lacking = found.report.artifacts
    assert (compared.artifact, compared.verdict) == ("b.onnx", PASS)
    assert (lacking.artifact, lacking.verdict) == ("b.onnx: a", FAIL)
    assert lacking.reasons[0].startswith(reason)


def test_outputs_that_are_no_numbers_on_both_sides_are_said(tmp_path: Path, rows: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["names"], to=TensorProto.STRING)
    path = _second_output(tmp_path / "a.onnx", node, TensorProto.STRING)
    entry = only(compare(path, path, rows))
    assert entry.verdict == PASS
    assert "not compared, as these are no arrays of numbers: names" in entry.remarks


def test_single_outputs_of_other_names_are_compared_and_said(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx", output="495"), linear(tmp_path / "b.onnx", output="out"), rows))
    assert entry.verdict == PASS
    assert "the candidate's only output 'out' is taken for the reference's '495'" in entry.remarks


def test_one_number_a_row_is_no_label(tmp_path: Path, rows: Path) -> None:
    """With one output every argmax is 0: 100 % agreement would say nothing."""
    reference, candidate = linear(tmp_path / "a.onnx", WEIGHTS[:, :1]), linear(tmp_path / "b.onnx", -WEIGHTS[:, :1])
    entry = only(compare(reference, candidate, rows, CompareOptions(precision="int8")))
    assert (entry.verdict, entry.top1_agreement) == (FAIL, None)


def test_nan_fails_and_tells_whose(tmp_path: Path, rows: Path) -> None:
    bad = WEIGHTS.copy()
    bad[0, 0] = np.nan
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", bad), rows))
    assert (entry.verdict, entry.max_abs_diff, entry.stage) == (FAIL, None, "logits")
    assert "NaN or infinity is in the output of the candidate" in entry.remarks


def _softmax_model(path: Path, weights: Any) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["p"], axis=1)]
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, {"p": FLOAT}, {"w": weights})


def test_outputs_that_are_probabilities_diverge_as_such(tmp_path: Path, rows: Path) -> None:
    """Not as if they were logits, whose softmax would hide most of the difference."""
    other = WEIGHTS * 1.5
    entry = only(
        compare(_softmax_model(tmp_path / "a.onnx", WEIGHTS), _softmax_model(tmp_path / "b.onnx", other), rows)
    )
    logits = [X.astype(np.float64) @ weights for weights in (WEIGHTS, other)]
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in logits)
    assert entry.kl_mean == pytest.approx(float(np.mean(np.sum(p * np.log(p / q), axis=1))), rel=1e-4)


def test_the_coarser_files_gate_is_taken(tmp_path: Path, rows: Path) -> None:
    scale, zero = np.float32(1 / 64), np.int8(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    constants = {"w": WEIGHTS, "s": scale, "z": zero}
    coarse = write(tmp_path / "q.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, constants)
    for pair in ((linear(tmp_path / "a.onnx"), coarse), (coarse, linear(tmp_path / "a.onnx"))):
        entry = only(compare(*pair, rows))
        assert entry.gate == DEFAULT_GATES.int8
        assert "judged by the gate for int8, which q.onnx computes in" in entry.remarks
    entry = only(compare(linear(tmp_path / "a.onnx"), coarse, rows, CompareOptions(precision="fp32")))
    assert (entry.gate, entry.verdict) == (DEFAULT_GATES.fp32, FAIL)
    with pytest.raises(UsageError, match="the precision 'int4' is not known; known: fp32, tf32, fp16, int8"):
        compare(coarse, coarse, rows, CompareOptions(precision="int4"))


def test_without_onnx_a_float16_model_that_passes_is_not_run(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's CPU computes it in float32, which proves nothing of a device."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF), helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=FLOAT),
    ]  # fmt: skip
    half = write(
        tmp_path / "h.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, {"w": WEIGHTS.astype(np.float16)}
    )  # fmt: skip
    rounded = only(compare(linear(tmp_path / "a.onnx"), half, rows))
    assert (rounded.verdict, rounded.gate) == (PASS, DEFAULT_GATES.fp16)
    assert "rounding to float16" in rounded.runner
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    entry = only(compare(linear(tmp_path / "a.onnx"), half, rows))
    assert entry.verdict == NOT_RUN
    assert "does not round" in entry.reasons[0]
