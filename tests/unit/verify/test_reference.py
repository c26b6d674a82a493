"""The PyTorch side rebuilt from a run: the same weights, layer and preprocessing, or a refusal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

from edgetune.core.errors import WeightsError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import SCHEMA_VERSION, BackboneRecord, FeaturesRecord, HeadRecord, Run, Split
from edgetune.models.weights import check_frozen, load_backbone
from edgetune.verify.reference import load_run_backbone

NAME = "shufflenet_v2_x0_5"
# Not what torchvision publishes for any size.
SPEC = PreprocessSpec(100, 80, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def _fitted(folder: Path, layer: str = "stage3") -> Run:
    """The record of a run on random weights."""
    torch.manual_seed(0)
    path = folder / "weights.pth"
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=5).state_dict(), path)
    backbone = load_backbone(NAME, path, layer=layer, image_size=SPEC.crop_size)
    proof = check_frozen(backbone)
    record = BackboneRecord(
        NAME, str(path), backbone.weights_sha256, proof.tensors_sha256, backbone.feature_dim, proof.tensors,
        proof.buffers, layer,
    )  # fmt: skip
    features = FeaturesRecord("onnxruntime", "fp32", 0, 4)
    head, split = HeadRecord("linear", 1.0, 5, ""), Split("/data", (), (), ())
    options: dict[str, Any] = {"weights": str(path)}
    return Run(
        SCHEMA_VERSION, "classification", "", options, {}, ("a", "b"), SPEC, record, features, head, split
    )  # fmt: skip


@pytest.mark.parametrize(("layer", "width"), [("stage3", 96), ("", 1024)])
def test_layer_and_preprocessing_are_those_of_the_run(tmp_path: Path, layer: str, width: int) -> None:
    run = _fitted(tmp_path, layer)
    backbone = load_run_backbone(run)
    assert backbone.preprocess == SPEC
    assert (backbone.layer, backbone.feature_dim) == (layer, width)
    pixels = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    expected = load_backbone(NAME, Path(run.backbone.weights_path), layer=layer, image_size=80)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(pixels), expected.module(pixels), rtol=0, atol=0)
    check_frozen(backbone)


def test_another_weights_file_is_refused(tmp_path: Path) -> None:
    run = _fitted(tmp_path)
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=5).state_dict(), run.backbone.weights_path)
    with pytest.raises(WeightsError, match="is not the file that the run was fitted on"):
        load_run_backbone(run)


def test_a_weights_file_that_is_gone_is_named(tmp_path: Path) -> None:
    run = _fitted(tmp_path)
    Path(run.backbone.weights_path).unlink()
    with pytest.raises(WeightsError, match=r"the run's weights file .*weights\.pth is gone"):
        load_run_backbone(run)


def test_other_tensors_from_the_same_file_are_refused(tmp_path: Path) -> None:
    run = _fitted(tmp_path)
    record = dataclasses.replace(run.backbone, tensors_sha256="0" * 64)
    with pytest.raises(WeightsError, match=f"gives other tensors of {NAME} than when the run was fitted") as caught:
        load_run_backbone(dataclasses.replace(run, backbone=record))
    assert "torch, torchvision and timm" in caught.value.hint
