"""What keeps a node float32, at the limits' two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.graph.float_view import FloatView, largest_values
from edgetune.graph.fp16_guards import FLOOR, HALF_OPERATORS, LIMIT, reason_for_float
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, images, in_batches, run


def reason(graph: SmallGraph, node: str, **largest: float) -> str | None:
    """For tensors of magnitude 1, but for those in `largest`."""
    view = FloatView(graph.model())
    (found,) = [each for each in view.network.nodes if each.name == node]
    return reason_for_float(view, found, {name: largest.get(name, 1.0) for name in view.data_of(found)})


def product(weight: Any, bias: Any = None, *, size: int = 8) -> SmallGraph:
    """x -> Conv `c` with these weights (M, 3) -> Relu -> logits."""
    graph = SmallGraph(size)
    graph.image()
    values = np.asarray(weight, np.float32)
    inputs = ["x", graph.constant("w", values.reshape(*values.shape, 1, 1))]
    if bias is not None:
        inputs.append(graph.constant("b", bias))
    graph.node("Conv", inputs, "c")
    graph.node("Relu", ["c"], LOGITS_OUTPUT)
    return graph


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (65504.0, None),
        (65505.0, "the constant 'w' reaches 65505, and float16 ends at 65504"),
        (-1e5, "the constant 'w' reaches 100000, and float16 ends at 65504"),
        (np.nan, "the constant 'w' holds NaN or infinity"),
        (-np.inf, "the constant 'w' holds NaN or infinity"),
    ],
)
def test_weights_end_where_float16_does(value: float, words: str | None) -> None:
    assert reason(product([[value, 0, 0]]), "c", x=0.5) == words


def test_a_bias_and_a_limit_count_too() -> None:
    assert reason(product([[1, 1, 1]], [7e4]), "c") == "the constant 'b' reaches 70000, and float16 ends at 65504"
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 4))
    graph.constant("most", 3e38)
    graph.node("Clip", ["c", "", "most"], LOGITS_OUTPUT)
    assert reason(graph, LOGITS_OUTPUT) == "the constant 'most' reaches 3e+38, and float16 ends at 65504"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (LIMIT, None),
        (LIMIT + 1, "'c' reaches 8189, over the limit of 8188"),
        (1e5, "'c' reaches 100000, over the limit of 8188"),
        (np.inf, "'c' holds NaN or infinity"),
        (np.nan, "'c' holds NaN or infinity"),
        (FLOOR, None),
        (FLOOR / 2, "'c' only reaches 0.000488, too little for float16's digits"),
        (0.0, None),
    ],
)
def test_a_tensor_has_an_upper_and_a_lower_limit_for_its_maker_and_its_reader(value: float, words: str | None) -> None:
    graph = product([[1, 1, 1]])
    assert reason(graph, "c", c=value) == words
    assert reason(graph, LOGITS_OUTPUT, c=value) == words


def test_a_tensor_that_was_not_observed_is_not_trusted() -> None:
    view = FloatView(product([[1, 1, 1]]).model())
    assert reason_for_float(view, view.candidates()[0], {"x": 1.0}) == "the range of 'c' is not known"


# float16 has steps of 2 ** -24 = 5.96e-8 below 2 ** -14: 1.4 of them round to 1 and lose 8 % of the energy,
# 1000.4 of them lose 1.6e-7.
STEP = 2.0**-24


@pytest.mark.parametrize(
    ("steps", "bias", "largest", "kept"),
    [
        (1.4, None, 100.0, True),
        (0.4, None, 100.0, True),
        (1000.4, None, 100.0, False),
        (2.0, None, 100.0, False),
        (1.4, None, 2.0, False),  # loses 0.8 steps at most, and an output has steps of 1
        (1.4, 0.1, 100.0, False),  # loses 2.4e-6 at most, and 0.1 is rounded by up to 2.4e-5
        (1.4, 0.1, 5000.0, True),
    ],
    ids=["one digit left", "nothing left", "ten digits left", "exact", "nothing to hear", "under the bias", "over it"],
)
def test_a_channel_that_flushes_to_zero_matters_where_it_can_be_heard(
    steps: float, bias: float | None, largest: float, kept: bool
) -> None:
    graph = product([[0.1, 0.2, 0.3], [steps * STEP, 0, 0]], None if bias is None else [0.0, bias])
    words = "'w' loses over 0.01% of the energy of 1 of 2 channels"
    assert reason(graph, "c", x=largest) == (words if kept else None)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_channels_of_a_gemm_are_its_outputs(trans_b: int) -> None:
    graph = chain()
    weight = np.full((4, 8), 0.1, np.float32)
    weight[1] = 1.4 * STEP
    graph.constants[f"{LOGITS_OUTPUT}.w"] = weight if trans_b else weight.T.copy()
    graph.constants[f"{LOGITS_OUTPUT}.b"][:] = 0
    graph.nodes[-1].attribute[0].i = trans_b
    words = f"'{LOGITS_OUTPUT}.w' loses over 0.01% of the energy of 1 of 4 channels"
    assert reason(graph, LOGITS_OUTPUT, features=100.0) == words


@pytest.mark.parametrize(("op_type", "kept"), [("Mul", True), ("Div", True), ("Add", False), ("Sub", False)])
def test_small_constants_count_where_they_are_factors(op_type: str, kept: bool) -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 2))
    graph.constant("k", np.reshape([1.0, 1e-9], (2, 1, 1)))
    graph.node(op_type, ["c", "k"], LOGITS_OUTPUT)
    words = "'k' loses over 0.01% of the energy of 1 of 2 channels"
    assert reason(graph, LOGITS_OUTPUT) == (words if kept else None)


@pytest.mark.parametrize(("largest", "kept"), [(1000.0, False), (1092.0, True)])
def test_products_are_bounded_by_terms_of_one_sign(largest: float, kept: bool) -> None:
    """(10 + 20 + 30) * 1000 + 1 = 60001 and (10 + 20 + 30) * 1092 + 1 = 65521, whatever the signs."""
    found = reason(product([[10, -20, 30], [1, 1, 1]], [-1, 0]), "c", x=largest)
    assert found == ("its sums may reach 65521, and float16 ends at 65504" if kept else None)


@pytest.mark.parametrize(
    ("op_type", "attributes", "terms"),
    [
        ("GlobalAveragePool", {}, 64),
        ("AveragePool", {"kernel_shape": [4, 8]}, 32),
        ("ReduceMean", {}, 4 * 64),
    ],
)
def test_means_are_bounded_by_the_sums_they_take(op_type: str, attributes: dict[str, Any], terms: int) -> None:
    """Of 8 x 8 pixels and 4 channels; the batch, whose size is open, is 1 where it is summed up."""
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 4))
    axes = [graph.constant("axes", [1, 2, 3], np.int64)] if op_type == "ReduceMean" else []
    graph.node(op_type, ["c", *axes], LOGITS_OUTPUT, **attributes)
    most = 65504.0 / terms
    assert reason(graph, LOGITS_OUTPUT, c=most) is None
    words = f"its sums may reach {1.01 * most * terms:.6g}, and float16 ends at 65504"
    assert reason(graph, LOGITS_OUTPUT, c=1.01 * most) == words


def test_a_mean_over_an_open_size_has_no_bound() -> None:
    graph = SmallGraph()
    graph.conv("c", graph.image(), (3, 4))
    graph.node("ReduceMean", ["c"], LOGITS_OUTPUT, keepdims=1)
    assert reason(graph, LOGITS_OUTPUT) == "its sums may reach inf, and float16 ends at 65504"


def test_every_half_operator_takes_float16() -> None:
    for name in HALF_OPERATORS:
        schema = onnx.defs.get_schema(name, 20)
        allowed = {entry.type_param_str: entry.allowed_type_strs for entry in schema.type_constraints}
        made = schema.outputs[0].type_str
        assert made in {entry.type_str for entry in schema.inputs}, name
        assert "tensor(float16)" in allowed[made], name


def test_the_largest_values_are_those_of_the_tensors() -> None:
    model = everything().model()
    pictures = images(7, 16)
    found = largest_values(model, in_batches(pictures, 3))
    names = sorted(found)
    assert {"x", "stem", "sum", "joined", "features", LOGITS_OUTPUT} <= set(names)
    assert not {IMAGE_INPUT, "cast", "transposed", "shifted", "stem.w"} & set(names)
    for name, values in zip(names, run(model, pictures, names), strict=True):
        assert found[name] == pytest.approx(float(np.abs(values).max()), rel=1e-5), name


def test_infinity_is_told() -> None:
    graph = chain()
    graph.constants["c1.b"][0] = np.inf
    found = largest_values(graph.model(), in_batches(images(2), 1))
    assert found["c1"] == np.inf
    assert np.isfinite(found["x"])
