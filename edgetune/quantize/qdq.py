"""A float ONNX graph to an INT8 graph in Q/DQ form, through ONNX Runtime's static quantizer."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgetune.core.errors import DataError, MissingDependencyError, ModelError
from edgetune.core.tensors import IMAGE_INPUT
from edgetune.graph.compose import check_model, write_model
from edgetune.quantize.calibrate import ImageBatches

# Convolutions carry nearly all of the work, and an Add between them must be quantized too, or the convolutions
# around it fall back to float. Clip and Relu are listed so that they are absorbed: the quantizer then takes the
# range behind them, not the several times wider one before them.
_QUANTIZED_OPS = ("Conv", "Add", "Clip", "Relu", "Gemm", "MatMul")


def quantize_model(source: Path, destination: Path, batches: ImageBatches) -> dict[str, tuple[float, float]]:
    """Writes the INT8 graph for x86 CPUs: u8 activations with free zero points, s8 weights per channel.

    A tensor's range is the mean over the images of each image's minimum and maximum, so that one odd image does
    not widen it, and neither batch size nor order matters. `batches` yields images uint8 `(N, H, W, 3)`; two
    numbers per tensor and image are kept of them. Returns the range `(low, high)` that each quantized activation
    can represent.

    Raises:
        DataError: `batches` yielded nothing.
        ModelError: the quantizer refused the graph.
    """
    reader = _Reader(batches)
    quantization = _import_quantization()
    try:
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            # The quantizer writes a file of its own beside its source, which may be shared or read-only.
            own_source = shutil.copy(source, Path(scratch) / "source.onnx")
            quantization.quantize_static(
                str(own_source), str(destination), reader,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTIZED_OPS),
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},  # the mean over feeds, and each feed is one image
            )  # fmt: skip
    except (ValueError, RuntimeError, AttributeError) as error:
        if reader.count == 0:
            raise DataError("not one calibration image could be read.") from error
        raise ModelError(f"ONNX Runtime's quantizer refused the graph: {error}") from error
    model = onnx.load(destination)
    _keep_only_used_domains(model)
    check_model(model)
    write_model(destination, model)
    return activation_ranges(model)


def activation_ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """The float range that each quantized activation's scale and zero point span, by tensor name."""
    values = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    ranges: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        scale, zero_point = values[node.input[1]], values[node.input[2]]
        limits = np.iinfo(zero_point.dtype)
        low = (limits.min - int(zero_point)) * float(scale)
        ranges[node.input[0]] = (low, (limits.max - int(zero_point)) * float(scale))
    return ranges


class _Reader:
    """What the quantizer pulls its calibration images from, one at a time."""

    def __init__(self, batches: ImageBatches) -> None:
        self._images = (image for batch in batches for image in batch)
        self.count = 0

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        image = next(self._images, None)
        if image is None:
            return None
        self.count += 1
        return {IMAGE_INPUT: image[np.newaxis]}

    def __iter__(self) -> Iterator[dict[str, npt.NDArray[np.uint8]]]:
        while (feed := self.get_next()) is not None:
            yield feed


def _import_quantization() -> Any:
    try:
        import onnxruntime.quantization
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime's quantizer cannot be imported: {error}.", hint="pip install 'edgetune[onnx,cpu]'"
        ) from error
    return onnxruntime.quantization


def _keep_only_used_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice about pre-processing that does not apply to graphs that are already folded."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
