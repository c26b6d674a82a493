"""Q/DQ lint: a good graph per target, one break per rule, and ONNX Runtime asked whether the rules are true."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgetune.core.errors import ModelError
from edgetune.quantize.lint import Finding, check_lint, lint
from edgetune.quantize.lint_cpu import CPU_RULES
from edgetune.quantize.lint_rules import COMMON_RULES
from edgetune.quantize.lint_tensorrt import TENSORRT_RULES
from tests.unit.quantize.qdq_breaks import (
    Break,
    add,
    also_read,
    as_operator,
    as_output,
    drop_axis,
    drop_input,
    each,
    float_weight,
    image_transposed_first,
    quantized_shape,
    relu_behind,
    rewire,
    set_to,
    unsigned_weight,
    weight_behind_q,
    with_axis,
    with_domain,
    with_opset,
    with_pair,
)
from tests.unit.quantize.qdq_graphs import WEIGHT_SCALE, find, good, put, put_constant, sort

TARGETS = ("cpu-x86", "cpu-arm", "tensorrt")
ALL, CPU, X86, ARM, TENSORRT, SIGNED = TARGETS, TARGETS[:2], TARGETS[:1], TARGETS[1:2], TARGETS[2:], TARGETS[1:]

_CASES: list[tuple[str, tuple[str, ...], list[str], Break]] = [
    ("opset", ALL, ["opset_import"], with_opset(18)),
    ("opset", ALL, ["opset_import"], with_opset(21)),
    ("foreign-domain", ALL, ["f"], with_domain("f")),
    ("foreign-domain", ALL, ["opset_import"], with_domain("")),
    ("missing-zero-point", ALL, ["dq_s"], drop_input("dq_s")),
    ("missing-zero-point", ALL, ["q_s"], drop_input("q_s")),
    ("missing-zero-point", ALL, ["dq_w1"], drop_input("dq_w1")),
    ("missing-axis", ALL, ["dq_w1"], drop_axis("dq_w1")),
    ("not-constant", ALL, ["dq_s"], rewire("dq_s", 1, "cast")),
    ("not-constant", ALL, ["dq_w2"], rewire("dq_w2", 2, "cast")),
    ("scale-type", ALL, ["dq_w1"], set_to("w1_scale", np.full(4, WEIGHT_SCALE, np.float16))),
    ("scale-value", ALL, ["q_s", "dq_s"], set_to("s_scale", np.float32(0))),
    ("scale-value", ALL, ["q_s", "dq_s"], set_to("s_scale", np.float32(np.inf))),
    ("scale-value", TENSORRT, ["dq_w1"], set_to("w1_scale", np.array([1, 1, -1, 1], np.float32))),
    ("scale-value", TENSORRT, ["dq_w1"], set_to("w1_scale", np.array([1, 1, np.nan, 1], np.float32))),
    ("parameter-shape", ALL, ["dq_w1"], set_to("w1_zero", np.zeros(3, np.int8))),
    ("parameter-shape", TENSORRT, ["dq_w1"],
     each(set_to("w1_scale", np.ones(5, np.float32)), set_to("w1_zero", np.zeros(5, np.int8)))),
    ("parameter-shape", TENSORRT, ["q_s", "dq_s"],
     each(set_to("s_scale", np.ones(1, np.float32)), set_to("s_zero", np.zeros(1, np.int8)))),
    ("per-axis-activation", TENSORRT, ["q_s", "dq_s"],
     each(set_to("s_scale", np.ones(4, np.float32)), set_to("s_zero", np.zeros(4, np.int8)),
          with_axis("q_s", 1), with_axis("dq_s", 1))),
    ("pair-differs", ALL, ["dq_s"], each(set_to("other", np.float32(0.5)), rewire("dq_s", 1, "other"))),
    ("pair-differs", X86, ["dq_s"], each(set_to("other", np.uint8(5)), rewire("dq_s", 2, "other"))),
    ("quantized-output", SIGNED, ["q_y"], as_output("q_y", "y")),
    ("quantized-output", SIGNED, ["dq_y"], as_output("dq_y", "y")),
    ("half-quantized", ALL, ["conv1"], float_weight("conv1", "w1")),
    ("half-quantized", TENSORRT, ["b"], float_weight("b", "w2")),
    ("half-quantized", ALL, ["conv1"], rewire("conv1", 0, "x")),
    ("half-quantized", ALL, ["logits"], rewire("logits", 0, "f")),
    ("weight-type", ALL, ["dq_w2"], unsigned_weight),
    ("weight-type", ALL, ["q_w2"], weight_behind_q),
    ("weight-zero-point", ALL, ["dq_w2"], set_to("w2_zero", np.array([0, 1, 0, 0], np.int8))),
    ("weight-zero-point", CPU, ["dq_bias2"], set_to("bias2_zero", np.array([0, 1, 0, 0], np.int32))),
    ("weight-axis", ALL, ["dq_w2"], with_axis("dq_w2", 1)),
    ("weight-axis", TENSORRT, ["dq_w3"],
     each(set_to("w3", np.ones((2, 2), np.int8)), with_axis("dq_w3", 1))),
    ("activation-type", X86, ["q_s", "dq_s"], set_to("s_zero", np.int8(0))),
    ("activation-type", SIGNED, ["q_s", "dq_s"], set_to("s_zero", np.uint8(0))),
    ("float-bias", CPU, ["b"], each(set_to("plain", np.ones(4, np.float32)), rewire("b", 2, "plain"))),
    ("float-bias", CPU, ["logits"], each(set_to("plain", np.ones(2, np.float32)), rewire("logits", 2, "plain"))),
    ("bias-scale", CPU, ["b"], set_to("bias2_scale", np.full(4, 2**-13 * 1.0001, np.float32))),
    ("partly-quantized", CPU, ["s"], each(set_to("plain", np.float32(1)), rewire("s", 1, "plain"))),
    ("partly-quantized", CPU, ["j"],
     each(set_to("plain", np.ones((1, 4, 8, 8), np.float32)), rewire("j", 1, "plain"))),
    ("float-output", CPU, ["conv1"], also_read("conv1")),
    ("float-output", CPU, ["conv1"], also_read("c")),
    ("float-output", CPU, ["b"], also_read("b")),
    ("float-output", CPU, ["s"], also_read("s")),
    ("float-output", CPU, ["j"], also_read("j")),
    ("activation-not-absorbed", X86, ["c"], set_to("c_zero", np.uint8(3))),
    ("activation-not-absorbed", ARM, ["c"], set_to("c_zero", np.int8(-125))),
    ("activation-not-absorbed", CPU, ["c"], set_to("four", np.float32(3.9))),
    ("activation-not-absorbed", X86, ["c"], relu_behind(np.uint8(3))),
    ("nonzero-zero-point", TENSORRT, ["q_s", "dq_s"], set_to("s_zero", np.int8(3))),
    ("uint8-tensor", TENSORRT, ["bytes"],
     add(helper.make_node("Cast", ["f"], ["bytes"], name="bytes", to=TensorProto.UINT8))),
    ("uint8-tensor", TENSORRT, ["transpose"], image_transposed_first),
    ("int32-bias", TENSORRT, ["dq_i"],
     each(lambda model: put_constant(model, "i", np.ones(4, np.int32), 2**-13), rewire("b", 2, "dq_i"))),
    ("per-tensor-weight", TENSORRT, ["dq_w2"], each(set_to("w2_scale", np.float32(1)), set_to("w2_zero", np.int8(0)))),
    ("quantized-conv-branch", TENSORRT, ["q_b"], with_pair("b", "s", 0)),
    ("float-residual", TENSORRT, ["s"], rewire("s", 1, "c")),
    ("quantized-shape", TENSORRT, ["q_sides"], quantized_shape),
    ("quantize-before-activation", TENSORRT, ["q_conv1"], with_pair("conv1", "c", 0)),
]  # fmt: skip
_EACH = [
    pytest.param(rule, target, nodes, spoil, id=f"{rule}-{index}-{target}")
    for index, (rule, targets, nodes, spoil) in enumerate(_CASES)
    for target in targets
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_good_graph_has_no_findings(target: str) -> None:
    model = good(target)
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, target) == ()
    check_lint(model, target)


@pytest.mark.parametrize(("rule", "target", "nodes", "spoil"), _EACH)
def test_one_break_is_found_at_its_node_and_nothing_else(
    rule: str, target: str, nodes: list[str], spoil: Break
) -> None:
    model = good(target)
    spoil(model)
    assert [(finding.rule, finding.node) for finding in lint(model, target)] == [(rule, node) for node in nodes]


def test_the_table_breaks_every_rule() -> None:
    rules = {rule.__name__.replace("_", "-") for rule in (*COMMON_RULES, *CPU_RULES, *TENSORRT_RULES)}
    assert {rule for rule, _, _, _ in _CASES} == rules | {"activation-type"}


def test_another_type_in_a_pair_is_found_as_both() -> None:
    model = good("cpu-x86")
    put(model, "other", np.int8(0))
    find(model, "dq_s").input[2] = "other"
    assert {finding.rule for finding in lint(model, "cpu-x86")} == {"pair-differs", "activation-type"}


@pytest.mark.parametrize("target", CPU)
def test_a_float_conv_between_integers_and_a_relu_at_the_lowest_value_are_allowed(target: str) -> None:
    model = good(target)
    each(float_weight("b", "w2"), as_operator("c", "Relu", ["conv1"]))(model)
    assert lint(model, target) == ()


@pytest.mark.parametrize(("branch", "rules"), [("", set()), ("b", {"quantized-conv-branch"})])
def test_of_two_convolved_branches_one_is_quantized(branch: str, rules: set[str]) -> None:
    model = good("tensorrt")
    model.graph.node.append(helper.make_node("Conv", ["dq_c", "dq_w1"], ["shortcut"], name="shortcut"))
    with_pair("shortcut", "s", 1)(model)
    if branch:
        with_pair(branch, "s", 0)(model)
    assert {finding.rule for finding in lint(model, "tensorrt")} == rules


def test_the_error_names_the_first_node_its_rule_and_how_many_more() -> None:
    model = good("tensorrt")
    each(drop_input("dq_w1"), drop_axis("dq_w2"), set_to("s_zero", np.int8(3)))(model)
    assert lint(model, "tensorrt")[0] == Finding(
        "missing-zero-point", "dq_w1", "this DequantizeLinear has no zero point."
    )
    with pytest.raises(ModelError, match=r"'missing-zero-point' at node 'dq_w1': .* 3 more such findings\.$"):
        check_lint(model, "tensorrt")


def test_a_target_without_rules_is_an_error() -> None:
    with pytest.raises(ModelError, match="no Q/DQ rules for the target 'tpu'; there are for cpu-x86"):
        lint(good("tensorrt"), "tpu")


# The rules for CPUs are claims about ONNX Runtime, so it is asked: how many integer kernels does it make of a graph?

_KERNELS = {"QLinearConv": 2, "QLinearAdd": 1, "QLinearConcat": 1, "QGemm": 1}


def _kernels(model: onnx.ModelProto, folder: Path) -> dict[str, int]:
    sort(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # the default on ARM
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
    return {name: counts[name] for name in _KERNELS}


@pytest.mark.parametrize("target", CPU)
def test_onnx_runtime_runs_a_good_graph_on_integers(target: str, tmp_path: Path) -> None:
    assert _kernels(good(target), tmp_path) == _KERNELS


_SLOW = ("half-quantized", "partly-quantized", "float-output", "activation-not-absorbed")


@pytest.mark.parametrize(
    ("rule", "target", "nodes", "spoil"), [case for case in _EACH if case.values[1] in CPU and case.values[0] in _SLOW]
)
def test_onnx_runtime_leaves_what_the_rules_for_cpus_forbid_in_float(
    rule: str, target: str, nodes: list[str], spoil: Break, tmp_path: Path
) -> None:
    model = good(target)
    spoil(model)
    assert sum(_kernels(model, tmp_path).values()) < sum(_KERNELS.values())
