"""What parity finds of an engine lies beside the engine: it is built and copied apart from its bundle."""

from __future__ import annotations

import dataclasses
import datetime
import math

from edgetune.core.bundle import NOT_RUN
from edgetune.core.engine_files import record_parity
from edgetune.core.engine_record import EngineParity
from edgetune.core.errors import EngineError
from edgetune.parity.records import ParityEntry
from edgetune.runners.trt_runner import this_host
from edgetune.verify.subjects import Subject


def told(subject: Subject, entry: ParityEntry) -> ParityEntry:
    """The entry, after its verdict was written beside the engine: it is the engine's own, whatever the artifact's was.

    What was not judged takes no earlier verdict away; a verdict that cannot be written is a remark and loses nothing.
    """
    measured, engine = subject.sealed, subject.choice.engine
    if entry.verdict == NOT_RUN or engine is None or measured is None:
        return entry
    sqnr_db = entry.sqnr_db if entry.sqnr_db is not None and math.isfinite(entry.sqnr_db) else None
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    host = this_host(measured.key.host.backend)
    parity = EngineParity(host, entry.verdict, entry.images, entry.top1_agreement, sqnr_db, created)
    try:
        record_parity(engine, parity, measured.sha256)
    except EngineError as error:
        return dataclasses.replace(entry, remarks=(*entry.remarks, error.message))
    return entry
