"""What an artifact's file alone tells: damaged constants, and whether INT8 still has the scales and zero points of its
bundle's calibration record.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from edgetune.core.bundle import Artifact, Bundle
from edgetune.core.errors import ConfigError, DataError
from edgetune.core.files import read_json

CALIBRATION_NAME = "calibration.json"


def calibration_of(bundle: Bundle, artifact: Artifact) -> dict[str, Any] | None:
    """The bundle's calibration record; None for an artifact that is not INT8, and where there is none."""
    if artifact.precision != "int8":
        return None
    try:
        content = read_json(bundle.path / CALIBRATION_NAME)
    except DataError:
        return None
    return content if isinstance(content, dict) else None


def damaged_constants(bundle: Bundle, artifact: Artifact) -> list[str]:
    """Names of weights and scales with NaN or infinity; integer kernels hide some of them from the logits. A single
    number may be infinite, as the padding of a maximum is.
    """
    if importlib.util.find_spec("onnx") is None:
        return []
    from edgetune.graph.compose import read_model
    from edgetune.graph.network import Network

    constants = Network.of_model(read_model(bundle.path / artifact.name)).constants
    floats = {name: values for name, values in constants.items() if values.dtype.kind == "f"}
    return [
        name
        for name, values in floats.items()
        if np.isnan(values).any() or (values.size > 1 and np.isinf(values).any())
    ]


def differences_from_record(bundle: Bundle, artifact: Artifact) -> list[str]:
    """One sentence a tensor; none where there is no record, and on devices without onnx, which it takes to look."""
    record = calibration_of(bundle, artifact)
    if record is None or importlib.util.find_spec("onnx") is None:
        return []
    from edgetune.graph.compose import read_model
    from edgetune.quantize.record_check import check_against_record

    try:
        return check_against_record(read_model(bundle.path / artifact.name), record, artifact.target)
    except ConfigError:  # an older bundle's record is another
        return []
