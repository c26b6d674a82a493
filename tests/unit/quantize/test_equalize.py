"""Equalisation changes no float output, and brings the channels it scales to one reach."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.errors import ModelError
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.network import Network
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.equalize import equalize
from tests.unit.quantize.small_graphs import SmallGraph, chain, images, residual, run, spool

PICTURES = images(8)


def _spread_channels(graph: SmallGraph, name: str) -> str:
    """Gives a convolution's outputs reaches between 0.1 and 1 times what they were."""
    factor = np.geomspace(0.1, 1.0, len(graph.constants[f"{name}.w"])).astype(np.float32)
    graph.constants[f"{name}.w"] *= factor[:, None, None, None]
    graph.constants[f"{name}.b"] *= factor
    return name


def _close(graph: SmallGraph, data: str) -> SmallGraph:
    """What is behind `data` cannot be scaled."""
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", data), (8, 4))
    return graph


def _linear() -> SmallGraph:
    graph = SmallGraph()
    _spread_channels(graph, graph.conv("c1", graph.image(), (3, 8), 3))
    return _close(graph, graph.conv("c2", "c1", (8, 8), 3))


def _relu() -> SmallGraph:
    graph = chain()
    _spread_channels(graph, "c1")
    return graph


def _pooled() -> SmallGraph:
    graph = SmallGraph()
    _spread_channels(graph, graph.conv("c1", graph.image(), (3, 8), 3))
    graph.node("MaxPool", ["c1"], "pooled", kernel_shape=[2, 2])
    return _close(graph, graph.conv("c2", "pooled", (8, 8), 3))


def _skip() -> SmallGraph:
    graph = SmallGraph()
    _spread_channels(graph, graph.conv("c1", graph.image(), (3, 8), 3))
    graph.node("Relu", ["c1"], "r1")
    _spread_channels(graph, graph.conv("c2", "r1", (8, 8), 3))
    graph.node("Relu", [graph.node("Add", ["c2", "r1"], "sum")], "r2")
    return _close(graph, graph.conv("c3", "r2", (8, 8)))


def _depthwise() -> SmallGraph:
    graph = SmallGraph()
    _spread_channels(graph, graph.conv("c1", graph.image(), (3, 8)))
    graph.node("Relu", ["c1"], "r1")
    _spread_channels(graph, graph.conv("c2", "r1", (8, 8), 3, group=8))
    graph.node("Relu", ["c2"], "r2")
    return _close(graph, graph.conv("c3", "r2", (8, 8)))


def _grouped() -> SmallGraph:
    graph = SmallGraph()
    _spread_channels(graph, graph.conv("c1", graph.image(), (3, 8)))
    _spread_channels(graph, graph.conv("c2", "c1", (8, 12), 3, group=4))
    graph.conv("c3", "c2", (12, 8), group=2)
    return _close(graph, "c3")


def _equalized(graph: SmallGraph, output: str = LOGITS_OUTPUT) -> tuple[Network, int]:
    network, _ = canonical_network(graph.model(output))
    with spool(PICTURES) as held:
        groups = equalize(network, held)
    return network, groups.groups


def _reach(network: Network, *tensors: str) -> npt.NDArray[np.float32]:
    reach: npt.NDArray[np.float32] = np.max(
        [np.abs(values).max(axis=(0, 2, 3)) for values in run(network.model(), PICTURES, tensors)], axis=0
    )
    return reach


_GRAPHS: list[tuple[Callable[[], SmallGraph], int]] = [
    (_linear, 1), (_relu, 1), (_pooled, 1), (_skip, 1), (_depthwise, 2), (_grouped, 2),
]  # fmt: skip


@pytest.mark.parametrize(("build", "count"), _GRAPHS, ids=[build.__name__.strip("_") for build, _ in _GRAPHS])
def test_the_float_outputs_do_not_change(build: Callable[[], SmallGraph], count: int) -> None:
    graph = build()
    network, groups = _equalized(graph)
    assert groups == count
    others = images(6, seed=9)
    expected, got = run(graph.model(), others)[0], run(network.model(), others)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("build", "tensors"), [(_linear, ("c1",)), (_pooled, ("c1", "pooled")), (_grouped, ("c1",)), (_grouped, ("c2",))]
)
def test_channels_of_linear_tensors_reach_equally_far(
    build: Callable[[], SmallGraph], tensors: tuple[str, ...]
) -> None:
    """A MaxPool counts as no linear tensor: there the way is halved."""
    graph = build()
    network, _ = _equalized(graph)
    before, after = _reach(Network.of_model(graph.model()), *tensors), _reach(network, *tensors)
    assert before.max() / before.min() > 5
    ratio, power = before / before.max(), 0.5 if build is _pooled else 1.0
    expected = ratio / np.maximum(ratio, 0.02) ** power  # 1 wherever fifty times are enough
    np.testing.assert_allclose(after / after.max(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("build", "tensors"), [(_relu, ("c1", "r1")), (_skip, ("c1", "r1", "c2", "sum", "r2"))])
def test_behind_relu_the_way_to_equal_reaches_is_halved(
    build: Callable[[], SmallGraph], tensors: tuple[str, ...]
) -> None:
    graph = build()
    network, _ = _equalized(graph)
    before, after = _reach(Network.of_model(graph.model()), *tensors), _reach(network, *tensors)
    np.testing.assert_allclose(after, np.sqrt(before * before.max()), rtol=1e-3, atol=0)


def test_a_channel_is_enlarged_fifty_times_at_most() -> None:
    graph = _linear()
    for part in ("w", "b"):
        graph.constants[f"c1.{part}"][2] *= 1e-5
        graph.constants[f"c1.{part}"][3] = 0.0
    network, _ = _equalized(graph)
    np.testing.assert_allclose(network.constants["c1.w"][2], 50 * graph.constants["c1.w"][2], rtol=1e-5, atol=0)
    assert not network.constants["c1.w"][3].any()
    assert np.isfinite(network.constants["c2.w"]).all()


def test_constant_zeros_are_left_alone() -> None:
    graph = _linear()
    graph.constants["c1.w"][:], graph.constants["c1.b"][:] = 0.0, 0.0
    network, groups = _equalized(graph)
    assert groups == 1
    np.testing.assert_array_equal(network.constants["c2.w"], graph.constants["c2.w"])


def _read_elsewhere() -> SmallGraph:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    graph.node("Sigmoid", ["c1"], "gate")
    graph.node("Mul", [graph.conv("c2", "c1", (8, 8)), "gate"], "scaled")
    return _close(graph, "scaled")


def _foreign_branch() -> SmallGraph:
    """The Add's other input comes from no convolution."""
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 3))
    graph.node("Relu", [graph.node("Add", ["c1", "x"], "sum")], "r1")
    return _close(graph, graph.conv("c2", "r1", (3, 8)))


@pytest.mark.parametrize("build", [residual, _read_elsewhere, _foreign_branch])
def test_what_a_scale_would_leak_out_of_is_left_alone(build: Callable[[], SmallGraph]) -> None:
    """A Clip's bound, a Sigmoid and a foreign branch do not scale along."""
    graph = build()
    network, groups = _equalized(graph)
    assert groups == 0
    for name, value in graph.constants.items():
        np.testing.assert_array_equal(network.constants[name], value)


def test_a_tensor_that_is_the_output_is_left_alone() -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    graph.conv("c2", "c1", (8, 8))
    assert _equalized(graph, "c1")[1] == 0


def test_a_tensor_with_nan_is_named() -> None:
    graph = _linear()
    graph.constants["deviation"][0] = 0.0
    with pytest.raises(ModelError, match="the tensor 'c1' holds NaN or infinity on the calibration images"):
        _equalized(graph)
