"""A float32 classifier cast to float16, but for the nodes that float16 would break.

TensorRT 11 and TensorRT-RTX have no switch for it: an engine computes in the types that the ONNX file has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import ModelError
from edgetune.graph.compose import check_model
from edgetune.graph.float_view import TYPE_BLIND, FloatView
from edgetune.graph.fp16_guards import reason_for_float
from edgetune.graph.layer_names import KEPT_ON_REQUEST, check_layer_names

# Inputs that the operator wants in float32 whatever it computes in.
_ALWAYS_FLOAT = {"Resize": (1, 2)}


@dataclass(frozen=True)
class Fp16Model:
    """`half` names the nodes that compute in float16; `kept_float` gives the reason for each that could not."""

    model: onnx.ModelProto
    half: tuple[str, ...]
    kept_float: dict[str, str]


def cast_to_fp16(
    model: onnx.ModelProto, ranges: Mapping[str, float], kept_float: Collection[str] = ()
) -> Fp16Model:  # fmt: skip
    """Returns a copy that computes in float16 from its first product on; inputs and outputs keep their types.

    `ranges` has the largest magnitude of each tensor, as `largest_values` observes it. Normalisation stays float32,
    and so do the nodes named in `kept_float`.

    Raises:
        ModelError: the model is not plain float32.
        UsageError: `kept_float` names a node that there is not, or that never computes in float16.
    """
    view = FloatView(model)
    candidates = view.candidates()
    check_layer_names(kept_float, [node.name for node in candidates])
    reasons = {
        node.name: KEPT_ON_REQUEST if node.name in kept_float else reason_for_float(view, node, ranges)
        for node in candidates
    }
    half = tuple(name for name, reason in reasons.items() if reason is None)
    kept = {name: reason for name, reason in reasons.items() if reason is not None}
    return Fp16Model(_Caster(view, frozenset(half)).cast(model), half, kept)


class _Caster:
    """Rewires the nodes: a tensor keeps its name in the type that it is made in, and has one cast to the other."""

    def __init__(self, view: FloatView, half: frozenset[str]) -> None:
        self._view = view
        self._network = view.network
        self._half = half
        self._nodes: list[onnx.NodeProto] = []
        self._casts: dict[tuple[str, int], str] = {}
        self._in_half = {name for node in self._network.nodes if node.name in half for name in node.output}
        self._taken = {*self._network.constants, *self._network.makers, *self._network.inputs}

    def cast(self, model: onnx.ModelProto) -> onnx.ModelProto:
        constants = {**self._network.constants, **self._half_constants()}
        for node in self._network.nodes:
            self._rewire(node)
        self._network.nodes = self._nodes
        self._network.remove_unread()
        used = {name for node in self._network.nodes for name in node.input}
        result = onnx.ModelProto()
        result.CopyFrom(model)
        graph = result.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self._network.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in constants.items() if name in used
        )
        _check(result)
        return result

    def _half_constants(self) -> dict[str, npt.NDArray[np.float16]]:
        """Float16 values by name: the constant's own, unless something else reads it as float32."""
        readings = [(name, self._wanted(node, index)) for node in self._network.nodes
                    for index, name in enumerate(node.input) if name in self._network.constants]  # fmt: skip
        as_float = {name for name, kind in readings if kind == TensorProto.FLOAT}
        for name, kind in readings:
            if kind == TensorProto.FLOAT16 and (name, kind) not in self._casts:
                self._casts[name, kind] = self._fresh(f"{name}_fp16") if name in as_float else name
        return {half: self._network.constants[name].astype(np.float16) for (name, _), half in self._casts.items()}

    def _wanted(self, node: onnx.NodeProto, index: int) -> int | None:
        """The type in which a node reads an input; None where it is no float, or any type will do."""
        if not self._view.is_float(node.input[index]):
            return None
        if node.name in self._half and index not in _ALWAYS_FLOAT.get(node.op_type, ()):
            return int(TensorProto.FLOAT16)
        return int(TensorProto.FLOAT)

    def _rewire(self, node: onnx.NodeProto) -> None:
        if node.op_type not in TYPE_BLIND:
            for index, name in enumerate(node.input):
                wanted = self._wanted(node, index)
                if wanted is not None:
                    node.input[index] = self._tensor_as(name, wanted)
        self._nodes.append(node)
        if node.name in self._half:
            for index, name in enumerate(node.output):
                if name in self._network.outputs:
                    node.output[index] = self._casts[name, TensorProto.FLOAT16] = self._fresh(f"{name}_fp16")
                    self._add_cast(node.output[index], name, TensorProto.FLOAT)

    def _tensor_as(self, name: str, wanted: int) -> str:
        """The tensor's name in the wanted type; a cast is made when the first reader asks for it."""
        if (name, wanted) in self._casts:
            return self._casts[name, wanted]
        is_half = name in self._in_half
        if is_half == (wanted == TensorProto.FLOAT16) or name in self._network.constants:
            return name
        source, maker = name, self._network.makers.get(name)
        if maker is not None and maker.op_type == "Cast" and maker.input[0] not in self._network.constants:
            source = maker.input[0]  # no cast of a cast
            if self._view.is_float(source):
                return self._tensor_as(source, wanted)
        made = self._fresh(f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}")
        self._casts[name, wanted] = made
        self._add_cast(source, made, wanted)
        return made

    def _add_cast(self, source: str, made: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [made], name=f"cast_{made}", to=kind))

    def _fresh(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _check(model: onnx.ModelProto) -> None:
    """Types and shapes too: a wrong type must not come out as a file."""
    check_model(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the model cast to float16 is invalid: {error}") from error
