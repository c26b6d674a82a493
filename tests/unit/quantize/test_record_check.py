"""The static check of an INT8 graph: silent about a healthy one, exact about one number that was changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from edgetune.core.config import to_dict
from edgetune.core.errors import ConfigError, UsageError
from edgetune.quantize.calibrate import range_records
from edgetune.quantize.quantizer import calibrate, quantize
from edgetune.quantize.record_check import check_against_record
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import SmallGraph, everything, images, spool
from tests.unit.verify.planted import change, planted


def _quantized(graph: SmallGraph, target: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    with spool(images(4, graph.size)) as held:
        calibration = calibrate(graph.model(), held, (TARGETS[target],))
        made = quantize(calibration, TARGETS[target], held, options=WeightOptions(rounding=False))
    ranges = {name: to_dict(each) for name, each in range_records(made).items()}
    return made.model, {"targets": [{"target": target, "ranges": ranges}]}


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_healthy_graph_is_as_recorded(target: str) -> None:
    """With a MaxPool, whose output has the range of its input."""
    model, record = _quantized(everything(), target)
    assert check_against_record(model, record, target) == []


@pytest.mark.parametrize("target", ["cpu-x86", "tensorrt"])
def test_pixels_around_128_have_a_scale_of_their_own(target: str) -> None:
    graph = SmallGraph()
    graph.conv("c1", graph.image((127.5,) * 3, (127.5,) * 3), (3, 8), 3)
    graph.node("Relu", ["c1"], "r1")
    graph.gemm("logits", graph.mean("features", graph.conv("c2", "r1", (8, 8))), (8, 4))
    model, record = _quantized(graph, target)
    assert check_against_record(model, record, target) == []


def test_a_changed_scale_and_zero_point_are_named_with_both_numbers() -> None:
    model, record = _quantized(everything(), "cpu-x86")
    record["targets"][0]["ranges"]["a0"] |= {"low": 0.0, "high": 6.0}
    expected = np.float32(6.0 / 255)
    right = change("a0_scale", lambda values: np.asarray(expected))
    assert check_against_record(planted(model, right), record, "cpu-x86") == []
    wrong = planted(planted(model, right), change("a0_scale", lambda values: values * 4))
    assert check_against_record(wrong, record, "cpu-x86") == [
        "the scale of 'a0' is 0.0941176, the calibration record gives 0.0235294, 4 times as much"
    ]
    moved = planted(planted(model, right), change("a0_zero_point", lambda values: values + 7))
    assert check_against_record(moved, record, "cpu-x86") == [
        "the zero point of 'a0' is 7, the calibration record gives 0"
    ]


def test_what_cannot_be_checked() -> None:
    model, record = _quantized(everything(), "tensorrt")
    with pytest.raises(ConfigError, match="nothing about the target 'cpu-x86'"):
        check_against_record(model, record, "cpu-x86")
    with pytest.raises(UsageError, match="'gpu' is not supported"):
        check_against_record(model, record, "gpu")
    record["targets"][0]["ranges"]["a0"] = {"low": 0.0}
    with pytest.raises(ConfigError, match="cannot be read"):
        check_against_record(model, record, "tensorrt")
