"""Features of an earlier layer: those that torchvision's own extractor gives, pooled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.errors import UsageError
from edgetune.models.backbones import build_architecture, feature_dim
from edgetune.models.layers import LayerFeatures

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def _lively(network: nn.Module) -> nn.Module:
    """Untrained batch norms do nothing; these do."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.bias.data.normal_(0.0, 0.5, generator=generator)
    return network


# bn2 of a basic block: its output is changed in place by the addition behind it.
@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [
        ("resnet18", "layer3", 256), ("resnet18", "layer1.0.bn2", 64), ("resnet18", "conv1", 64),
        ("resnet18", "avgpool", 512), ("mobilenet_v2", "features.4", 32), ("squeezenet1_1", "features.3", 128),
    ],
)  # fmt: skip
def test_the_features_are_the_layers_mean_over_the_image(name: str, layer: str, width: int) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    architecture = build_architecture(name, layer=layer, image_size=64)
    _lively(architecture.network)
    assert feature_dim(architecture) == width
    reference = create_feature_extractor(copy.deepcopy(architecture.network), {layer: "out"})
    with torch.inference_mode():
        expected = reference(IMAGES)["out"].mean((2, 3))
        torch.testing.assert_close(architecture.module(IMAGES), expected, rtol=0, atol=0)


@pytest.mark.parametrize("is_exporting", [False, True], ids=["stops there", "runs on"])
def test_a_flat_layer_is_taken_as_it_is(is_exporting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of AlexNet's first linear layer, before the ReLU that works on its output in place."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: is_exporting)
    architecture = build_architecture("alexnet", layer="classifier.1", image_size=64)
    network: Any = architecture.network
    with torch.inference_mode():
        expected = network.classifier[1](network.avgpool(network.features(IMAGES)).flatten(1))
        features = architecture.module(IMAGES)
    assert features.shape == (2, 4096)
    assert bool((features < 0).any())
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


def test_nothing_behind_the_layer_is_run_and_the_names_stay() -> None:
    architecture = build_architecture("resnet18", layer="layer2", image_size=64)
    called: list[str] = []
    for name in ("layer1", "layer2", "layer3", "fc"):
        architecture.network.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.inference_mode():
        architecture.module(IMAGES)
        architecture.module(IMAGES)
    assert called == ["layer1", "layer2"] * 2
    assert architecture.network.state_dict().keys() == build_architecture("resnet18").network.state_dict().keys()
    assert len(architecture.network.get_submodule("layer2")._forward_hooks) == 1  # the test's own


def test_an_export_gives_the_same_features_and_no_more_tensors_than_they_need() -> None:
    pytest.importorskip("onnxscript")
    from edgetune.graph.to_onnx import export_features
    from edgetune.models.head import FeatureExtractor
    from edgetune.runners.ort_runner import OrtRunner

    architecture = build_architecture("resnet18", layer="layer1.0.bn2", image_size=64)
    extractor = FeatureExtractor(_lively(architecture.module), architecture.preprocess).eval()
    model = export_features(extractor, 64)
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = extractor(images)
    with OrtRunner(model.SerializeToString()) as runner:
        found = runner.infer({"image": images.numpy()})["features"]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    assert model.ByteSize() < 500_000  # three convolutions of ResNet-18's 45 MB
    namespaces = [entry.value for node in model.graph.node for entry in node.metadata_props]
    assert any("backbone.network.layer1.0.bn2" in value for value in namespaces)


def test_an_unknown_layer_gets_the_nearest_names_and_where_the_list_is() -> None:
    with pytest.raises(UsageError) as caught:
        build_architecture("resnet18", layer="layer33")
    assert caught.value.message == (
        "resnet18 has no layer 'layer33'; nearest names: layer3, layer3.1, layer3.0, layer4."
    )
    assert caught.value.hint == (
        "its layers are those of PyTorch's named_modules(): conv1, bn1, relu, maxpool, layer1, layer2, layer3, "
        "layer4, avgpool, fc, and what lies in them, such as layer4.1"
    )
    with pytest.raises(UsageError, match=r"^efficientnet_lite0 has no layer 'zzzzzzzz'\.$"):
        build_architecture("efficientnet_lite0", layer="zzzzzzzz")


class _Odd(nn.Module):
    """Layers whose outputs are no features of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Identity()
        self.tokens = nn.Flatten(2)
        self.pair = nn.MaxPool2d(2, return_indices=True)
        self.unused = nn.Conv2d(3, 4, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.last(pixels.permute(0, 2, 3, 1))
        self.tokens(pixels)
        self.pair(pixels)
        return pixels.flatten(1)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("tokens", r"the layer 'tokens' gives a tensor \(N, 3, 4096\), expected \(N, C, H, W\) or \(N, D\)"),
        ("last", r"the layer 'last' gives a tensor \(N, 64, 64, 3\), expected \(N, C, H, W\) or \(N, D\)"),
        ("pair", "the layer 'pair' gives a tuple, not a tensor"),
        ("unused", "the layer 'unused' takes no part when an image is classified"),
    ],
)
def test_a_layer_that_gives_no_features_is_refused(layer: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LayerFeatures(_Odd(), layer)(IMAGES)
