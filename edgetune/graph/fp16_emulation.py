"""A float16 graph written so that ONNX Runtime's CPU really rounds.

That CPU has few float16 kernels. It computes in float32 instead, and takes out every cast between two such nodes, the
ones of the file included (measured on 1.31.1: 70000 goes through a float16 Relu as 70000). So nothing is rounded and
nothing overflows there, and a comparison would prove nothing. Casts to float16 and back that are written out stay.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgetune.graph.float_view import TYPE_BLIND, element_types
from edgetune.graph.network import Network


def emulate_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model that computes in float32 and rounds every tensor to float16 that `model` has in float16.

    Sums are added up in float32, as tensor cores do.
    """
    network = Network.of_model(model)
    halves = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT16}
    halves -= network.constants.keys()
    for name, array in network.constants.items():
        if array.dtype == np.float16:
            network.constants[name] = array.astype(np.float32)
    nodes: list[onnx.NodeProto] = []
    for node in network.nodes:
        if node.op_type not in TYPE_BLIND:
            for index, name in enumerate(node.input):
                node.input[index] = f"{name}_rounded" if name in halves else name
        made = [name for name in node.output if name in halves]
        if node.op_type not in TYPE_BLIND:
            for index, name in enumerate(node.output):
                node.output[index] = f"{name}_exact" if name in halves else name
        nodes.append(node)
        for name in made:
            if node.op_type not in TYPE_BLIND:
                nodes.append(helper.make_node("Cast", [f"{name}_exact"], [name], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [name], [f"{name}_rounded"], to=TensorProto.FLOAT))
    return Network(nodes, network.constants, model).model()
