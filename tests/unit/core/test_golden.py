from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetune.core.bundle import Bundle, Manifest, RunOrigin
from edgetune.core.errors import BundleError
from edgetune.core.golden import GOLDEN_FOLDER, GoldenSet, load_golden, write_golden
from edgetune.core.preprocess import PreprocessSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
LOGITS = {
    "model.onnx": np.array([[1.5, -2.5], [0.0, 3e38]], np.float32),
    "model.int8.onnx": np.array([[1.0, -2.0], [0.0, 1.0]], np.float32),
}
FILES = {"0.jpg": b"first", "1.png": b"second"}


def _bundle(path: Path) -> Bundle:
    spec = PreprocessSpec(4, 4, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    manifest = Manifest(1, "classification", ("a", "b"), spec, RunOrigin("/run", "0" * 64), "net", "0", "now", (), {})
    return Bundle(path, manifest)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_golden(tmp_path, GoldenSet(tuple(FILES), PIXELS, LOGITS), FILES)
    return _bundle(tmp_path)


def _table(bundle: Bundle) -> Path:
    (path,) = (bundle.path / GOLDEN_FOLDER).glob("*.npz")
    return path


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_a_golden_set_comes_back_as_it_was_written(bundle: Bundle) -> None:
    golden, files = load_golden(bundle)
    assert golden.names == ("0.jpg", "1.png")
    assert files == [b"first", b"second"]
    assert golden.pixels.dtype == np.uint8
    np.testing.assert_array_equal(golden.pixels, PIXELS)
    assert list(golden.logits) == ["model.onnx", "model.int8.onnx"]
    for name, logits in LOGITS.items():
        assert golden.logits[name].dtype == np.float32
        np.testing.assert_array_equal(golden.logits[name], logits)


def test_the_files_come_in_the_order_of_the_names(tmp_path: Path) -> None:
    write_golden(tmp_path, GoldenSet(("1.png", "0.jpg"), PIXELS, LOGITS), FILES)
    assert load_golden(_bundle(tmp_path))[1] == [b"second", b"first"]


def test_a_bundle_without_golden_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="golden holds no golden set that can be read"):
        load_golden(_bundle(tmp_path))


def test_a_missing_image_is_noticed(bundle: Bundle) -> None:
    (bundle.path / GOLDEN_FOLDER / "1.png").unlink()
    with pytest.raises(BundleError, match=r"no golden set that can be read.*1\.png"):
        load_golden(bundle)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a table at all",
        b"PK\x03\x04",
        _npz(names=np.array(["0.jpg"])),
        _npz(names=np.array(["0.jpg", None]), pixels=PIXELS),
        _npz(names=np.array(["gone.jpg"]), pixels=PIXELS),
    ],
    ids=["empty", "text", "start of a zip", "no pixels", "pickled names", "unknown image"],
)
def test_a_damaged_table_is_refused(bundle: Bundle, data: bytes) -> None:
    _table(bundle).write_bytes(data)
    with pytest.raises(BundleError, match="holds no golden set that can be read"):
        load_golden(bundle)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95], ids=lambda share: f"{share:.0%} left")
def test_a_truncated_table_is_refused(bundle: Bundle, share: float) -> None:
    data = _table(bundle).read_bytes()
    _table(bundle).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BundleError, match="holds no golden set that can be read"):
        load_golden(bundle)


def test_a_flipped_byte_in_the_pixels_is_noticed(bundle: Bundle) -> None:
    data = bytearray(_table(bundle).read_bytes())
    data[data.index(b"pixels.npy") + 60] ^= 0xFF
    _table(bundle).write_bytes(data)
    with pytest.raises(BundleError, match="holds no golden set that can be read"):
        load_golden(bundle)
