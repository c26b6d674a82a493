"""A head with a hidden layer: its ONNX graph is held against PyTorch's model, block by block."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402 - torch may be missing

from edgetune.core.preprocess import PreprocessSpec  # noqa: E402
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT, LOGITS_OUTPUT  # noqa: E402
from edgetune.graph.alignment import aligned  # noqa: E402
from edgetune.graph.blocks import BlockGraph  # noqa: E402
from edgetune.graph.compose import add_head  # noqa: E402
from edgetune.graph.float_view import largest_values  # noqa: E402
from edgetune.graph.fp16 import cast_to_fp16  # noqa: E402
from edgetune.graph.to_onnx import export_features  # noqa: E402
from edgetune.heads.head import Head  # noqa: E402
from edgetune.models.head import Classifier, FeatureExtractor  # noqa: E402
from edgetune.runners.ort_runner import OrtRunner  # noqa: E402
from edgetune.runners.torch_runner import TorchRunner  # noqa: E402
from edgetune.verify.localize import LocalizeJob, localize  # noqa: E402

SPEC = PreprocessSpec(36, 32, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PICTURES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def _extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    return FeatureExtractor(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), SPEC).eval()


def _head() -> Head:
    """Features are about 0.1: each hidden unit is off for some images and on for others."""
    random = np.random.default_rng(1)
    arrays = [random.normal(size=shape).astype(np.float32) for shape in ((3, 10), (3,), (10, 16), (10,))]
    return Head(arrays[0], arrays[1], arrays[2] * 8, arrays[3] * 0.1)


@pytest.fixture(scope="module")
def features_model() -> onnx.ModelProto:
    return export_features(_extractor(), 32)


@pytest.fixture(scope="module")
def model(features_model: onnx.ModelProto) -> onnx.ModelProto:
    head = _head()
    return add_head(features_model, head.weight, head.bias, head.hidden)


def _classifier() -> TorchRunner:
    head = _head()
    return TorchRunner(Classifier(_extractor(), head.weight, head.bias, head.hidden), 32, LOGITS_OUTPUT)


def _saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_graph_module_and_numpy_give_the_same_logits(model: onnx.ModelProto, features_model: onnx.ModelProto) -> None:
    with OrtRunner(features_model.SerializeToString()) as runner:
        features = runner.infer({IMAGE_INPUT: PICTURES})[FEATURES_OUTPUT]
    expected = _head().logits(features)
    weight, bias = _head().hidden or (np.zeros(0), np.zeros(0))
    assert 0.1 < (features @ weight.T + bias > 0.0).mean() < 0.9
    with OrtRunner(model.SerializeToString()) as runner, _classifier() as torch_runner:
        np.testing.assert_allclose(runner.infer({IMAGE_INPUT: PICTURES})["logits"], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            torch_runner.infer({IMAGE_INPUT: PICTURES})["logits"], expected, rtol=1e-4, atol=1e-4
        )


def test_a_healthy_file_is_compared_in_every_block_of_the_head(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = _saved(model, tmp_path / "model.onnx")
    found = localize(LocalizeJob(path, "fp32", torch=_classifier, images=PICTURES))
    assert (found.culprit, found.images) == ("", 6), found.explanation
    assert "errors add up" in found.explanation
    figures = {block.block: block.cumulative_db for block in found.blocks}
    for block in ("head.hidden", "head"):
        assert (figures[block] or 0.0) > 100.0


@pytest.mark.parametrize(("weight", "culprit"), [("head.hidden.weight", "head.hidden"), ("head.weight", "head")])
def test_a_fault_in_a_layer_of_the_head_is_found_there(
    model: onnx.ModelProto, tmp_path: Path, weight: str, culprit: str
) -> None:
    spoilt = onnx.ModelProto()
    spoilt.CopyFrom(model)
    (entry,) = [each for each in spoilt.graph.initializer if each.name == weight]
    entry.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(entry), weight))
    job = LocalizeJob(_saved(spoilt, tmp_path / "model.onnx"), "fp32", torch=_classifier, images=PICTURES)
    assert localize(job).culprit == culprit
    reference = _saved(model, tmp_path / "reference.onnx")
    assert localize(dataclasses.replace(job, torch=None, reference=reference)).culprit == culprit


def test_a_float16_file_is_compared_in_every_block_of_the_head(model: onnx.ModelProto, tmp_path: Path) -> None:
    half = cast_to_fp16(model, largest_values(model, [PICTURES])).model
    job = LocalizeJob(_saved(half, tmp_path / "model.fp16.onnx"), "fp16", torch=_classifier, images=PICTURES)
    found = localize(job)
    assert found.culprit == "", found.explanation
    assert {"head.hidden", "head"} <= {block.block for block in found.blocks}


def test_a_file_with_other_names_is_aligned(model: onnx.ModelProto) -> None:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.input[:] = [name if name == "image" else f"t_{name}" for name in node.input]
        node.output[:] = [f"t_{name}" for name in node.output]
    for entry in (*renamed.graph.initializer, *renamed.graph.output, *renamed.graph.value_info):
        entry.name = f"t_{entry.name}"
    names = {node.name: node.output[0] for node in aligned(BlockGraph(model), BlockGraph(renamed)).model.graph.node}
    assert (names["head.relu"], names["head"]) == ("head.inner", "logits")
