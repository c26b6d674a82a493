"""Small graphs, and the exact list of tensors that carry Q/DQ for each target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.graph.network import Network
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.placement import Placement, find_layers, place
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, residual

_LOGITS = {LOGITS_OUTPUT: "it makes the logits"}


def _head(graph: SmallGraph, data: str, channels: int = 8) -> SmallGraph:
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", data), (channels, 4))
    return graph


def _relu(graph: SmallGraph, data: str, channels: tuple[int, int]) -> str:
    """A convolution and a Relu, called <data>c and <data>r."""
    return graph.node("Relu", [graph.conv(f"{data}c", data, channels)], f"{data}r")


def _pool() -> SmallGraph:
    graph = SmallGraph()
    graph.node("MaxPool", [_relu(graph, graph.image(), (3, 8))], "p1", kernel_shape=[2, 2])
    graph.node("MaxPool", ["p1"], "p2", kernel_shape=[2, 2])
    return _head(graph, graph.conv("c2", "p2", (8, 8)))


def _joined() -> SmallGraph:
    """A Concat of a convolution, a Relu behind one, and the mean-pooled image that nothing else quantizes."""
    graph = SmallGraph()
    data = _relu(graph, graph.image(), (3, 4))
    graph.conv("c2", data, (4, 4))
    graph.node("AveragePool", ["x"], "smooth", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    graph.node("Concat", ["c2", data, "smooth"], "joined", axis=1)
    return _head(graph, "joined", 11)


def _excitation() -> SmallGraph:
    """Squeeze and excitation: two convolutions on one pixel make the factors of the channels."""
    graph = SmallGraph()
    data = _relu(graph, graph.image(), (3, 8))
    graph.mean("squeezed", data, keepdims=1)
    inner = _relu(graph, "squeezed", (8, 2))
    graph.node("Sigmoid", [graph.conv("back", inner, (2, 8))], "gate")
    graph.node("Mul", [data, "gate"], "scaled")
    return _head(graph, graph.conv("c2", "scaled", (8, 8)))


def _projection() -> SmallGraph:
    """Both inputs of the Add come from a convolution that it alone reads."""
    graph = SmallGraph()
    data = _relu(graph, graph.image(), (3, 8))
    graph.conv("main", data, (8, 8))
    graph.conv("side", data, (8, 8))
    graph.node("Relu", [graph.node("Add", ["side", "main"], "sum")], "out")
    return _head(graph, graph.conv("c2", "out", (8, 8)))


def _gated() -> SmallGraph:
    """Two convolutions are added, and the first to be computed is read by a Sigmoid too."""
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    graph.node("Sigmoid", ["c1"], "gate")
    graph.node("Add", [graph.conv("c2", "x", (3, 8)), "c1"], "sum")
    graph.node("Mul", ["sum", "gate"], "scaled")
    return _head(graph, graph.conv("c3", "scaled", (8, 8)))


def _silu() -> SmallGraph:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    graph.node("Mul", ["c1", graph.node("Sigmoid", ["c1"], "gate")], "silu")
    return _head(graph, graph.conv("c2", "silu", (8, 8)))


def _hard_tanh() -> SmallGraph:
    """No zero point puts the ends of a range of integers at -1 and 1: this Clip is no part of the convolution."""
    graph = SmallGraph()
    bounds = [graph.constant("low", -1.0), graph.constant("high", 1.0)]
    graph.node("Clip", [graph.conv("c1", graph.image(), (3, 8)), *bounds], "bounded")
    return _head(graph, graph.conv("c2", "bounded", (8, 8)))


def _shifted() -> SmallGraph:
    """An Add of a constant stays float."""
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 8))
    graph.node("Add", ["c1", graph.constant("one", 1.0)], "plus")
    return _head(graph, graph.conv("c2", "plus", (8, 8)))


_EVERYTHING = (
    "x a0 a1 point sum pooled left_relu right_relu joined last_relu features inner_relu",
    "x a0 a1 pooled joined features",
)
# graph, tensors for the CPUs, tensors for TensorRT
_CASES: list[tuple[Callable[[], SmallGraph], str, str]] = [
    (chain, "x r1 r2", "x r1"),
    (residual, "x a1 c2 sum c3", "x a1 sum"),
    (_pool, "x xr p1 p2 c2", "x p2"),
    (_joined, "x xr c2 smooth joined", "x xr"),
    (_excitation, "x xr scaled c2", "x scaled"),
    (_projection, "x xr main side out c2", "x xr side out"),
    (_gated, "x c1 c2 sum scaled c3", "x c1 scaled"),
    (_silu, "x c1 silu c2", "x silu"),
    (_hard_tanh, "x c1 bounded c2", "x bounded"),
    (_shifted, "x c1 plus c2", "x plus"),
    (everything, *_EVERYTHING),
]


def _place(graph: SmallGraph, target: str, *kept_float: str) -> Placement:
    network, _ = canonical_network(graph.model())
    return place(Network.of_model(network.model()), TARGETS[target], kept_float)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize(("build", "dense", "sparse"), _CASES, ids=[build.__name__.strip("_") for build, *_ in _CASES])
def test_the_tensors_are_those_worked_by_hand(
    target: str, build: Callable[[], SmallGraph], dense: str, sparse: str
) -> None:
    placement = _place(build(), target)
    assert placement.tensors == tuple((dense if TARGETS[target].dense else sparse).split())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_gemm_that_makes_the_logits_stays_float(target: str) -> None:
    placement = _place(everything(), target)
    assert placement.kept_float == _LOGITS
    names = [layer.name for layer in placement.layers]
    assert names == ["stem", "deep", "point", "left", "right", "last", "inner"]


def test_a_poolings_output_takes_the_range_of_its_input() -> None:
    assert _place(_pool(), "cpu-x86").same_range == {"p1": "xr", "p2": "p1"}
    assert _place(_pool(), "tensorrt").same_range == {}
    assert _place(everything(), "cpu-arm").same_range == {"pooled": "sum"}


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_squeeze_and_excitation_stays_float(target: str) -> None:
    reason = "it works on one pixel (squeeze and excitation): nothing to gain"
    placement = _place(_excitation(), target)
    assert placement.kept_float == {"squeezedc": reason, "back": reason, **_LOGITS}
    assert [layer.name for layer in placement.layers] == ["xc", "c2"]


@pytest.mark.parametrize(
    ("target", "tensors"), [("cpu-x86", "x a1 c2 sum c3"), ("cpu-arm", "x a1 c2 sum c3"), ("tensorrt", "x sum")]
)
def test_a_layer_kept_float_by_name_is_no_layer_any_more(target: str, tensors: str) -> None:
    placement = _place(residual(), target, "c2")
    assert [layer.name for layer in placement.layers] == ["c1", "c3"]
    assert placement.kept_float == {"c2": "its INT8 error is too large", **_LOGITS}
    assert placement.tensors == tuple(tensors.split())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nothing_is_quantized_where_every_layer_is_kept_float(target: str) -> None:
    placement = _place(residual(), target, "c1", "c2", "c3")
    assert (placement.layers, placement.tensors) == ((), ())


def test_a_gemm_that_scales_or_transposes_stays_float() -> None:
    reason = "its Gemm scales or transposes its input"
    for attributes in ({"alpha": 0.5}, {"beta": 2.0}):
        graph = chain()
        graph.nodes.pop()
        graph.gemm("inner", "features", (8, 8), **attributes)
        graph.gemm(LOGITS_OUTPUT, "inner", (8, 4))
        assert _place(graph, "cpu-x86").kept_float["inner"] == reason


@pytest.mark.parametrize(("auto_pad", "quantized"), [("NOTSET", True), ("VALID", True), ("SAME_UPPER", False)])
def test_a_convolution_whose_padding_is_left_to_the_runtime_stays_float(auto_pad: str, quantized: bool) -> None:
    graph = SmallGraph()
    graph.constant("c1.w", graph.random.normal(size=(8, 3, 3, 3)))
    graph.node("Conv", [graph.image(), "c1.w"], "c1", auto_pad=auto_pad)
    placement = _place(_head(graph, graph.conv("c2", "c1", (8, 8))), "cpu-x86")
    assert ("c1" in placement.kept_float) is not quantized


def test_three_dimensional_convolutions_stay_float() -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image(), (3, 4))
    graph.node("Unsqueeze", ["c1", graph.constant("depth", [2], np.int64)], "deep")
    graph.constant("c3.w", graph.random.normal(size=(4, 4, 1, 3, 3)))
    graph.node("Conv", ["deep", "c3.w"], "c3")
    graph.node("ReduceMean", ["c3", graph.constant("all", [2, 3, 4], np.int64)], "features", keepdims=0)
    graph.gemm(LOGITS_OUTPUT, "features", (4, 4))
    assert _place(graph, "cpu-x86").kept_float["c3"] == "only two-dimensional convolutions are quantized"


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm"])
def test_a_convolution_that_makes_the_output_stays_float_on_cpus(target: str) -> None:
    """Its integers would have to be the output: the graph's outputs are not quantized."""
    graph = SmallGraph()
    graph.conv("c2", _relu(graph, graph.image(), (3, 8)), (8, 8))
    network, _ = canonical_network(graph.model("c2"))
    placement = place(network, TARGETS[target])
    assert [layer.name for layer in placement.layers] == ["xc"]
    assert placement.kept_float == {"c2": "it makes the output"}


def test_a_layers_output_is_behind_the_activation_that_alone_reads_it() -> None:
    layers = {layer.name: (layer.product, layer.output) for layer in find_layers(everything().network())}
    assert layers["left"] == ("left", "left_relu")
    assert layers["point"] == ("point", "point")
    silu = {layer.name: layer.output for layer in find_layers(_silu().network())}
    assert silu["c1"] == "c1"
