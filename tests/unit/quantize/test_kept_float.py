"""Layers that the user keeps in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetune.core.errors import UsageError
from edgetune.graph.float_view import largest_values
from edgetune.graph.fp16 import cast_to_fp16
from edgetune.graph.precision import convolution_precisions
from edgetune.quantize.quantizer import calibrate, check_kept_float
from edgetune.quantize.targets import TARGETS
from tests.unit.quantize.small_graphs import images, residual, run, spool
from tests.unit.verify.planted import PICTURES, network


def test_an_unknown_layer_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="'c22' is no layer") as caught:
        check_kept_float(network(), ("c1", "c22"))
    assert caught.value.hint == "did you mean c2?"
    with pytest.raises(UsageError) as caught:
        check_kept_float(network(), ("block.7",))
    assert caught.value.hint == "its layers are c1, c2, c3, c4, c5, logits"
    check_kept_float(network(), ("c1", "logits"))


def test_float16_leaves_it_out() -> None:
    model = network()
    made = cast_to_fp16(model, largest_values(model, [PICTURES]), ("c2",))
    assert made.kept_float["c2"] == "it was asked for"
    assert [convolution_precisions(made.model)[name] for name in ("c1", "c2", "c3")] == ["fp16", "fp32", "fp16"]
    with pytest.raises(UsageError, match="'x' is no layer"):
        cast_to_fp16(model, largest_values(model, [PICTURES]), ("x",))


def test_equalisation_is_recorded_as_what_channels_are_divided_by(tmp_path: Path) -> None:
    model = residual().model()
    pictures = images(6)
    with spool(pictures) as held:
        calibration = calibrate(model, held, (TARGETS["tensorrt"],))
    scales = calibration.equalized.channel_scales
    assert "c3" not in scales  # nothing behind it could take the scale back
    assert scales.keys() == set()
    model = network()
    with spool(PICTURES) as held:
        calibration = calibrate(model, held, (TARGETS["tensorrt"],))
    scales = calibration.equalized.channel_scales
    assert scales
    for name, scale in scales.items():
        (before,), (after,) = run(model, PICTURES, [name]), run(calibration.network.model(), PICTURES, [name])
        np.testing.assert_allclose(after * scale[:, None, None], before, rtol=0, atol=1e-4 * np.abs(before).max())
