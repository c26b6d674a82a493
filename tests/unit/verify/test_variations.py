"""A bundle's artifacts run otherwise on a CPU, and INT8's rung: steps, distance, and labels without near ties."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, Bundle
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.gates import Gate
from edgetune.parity.records import Variation
from edgetune.parity.variations import Measured
from edgetune.runners.base import infer_images
from edgetune.runners.choice import ENGINE, Choice, RunnerOptions
from edgetune.runners.ort_providers import CUDA, TENSORRT_EP
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify import variations
from edgetune.verify.by_the_book import open_for_parity
from edgetune.verify.variations import INTEGER_REFERENCE, rung_of, variations_of
from tests.unit.quantize.qdq_graphs import good
from tests.unit.quantize.small_graphs import SmallGraph, chain, images
from tests.unit.runners.mean_bundle import FP16, FP32, INT8, mean_bundle

GATE = Gate(min_sqnr_db=20.0, min_agreement=0.99, tie_noise=0.1, max_lsb=2.0)
OPTIONS = RunnerOptions(threads=2)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """One whose models are other graphs than the manifest was made with, which nobody asks about here."""
    made = mean_bundle(tmp_path / "bundle", {FP32: PASS, FP16: PASS, INT8: PASS})
    onnx.save(chain().model(), made.path / FP32)
    onnx.save(chain().model(), made.path / FP16)
    onnx.save(good("cpu-x86"), made.path / INT8)
    return made


def _measured(bundle: Bundle, name: str) -> Measured:
    choice = Choice(bundle.artifact(name), "")
    with open_for_parity(bundle.path / name, choice.artifact.precision) as runner:
        return variations_of(bundle, choice, runner, images(16), OPTIONS)


@pytest.mark.parametrize("name", [FP32, FP16, INT8])
def test_every_artifact_of_a_cpu_is_run_in_nine_ways(bundle: Bundle, name: str) -> None:
    found = _measured(bundle, name).variations
    assert [each.name for each in found] == [
        "repeated", "cold", "position", "order", "batch 1", "batch 3", "batch 16", "threads 1", "unoptimised",
    ]  # fmt: skip
    assert {each.verdict for each in found} == {PASS}
    assert [each.max_lsb for each in found[:-1]] == [None] * 8


def test_int8_is_compared_in_steps_layer_by_layer(bundle: Bundle) -> None:
    measured = _measured(bundle, INT8)
    (unoptimised,) = [each for each in measured.variations if each.name == "unoptimised"]
    assert unoptimised.max_lsb is not None
    assert unoptimised.max_lsb <= 1.0
    assert "of the integers differ" in unoptimised.reason
    rung = rung_of(measured, "int8", GATE)
    assert rung is not None
    assert (rung.verdict, rung.reference, rung.images, rung.max_lsb) == (
        PASS,
        INTEGER_REFERENCE,
        16,
        unoptimised.max_lsb,
    )


def test_the_unoptimised_answer_is_the_files_own(bundle: Bundle) -> None:
    with OrtRunner(bundle.path / INT8, optimise=False) as runner:
        expected = infer_images(runner, images(16), LOGITS_OUTPUT)
    np.testing.assert_array_equal(_measured(bundle, INT8).unoptimised, expected)


def test_what_the_optimiser_gets_wrong_shows(bundle: Bundle) -> None:
    """ONNX Runtime's takes a Dropout out that is in training mode."""
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    names = [graph.mean("features", "c1"), graph.constant("ratio", 0.5), graph.constant("training", True, np.bool_)]
    graph.gemm(LOGITS_OUTPUT, graph.node("Dropout", names, "dropped"), (8, 4))
    onnx.save(graph.model(), bundle.path / FP32)
    found = {each.name: each.verdict for each in _measured(bundle, FP32).variations}
    assert [name for name, verdict in found.items() if verdict == FAIL] == ["unoptimised"]


def test_without_onnx_the_distance_stands_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find_spec(name, *rest)
    )
    measured = _measured(bundle, INT8)
    assert {each.max_lsb for each in measured.variations} == {None}
    rung = rung_of(measured, "int8", GATE)
    assert rung is not None
    assert (rung.verdict, rung.max_lsb) == (PASS, None)


def test_only_int8_has_the_rung(bundle: Bundle) -> None:
    assert rung_of(_measured(bundle, FP32), "fp32", GATE) is None


@pytest.mark.parametrize(("kind", "has_cold"), [(CUDA, True), (TENSORRT_EP, False), (ENGINE, False)])
def test_engines_are_not_built_or_loaded_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str, has_cold: bool
) -> None:
    monkeypatch.setattr(variations, "open_runner", lambda *_: OrtRunner(bundle.path / INT8))
    with OrtRunner(bundle.path / INT8) as runner:
        found = variations_of(bundle, Choice(bundle.artifact(INT8), "", kind), runner, images(16), OPTIONS)
    names = {each.name for each in found.variations}
    assert {"repeated", "position", "order", "batch 1", "batch 3", "batch 16"} == names - {"cold"}
    assert ("cold" in names) == has_cold
    assert rung_of(found, "int8", GATE) is None


def _made(plain: list[list[float]], unoptimised: list[list[float]], max_lsb: float | None = 1.0) -> Measured:
    variation = Variation("unoptimised", len(plain), 0.1, 40.0, 0, None, PASS, max_lsb=max_lsb)
    return Measured((variation,), np.array(plain, np.float32), np.array(unoptimised, np.float32))


def _reasons(measured: Measured, gate: Gate = GATE) -> tuple[str, tuple[str, ...]]:
    rung = rung_of(measured, "int8", gate)
    assert rung is not None
    return rung.verdict, rung.reasons


SURE = [[4.0, -4.0], [-4.0, 4.0]]


def test_steps_over_the_gate_fail() -> None:
    assert _reasons(_made(SURE, SURE, 2.0)) == (PASS, ())
    assert _reasons(_made(SURE, SURE, 3.0)) == (
        FAIL, ("a layer's integers differ by up to 3 steps on the same input, expected at most 2",),
    )  # fmt: skip
    assert _reasons(_made(SURE, SURE, 3.0), dataclasses.replace(GATE, max_lsb=None)) == (PASS, ())


def test_a_distance_under_the_gate_fails() -> None:
    """Noise of a tenth of every logit but a bit more is a little less than 20 dB."""
    near, far = [[4.38, -4.38], [-4.38, 4.38]], [[4.42, -4.42], [-4.42, 4.42]]
    assert _reasons(_made(near, SURE)) == (PASS, ())
    assert _reasons(_made(far, SURE)) == (FAIL, ("SQNR is 19.6 dB, expected at least 20 dB",))


def test_a_near_tie_that_turned_is_no_other_label_and_a_clear_one_is() -> None:
    """Noise of 0.05 turns 0.04, but not 1."""
    noisy, sure = [[4.05, -4.05], [-4.05, 4.05]] * 4, SURE * 4
    turned = _made([*noisy, [0.02, -0.02]], [*sure, [-0.02, 0.02]])
    assert _reasons(turned) == (PASS, ())
    rung = rung_of(turned, "int8", GATE)
    assert rung is not None
    assert rung.top1_agreement == pytest.approx(8 / 9)
    clear = _made([*noisy, [0.5, -0.5]], [*sure, [-0.5, 0.5]])
    assert _reasons(clear, dataclasses.replace(GATE, min_sqnr_db=None)) == (
        FAIL, ("1 of 9 labels differ from the reference, expected at most 0",),
    )  # fmt: skip


def test_a_reference_that_did_not_run_is_not_run() -> None:
    lost = Variation("unoptimised", 0, None, None, 0, None, NOT_RUN, "there is no kernel for it.")
    assert _reasons(Measured((lost,), np.zeros((2, 2), np.float32), None)) == (NOT_RUN, ("there is no kernel for it.",))


def test_nan_in_the_reference_fails() -> None:
    lost = Variation("unoptimised", 16, None, None, 0, None, FAIL, "the logits hold NaN or infinity")
    assert _reasons(Measured((lost,), np.zeros((2, 2), np.float32), None)) == (
        FAIL, ("the logits hold NaN or infinity",),
    )  # fmt: skip
