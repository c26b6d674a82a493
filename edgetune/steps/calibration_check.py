"""Whether an INT8 artifact still has the scales and zero points that its bundle's calibration record gives it."""

from __future__ import annotations

import importlib.util
from typing import Any

from edgetune.core.bundle import Artifact, Bundle
from edgetune.core.errors import DataError
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


def differences_from_record(bundle: Bundle, artifact: Artifact) -> list[str]:
    """One sentence a tensor; none where there is no record, and on devices without onnx, which it takes to look."""
    record = calibration_of(bundle, artifact)
    if record is None or importlib.util.find_spec("onnx") is None:
        return []
    from edgetune.graph.compose import read_model
    from edgetune.quantize.record_check import check_against_record

    return check_against_record(read_model(bundle.path / artifact.name), record, artifact.target)
