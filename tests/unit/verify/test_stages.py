"""Faults planted in real small graphs: each must fail at its own stage, and the healthy bundle at none."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import nn

from edgetune.core.bundle import FAIL, NOT_RUN, PASS, SCHEMA_VERSION, Artifact, Bundle, Manifest, RunOrigin
from edgetune.core.errors import DataError
from edgetune.core.files import sha256_of_file
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import PreprocessSpec, preprocess_image
from edgetune.core.run import BackboneRecord, FeaturesRecord, HeadRecord, Run, Split
from edgetune.data.image_folder import ImageFile
from edgetune.graph.compose import add_head, set_metadata, write_model
from edgetune.graph.to_onnx import export_features
from edgetune.heads.head import Head, save_head
from edgetune.models.head import FeatureExtractor
from edgetune.parity.records import StageCheck
from edgetune.parity.stages import StageTensors, first_failed, normalise
from edgetune.verify import stages
from edgetune.verify.reference import REFERENCE_NAME, stored_reference_bytes
from edgetune.verify.stages import (
    MAX_IMAGES,
    StageJob,
    StageReference,
    check_artifact,
    check_bundle,
    check_pixels,
    first_layer_spec,
    stage_reference,
)

Model = Any
Fault = Callable[[Model], None]

SPEC = PreprocessSpec(40, 32, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLASSES = ("ants", "bees", "wasps", "flies")
WIDTH = 24


def _extractor() -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(
        nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU6(),
            nn.Conv2d(12, WIDTH, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).eval(),
        SPEC,
    ).eval()


def _head() -> Head:
    random = np.random.default_rng(1)
    weight = random.normal(size=(len(CLASSES), WIDTH)).astype(np.float32) * 6
    return Head(weight, random.normal(size=len(CLASSES)).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Small:
    """A healthy bundle, its model in memory, its reference, and the images it is judged on."""

    bundle: Bundle
    model: Model
    reference: StageReference
    files: tuple[ImageFile, ...]


def _write_images(folder: Path, count: int) -> tuple[ImageFile, ...]:
    y, x = np.mgrid[0:48, 0:61]
    files = []
    for index in range(count):
        random = np.random.default_rng(index)
        waves = [127 + 100 * np.sin(x * random.uniform(0.1, 0.6) + y * random.uniform(0.1, 0.6)) for _ in range(3)]
        path = folder / f"{index:02}.png"
        Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save(path)
        files.append(ImageFile(path, index % len(CLASSES)))
    return tuple(files)


def _artifact(path: Path, precision: str = "fp32") -> Artifact:
    return Artifact(path.name, "onnx", precision, "any", sha256_of_file(path), path.stat().st_size, PASS, None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("bundle")
    files = _write_images(tmp_path_factory.mktemp("images"), 20)
    extractor, head = _extractor(), _head()
    model = add_head(export_features(extractor, 32), head.weight, head.bias)
    set_metadata(model, CLASSES, SPEC)
    write_model(folder / "model.onnx", model)
    data = {path.name: path.read_bytes() for path in (file.path for file in files[:2])}
    pixels = np.stack([preprocess_image(content, SPEC) for content in data.values()])
    write_golden(folder, GoldenSet(tuple(data), pixels, {}), data)
    artifacts = (_artifact(folder / "model.onnx"),)
    manifest = Manifest(
        SCHEMA_VERSION, "classification", CLASSES, SPEC, RunOrigin("", ""), "small", "0", "", artifacts, {}
    )
    pixels = np.stack([preprocess_image(file.path.read_bytes(), SPEC) for file in files[:MAX_IMAGES]])
    with torch.inference_mode():
        features = extractor(torch.from_numpy(pixels)).numpy()
    tensors = StageTensors(normalise(pixels, SPEC), features, head.logits(features))
    return Small(Bundle(folder, manifest), model, StageReference(pixels, tensors), files)


def _run() -> Run:
    backbone = BackboneRecord("small", "", "", "", WIDTH, 0, 0)
    return Run(
        1, "classification", "", {}, {}, CLASSES, SPEC, backbone, FeaturesRecord("", "", 0, 0),
        HeadRecord("linear", 1.0, 0, ""), Split("", (), (), ()),
    )  # fmt: skip


def _broken(small: Small, folder: Path, fault: Fault, precision: str = "fp32") -> Bundle:
    """A copy of the bundle in `folder` whose one model has the fault."""
    model = onnx.ModelProto()
    model.CopyFrom(small.model)
    fault(model)
    write_model(folder / "model.onnx", model)
    (folder / "golden").symlink_to(small.bundle.path / "golden")
    manifest = dataclasses.replace(small.bundle.manifest, artifacts=(_artifact(folder / "model.onnx", precision),))
    return Bundle(folder, manifest)


def _followed(small: Small, bundle: Bundle) -> dict[str, StageCheck]:
    checks = check_artifact(StageJob(bundle, bundle.manifest.artifacts[0], small.reference))
    return {check.stage: check for check in checks}


# ---- faults in the graph ------------------------------------------------------------------------------------------


def _initializer(model: Model, name: str) -> Model:
    return next(entry for entry in model.graph.initializer if entry.name == name)


def _replace(model: Model, name: str, change: Callable[[Any], Any]) -> None:
    entry = _initializer(model, name)
    entry.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(entry)).astype(np.float32), name))


def _swap_mean_and_std(model: Model) -> None:
    subtract = next(node for node in model.graph.node if node.op_type == "Sub")
    divide = next(node for node in model.graph.node if node.op_type == "Div")
    subtract.input[1], divide.input[1] = divide.input[1], subtract.input[1]


def _read_bgr(model: Model) -> None:
    """The channels are turned round right behind the image."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "order"))
    first = model.graph.node[0]
    turn = helper.make_node("Gather", [first.input[0], "order"], ["turned"], axis=3)
    first.input[0] = "turned"
    model.graph.node.insert(0, turn)


def _turn_layout(model: Model) -> None:
    transpose = next(node for node in model.graph.node if node.op_type == "Transpose")
    del transpose.attribute[:]
    transpose.attribute.append(helper.make_attribute("perm", [0, 3, 2, 1]))


def _negate_conv(model: Model) -> None:
    conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
    _replace(model, conv.input[1], lambda weight: -weight)


def _nan_weight(model: Model) -> None:
    conv = [node for node in model.graph.node if node.op_type == "Conv"][1]
    _replace(model, conv.input[1], lambda weight: np.full_like(weight, np.nan))


def _permute_head(model: Model) -> None:
    for name in ("head.weight", "head.bias"):
        _replace(model, name, lambda rows: rows[[0, 2, 1, 3]])


def _scale_head(model: Model) -> None:
    _replace(model, "head.weight", lambda rows: 1.001 * rows)


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "mean and std swapped": (
        _swap_mean_and_std,
        "normalised",
        "the graph normalises with mean (0.229, 0.224, 0.225) and std (0.485, 0.456, 0.406), "
        "expected mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)",
    ),
    "BGR": (_read_bgr, "normalised", "the graph reads the channels as BGR, expected RGB"),
    "rows and columns swapped": (_turn_layout, "normalised", "it is no scaling of the pixels"),
    "a convolution negated": (_negate_conv, "features", "the normalised image is right, so the backbone is not"),
    "NaN in a convolution": (_nan_weight, "features", "the features hold NaN or infinity"),
    "rows of the head permuted": (
        _permute_head,
        "logits",
        "class 1 has the logit of class 2, class 2 has the logit of class 1; the features are right, so the head",
    ),
    "a head scaled by a thousandth": (_scale_head, "logits", "the features are right, so the head is not"),
}


def test_a_healthy_artifact_passes_every_stage(small: Small) -> None:
    checks = _followed(small, small.bundle)
    assert list(checks) == ["normalised", "features", "logits", "probabilities", "labels"]
    assert {check.verdict for check in checks.values()} == {PASS}, checks
    assert all(check.max_abs_diff is not None and check.limit is not None for check in checks.values())
    assert first_failed(tuple(checks.values())) == ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_graph_fails_at_its_own_stage(name: str, small: Small, tmp_path: Path) -> None:
    fault, stage, words = FAULTS[name]
    checks = _followed(small, _broken(small, tmp_path, fault))
    assert first_failed(tuple(checks.values())) == stage
    assert words in checks[stage].reason
    before = list(checks)[: list(checks).index(stage)]
    assert {checks[earlier].verdict for earlier in before} <= {PASS}


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "a head scaled by a thousandth"])
def test_int8s_wide_limits_find_the_same_faults(name: str, small: Small, tmp_path: Path) -> None:
    """The graph computes in float, and is judged by the limits of INT8. A thousandth is nothing to those."""
    fault, stage, _ = FAULTS[name]
    checks = _followed(small, _broken(small, tmp_path, fault, "int8"))
    assert first_failed(tuple(checks.values())) == stage


def _cast_to_half(model: Model) -> None:
    from edgetune.graph.float_view import largest_values
    from edgetune.graph.fp16 import cast_to_fp16

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    model.CopyFrom(cast_to_fp16(model, largest_values(model, [pixels])).model)


def test_float16_is_rounded_inside_and_passes_its_own_limits(small: Small, tmp_path: Path) -> None:
    checks = _followed(small, _broken(small, tmp_path, _cast_to_half, "fp16"))
    assert {check.verdict for check in checks.values()} == {PASS}, checks
    ratio = float(checks["features"].reason.removeprefix("SQNR is ").split(" dB")[0])
    assert 50 < ratio < 90  # really rounded: float32 would have 120 and more


def _overflow_in_half(model: Model) -> None:
    """Values of up to 6 by 30000, which is over 65504, and back: a CPU that computes in float32 would not notice."""
    _cast_to_half(model)
    index = [row for row, node in enumerate(model.graph.node) if node.op_type == "Conv"][1]
    conv = model.graph.node[index]
    for name, value in (("up", 30000.0), ("down", 1 / 30000.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float16), name))
    up = helper.make_node("Mul", [conv.input[0], "up"], ["upped"])
    down = helper.make_node("Mul", ["upped", "down"], ["downed"])
    conv.input[0] = "downed"
    model.graph.node.insert(index, down)
    model.graph.node.insert(index, up)


def test_float16_overflows_inside_as_on_a_device(small: Small, tmp_path: Path) -> None:
    checks = _followed(small, _broken(small, tmp_path, _overflow_in_half, "fp16"))
    assert first_failed(tuple(checks.values())) == "features"
    assert checks["features"].reason.startswith("the features hold NaN or infinity")


def test_float16_faults_fail_at_their_stage(small: Small, tmp_path: Path) -> None:
    def fault(model: Model) -> None:
        _negate_conv(model)
        _cast_to_half(model)

    checks = _followed(small, _broken(small, tmp_path, fault, "fp16"))
    assert first_failed(tuple(checks.values())) == "features"


def test_an_int8_graph_with_its_pixels_centred_at_128_is_allowed_that(small: Small, tmp_path: Path) -> None:
    """Half a grey level off, which only INT8 may be."""
    halves = dataclasses.replace(SPEC, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def centred(model: Model) -> None:
        for op_type, value in (("Sub", 128.0), ("Div", 127.5)):
            node = next(node for node in model.graph.node if node.op_type == op_type)
            entry = _initializer(model, node.input[1])
            shape = list(entry.dims)
            entry.CopyFrom(numpy_helper.from_array(np.full(shape, value, np.float32), node.input[1]))

    bundle = _broken(small, tmp_path, centred, "int8")
    bundle = Bundle(bundle.path, dataclasses.replace(bundle.manifest, preprocess=halves))
    tensors = dataclasses.replace(small.reference.tensors, normalised=normalise(small.reference.pixels, halves))
    for precision, verdict in (("int8", PASS), ("fp32", FAIL)):
        artifact = dataclasses.replace(bundle.manifest.artifacts[0], precision=precision)
        job = StageJob(bundle, artifact, StageReference(small.reference.pixels, tensors))
        assert check_artifact(job)[0].verdict == verdict


def test_backbones_that_rescale_themselves_are_known(small: Small) -> None:
    """((x - mean) / std) * (std / 0.5) + (mean - 0.5) / 0.5 is (x - 0.5) / 0.5."""
    renamed = Bundle(small.bundle.path, dataclasses.replace(small.bundle.manifest, backbone="googlenet"))
    assert first_layer_spec(renamed) == dataclasses.replace(SPEC, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert first_layer_spec(small.bundle) == SPEC


# ---- what is lacking ----------------------------------------------------------------------------------------------


def _without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Import statements and `find_spec` no longer find it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == module else find_spec(name, *rest)
    )


def test_without_onnx_the_logits_are_still_followed(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "edgetune.graph.taps", None)
    checks = _followed(small, small.bundle)
    assert [check.verdict for check in checks.values()] == [NOT_RUN, NOT_RUN, PASS, PASS, PASS]
    assert checks["features"].reason == "onnx is not installed, which it takes to look inside the graph"


def test_an_artifact_that_does_not_run_is_not_run(small: Small, tmp_path: Path) -> None:
    bundle = _broken(small, tmp_path, lambda model: None)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    checks = _followed(small, bundle)
    assert {check.verdict for check in checks.values()} == {NOT_RUN}
    assert "cannot load" in checks["normalised"].reason
    assert checks["logits"].reason == checks["normalised"].reason


def test_the_reference_is_the_live_model(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_head(tmp_path / "head.safetensors", _head())
    backbone = SimpleNamespace(module=_extractor().backbone)
    monkeypatch.setattr(stages, "load_run_backbone", lambda run: backbone)
    reference = stage_reference(small.bundle, (tmp_path, _run()), small.files)
    assert reference.tensors.why == ""
    assert len(reference.pixels) == MAX_IMAGES
    assert reference.tensors.features is not None
    with torch.inference_mode():
        expected = _extractor()(torch.from_numpy(reference.pixels)).numpy()
    np.testing.assert_allclose(reference.tensors.features, expected, rtol=1e-5, atol=1e-6)
    checks = check_artifact(StageJob(small.bundle, small.bundle.manifest.artifacts[0], reference))
    assert {check.verdict for check in checks} == {PASS}


def test_without_the_run_the_stored_logits_serve_the_images_they_know(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = _broken(small, tmp_path, lambda model: None)
    known = small.files[:3]
    logits = small.reference.tensors.logits
    assert logits is not None
    hashes = tuple(sha256_of_file(file.path) for file in known)
    (tmp_path / REFERENCE_NAME).write_bytes(stored_reference_bytes("torch cpu", hashes, logits[:3]))
    reference = stage_reference(bundle, None, (*known, *small.files[16:]))
    assert len(reference.pixels) == 3
    checks = check_artifact(StageJob(bundle, bundle.manifest.artifacts[0], reference))
    assert [check.verdict for check in checks] == [PASS, NOT_RUN, PASS, PASS, PASS]
    assert checks[1].reason == "no PyTorch model: the bundle's run is gone or has changed"
    _without(monkeypatch, "torch")
    reference = stage_reference(bundle, (tmp_path, _run()), small.files[16:])
    assert len(reference.pixels) == 4
    checks = check_artifact(StageJob(bundle, bundle.manifest.artifacts[0], reference))
    assert [check.verdict for check in checks] == [PASS, NOT_RUN, NOT_RUN, NOT_RUN, NOT_RUN]
    assert {check.reason for check in checks[1:]} == {"no PyTorch model: torch is not installed"}


def test_images_of_which_none_can_be_read_are_an_error(small: Small, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 1 images could be read"):
        stage_reference(small.bundle, None, [ImageFile(tmp_path / "none.png", 0)])


# ---- the bundle's own words, and pixels ---------------------------------------------------------------------------


def test_a_healthy_bundle_agrees_with_itself(small: Small) -> None:
    checks = check_bundle(small.bundle, (Path(), _run()))
    assert [(check.stage, check.verdict) for check in checks] == [
        ("pixels", PASS), ("normalised", PASS), ("labels", PASS), ("pixels", PASS),
    ]  # fmt: skip
    assert checks[0].reason == "all agree: the manifest, the run, model.onnx"
    assert checks[3].max_abs_diff == 0.0
    assert check_bundle(small.bundle, None)[0].reason == "all agree: the manifest, model.onnx"


def test_classes_permuted_in_one_file_fail(small: Small, tmp_path: Path) -> None:
    bundle = _broken(small, tmp_path, lambda model: set_metadata(model, ("bees", "ants", *CLASSES[2:]), SPEC))
    checks = check_bundle(bundle, None)
    assert first_failed(checks) == "labels"
    assert checks[0].reason == "class 0 is 'ants' in the manifest, 'bees' in model.onnx, and 1 more differ"


def test_a_manifest_that_was_changed_fails_against_run_file_and_golden_pixels(small: Small) -> None:
    spec = dataclasses.replace(SPEC, crop_size=28)
    bundle = Bundle(small.bundle.path, dataclasses.replace(small.bundle.manifest, preprocess=spec))
    checks = check_bundle(bundle, (Path(), _run()))
    assert first_failed(checks) == "pixels"
    assert [check.reason for check in checks if check.verdict == FAIL] == [
        "crop_size is 28 px in the manifest, 32 px in the run",
        "crop_size is 28 px in the manifest, 32 px in model.onnx",
        "the golden images come out at 28 px here, 32 px where the bundle was exported",
    ]


def test_golden_pixels_that_were_changed_fail(small: Small, tmp_path: Path) -> None:
    bundle = _broken(small, tmp_path, lambda model: None)
    (tmp_path / "golden").unlink()
    data = {path.name: path.read_bytes() for path in (file.path for file in small.files[:2])}
    pixels = np.stack([preprocess_image(content, SPEC) for content in data.values()])
    pixels[0, 5, 6] ^= 64
    write_golden(tmp_path, GoldenSet(tuple(data), pixels, {}), data)
    check = check_bundle(bundle, None)[-1]
    assert (check.stage, check.verdict, check.max_abs_diff) == ("pixels", FAIL, 64.0)
    assert check.reason.startswith("golden image 00.png is decoded otherwise")


def test_a_file_that_cannot_be_asked_is_not_run(small: Small, tmp_path: Path) -> None:
    bundle = _broken(small, tmp_path, lambda model: None)
    (tmp_path / "model.onnx").write_bytes(b"no model")
    checks = check_bundle(bundle, None)
    assert [check.verdict for check in checks] == [NOT_RUN, NOT_RUN, NOT_RUN, NOT_RUN, PASS]
    assert checks[0].reason.startswith("model.onnx could not be asked: ONNX Runtime")


def test_our_pixels_are_torchvisions(small: Small) -> None:
    pytest.importorskip("torchvision")
    check = check_pixels(small.files, SPEC)
    assert (check.stage, check.verdict, check.max_abs_diff, check.limit) == ("pixels", PASS, 0.0, 0.0)
    assert check.reason == "16 images as torchvision has them"


def test_pixels_that_are_not_torchvisions_fail(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resize that is another one than the spec's."""
    pytest.importorskip("torchvision")
    other = dataclasses.replace(SPEC, interpolation="bicubic")
    monkeypatch.setattr(stages, "preprocess_image", lambda data, spec, **rest: preprocess_image(data, other, **rest))
    check = check_pixels(small.files, SPEC)
    assert check.verdict == FAIL
    assert check.max_abs_diff is not None
    assert check.max_abs_diff >= 1
    assert "comes out otherwise than with torchvision, by up to" in check.reason


def test_images_that_torchvision_treats_otherwise_are_told(small: Small, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with Image.open(small.files[0].path) as image:
        image.convert("RGBA").save(tmp_path / "a.png")
    extra = ImageFile(tmp_path / "a.png", 0)
    check = check_pixels((small.files[0], extra, ImageFile(tmp_path / "gone.png", 0)), SPEC)
    assert check.verdict == PASS
    assert check.reason.startswith("1 image as torchvision has it; 1 with transparency or more than 8 bits")
    assert check_pixels([extra], SPEC).verdict == NOT_RUN
    assert check_pixels([], SPEC).verdict == NOT_RUN


def test_without_torchvision_the_pixels_are_not_run(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "torchvision")
    check = check_pixels(small.files, SPEC)
    assert (check.verdict, check.max_abs_diff) == (NOT_RUN, None)
    assert check.reason == "torchvision is not installed, which the pixels are held against"
