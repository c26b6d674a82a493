"""Export and composition, on a small CNN with every trap in it, against PyTorch and numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgetune.core.errors import ModelError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.graph.compose import add_head, check_model, set_metadata, write_model
from edgetune.graph.inspect import describe_onnx
from edgetune.graph.to_onnx import export_features
from edgetune.models.head import FeatureExtractor
from edgetune.runners.ort_runner import OrtRunner

SPEC = PreprocessSpec(40, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _small_backbone() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 16, 3, groups=8, padding=1),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
    ).eval()


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(_small_backbone(), SPEC).eval()


@pytest.fixture(scope="module")
def features_model(extractor: FeatureExtractor) -> onnx.ModelProto:
    return export_features(extractor, 32)


def test_the_graph_computes_what_the_module_computes_at_any_batch(
    extractor: FeatureExtractor, features_model: onnx.ModelProto
) -> None:
    with OrtRunner(features_model.SerializeToString()) as runner:
        for batch in (1, 2, 5):
            images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
            with torch.inference_mode():
                expected = extractor(torch.from_numpy(images)).numpy()
            np.testing.assert_allclose(
                runner.infer({IMAGE_INPUT: images})[FEATURES_OUTPUT], expected, rtol=1e-4, atol=1e-5
            )


def test_normalisation_is_that_of_the_spec() -> None:
    extractor = FeatureExtractor(nn.Flatten(), SPEC)
    image = np.full((1, 32, 32, 3), (0, 128, 255), dtype=np.uint8)
    features = extractor(torch.from_numpy(image)).reshape(3, 32, 32).numpy()
    # (0/255 - 0.485) / 0.229, (128/255 - 0.456) / 0.224, (255/255 - 0.406) / 0.225, worked by hand
    expected = np.array([-2.1179039, 0.2051820, 2.64])
    np.testing.assert_allclose(features[:, 7, 9], expected, rtol=1e-5, atol=1e-5)


def test_the_graph_is_clean(features_model: onnx.ModelProto) -> None:
    operators = {node.op_type for node in features_model.graph.node}
    assert "BatchNormalization" not in operators
    assert not operators & {"Gather", "Range", "Shape", "Dropout"}
    first = [node.op_type for node in features_model.graph.node[:2]]
    assert first == ["Cast", "Transpose"]
    assert features_model.opset_import[0].version <= 20
    assert features_model.ir_version <= 10
    shape = [dim.dim_param or dim.dim_value for dim in features_model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 32, 32, 3]


def test_no_path_of_this_machine_is_in_the_file(features_model: onnx.ModelProto) -> None:
    content = features_model.SerializeToString()
    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content


def test_the_export_leaves_the_module_as_it_was(extractor: FeatureExtractor) -> None:
    before = {name: tensor.clone() for name, tensor in extractor.state_dict().items()}
    export_features(extractor, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.state_dict().items())
    assert any(getattr(layer, "inplace", False) for layer in extractor.modules())
    assert any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in extractor.modules())


def test_a_head_is_features_times_weights_plus_bias(features_model: onnx.ModelProto) -> None:
    weight = np.zeros((3, 16), dtype=np.float32)
    weight[0, 0], weight[1, 1], weight[2, :] = 2.0, -1.0, 0.5
    bias = np.array([1.0, 0.0, -3.0], dtype=np.float32)
    model = add_head(features_model, weight, bias)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with OrtRunner(features_model.SerializeToString()) as runner:
        features = runner.infer({IMAGE_INPUT: images})[FEATURES_OUTPUT].astype(np.float64)
    with OrtRunner(model.SerializeToString()) as runner:
        logits = runner.infer({IMAGE_INPUT: images})[LOGITS_OUTPUT]
    expected = np.stack([2 * features[:, 0] + 1, -features[:, 1], 0.5 * features.sum(axis=1) - 3], axis=1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    assert [output.name for output in features_model.graph.output] == [FEATURES_OUTPUT]


def test_a_head_of_another_width_is_refused(features_model: onnx.ModelProto) -> None:
    with pytest.raises(ModelError, match="takes 15 features, the backbone gives 16"):
        add_head(features_model, np.zeros((2, 15), dtype=np.float32), np.zeros(2, dtype=np.float32))


def test_a_hidden_layer_of_another_width_is_refused(features_model: onnx.ModelProto) -> None:
    hidden = np.zeros((4, 15), dtype=np.float32), np.zeros(4, dtype=np.float32)
    with pytest.raises(ModelError, match="takes 15 features, the backbone gives 16"):
        add_head(features_model, np.zeros((2, 4), dtype=np.float32), np.zeros(2, dtype=np.float32), hidden)


def test_labels_and_preprocessing_are_in_the_file(features_model: onnx.ModelProto, tmp_path: Path) -> None:
    model = add_head(features_model, np.zeros((2, 16), dtype=np.float32), np.zeros(2, dtype=np.float32))
    set_metadata(model, ("ä ant", "bee"), SPEC)
    write_model(tmp_path / "model.onnx", model)
    described = describe_onnx(tmp_path / "model.onnx")
    assert described["classes"] == ["ä ant", "bee"]
    assert described["preprocess"]["crop_size"] == 32
    assert described["inputs"] == ["image: uint8 (batch, 32, 32, 3)"]
    assert described["outputs"] == ["logits: float (batch, 2)"]
    with OrtRunner(tmp_path / "model.onnx") as runner:
        assert "bee" in runner.metadata["edgetune.classes"]


def test_a_newer_opset_than_our_runtimes_load_is_refused(features_model: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(features_model)
    model.opset_import[0].version = 21
    with pytest.raises(ModelError, match="opset 21"):
        check_model(model)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x08\x09"], ids=["empty", "text", "stub"])
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx"):
        describe_onnx(tmp_path / "model.onnx")
