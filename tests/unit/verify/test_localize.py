"""A fault planted in a block is found there and called what it is; healthy files have no culprit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgetune.parity.fault_kind import (
    BATCH_NORM,
    CHANNEL_ORDER,
    LAYOUT,
    NON_FINITE_WEIGHTS,
    NONDETERMINISTIC,
    NORMALISATION,
    OVERFLOW,
    SCALE,
    SIGN,
    WEIGHTS,
    ZERO_POINT,
)
from edgetune.parity.records import Localisation
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.localize import LocalizeJob, localize
from tests.unit.verify.planted import (
    PICTURES,
    Plant,
    both,
    change,
    half,
    integers,
    network,
    planted,
    replace,
    with_nan,
    write,
)

_TARGETS = ("cpu-x86", "tensorrt")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write(network(), folder / "model.onnx")
    write(half(), folder / "model.fp16.onnx")
    return folder


@pytest.fixture(scope="module")
def int8() -> dict[str, tuple[onnx.ModelProto, dict[str, Any]]]:
    return {target: integers(target) for target in _TARGETS}


def _localize(files: Path, candidate: Path, precision: str, **changes: Any) -> Localisation:
    job = LocalizeJob(candidate, precision, files / "model.onnx", images=PICTURES)
    return localize(dataclasses.replace(job, **changes))


@pytest.mark.parametrize(("name", "precision"), [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")])
def test_a_healthy_file_has_no_culprit_and_a_figure_for_every_block(files: Path, name: str, precision: str) -> None:
    found = _localize(files, files / name, precision)
    assert (found.culprit, found.kind, found.images) == ("", "", 8)
    assert [block.block for block in found.blocks] == [
        "x", "c1", "c2", "c3", "sum", "c4", "c5", "features", "logits",
    ]  # fmt: skip
    assert "errors add up" in found.explanation


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("has_record", [True, False])
def test_a_healthy_int8_file_has_no_culprit(
    files: Path, int8: dict[str, tuple[onnx.ModelProto, dict[str, Any]]], target: str, has_record: bool, tmp_path: Path
) -> None:
    model, record = int8[target]
    path = write(model, tmp_path / f"model.int8.{target}.onnx")
    found = _localize(files, path, "int8", record=record if has_record else None)
    assert found.culprit == "", found.explanation
    assert min(block.injected_db for block in found.blocks if block.injected_db is not None) > 20.0
    if has_record:
        expected = [(block.cumulative_db, block.expected_db) for block in found.blocks if block.expected_db is not None]
        assert len(expected) == 5
        # Calibration saw samples of the same images; 3 dB is what sampled pixels leave open.
        assert all(cumulative is not None and cumulative > wanted - 3.0 for cumulative, wanted in expected)
    else:
        assert "are estimated" in found.explanation


_SWAPPED = both(
    change("mean", lambda values: np.reshape([0.485, 0.456, 0.406], values.shape) * 255),
    change("deviation", lambda values: np.reshape([0.229, 0.224, 0.225], values.shape) * 255),
)
_BGR = replace("cast", "Gather", {"order": np.array([2, 1, 0])}, axis=3)
_RANDOM = replace("c4", "Dropout", {"ratio": np.array(0.3, np.float32), "training": np.array(True)})

_FLOAT_FAULTS: list[tuple[str, Plant, str, str]] = [
    ("one convolution negated", change("c2.w", np.negative), "c2", SIGN),
    ("the residual branch negated", change("c3.w", np.negative), "c3", SIGN),
    ("a bias a channel", change("c4.b", lambda values: values + np.linspace(-1, 1, len(values))), "c4", BATCH_NORM),
    ("some weights gone", change("c5.w", lambda values: values * (np.abs(values) > 0.15)), "c5", WEIGHTS),
    ("NaN in a weight", change("c2.w", with_nan), "c2", NON_FINITE_WEIGHTS),
    ("another mean and deviation", _SWAPPED, "x", NORMALISATION),
    ("BGR for RGB", _BGR, "x", CHANNEL_ORDER),
    ("height for width", replace("cast", "Transpose", {}, perm=[0, 2, 1, 3]), "x", LAYOUT),
    ("dropout left on", _RANDOM, "c4", NONDETERMINISTIC),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "block", "kind"), [case[1:] for case in _FLOAT_FAULTS],
                         ids=[case[0] for case in _FLOAT_FAULTS])  # fmt: skip
def test_a_fault_in_fp32(files: Path, tmp_path: Path, plant: Plant, block: str, kind: str) -> None:
    found = _localize(files, write(planted(network(), plant), tmp_path / "bad.onnx"), "fp32")
    assert (found.culprit, found.kind) == (block, kind), found.explanation
    assert found.option == ""  # it is in float already


def test_the_sentence_has_the_numbers(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    assert "mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225)" in _localize(
        files, write(planted(network(), _SWAPPED), path), "fp32"
    ).explanation  # fmt: skip
    assert "'c2.w' is -1 times" in _localize(
        files, write(planted(network(), change("c2.w", np.negative)), path), "fp32"
    ).explanation  # fmt: skip
    assert "'c2.w' holds 1 NaN" in _localize(
        files, write(planted(network(), change("c2.w", with_nan)), path), "fp32"
    ).explanation  # fmt: skip
    assert "channels 2, 1, 0 (RGB and BGR)" in _localize(
        files, write(planted(network(), _BGR), path), "fp32"
    ).explanation  # fmt: skip


@pytest.mark.parametrize(("plant", "kind"), [
    (change("c4.w", lambda values: values * 30000), OVERFLOW), (change("c4.w", np.negative), SIGN),
])  # fmt: skip
def test_a_fault_in_float16(files: Path, tmp_path: Path, plant: Plant, kind: str) -> None:
    found = _localize(files, write(planted(half(), plant), tmp_path / "bad.onnx"), "fp16")
    assert (found.culprit, found.kind, found.option) == ("c4", kind, "--keep-float c4"), found.explanation


def _times(factor: float) -> Any:
    return lambda values: values * factor


def _int8_faults(target: str) -> list[tuple[Plant, str, str]]:
    bias = "c4_bias_q" if target == "cpu-x86" else "c4_bias"
    return [
        (change("r4_scale", _times(4.0)), "c4", SCALE),
        (change("c4.w_scale", _times(4.0)), "c4", SCALE),
        (change("r4_zero_point", lambda values: values + 7), "c4", ZERO_POINT),
        (change("c4.w_q", np.negative), "c4", SIGN),
        (change(bias, lambda values: np.roll(values, 3) * 3), "c4", BATCH_NORM),
    ]


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("case", range(5))
def test_a_fault_in_int8(
    files: Path, int8: dict[str, tuple[onnx.ModelProto, dict[str, Any]]], tmp_path: Path, target: str, case: int
) -> None:
    model, record = int8[target]
    plant, block, kind = _int8_faults(target)[case]
    path = write(planted(model, plant), tmp_path / f"model.int8.{target}.onnx")
    found = _localize(files, path, "int8", record=record)
    assert (found.culprit, found.kind) == (block, kind), found.explanation
    assert found.option == f"--keep-float {block}"


def test_the_block_alone_still_shows_the_fault(files: Path, tmp_path: Path) -> None:
    path = write(planted(network(), change("c3.w", np.negative)), tmp_path / "bad.onnx")
    found = _localize(files, path, "fp32", repro=tmp_path / "repro")
    names = [str(tmp_path / "repro" / name) for name in ("reference.onnx", "candidate.onnx", "input.npz")]
    assert found.repro == f"edgetune parity {names[0]} {names[1]} --data {names[2]} --precision fp32"
    with np.load(names[2]) as archive:
        feed = dict(archive)
    assert {name: array.shape for name, array in feed.items()} == {"r2_given": (1, 16, 16, 16)}
    with OrtRunner(Path(names[0])) as reference, OrtRunner(Path(names[1])) as candidate:
        expected, got = reference.infer(feed), candidate.infer(feed)
    assert list(expected) == list(got) == ["c3"]
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in network().graph.initializer}
    bias = constants["c3.b"].reshape(1, -1, 1, 1)
    np.testing.assert_allclose(got["c3"] - bias, bias - expected["c3"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", _TARGETS)
def test_the_int8_block_alone_is_in_the_references_units(
    files: Path, int8: dict[str, tuple[onnx.ModelProto, dict[str, Any]]], tmp_path: Path, target: str
) -> None:
    """c2 makes an equalised tensor: its piece takes and gives float tensors as the reference has them."""
    model, record = int8[target]
    assert {"c4", "r4"} <= record["channel_scales"].keys()
    path = write(planted(model, change("c5.w_scale", _times(4.0))), tmp_path / f"model.int8.{target}.onnx")
    found = _localize(files, path, "int8", record=record, repro=tmp_path / "repro")
    assert found.culprit == "c5"
    with np.load(tmp_path / "repro" / "input.npz") as archive:
        feed = dict(archive)
    assert list(feed) == ["r4_given"]
    healthy = write(model, tmp_path / f"healthy.int8.{target}.onnx")
    job = LocalizeJob(healthy, "int8", files / "model.onnx", images=PICTURES, record=record)
    assert localize(job).culprit == ""
    with OrtRunner(tmp_path / "repro" / "reference.onnx") as reference:
        assert reference.infer(feed)["r5"].shape == (1, 24, 16, 16)
    with OrtRunner(tmp_path / "repro" / "candidate.onnx") as candidate:
        assert candidate.infer(feed)["r5"].shape == (1, 24, 16, 16)


def test_what_cannot_be_localised_says_so(files: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    found = _localize(files, broken, "fp32")
    assert found.culprit == ""
    assert found.explanation.startswith("the block that broke was not looked for: ")
    assert _localize(files, files / "model.onnx", "fp32", reference=None).explanation.endswith(
        "there is neither an ONNX reference nor PyTorch."
    )
    nothing = _localize(files, files / "model.onnx", "fp32", images=PICTURES[:0])
    assert nothing.explanation.endswith("there are no images to localise on.")


def test_images_may_come_in_batches(files: Path, tmp_path: Path) -> None:
    path = write(planted(network(), change("c3.w", np.negative)), tmp_path / "bad.onnx")
    whole = _localize(files, path, "fp32")
    parts = _localize(files, path, "fp32", images=lambda: iter([PICTURES[:3], PICTURES[3:]]))
    assert (parts.culprit, parts.images) == (whole.culprit, 8)
    for one, other in zip(whole.blocks, parts.blocks, strict=True):
        assert one.cumulative_db == pytest.approx(other.cumulative_db, abs=1e-3)
