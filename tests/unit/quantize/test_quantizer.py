"""Whole quantizations: closer to the float model than ONNX Runtime's own quantizer, and the same in any order."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgetune.core.errors import ModelError
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.quantize.lint import lint
from edgetune.quantize.quantizer import Calibration, QuantizedModel, calibrate, quantize
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import (
    Images,
    SmallGraph,
    chain,
    everything,
    images,
    in_batches,
    residual,
    run,
    spool,
    sqnr_db,
)

_ALL = tuple(TARGETS.values())
_COUNT = 128
_SEEN, _OTHERS = images(_COUNT, 16), images(64, 16, seed=2)


@functools.cache
def _calibrated(build: Callable[[], SmallGraph], size: int) -> Calibration:
    with spool(images(_COUNT, size)) as held:
        return calibrate(build().model(), held, _ALL)


def _quantize(
    build: Callable[[], SmallGraph], target: str, size: int = 8, *, rounding: bool = True, kept: tuple[str, ...] = ()
) -> QuantizedModel:
    with spool(images(_COUNT, size)) as held:
        return quantize(
            _calibrated(build, size), TARGETS[target], held, options=WeightOptions(rounding=rounding), kept_float=kept
        )


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, pictures: Images) -> None:
        self._batches = in_batches(pictures, 1)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IMAGE_INPUT: batch}


def _by_onnx_runtime(model: onnx.ModelProto, target: str, folder: Path) -> onnx.ModelProto:
    """`quantize_static` with min-max ranges, weights per channel, on the same images, in the types of the target."""
    source, prepared, result = (folder / name for name in ("float.onnx", "prepared.onnx", "int8.onnx"))
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, result, _Reader(_SEEN), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8 if target == "cpu-x86" else QuantType.QInt8, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax, extra_options={"ActivationSymmetric": target == "tensorrt"},
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    return onnx.load(result)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_logits_are_closer_than_those_of_onnx_runtimes_quantizer(target: str, tmp_path: Path) -> None:
    """The baseline is quantize_static of ONNX Runtime; images are others than those of the calibration."""
    model = everything().model()
    (expected,) = run(model, _OTHERS)
    baseline = sqnr_db(expected, run(_by_onnx_runtime(model, target, tmp_path), _OTHERS)[0])
    ours = sqnr_db(expected, run(_quantize(everything, target, 16).model, _OTHERS)[0])
    assert ours >= baseline + 1.0
    assert ours > 25.0


def _centred() -> SmallGraph:
    graph = chain()
    graph.constants["mean"] = graph.constants["deviation"] = np.full((1, 1, 1), 127.5, np.float32)
    return graph


_CASES: list[tuple[Callable[[], SmallGraph], int, tuple[str, ...]]] = [
    (chain, 8, ()), (chain, 8, ("c2",)), (_centred, 8, ()), (_centred, 8, ("c1",)), (residual, 8, ()),
    (residual, 8, ("c2",)), (residual, 8, ("c1", "c3")), (everything, 16, ()), (everything, 16, ("point", "left")),
    (everything, 16, ("stem", "inner")), (chain, 8, ("c1", "c2")),  # nothing is left to quantize
]  # fmt: skip


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize(("build", "size", "kept"), _CASES)
def test_every_graph_keeps_its_targets_rules_and_stays_close(
    target: str, build: Callable[[], SmallGraph], size: int, kept: tuple[str, ...]
) -> None:
    quantized = _quantize(build, target, size, rounding=False, kept=kept)
    assert lint(quantized.model, target) == ()
    assert {error.layer for error in quantized.errors} == {layer.name for layer in quantized.placement.layers}
    assert set(kept) <= set(quantized.placement.kept_float)
    others = images(32, size, seed=2)
    assert sqnr_db(run(build().model(), others)[0], run(quantized.model, others)[0]) > 22.0


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-3.0, 0.5), (1.0, 6.0), (0.0, 1.5)])
def test_a_clip_to_any_range_is_quantized(target: str, low: float, high: float) -> None:
    graph = residual()
    graph.constants["zero"], graph.constants["six"] = np.array(low, np.float32), np.array(high, np.float32)
    with spool(images(64)) as held:
        quantized = quantize(calibrate(graph.model(), held, _ALL), TARGETS[target], held)
    others = images(32, seed=2)
    assert sqnr_db(run(graph.model(), others)[0], run(quantized.model, others)[0]) > 22.0


def test_compensated_rounding_lowers_the_error_of_the_logits() -> None:
    """The mean over four networks: a single one may gain nothing."""
    gains = []
    for seed in range(4):
        build = functools.partial(everything, seed)
        (expected,) = run(build().model(), _OTHERS)
        plain, compensated = (
            sqnr_db(expected, run(_quantize(build, "cpu-x86", 16, rounding=rounding).model, _OTHERS)[0])
            for rounding in (False, True)
        )
        gains.append(compensated - plain)
    assert np.mean(gains) > 0.3


@pytest.mark.parametrize(("target", "offset"), [("cpu-x86", 0), ("cpu-arm", 128), ("tensorrt", 128)])
def test_centred_pixels_are_the_integers_that_the_first_convolution_reads(target: str, offset: int) -> None:
    """Dark images are seen; a range of their own would not do."""
    dark = images(32) // 2
    with spool(dark) as held:
        quantized = quantize(calibrate(_centred().model(), held, _ALL), TARGETS[target], held)
    bright = images(4, seed=2)
    (integers,) = run(quantized.model, bright, ["x_q"])
    np.testing.assert_array_equal(integers, bright.transpose(0, 3, 1, 2).astype(int) - offset)


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm"])
def test_a_graph_that_would_break_its_targets_rules_is_refused(target: str) -> None:
    """On CPUs an integer Add needs an integer output, which the graph's own output is not."""
    graph = SmallGraph()
    graph.node("Relu", [graph.conv("c1", graph.image(), (3, 8))], "r1")
    graph.node("Add", [graph.conv("c2", "r1", (8, 8)), "r1"], "sum")
    with spool(images(8)) as held:
        calibration = calibrate(graph.model("sum"), held, _ALL)
        with pytest.raises(ModelError, match="breaks the rule 'float-output' at node 'sum'"):
            quantize(calibration, TARGETS[target], held)


@pytest.mark.parametrize("rounding", [False, True])
def test_reported_errors_are_those_between_the_two_models(rounding: bool) -> None:
    """With 32 images of 64 pixels all pixels are sampled, so the report can be worked out from the models."""
    pictures = images(32)
    with spool(pictures) as held:
        calibration = calibrate(chain().model(), held, _ALL)
        quantized = quantize(calibration, TARGETS["tensorrt"], held, options=WeightOptions(rounding=rounding))
    for error, name in zip(quantized.errors, ("c1", "c2"), strict=True):
        (exact,), (got,) = run(calibration.network.model(), pictures, [name]), run(quantized.model, pictures, [name])
        assert error.layer == name
        np.testing.assert_allclose(error.sqnr_db, sqnr_db(exact, got), rtol=0, atol=0.05)


def test_a_systematic_error_is_taken_back_by_the_bias() -> None:
    """All weights lie a third of a step above the grid: without correction every output is too low."""
    graph = residual()
    weight = graph.constants["c2.w"]
    weight[:] = (np.random.default_rng(0).integers(5, 20, weight.shape) + 0.33) / 127
    weight[:, 0, 0, 0] = 1.0  # so that a step is 1 / 127
    pictures = images(32)
    with spool(pictures) as held:
        calibration = calibrate(graph.model(), held, _ALL)
        quantized = quantize(calibration, TARGETS["tensorrt"], held, options=WeightOptions(rounding=False))
    layer = next(layer for layer in quantized.placement.layers if layer.name == "c2")
    (exact,), (got,) = run(calibration.network.model(), pictures, ["c2"]), run(quantized.model, pictures, ["c2"])
    shift = quantized.weights["c2"].bias - calibration.network.constants[layer.bias]
    left, without = (error.mean(axis=(0, 2, 3)) for error in (got - exact, got - shift[:, None, None] - exact))
    assert (without < 0).all()
    assert (np.abs(left) < 0.05 * np.abs(without)).all()


def test_a_model_without_a_layer_to_quantize_is_an_error() -> None:
    graph = SmallGraph()
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", graph.image()), (3, 4))
    with spool(images(2)) as held, pytest.raises(ModelError, match="logits: it makes the logits"):
        calibrate(graph.model(), held, _ALL)


def _built(pictures: Images, batch: int) -> tuple[Calibration, QuantizedModel]:
    with spool(pictures, batch) as held:
        calibration = calibrate(everything().model(), held, _ALL)
        return calibration, quantize(calibration, TARGETS["cpu-x86"], held)


def test_neither_order_nor_batch_size_of_the_images_changes_anything() -> None:
    calibration, model = _built(_SEEN[:32], 1)
    others, same = _built(_SEEN[np.random.default_rng(5).permutation(32)], 8)
    assert model.ranges == same.ranges
    assert list(calibration.seen) == list(others.seen)
    for name, histogram in calibration.seen.items():
        np.testing.assert_array_equal(histogram.counts, others.seen[name].counts)
    assert model.model.SerializeToString() == same.model.SerializeToString()


def test_the_images_that_are_seen_decide_the_ranges() -> None:
    bright = np.clip(_SEEN[:8].astype(int) * 2, 0, 255).astype(np.uint8)
    assert _built(_SEEN[:8], 4)[1].ranges != _built(bright, 4)[1].ranges


def test_nan_in_an_activation_names_the_tensor() -> None:
    graph = residual()
    graph.constants["deviation"][0] = 0.0
    with spool(images(4)) as held, pytest.raises(ModelError, match="the tensor 'x' holds NaN or infinity"):
        calibrate(graph.model(), held, _ALL)


def test_progress_tells_each_stage_to_its_end() -> None:
    seen: dict[str, tuple[int, int]] = {}

    def note(stage: str, done: int, total: int) -> None:
        assert done > seen.get(stage, (0, 0))[0]
        seen[stage] = done, total

    with spool(images(9)) as held:
        calibration = calibrate(chain().model(), held, _ALL, progress=note)
        quantize(calibration, TARGETS["cpu-x86"], held, progress=note)
    assert seen == {"calibration": (9, 9), "reference outputs": (9, 9), "rounding": (2, 2)}


def test_one_image_is_enough_to_quantize() -> None:
    with spool(images(1)) as held:
        calibration = calibrate(residual().model(), held, _ALL)
        for target in _ALL:
            quantized = quantize(calibration, target, held)
            assert np.isfinite(run(quantized.model, images(3))[0]).all()


def test_the_graphs_input_and_output_keep_their_names() -> None:
    model = _quantize(residual, "cpu-arm").model
    assert [entry.name for entry in model.graph.input] == [IMAGE_INPUT]
    assert [entry.name for entry in model.graph.output] == [LOGITS_OUTPUT]
