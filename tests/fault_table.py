"""Which fault is planted where, and where parity must name it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests import faults, faults_int8
from tests.faults import Plant

FLOAT, HALF = "model.onnx", "model.fp16.onnx"
X86, TENSORRT = "model.int8.cpu-x86.onnx", "model.int8.tensorrt.onnx"
# The layer's convolution and its batch normalisation are one in ONNX, and go by the latter's name there.
BATCH_NORM = "blocks.3.1.bn1"
# A wrong grid shows where it is applied: at the end of the block that makes the tensor, or in the layer that reads it.
_GRID = r"blocks\.3\.(1\.bn1|0\.bn3)"
_SENSITIVE_GRID = r"blocks\.1\.(1\.bn1|0\.bn3)"


@dataclass(frozen=True)
class Fault:
    """A fault of one artifact, planted into `source`. It must be named by its stage, by a variation that fails, by
    words in its reasons and diagnosis, or as the module and kind that localisation finds. All but stage and kind are
    regular expressions.

    `shows` is false where ONNX Runtime's logits stay within the gate.
    """

    source: str
    plant: Plant
    stage: str = ""
    variation: str = ""
    words: str = ""
    module: str = ""
    kind: str = ""
    shows: bool = True


FAULTS: dict[str, Fault] = {
    "bgr-input": Fault(FLOAT, faults.bgr_input, "normalised", words="BGR"),
    "transposed-input": Fault(FLOAT, faults.transposed_input, "normalised"),
    "normalised-twice": Fault(FLOAT, faults.normalised_twice, "normalised"),
    "bgr-stem": Fault(FLOAT, faults.bgr_stem, "features", words="red and blue are swapped"),
    "negated-weight": Fault(FLOAT, faults.negated_weight, "features", module=BATCH_NORM, kind="sign"),
    "nan-weight": Fault(FLOAT, faults.nan_weight, "weights", words="NaN"),
    "shifted-padding": Fault(FLOAT, faults.shifted_padding, "features", module="blocks.3.1.bn2"),
    "clipped-activation": Fault(FLOAT, faults.clipped_activation, "features"),
    "weights-of-half": Fault(FLOAT, faults.weights_of_half, "features"),
    "noisy": Fault(FLOAT, faults.noisy, variation="repeated"),
    "dropout": Fault(FLOAT, faults.dropout, variation="unoptimised", shows=False),
    "batch-mean": Fault(FLOAT, faults.batch_mean_subtracted, variation="batch"),
    "batch-norm-training": Fault(FLOAT, faults.batch_norm_in_training, variation="batch"),
    "rows-of-head": Fault(FLOAT, faults.rows_of_head, "logits", words="permuted"),
    "bias-lost": Fault(FLOAT, faults.bias_lost, "logits", words="another bias"),
    "class-lost": Fault(FLOAT, faults.class_lost, "logits"),
    "softmax-inside": Fault(FLOAT, faults.softmax_inside, "logits", words="softmax"),
    "int8-scale-of-dq": Fault(X86, faults_int8.activation_scale(4, only_dequantize=True), module=_GRID, kind="scale"),
    "int8-scale-too-small": Fault(X86, faults_int8.activation_scale(0.25), "calibration record"),
    "int8-scale-too-large": Fault(
        X86, faults_int8.activation_scale(16, layer=faults_int8.SENSITIVE), module=_SENSITIVE_GRID, kind="scale"
    ),
    "int8-scale-coarse": Fault(
        X86, faults_int8.activation_scale(4, layer=faults_int8.SENSITIVE), "calibration record", shows=False
    ),
    "int8-weight-scale": Fault(TENSORRT, faults_int8.weight_scale(4), "features", module=BATCH_NORM, kind="scale"),
    "int8-scale-nan": Fault(X86, faults_int8.weight_scale(np.nan), "weights"),
    "int8-zero-point": Fault(
        X86, faults_int8.zero_point, "calibration record", words="zero point", module=_GRID, kind="clipping"
    ),
    "int8-bias-lost": Fault(TENSORRT, faults.bias_lost, "logits"),
    "fp16-overflow": Fault(
        FLOAT, lambda model: faults_int8.without_guards(faults_int8.over_half(model)), words="NaN|overflow"
    ),
}

# Made from another run, or by exporting anew.
MADE_ELSEWHERE: dict[str, Fault] = {
    "older-head": Fault(FLOAT, faults.unchanged, "logits"),
    "int8-older-head": Fault(X86, faults.unchanged, "logits"),
    "batch-norm": Fault(FLOAT, faults.unchanged, "features", module=BATCH_NORM),
}
ALL = {**FAULTS, **MADE_ELSEWHERE}
LOCALISED = [name for name, fault in ALL.items() if fault.module]


def file_name(name: str) -> str:
    return f"model.{name}.onnx"
