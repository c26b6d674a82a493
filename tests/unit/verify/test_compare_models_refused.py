"""What two ONNX files cannot be compared on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgetune.core.errors import DataError, EdgetuneError, ModelError, TensorError
from edgetune.verify.compare_models import CompareOptions
from tests.unit.verify.onnx_pairs import (
    FLOAT,
    NORMALISED,
    SIZE,
    WEIGHTS,
    X,
    classifier,
    compare,
    linear,
    write,
)


def _text(path: Path) -> Path:
    path.write_text("not a model")
    return path


def _scalar_output(path: Path) -> Path:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, {})


def _scalar_input(path: Path) -> Path:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return write(path, nodes, {"x": (FLOAT, [])}, {"y": FLOAT}, {})


def _two_batches(path: Path) -> Path:
    nodes = [helper.make_node("Concat", ["x", "z"], ["y"], axis=0)]
    return write(path, nodes, {"x": (FLOAT, [2, 4]), "z": (FLOAT, [3, 4])}, {"y": FLOAT}, {})


def _no_external_data(path: Path) -> Path:
    linear(path, np.ones((4, 300), np.float32))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (_text, ModelError, "b.onnx"),
        (lambda path: path, ModelError, "b.onnx does not exist or is not a file"),
        (_no_external_data, ModelError, "weights.bin"),
        (lambda path: linear(path, name="z"), ModelError, "takes z float32 (any, 4)"),
        (lambda path: linear(path, WEIGHTS[:, :2]), TensorError, "'y' is (8, 3), the candidate's 'y' (8, 2)"),
        (lambda path: linear(path, extra=True, output="other"), ModelError, "no output in common"),
        (_scalar_output, TensorError, "the output 'y' is () for 8 rows, expected (8, ...)"),
        (_scalar_input, ModelError, "the models take other inputs"),
    ],
    ids=["text", "missing", "no weights", "input", "shape", "outputs", "no batch out", "no batch in"],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, rows: Path, make: Any, kind: type[EdgetuneError], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)) as caught:
        compare(linear(tmp_path / "a.onnx"), make(tmp_path / "b.onnx"), rows)
    assert "\n" not in caught.value.message


def test_an_input_needs_a_batch_dimension(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.float32(1))
    path = _scalar_input(tmp_path / "a.onnx")
    with pytest.raises(EdgetuneError, match=r"'x' is float32 \(\)"):
        compare(path, path, tmp_path / "x.npz")
    np.savez(tmp_path / "xz.npz", x=X[:6], z=X[:6])
    path = _two_batches(tmp_path / "b.onnx")
    with pytest.raises(TensorError, match=r"its inputs have \['2', '3'\]"):
        compare(path, path, tmp_path / "xz.npz")


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        (CompareOptions(), SIZE, "does not say how its images are normalised"),
        (NORMALISED, "s", "leave the size of their images open"),
    ],
    ids=["mean", "size"],
)
def test_what_a_model_does_not_say_has_to_be_given(
    tmp_path: Path, images: Path, options: CompareOptions, size: Any, words: str
) -> None:
    path = classifier(tmp_path / "a.onnx", "planes", size=size)
    with pytest.raises(EdgetuneError, match=words):
        compare(path, path, images, options)


def test_images_are_for_models_of_one_image(tmp_path: Path, images: Path) -> None:
    path = linear(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=re.escape("takes x float32 (any, 4); expected one image")) as caught:
        compare(path, path, images)
    assert ".npz" in caught.value.hint


@pytest.mark.parametrize(("data", "words"), [("none", "does not exist"), ("empty", "holds no images")])
def test_data_that_is_not_there(tmp_path: Path, data: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    path = classifier(tmp_path / "a.onnx", "pixels")
    with pytest.raises(DataError, match=words):
        compare(path, path, tmp_path / data)


def test_not_one_image_that_can_be_read(tmp_path: Path, images: Path) -> None:
    for file in images.glob("*/*.png"):
        file.write_bytes(b"nothing")
    path = classifier(tmp_path / "a.onnx", "pixels")
    with pytest.raises(DataError, match=r"none of 24 inputs could be read; the first: .*01\.png"):
        compare(path, path, images)
