"""Small networks with a fault planted at a known block, as FP32, float16 and INT8 files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgetune.core.config import to_dict
from edgetune.core.tensors import LOGITS_OUTPUT, Array
from edgetune.graph.float_view import largest_values
from edgetune.graph.fp16 import cast_to_fp16
from edgetune.quantize.calibrate import layer_records, range_records
from edgetune.quantize.quantizer import calibrate, quantize
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import SmallGraph, images, spool

PICTURES = images(8, 16)
Plant = Callable[[onnx.ModelProto], None]


def network() -> onnx.ModelProto:
    """Stem, a residual block, a wider end: x -> c1 r1 -> c2 r2 c3 + r1 = sum -> c4 r4 -> c5 r5 -> mean -> logits."""
    graph = SmallGraph(16, seed=3)
    graph.conv("c1", graph.image(), (3, 16), 3)
    graph.node("Relu", ["c1"], "r1")
    graph.conv("c2", "r1", (16, 16), 3)
    graph.node("Relu", ["c2"], "r2")
    graph.conv("c3", "r2", (16, 16))
    graph.node("Add", ["c3", "r1"], "sum")
    graph.conv("c4", "sum", (16, 24), 3)
    graph.node("Relu", ["c4"], "r4")
    graph.conv("c5", "r4", (24, 24))
    graph.node("Relu", ["c5"], "r5")
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", "r5"), (24, 4))
    return graph.model()


def half() -> onnx.ModelProto:
    model = network()
    return cast_to_fp16(model, largest_values(model, [PICTURES])).model


def integers(target: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The INT8 model and its calibration record."""
    chosen = TARGETS[target]
    with spool(PICTURES) as held:
        calibration = calibrate(network(), held, (chosen,))
        made = quantize(calibration, chosen, held, options=WeightOptions(rounding=False))
    scales = {name: scale.tolist() for name, scale in calibration.equalized.channel_scales.items()}
    ranges = {name: to_dict(each) for name, each in range_records(made).items()}
    layers = [to_dict(each) for each in layer_records(made)]
    return made.model, {"channel_scales": scales, "targets": [{"target": target, "layers": layers, "ranges": ranges}]}


def write(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def planted(model: onnx.ModelProto, plant: Plant) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    plant(copy)
    return copy


def change(name: str, function: Callable[[Array], Array]) -> Plant:
    """Gives a constant other values of the same type and shape."""

    def plant(model: onnx.ModelProto) -> None:
        (entry,) = [each for each in model.graph.initializer if each.name == name]
        values = numpy_helper.to_array(entry)
        entry.CopyFrom(numpy_helper.from_array(np.asarray(function(values.copy())).astype(values.dtype), name))

    return plant


def replace(output: str, op_type: str, extra: dict[str, Array], **attributes: Any) -> Plant:
    """Puts a node between the maker of `output` and its readers; the name stays with the new node's output."""

    def plant(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        index = next(index for index, node in enumerate(nodes) if output in node.output)
        nodes[index].output[0] = f"{output}_before"
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in extra.items())
        made = helper.make_node(op_type, [f"{output}_before", *extra], [output], name=f"{output}_fault", **attributes)
        nodes.insert(index + 1, made)
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return plant


def with_nan(values: Array) -> Array:
    values.flat[3] = np.nan
    return values


def both(*plants: Plant) -> Plant:
    def plant(model: onnx.ModelProto) -> None:
        for each in plants:
            each(model)

    return plant
