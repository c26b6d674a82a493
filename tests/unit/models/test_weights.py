"""Weights into backbones: the packaged ones, files of torchvision's naming, and every kind of mismatch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision.models

from edgetune.core.errors import BackboneChangedError, UsageError, WeightsError
from edgetune.models.checkpoint import read_state_dict
from edgetune.models.published import PublishedFile
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


def _fitted_to(classes: int, path: Path) -> Path:
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=classes).state_dict(), path)
    return path


def test_a_head_of_another_size_is_left_out_with_a_note(tmp_path: Path) -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", _fitted_to(37, tmp_path / "pets.pth"))
    note = "the file's own head of 37 classes (fc) is left out; the head is fitted anew"
    assert backbone.notes == backbone.lasting_notes == (note,)
    assert check_frozen(backbone).tensors == len(backbone.module.state_dict())


def test_a_file_without_a_head_needs_no_note(tmp_path: Path, shufflenet_file: Path) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    path = tmp_path / "bare.pth"
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, path)
    bare, whole = load_backbone("shufflenet_v2_x0_5", path), load_backbone("shufflenet_v2_x0_5", shufflenet_file)
    assert bare.notes == ()
    assert whole.notes == ("the file's own head of 1000 classes (fc) is left out; the head is fitted anew",)
    assert bare.tensors_sha256 == whole.tensors_sha256
    assert bare.weights_sha256 != whole.weights_sha256


def test_a_head_that_was_built_otherwise_is_left_out_too(tmp_path: Path) -> None:
    """MobileNetV2's classifier is a dropout and a linear layer; many scripts put one linear layer in their place."""
    network = torchvision.models.mobilenet_v2()
    network.classifier = torch.nn.Linear(1280, 12)
    torch.save(network.state_dict(), tmp_path / "other.pth")
    assert "of 12 classes (classifier)" in load_backbone("mobilenet_v2", tmp_path / "other.pth", image_size=64).notes[0]


def test_googlenets_files_load_with_and_without_their_auxiliary_heads(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=True)
    state = network.state_dict()
    torch.save(state, tmp_path / "with.pth")
    without = {name: tensor for name, tensor in state.items() if not name.startswith("aux")}
    assert len(without) < len(state)
    torch.save(without, tmp_path / "without.pth")
    digests = {
        load_backbone("googlenet", tmp_path / name, image_size=64).tensors_sha256
        for name in ("with.pth", "without.pth")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.model."])
def test_a_prefix_of_all_names_is_taken_off_where_the_tensors_then_fit(
    tmp_path: Path, shufflenet_file: Path, prefix: str
) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    path = tmp_path / "wrapped.pth"
    torch.save({"state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()}}, path)
    expected = load_backbone("shufflenet_v2_x0_5", shufflenet_file).tensors_sha256
    assert load_backbone("shufflenet_v2_x0_5", path).tensors_sha256 == expected
    torch.save({**{f"{prefix}{name}": tensor for name, tensor in state.items()}, "x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"does not fit shufflenet_v2_x0_5: \d+ missing"):
        load_backbone("shufflenet_v2_x0_5", path)


@pytest.mark.parametrize(
    ("true_name", "asked", "hint"),
    [
        ("resnet34", "resnet18", "check --model: it is a file of resnet34"),
        ("resnet18", "timm/resnet26", "check --model: it is a file of resnet18"),
        ("shufflenet_v2_x1_0", "efficientnet_lite0", "check --model: it is a file of shufflenet_v2_x1_0"),
    ],
)
def test_a_file_of_another_known_architecture_is_recognised(
    tmp_path: Path, true_name: str, asked: str, hint: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save(torchvision.models.get_model(true_name, weights=None, num_classes=3).state_dict(), path)
    with pytest.raises(WeightsError, match=f"does not fit {asked}") as caught:
        load_backbone(asked, path)
    assert caught.value.hint == hint


def test_a_file_of_no_known_architecture_is_not_guessed_at(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer4.1.bn2.weight"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"1 missing \(layer4\.1\.bn2\.weight\)\.$") as caught:
        load_backbone("resnet18", tmp_path / "other.pth")
    assert caught.value.hint == "check --model: the file belongs to another architecture"


def test_numbers_too_large_for_float32_are_refused(tmp_path: Path, shufflenet_file: Path) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    state["conv1.0.weight"] = state["conv1.0.weight"].double()
    state["conv1.0.weight"][0, 0, 0, 0] = 1e300
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"holds NaN or infinity in conv1\.0\.weight"):
        load_backbone("shufflenet_v2_x0_5", tmp_path / "bad.pth")


def test_features_of_a_layer_and_a_size_with_the_frozen_check(shufflenet_file: Path) -> None:
    backbone = load_backbone("shufflenet_v2_x0_5", shufflenet_file, layer="stage3", image_size=96)
    assert (backbone.layer, backbone.feature_dim) == ("stage3", 96)
    assert (backbone.preprocess.crop_size, backbone.preprocess.resize_size) == (96, 110)  # 96 * 256 / 224 = 109.7
    whole = load_backbone("shufflenet_v2_x0_5", shufflenet_file)
    assert check_frozen(backbone) == check_frozen(whole)
    assert len({backbone.key, whole.key}) == 2
    with torch.no_grad():
        backbone.module.state_dict()["network.stage2.0.branch2.0.weight"].mul_(2)
    with pytest.raises(BackboneChangedError, match=r"tensor stage2\.0\.branch2\.0\.weight differs"):
        check_frozen(backbone)


def test_a_size_or_layer_that_cannot_be_used_is_found_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, progress: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr("edgetune.models.weights.published_weights", download)
    with pytest.raises(UsageError, match="alexnet cannot take images of 30 px"):
        load_backbone("alexnet", image_size=30)
    with pytest.raises(UsageError, match="'nothing'"):
        load_backbone("alexnet", layer="nothing")


def test_what_was_mended_is_told_once_and_not_remembered(
    tmp_path: Path, shufflenet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = PublishedFile(shufflenet_file, ("it was mended",))
    monkeypatch.setattr("edgetune.models.weights.published_weights", lambda name, progress: published)
    backbone = load_backbone("shufflenet_v2_x0_5")
    assert backbone.notes == ("it was mended",)
    assert backbone.lasting_notes == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_loaded_and_proved(tmp_path: Path, shufflenet_file: Path, dtype: torch.dtype) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "weights.pth")
    backbone = load_backbone("shufflenet_v2_x0_5", tmp_path / "weights.pth")
    weight = backbone.module.state_dict()["conv1.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["conv1.0.weight"].float())
    assert check_frozen(backbone).tensors == len(state) - 2
    with torch.no_grad():  # one bit, though the file's floats are coarser
        weight.view(torch.int32)[0, 0, 0, 0] ^= 1
    with pytest.raises(BackboneChangedError, match=r"conv1\.0\.weight differs"):
        check_frozen(backbone)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_need_a_scale_are_refused(tmp_path: Path, shufflenet_file: Path, dtype: torch.dtype) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    state["conv1.0.weight"] = state["conv1.0.weight"].to(dtype)
    torch.save(state, tmp_path / "bad.pth")
    words = f"holds conv1\\.0\\.weight as {str(dtype).removeprefix('torch.')}, expected floating-point numbers"
    with pytest.raises(WeightsError, match=words):
        load_backbone("shufflenet_v2_x0_5", tmp_path / "bad.pth")


def test_a_counter_may_be_of_any_type(tmp_path: Path, shufflenet_file: Path) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    state["conv1.1.num_batches_tracked"] = torch.tensor(7.0)
    torch.save(state, tmp_path / "weights.pth")
    check_frozen(load_backbone("shufflenet_v2_x0_5", tmp_path / "weights.pth"))


def test_a_file_that_was_replaced_meanwhile_is_no_fault_of_the_backbone(tmp_path: Path, shufflenet_file: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(shufflenet_file.read_bytes())
    backbone = load_backbone("shufflenet_v2_x0_5", path)
    state = torch.load(shufflenet_file, weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in state.items()}, path)
    with pytest.raises(WeightsError, match=r"weights\.pth was changed while it was in use"):
        check_frozen(backbone)


def test_unprintable_names_do_not_reach_the_terminal(tmp_path: Path, shufflenet_file: Path) -> None:
    state = torch.load(shufflenet_file, weights_only=True)
    torch.save({**state, "x\n\x1b[2J": torch.zeros(1)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"1 unexpected \(x\\x0a\\x1b\[2J\)\.$"):
        load_backbone("shufflenet_v2_x0_5", tmp_path / "odd.pth")
