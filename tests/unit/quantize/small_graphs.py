"""Small float classifiers made of random weights, and ONNX Runtime asked for any of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.graph.network import Network
from edgetune.quantize.images import ImageSpool

Images = npt.NDArray[np.uint8]


class SmallGraph:
    """Nodes are named after their output; every method returns the name of the tensor that it makes."""

    def __init__(self, size: int = 8, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.size = size
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def node(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def image(
        self, mean: Sequence[float] = (100.0, 110.0, 120.0), deviation: Sequence[float] = (50.0, 60.0, 70.0)
    ) -> str:
        """Makes `x`, the image NCHW as (pixel - mean) / deviation."""
        self.node("Cast", [IMAGE_INPUT], "cast", to=TensorProto.FLOAT)
        self.node("Transpose", ["cast"], "transposed", perm=[0, 3, 1, 2])
        self.constant("mean", np.reshape(mean, (-1, 1, 1)))
        self.constant("deviation", np.reshape(deviation, (-1, 1, 1)))
        self.node("Sub", ["transposed", "mean"], "shifted")
        return self.node("Div", ["shifted", "deviation"], "x")

    def conv(
        self, output: str, data: str, channels: tuple[int, int], kernel: int = 1, *, bias: bool = True,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """`channels` are those read and made; a kernel of 3 or 5 is padded to keep the size unless pads are given."""
        read, made = channels
        shape = (made, read // attributes.get("group", 1), kernel, kernel)
        self.constant(f"{output}.w", self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:])))
        inputs = [data, f"{output}.w"]
        if bias:
            inputs.append(self.constant(f"{output}.b", self.random.normal(size=made) * 0.2))
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", inputs, output, **attributes)

    def batch_norm(self, output: str, data: str, channels: int) -> str:
        values = {
            "scale": self.random.uniform(0.5, 2.0, channels),
            "shift": self.random.normal(size=channels) * 0.3,
            "mean": self.random.normal(size=channels) * 0.3,
            "variance": self.random.uniform(0.3, 2.0, channels),
        }
        names = [self.constant(f"{output}.{name}", value) for name, value in values.items()]
        return self.node("BatchNormalization", [data, *names], output, epsilon=1e-3)

    def relu6(self, output: str, data: str) -> str:
        limits = [self.constant("zero", 0.0), self.constant("six", 6.0)]
        return self.node("Clip", [data, *limits], output)

    def mean(self, output: str, data: str, *, keepdims: int = 0) -> str:
        axes = self.constant("axes", [2, 3], np.int64)
        return self.node("ReduceMean", [data, axes], output, keepdims=keepdims)

    def gemm(self, output: str, data: str, sizes: tuple[int, int], **attributes: Any) -> str:
        attributes.setdefault("transB", 1)
        read, made = sizes
        shape = (made, read) if attributes["transB"] else (read, made)
        self.constant(f"{output}.w", self.random.normal(size=shape) / np.sqrt(read))
        self.constant(f"{output}.b", self.random.normal(size=made) * 0.1)
        return self.node("Gemm", [data, f"{output}.w", f"{output}.b"], output, **attributes)

    def model(self, output: str = LOGITS_OUTPUT, *, opset: int = 20) -> onnx.ModelProto:
        image = helper.make_tensor_value_info(IMAGE_INPUT, TensorProto.UINT8, ["batch", self.size, self.size, 3])
        initializers = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "small", [image], [result], initializers)
        ir_version = 10 if opset >= 20 else 7
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
        inferred = onnx.shape_inference.infer_shapes(made)
        del inferred.graph.value_info[:]
        return inferred

    def network(self, output: str = LOGITS_OUTPUT) -> Network:
        return Network.of_model(self.model(output))


def chain(seed: int = 0) -> SmallGraph:
    """x -> Conv c1 -> Relu r1 -> Conv c2 -> Relu r2 -> mean -> Gemm."""
    graph = SmallGraph(seed=seed)
    graph.conv("c1", graph.image(), (3, 8), 3)
    graph.node("Relu", ["c1"], "r1")
    graph.conv("c2", "r1", (8, 8), 3)
    graph.node("Relu", ["c2"], "r2")
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", "r2"), (8, 4))
    return graph


def residual(seed: int = 0) -> SmallGraph:
    """x -> Conv c1 -> Clip a1 -> Conv c2 -> Add with a1 -> Conv c3 -> mean -> Gemm."""
    graph = SmallGraph(seed=seed)
    graph.conv("c1", graph.image(), (3, 8), 3)
    graph.relu6("a1", "c1")
    graph.conv("c2", "a1", (8, 8), 3)
    graph.node("Add", ["c2", "a1"], "sum")
    graph.conv("c3", "sum", (8, 8))
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", "c3"), (8, 4))
    return graph


def everything(seed: int = 0, size: int = 16) -> SmallGraph:
    """Conv with batch norm, depthwise, residual, MaxPool, Concat, an inner and a last Gemm."""
    graph = SmallGraph(size, seed)
    graph.conv("stem", graph.image(), (3, 16), 3, bias=False, strides=[2, 2])
    graph.relu6("a0", graph.batch_norm("stem_bn", "stem", 16))
    graph.conv("deep", "a0", (16, 16), 3, bias=False, group=16)
    graph.relu6("a1", graph.batch_norm("deep_bn", "deep", 16))
    graph.conv("point", "a1", (16, 16))
    graph.node("Add", ["point", "a0"], "sum")
    graph.node("MaxPool", ["sum"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    graph.conv("left", "pooled", (16, 12), 3)
    graph.node("Relu", ["left"], "left_relu")
    graph.conv("right", "pooled", (16, 12))
    graph.node("Relu", ["right"], "right_relu")
    graph.node("Concat", ["left_relu", "right_relu"], "joined", axis=1)
    graph.conv("last", "joined", (24, 24), 3)
    graph.node("Relu", ["last"], "last_relu")
    graph.gemm("inner", graph.mean("features", "last_relu"), (24, 24))
    graph.node("Relu", ["inner"], "inner_relu")
    graph.gemm(LOGITS_OUTPUT, "inner_relu", (24, 6))
    return graph


def images(count: int, size: int = 8, seed: int = 1) -> Images:
    """Colour gradients under noise, so that neighbouring pixels are alike as in photos."""
    random = np.random.default_rng(seed)
    across = np.linspace(-1.0, 1.0, size)
    slopes = random.normal(size=(2, count, 1, 1, 3)) * 50
    level = random.uniform(60, 190, (count, 1, 1, 3))
    noise = random.normal(size=(count, size, size, 3)) * 20
    values = level + slopes[0] * across[:, None, None] + slopes[1] * across[None, :, None] + noise
    pictures: Images = np.clip(values, 0, 255).astype(np.uint8)
    return pictures


def in_batches(pictures: Images, size: int) -> Iterator[Images]:
    return (pictures[start : start + size] for start in range(0, len(pictures), size))


def spool(pictures: Images, batch: int = 4) -> ImageSpool:
    return ImageSpool(in_batches(pictures, batch))


def run(model: onnx.ModelProto, feed: Array, tensors: Sequence[str] = (), *, optimize: bool = True) -> list[Array]:
    """The values of `tensors`, or of the graph's own outputs, in ONNX Runtime."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    if tensors:
        types = {name: _float_or_integers(model, name) for name in tensors}
        del extended.graph.output[:]
        extended.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, {IMAGE_INPUT: feed})
    return outputs


def _float_or_integers(model: onnx.ModelProto, tensor: str) -> int:
    """A `..._q` tensor has the type of its zero point."""
    if not tensor.endswith("_q"):
        return int(TensorProto.FLOAT)
    zero_point = f"{tensor.removesuffix('_q')}_zero_point"
    return next(int(entry.data_type) for entry in model.graph.initializer if entry.name == zero_point)


def sqnr_db(expected: Array, got: Array) -> float:
    noise = np.square(expected.astype(np.float64) - got).sum()
    return float(10 * np.log10(np.square(expected.astype(np.float64)).sum() / noise))
