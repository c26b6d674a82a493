"""Integer layers on given integers: nothing differs where kernels are right, and one wrong layer shows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgetune.graph import integer_layers
from edgetune.graph.integer_layers import (
    IntegerModels,
    StepDifference,
    compare_integers,
    compare_models,
    integer_models,
)
from edgetune.quantize.census import count_operators, fused_layers
from edgetune.runners.ort_runner import OrtRunner
from tests.unit.quantize.qdq_graphs import good, put
from tests.unit.quantize.small_graphs import Images, chain, images

# Bytes of one image in the tensors that good("cpu-x86") quantizes: channels times 8 x 8 pixels, `f` without pixels.
_VALUES = {"x": 3 * 64, "c": 4 * 64, "b": 4 * 64, "s": 4 * 64, "j": 8 * 64, "f": 8}


@pytest.fixture
def pictures() -> Images:
    return images(6)


def _models(target: str) -> IntegerModels:
    models = integer_models(good(target))
    assert models is not None
    return models


def _not_fed(models: IntegerModels) -> onnx.ModelProto:
    """The fed graph reading its own integers, as an artifact does; its inputs stay and are not read."""
    model = onnx.ModelProto()
    model.CopyFrom(models.fed)
    for node in model.graph.node:
        node.input[:] = [name.removesuffix("__given") for name in node.input]
    return model


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm", "tensorrt"])
def test_right_kernels_differ_by_a_step_at_most(tmp_path: Path, pictures: Images, target: str) -> None:
    onnx.save(good(target), tmp_path / "model.onnx")
    found = compare_integers(tmp_path / "model.onnx", pictures)
    assert found is not None
    assert found.max_lsb <= 1
    assert found.share < 0.02


def test_the_kernels_are_the_artifacts_own() -> None:
    """All three products of the graph run as integers, whether its integers are given and observed or not."""
    assert fused_layers(count_operators(good("cpu-x86").SerializeToString())) == (3, 0)
    assert fused_layers(count_operators(_models("cpu-x86").fed.SerializeToString())) == (3, 0)


def test_every_quantized_activation_is_compared() -> None:
    models = _models("cpu-x86")
    assert set(models.tensors) == {f"q_{name}" for name in _VALUES}
    assert {entry.name for entry in models.fed.graph.input} == {"image", *(f"{name}__given" for name in models.tensors)}


def test_a_wrong_layer_shows_with_its_steps_and_spreads_nothing(pictures: Images) -> None:
    """1024 units of 2^-6 * 2^-7 in the bias are 4 steps of 2^-5 in `b`, and what reads `b` gets the right integers.

    Halves are exact here and rounded to even, so only an even number of steps is the same everywhere.
    """
    models = _models("cpu-x86")
    assert compare_models(models, pictures) == StepDifference(0, 0.0, "q_x")
    (bias,) = [numpy_helper.to_array(entry) for entry in models.fed.graph.initializer if entry.name == "bias2"]
    put(models.fed, "bias2", bias + np.int32(1024))
    wrong = compare_models(models, pictures, batch=4)
    assert (wrong.max_lsb, wrong.tensor) == (4, "q_b")
    assert 0.05 < wrong.share <= _VALUES["b"] / sum(_VALUES.values())  # some of `b` is at the end of its range
    spread = compare_models(IntegerModels(models.observed, _not_fed(models), models.tensors), pictures)
    assert spread.share > _VALUES["b"] / sum(_VALUES.values())


def test_the_batch_does_not_matter(pictures: Images) -> None:
    models = _models("cpu-x86")
    assert compare_models(models, pictures, batch=1) == compare_models(models, pictures, batch=6)


def test_the_reference_is_unoptimised_and_what_it_feeds_is_not(
    pictures: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Noted(OrtRunner):
        def __enter__(self) -> OrtRunner:
            opened.append(self.name)
            return super().__enter__()

    monkeypatch.setattr(integer_layers, "OrtRunner", Noted)
    compare_models(_models("cpu-x86"), pictures)
    assert opened == ["onnxruntime CPU, unoptimised", "onnxruntime CPU"]


def test_a_float_graph_has_no_integers(tmp_path: Path, pictures: Images) -> None:
    onnx.save(chain().model(), tmp_path / "model.onnx")
    assert compare_integers(tmp_path / "model.onnx", pictures) is None


def test_no_images_are_no_figures(tmp_path: Path, pictures: Images) -> None:
    onnx.save(good("cpu-x86"), tmp_path / "model.onnx")
    assert compare_integers(tmp_path / "model.onnx", pictures[:0]) is None


def test_the_model_itself_is_left_alone() -> None:
    model = good("cpu-x86")
    before = model.SerializeToString()
    integer_models(model)
    assert model.SerializeToString() == before


def test_steps_are_counted_across_zero() -> None:
    """uint8 0 and 255 are 255 steps apart, not one."""
    from edgetune.graph.integer_layers import _steps

    assert _steps(np.array([0], np.uint8), np.array([255], np.uint8)) == [255]
    assert _steps(np.array([-128], np.int8), np.array([127], np.int8)) == [255]
    assert StepDifference(0, 0.0, "q").max_lsb == 0
