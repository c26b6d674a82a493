"""The walk gives each layer the integers that the whole Q/DQ model gives it, and keeps none longer than needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgetune.core.tensors import Array
from edgetune.graph.network import Network
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.observe import histograms
from edgetune.quantize.placement import Layer, as_rows, place
from edgetune.quantize.qdq import LayerWeights, QdqNetwork
from edgetune.quantize.ranges import choose_range, to_params
from edgetune.quantize.targets import TARGETS
from edgetune.quantize.walk import Walk
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, images, run, spool


def _weights(network: Network, layer: Layer, noise: float = 0.0) -> LayerWeights:
    """Nearest integers, per output; `noise` moves them by that many steps."""
    weight = network.constants[layer.weight]
    rows = as_rows(network, layer, weight)
    scale = (np.abs(rows.reshape(len(rows), -1)).max(axis=1) / 100).astype(np.float32)
    moved = np.random.default_rng(len(layer.name)).normal(size=rows.shape) * noise
    integers = np.round(rows / scale.reshape(-1, *[1] * (rows.ndim - 1)) + moved).clip(-127, 127).astype(np.int8)
    return LayerWeights(integers if rows.shape == weight.shape else integers.T, scale, network.constants[layer.bias])


def _quantized(graph: SmallGraph, target: str, count: int, *kept_float: str) -> tuple[QdqNetwork, Network]:
    network, pixels = canonical_network(graph.model())
    network = Network.of_model(network.model())
    placement = place(network, TARGETS[target], kept_float)
    with spool(images(count, graph.size)) as held:
        seen = histograms(network, placement.tensors, held)
    choices = {name: choose_range(seen[placement.same_range.get(name, name)], TARGETS[target]) for name in seen}
    params = {name: to_params(choice.low, choice.high, TARGETS[target]) for name, choice in choices.items()}
    if pixels is not None:
        params[pixels.tensor] = pixels.params(TARGETS[target])
    quantized = QdqNetwork(network, TARGETS[target], placement, params, pixels.tensor if pixels else None)
    for layer in placement.layers:
        quantized.set_weights(layer, _weights(network, layer))
    return quantized, network


def _centred() -> SmallGraph:
    graph = chain()
    graph.constants["mean"] = graph.constants["deviation"] = np.full((1, 1, 1), 127.5, np.float32)
    return graph


_CASES = [
    (graph, target, kept)
    for graph in (everything, _centred)
    for target in TARGETS
    for kept in ((), ("point",) if graph is everything else ("c1",))
]


@pytest.mark.parametrize(("build", "target", "kept"), _CASES)
def test_the_integers_are_those_of_the_whole_model(
    build: Callable[[], SmallGraph], target: str, kept: tuple[str, ...]
) -> None:
    """Also where a layer's weights are changed when it is reached."""
    graph = build()
    quantized, network = _quantized(graph, target, 20, *kept)
    seen: dict[str, tuple[Layer, Array]] = {}
    with spool(images(20, graph.size)) as held:
        walk = Walk(quantized, held, 20)
        for layer, integers, params in walk:
            assert params == quantized.params[layer.data]
            seen[layer.name] = layer, integers.copy()
            quantized.set_weights(layer, _weights(network, layer, noise=2.0))
    assert list(seen) == [layer.name for layer in quantized.placement.layers]
    assert sum(len(batch) for batch in walk.batches) == walk.count == 20
    names = [f"{layer.data}_q" for layer, _ in seen.values()]
    whole = run(quantized.model(), np.concatenate(walk.batches), list(dict.fromkeys(names)))
    by_name = dict(zip(dict.fromkeys(names), whole, strict=True))
    for name, (_, integers) in zip(names, seen.values(), strict=True):
        assert integers.dtype == by_name[name].dtype == TARGETS[target].activation
        assert len(np.unique(integers)) > 20  # neither empty nor all clipped
        if not kept:
            np.testing.assert_array_equal(integers, by_name[name])
        # A float layer's sums differ in their last bits between batch sizes, and may fall on either side of a half.
        difference = np.abs(integers.astype(int) - by_name[name])
        assert difference.max() <= 1
        assert (difference > 0).sum() <= max(3, 0.001 * difference.size)


def test_integers_are_kept_only_as_long_as_something_reads_them() -> None:
    quantized, _ = _quantized(everything(), "cpu-x86", 4)
    kept = {}
    with spool(images(4, 16)) as held:
        walk = Walk(quantized, held, 4)
        for layer, _, _ in walk:
            kept[layer.name] = {name.removesuffix("_q") for name in walk._kept}
    assert kept == {
        "stem": {"x"},
        "deep": {"a0"},
        "point": {"a0", "a1"},  # a0 for the Add
        "left": {"pooled"},
        "right": {"pooled", "left_relu"},
        "last": {"joined"},
        "inner": {"features"},
    }
    assert walk._kept == {}


def test_the_number_of_images_is_bounded_by_the_memory_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    quantized, _ = _quantized(chain(), "cpu-x86", 20)
    # A byte a value: at most r1 and r2 are alive together, 2 * 8 * 8 * 8 bytes an image.
    monkeypatch.setattr("edgetune.quantize.walk._KEPT_BYTES", 12 * 1024)
    with spool(images(20)) as held:
        assert Walk(quantized, held, 20).count == 12
        assert Walk(quantized, held, 9).count == 9
