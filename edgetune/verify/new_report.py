"""A report of entries that were just judged here."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence

from edgetune.core.machine import cpu_name
from edgetune.core.run import Skipped
from edgetune.data.image_folder import SkippedFile
from edgetune.parity.records import SCHEMA_VERSION, ParityEntry, ParityReport, StageCheck
from edgetune.runners.ort_runner import ort_version


def make_report(
    source: str, classes: tuple[str, ...], entries: tuple[ParityEntry, ...], skipped: Sequence[SkippedFile],
    stages: tuple[StageCheck, ...] = (),
) -> ParityReport:  # fmt: skip
    return ParityReport(
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        data=source,
        classes=len(classes),
        machine={"cpu": cpu_name(), "architecture": platform.machine(), "onnxruntime": ort_version() or "none"},
        artifacts=entries,
        skipped=tuple(Skipped(str(file.path), file.reason) for file in skipped),
        class_names=classes,
        stages=stages,
    )
