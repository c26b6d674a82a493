"""Heads and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import RunError
from edgetune.heads.head import Head, load_head, save_head

pytest.importorskip("safetensors")


def _linear() -> Head:
    return Head(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0.5, -0.5], np.float32))


def _mlp() -> Head:
    """Three features, two hidden units, two classes."""
    return Head(
        weight=np.array([[1, 2], [3, -1]], np.float32),
        bias=np.array([10, 20], np.float32),
        hidden_weight=np.array([[1, 0, 1], [0, -1, 0]], np.float32),
        hidden_bias=np.array([0, 1], np.float32),
    )


def test_logits_are_features_times_weight_plus_bias() -> None:
    head = Head(np.array([[1, 2], [3, 4], [0, -1]], np.float32), np.array([10, 20, 30], np.float32))
    logits = head.logits(np.array([[1, 1], [2, 0]], np.float32))
    np.testing.assert_array_equal(logits, np.array([[13, 27, 29], [12, 26, 30]], np.float32))
    assert logits.dtype == np.float32
    assert (head.classes, head.feature_dim) == (3, 2)


def test_a_hidden_layer_and_its_relu_come_first() -> None:
    """Hidden of (1, 2, 3): (4, -1) -> (4, 0); of (-5, 0, 1): (-4, 1) -> (0, 1)."""
    head = _mlp()
    logits = head.logits(np.array([[1, 2, 3], [-5, 0, 1]], np.float32))
    np.testing.assert_array_equal(logits, np.array([[14, 32], [12, 19]], np.float32))
    assert logits.dtype == np.float32
    assert (head.classes, head.feature_dim) == (2, 3)


@pytest.mark.parametrize("head", [_linear(), _mlp()], ids=["linear", "mlp"])
def test_a_temperature_divides_the_logits(head: Head) -> None:
    features = np.array([[1, 2, 3], [-5, 0, 1]], np.float32)
    cooled = head.divided_by(2.5)
    np.testing.assert_allclose(cooled.logits(features), head.logits(features) / 2.5, rtol=1e-6, atol=1e-6)
    assert cooled.weight.dtype == np.float32


@pytest.mark.parametrize("head", [_linear(), _mlp()], ids=["linear", "mlp"])
def test_a_head_comes_back_as_it_was_saved(tmp_path: Path, head: Head) -> None:
    save_head(tmp_path / "head", head)
    back = load_head(tmp_path / "head")
    for name in ("weight", "bias", "hidden_weight", "hidden_bias"):
        saved, found = getattr(head, name), getattr(back, name)
        assert (saved is None) == (found is None)
        if saved is not None:
            np.testing.assert_array_equal(found, saved)
            assert found.dtype == np.float32


def test_a_file_of_weight_and_bias_alone_is_a_linear_head(tmp_path: Path) -> None:
    save = pytest.importorskip("safetensors.numpy").save
    (tmp_path / "old").write_bytes(save({"weight": _linear().weight, "bias": _linear().bias}))
    assert load_head(tmp_path / "old").hidden is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=["NaN", "infinity", "minus infinity"])
@pytest.mark.parametrize("part", ["weight", "bias", "hidden_weight", "hidden_bias"])
def test_a_head_with_what_is_no_number_is_refused(tmp_path: Path, part: str, value: float) -> None:
    head = _mlp()
    getattr(head, part).flat[1] = value
    save_head(tmp_path / "head", head)
    with pytest.raises(RunError, match="head holds NaN or infinity") as caught:
        load_head(tmp_path / "head")
    assert "fit again" in caught.value.hint


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_head(path, _linear())
    return path


@pytest.mark.parametrize(
    "length", [0, 4, 8, 60, -1], ids=["empty", "half a size", "size only", "half", "one byte short"]
)
def test_a_truncated_head_is_refused(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(RunError, match="cannot be read"):
        load_head(saved)


@pytest.mark.parametrize(
    ("before", "after"), [(b'"bias"', b'"bios"'), (b'"F32"', b'"Q32"'), (b"{", b"["), (b"[2,3]", b"[2,9]")]
)
def test_a_damaged_header_is_refused(saved: Path, before: bytes, after: bytes) -> None:
    data = saved.read_bytes()
    assert before in data
    saved.write_bytes(data.replace(before, after, 1))
    with pytest.raises(RunError, match="cannot be read") as caught:
        load_head(saved)
    assert "fit again" in caught.value.hint


def test_a_missing_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone cannot be read"):
        load_head(tmp_path / "gone")


_F = np.float32


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (Head(np.ones((2, 3), _F), np.ones(3, _F)), r"has weights \(2, 3\) and bias \(3,\)"),
        (Head(np.ones(6, _F), np.ones(2, _F)), r"has weights \(6,\)"),
        (Head(np.ones((2, 3), _F), np.ones(2, _F), np.ones((3, 4), _F)), "half a hidden layer"),
        (Head(np.ones((2, 3), _F), np.ones(2, _F), None, np.ones(3, _F)), "half a hidden layer"),
        (Head(np.ones((2, 3), _F), np.ones(2, _F), np.ones((3, 4), _F), np.ones(4, _F)), r"weights \(3, 4\) and bias"),
        (Head(np.ones((2, 3), _F), np.ones(2, _F), np.ones((5, 4), _F), np.ones(5, _F)), r"hidden layer of 5 and"),
        (Head(np.ones((2, 3)), np.ones(2, _F)), "holds float64 and float32, expected float32"),  # type: ignore[arg-type]
    ],
    ids=["bias", "flat", "no hidden bias", "no hidden weight", "hidden bias", "layers apart", "doubles"],
)
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, head: Head, words: str) -> None:
    save_head(tmp_path / "head", head)
    with pytest.raises(RunError, match=words):
        load_head(tmp_path / "head")
