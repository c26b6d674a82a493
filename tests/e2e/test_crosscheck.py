"""The same figures as independent tools give: ONNX's reference evaluator, and NVIDIA's Polygraphy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks.crosscheck import by_edgetune, by_polygraphy, read_pixels
from edgetune.core.bundle import load_bundle
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.runners.ort_runner import int8_saturates
from tests.unit.quantize.small_graphs import SmallGraph

Feed = dict[str, Array]


def _small(path: Path, *, noise: float = 0.0) -> Path:
    """A small network; with noise, all its weights are off by that share."""
    graph = SmallGraph()
    graph.conv("conv", graph.image(), (3, 8), 3)
    graph.gemm(LOGITS_OUTPUT, graph.mean("pooled", graph.relu6("act", "conv")), (8, 5))
    model = graph.model()
    random = np.random.default_rng(1)
    for tensor in model.graph.initializer if noise else ():
        values = numpy_helper.to_array(tensor)
        if values.ndim > 1 and values.size > 3:
            wrong = values * (1 + noise * random.normal(size=values.shape))
            tensor.CopyFrom(numpy_helper.from_array(wrong.astype(values.dtype), tensor.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Feed]:
    folder = tmp_path_factory.mktemp("pair")
    colours = np.random.default_rng(0).integers(0, 256, (24, 1, 1, 3), dtype=np.uint8)
    images = np.repeat(np.repeat(colours, 8, axis=1), 8, axis=2)
    return _small(folder / "a.onnx"), _small(folder / "b.onnx", noise=0.5), {IMAGE_INPUT: images}


@pytest.fixture(scope="module")
def int8_pair(small_bundle: Path, photos: Path) -> tuple[Path, Path, Feed]:
    spec = load_bundle(small_bundle).manifest.preprocess
    candidate = small_bundle / "model.int8.cpu-x86.onnx"
    return small_bundle / "model.onnx", candidate, {IMAGE_INPUT: read_pixels(photos, spec, 12)}


def test_the_figures_are_those_of_onnx_itself(pair: tuple[Path, Path, Feed]) -> None:
    reference, candidate, feed = pair
    theirs, ours = (
        np.asarray(next(iter(ReferenceEvaluator(str(path)).run([LOGITS_OUTPUT], feed))), np.float64)
        for path in (reference, candidate)
    )
    found = by_edgetune(reference, candidate, feed)
    assert found.max_abs_diff == pytest.approx(np.abs(theirs - ours).max(), rel=1e-5)
    assert found.snr_db == pytest.approx(10 * np.log10((theirs**2).sum() / ((theirs - ours) ** 2).sum()), rel=1e-5)
    assert found.flips == (theirs.argmax(axis=1) != ours.argmax(axis=1)).sum() > 0


def _check_same(reference: Path, candidate: Path, feed: Feed) -> None:
    ours, theirs = by_edgetune(reference, candidate, feed), by_polygraphy(reference, candidate, feed)
    assert ours.max_abs_diff == pytest.approx(theirs.max_abs_diff, rel=1e-6, abs=1e-12)
    assert (ours.snr_db is None) is (theirs.snr_db is None)
    if theirs.snr_db is not None:
        assert ours.snr_db == pytest.approx(theirs.snr_db, rel=1e-6)
    assert ours.flips == theirs.flips


def test_polygraphy_gives_the_same_figures(pair: tuple[Path, Path, Feed]) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed; pip install 'edgetune[dev]'")
    reference, candidate, feed = pair
    _check_same(reference, candidate, feed)
    _check_same(reference, reference, feed)
    assert by_polygraphy(reference, candidate, feed).flips > 0


@pytest.mark.parametrize(("share", "passes"), [(1.01, True), (0.99, False)])
def test_polygraphy_gives_the_same_verdict_by_the_same_tolerance(
    pair: tuple[Path, Path, Feed], share: float, passes: bool
) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed; pip install 'edgetune[dev]'")
    reference, candidate, feed = pair
    tolerance = share * by_edgetune(reference, candidate, feed).max_abs_diff
    assert by_edgetune(reference, candidate, feed, tolerance).passes is passes
    assert by_polygraphy(reference, candidate, feed, tolerance).passes is passes


@pytest.mark.e2e
@pytest.mark.skipif(int8_saturates(), reason="Polygraphy's sessions saturate on this CPU, and edgetune's do not")
def test_polygraphy_gives_the_same_figures_for_an_int8_artifact(int8_pair: tuple[Path, Path, Feed]) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed; pip install 'edgetune[dev]'")
    reference, candidate, feed = int8_pair
    _check_same(reference, candidate, feed)
    assert by_edgetune(reference, candidate, feed).max_abs_diff > 0.0
