"""Architectures by name, and the sizes of images that they take."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision.models

from edgetune.core.errors import UsageError
from edgetune.models.backbones import build_architecture, feature_dim


def test_an_unknown_backbone_gets_its_nearest_names() -> None:
    with pytest.raises(UsageError, match="no backbone 'resnet19'") as caught:
        build_architecture("resnet19")
    assert "resnet18" in caught.value.hint
    with pytest.raises(UsageError, match=r"timm cannot build 'resnet18\.nope'"):
        build_architecture("timm/resnet18.nope")
    with pytest.raises(UsageError, match="timm has no model 'resnett18'"):
        build_architecture("timm/resnett18")


def test_a_transformer_of_torchvisions_is_out_of_scope() -> None:
    with pytest.raises(UsageError, match="swin_t is a transformer; only CNNs are supported"):
        build_architecture("swin_t")


@pytest.mark.parametrize(
    ("name", "width"),
    [("timm/resnet18", 512), ("squeezenet1_1", 512), ("mobilenet_v3_small", 1024), ("alexnet", 4096)],
)
def test_other_backbones_give_flat_features(name: str, width: int) -> None:
    assert feature_dim(build_architecture(name)) == width


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("resnet18", "fc"), ("mobilenet_v2", "classifier"), ("mobilenet_v3_small", "classifier.3"),
        ("alexnet", "classifier.6"), ("squeezenet1_1", "classifier"), ("densenet121", "classifier"),
        ("convnext_tiny", "classifier.2"),
    ],
)  # fmt: skip
def test_the_head_reaches_as_far_as_nothing_else_has_tensors(name: str, head: str) -> None:
    architecture = build_architecture(name)
    assert architecture.head_prefixes == (head,)
    whole = torchvision.models.get_model(name, weights=None).state_dict()
    kept = architecture.network.state_dict()
    assert {each for each in whole if not each.startswith(f"{head}.")} == set(kept)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", ("fc",)), ("convnext_atto", ("head.fc",)), ("repvit_m0_9", ("head",)),
        ("convformer_s18", ("head.fc",)), ("tf_efficientnet_b0", ("classifier",)),
    ],
)  # fmt: skip
def test_timms_heads_reach_as_far_too(name: str, heads: tuple[str, ...]) -> None:
    import timm

    architecture = build_architecture(f"timm/{name}")
    assert architecture.head_prefixes == heads
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False).state_dict()
    left_out = tuple(f"{head}." for head in heads)
    assert {each for each in whole if not each.startswith(left_out)} == set(architecture.network.state_dict())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_no_part_of_the_backbone(name: str) -> None:
    architecture = build_architecture(name)
    whole = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=True).state_dict()
    left_out = tuple(f"{prefix}." for prefix in ("fc", *architecture.auxiliaries))
    assert {each for each in whole if not each.startswith(left_out)} == set(architecture.network.state_dict())
    assert any(each.startswith(tuple(architecture.auxiliaries)) for each in whole)


# resize / crop as published: resnet18 256 / 224, efficientnet_v2_s 384 / 384, alexnet 256 / 224.
@pytest.mark.parametrize(
    ("name", "image_size", "sizes"),
    [
        ("resnet18", None, (256, 224)),
        ("resnet18", 224, (256, 224)),
        ("resnet18", 112, (128, 112)),
        ("resnet18", 160, (183, 160)),  # 182.86
        ("resnet18", 7, (8, 7)),
        ("resnet18", 100, (114, 100)),  # 114.29
        ("efficientnet_v2_s", 128, (128, 128)),
        ("efficientnet_lite0", None, (256, 224)),
        ("efficientnet_lite0", 160, (182, 160)),  # 182.86, and timm rounds down
        ("timm/convnext_atto.d2_in1k", None, (256, 224)),
        ("timm/convnext_atto.d2_in1k", 288, (329, 288)),  # 288 / 0.875 = 329.14
    ],
)
def test_the_short_side_is_scaled_with_the_crop(name: str, image_size: int | None, sizes: tuple[int, int]) -> None:
    spec = build_architecture(name, image_size=image_size).preprocess
    assert (spec.resize_size, spec.crop_size) == sizes


def test_timms_own_transforms_agree_on_the_scaled_side() -> None:
    from timm.data import create_transform

    for size in (97, 128, 160, 199, 256, 300, 321):
        spec = build_architecture("efficientnet_lite0", image_size=size).preprocess
        transforms = create_transform(size, crop_pct=0.875, interpolation="bicubic").transforms
        assert transforms[0].size == spec.resize_size == math.floor(size / 0.875)


@pytest.mark.parametrize(
    ("image_size", "words"),
    [
        (0, "--image-size is 0 px, expected 1 to 4096"),
        (-8, "--image-size is -8 px, expected 1 to 4096"),
        (4097, "--image-size is 4097 px, expected 1 to 4096"),
        (3600, "--image-size 3600: the short side would have 4114 px, expected at most 4096"),
    ],
)
def test_sizes_out_of_range(image_size: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_architecture("resnet18", image_size=image_size)


def test_a_size_that_the_backbone_refuses_is_named_with_its_own_words() -> None:
    with pytest.raises(UsageError, match=r"^alexnet cannot take images of 32 px: .*[Oo]utput size is too small"):
        feature_dim(build_architecture("alexnet", image_size=32))


def test_a_size_that_leaves_no_features_is_refused() -> None:
    architecture = build_architecture("resnet18", image_size=64)
    architecture.network.register_forward_hook(lambda *_: torch.full((1, 512), float("nan")))
    with pytest.raises(UsageError, match="resnet18 gives NaN or infinity for a grey image of 64 px"):
        feature_dim(architecture)


def test_other_sizes_go_through() -> None:
    assert feature_dim(build_architecture("resnet18", image_size=96)) == 512
    assert feature_dim(build_architecture("efficientnet_lite0", image_size=100)) == 1280
