"""What the tensors hold, as one pass through the graph sees it and as NumPy sees all values at once."""

from __future__ import annotations

import numpy as np
import pytest

from edgetune.core.errors import ModelError
from edgetune.quantize.histogram import BINS
from edgetune.quantize.observe import channel_extremes, histograms
from tests.unit.quantize.small_graphs import chain, images, run, spool

_SIZE = 40
_PICTURES = images(7, _SIZE)


def _graph_values(*tensors: str) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    graph = chain()
    graph.size = _SIZE
    return run(graph.model(), _PICTURES, tensors)


@pytest.mark.parametrize("batch", [1, 3])
def test_histograms_are_those_of_a_grid_of_pixels_and_extremes_those_of_all(batch: int) -> None:
    """1600 pixels are sampled in every third row and column from the second on: 13 * 13 = 169, at most 200."""
    graph = chain()
    graph.size = _SIZE
    tensors = ["x", "r1", "c2", "features"]
    with spool(_PICTURES) as held:
        seen = histograms(graph.network(), tensors, held, batch=batch)
    for name, values in zip(tensors, _graph_values(*tensors), strict=True):
        histogram = seen[name]
        np.testing.assert_allclose([histogram.low, histogram.high], [values.min(), values.max()], rtol=1e-5, atol=1e-6)
        sampled = values[:, :, 1::3, 1::3] if values.ndim == 4 else values
        if values.ndim == 4:
            assert sampled.shape[2:] == (13, 13)
        assert histogram.counts.sum() == sampled.size
        edges = (np.arange(BINS + 1) - BINS // 2) * (2 * histogram.reach / BINS)
        expected = np.histogram(sampled.astype(np.float64), edges)[0]
        # Sums in another order fall on the other side of an edge now and then.
        assert np.abs(histogram.counts - expected).sum() <= max(2, 0.002 * sampled.size)


def test_channel_extremes_are_numpys() -> None:
    graph = chain()
    graph.size = _SIZE
    tensors = ["c1", "r1", "c2"]
    with spool(_PICTURES) as held:
        seen = channel_extremes(graph.network(), tensors, held)
    for name, values in zip(tensors, _graph_values(*tensors), strict=True):
        low, high = seen[name]
        np.testing.assert_allclose(low, values.min(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(high, values.max(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_infinity_on_one_image_alone_names_the_tensor() -> None:
    """1 / (pixel - 100) is infinite where a pixel is 100."""
    graph = chain()
    graph.constants["mean"][:] = 100.0
    graph.node("Reciprocal", ["shifted"], "inverse")
    graph.nodes.insert(3, graph.nodes.pop())
    next(node for node in graph.nodes if node.name == "x").input[0] = "inverse"
    pictures = np.where(images(5) == 100, 99, images(5)).astype(np.uint8)
    with spool(pictures) as held:
        histograms(graph.network(), ["x", "r1"], held)
    pictures[2, 3, 3, 1] = 100
    with spool(pictures) as held, pytest.raises(ModelError, match="the tensor 'x' holds NaN or infinity"):
        histograms(graph.network(), ["x", "r1"], held)


def test_progress_counts_images() -> None:
    told: list[tuple[str, int, int]] = []
    with spool(images(5)) as held:
        histograms(chain().network(), ["x"], held, progress=lambda *step: told.append(step))
    assert told == [("calibration", 2, 5), ("calibration", 4, 5), ("calibration", 5, 5)]
