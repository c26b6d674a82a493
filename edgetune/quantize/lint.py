"""Is a Q/DQ graph one that its target runs in INT8, as it was meant?

ONNX's own checker accepts graphs that a runtime refuses, runs in float, or reads with other types than were meant.
Each rule has a stable id and names the node that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import TensorProto

from edgetune.core.errors import ModelError
from edgetune.quantize.lint_cpu import CPU_RULES
from edgetune.quantize.lint_rules import COMMON_RULES
from edgetune.quantize.lint_tensorrt import TENSORRT_RULES
from edgetune.quantize.lint_view import DEQUANTIZE, QUANTIZE, Finding, GraphView, label, type_name

__all__ = ["Finding", "check_for_tensorrt", "check_lint", "lint"]

_Rule = Callable[[GraphView], Iterator[Finding]]

_RULES: dict[str, tuple[_Rule, ...]] = {
    "cpu-x86": (*COMMON_RULES, *CPU_RULES),
    "cpu-arm": (*COMMON_RULES, *CPU_RULES),
    "tensorrt": (*COMMON_RULES, *TENSORRT_RULES),
}
# What TensorRT refuses, or reads as another number than ONNX means. The other rules cost speed, or are for our own
# graphs only.
_BLOCKING = frozenset({
    "activation-type", "int32-bias", "missing-axis", "missing-zero-point", "nonzero-zero-point", "not-constant",
    "per-axis-activation", "scale-value", "uint8-tensor", "weight-type", "weight-zero-point",
})  # fmt: skip
_ACTIVATION_TYPES = {"cpu-x86": TensorProto.UINT8, "cpu-arm": TensorProto.INT8, "tensorrt": TensorProto.INT8}


def lint(model: onnx.ModelProto, target: str) -> tuple[Finding, ...]:
    """What breaks a rule of a target, in graph order; empty for a good graph. Subgraphs are not looked into.

    Raises:
        ModelError: there are no rules for this target.
    """
    if target not in _RULES:
        raise ModelError(f"there are no Q/DQ rules for the target {target!r}; there are for {', '.join(_RULES)}.")
    view = GraphView(model)
    findings = [finding for rule in _RULES[target] for finding in rule(view)]
    findings.extend(_activation_type(view, _ACTIVATION_TYPES[target]))
    places = {label(node): place for place, node in enumerate(view.nodes)}
    return tuple(sorted(findings, key=lambda finding: places.get(finding.node, -1)))


def check_lint(model: onnx.ModelProto, target: str) -> None:
    """Raises `ModelError`, naming the first node and its rule, unless a graph keeps its target's rules."""
    findings = lint(model, target)
    if not findings:
        return
    first, more = findings[0], len(findings) - 1
    rest = f" {more} more such finding{'s' if more > 1 else ''}." if more else ""
    raise ModelError(
        f"the INT8 graph for {target} breaks the rule {first.rule!r} at node {first.node!r}: {first.message}{rest}"
    )


def check_for_tensorrt(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """What may cost speed in a Q/DQ graph that any tool made; nothing of a graph without Q/DQ.

    Raises:
        ModelError: TensorRT would refuse the graph, or compute something else than it says.
    """
    findings = lint(model, "tensorrt")
    blocking = [finding for finding in findings if finding.rule in _BLOCKING]
    if blocking:
        first = blocking[0]
        raise ModelError(
            f"TensorRT would refuse or misread node {first.node!r} (rule {first.rule!r}): {first.message}",
            hint="quantize for it with --target tensorrt",
        )
    return findings if any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node) else ()


def _activation_type(view: GraphView, expected: int) -> Iterator[Finding]:
    for node in view.of_type(QUANTIZE, DEQUANTIZE):
        entry = view.initializers.get(node.input[2]) if len(node.input) > 2 else None
        if entry is not None and entry.data_type != expected and not view.on_weight(node):
            message = f"an activation is {type_name(entry.data_type)}, expected {type_name(expected)}."
            yield Finding("activation-type", label(node), message)
