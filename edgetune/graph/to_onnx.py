"""PyTorch to ONNX: the frozen feature extractor as one graph with uint8 input and dynamic batch."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from typing import cast

import onnx
import torch
from torch import nn

from edgetune.core.errors import ModelError, first_line
from edgetune.core.tensors import FEATURES_OUTPUT, IMAGE_INPUT
from edgetune.graph.compose import MAX_IR_VERSION, OPSET, check_model, strip_debug_information

MAX_BATCH = 4096


class _GlobalMean(nn.Module):
    """What `AdaptiveAvgPool2d(1)` computes. The exporter turns that layer into a Gather over computed indices,
    which no quantizer or engine builder recognises; a mean becomes one ReduceMean.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.mean((2, 3), keepdim=True)


def export_features(extractor: nn.Module, crop_size: int) -> onnx.ModelProto:
    """Exports images uint8 `(N, H, W, 3)` to features float32 `(N, D)` with `torch.onnx.export(dynamo=True)`.

    The module itself is not touched: the export works on a copy.

    Raises:
        ModelError: the exporter cannot translate the backbone.
    """
    module = _prepare_for_export(copy.deepcopy(extractor).eval())
    example = torch.zeros(2, crop_size, crop_size, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=OPSET, dynamic_shapes=({0: batch},),
                input_names=[IMAGE_INPUT], output_names=[FEATURES_OUTPUT], external_data=False, verbose=False,
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        raise ModelError(f"the backbone cannot be exported to ONNX: {first_line(error)}") from error
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    strip_debug_information(model)
    check_model(model)
    return model


def _prepare_for_export(module: nn.Module) -> nn.Module:
    """Same values, simpler graph: global pooling as a mean, and no in-place activations, whose
    functionalisation takes a third of the export's time.
    """
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, _GlobalMean())
        elif getattr(layer, "inplace", None) is True:
            layer.inplace = False
    return module


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns about its own internals; what matters comes out as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
