"""parity of two ONNX files: judged by gates from a file, localised, and written as reports."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import FAIL
from edgetune.core.progress import Progress, no_progress
from edgetune.parity.gate_set import DEFAULT_GATES, load_gates
from edgetune.parity.records import Localisation, ParityEntry, ParityReport, storable
from edgetune.steps.parity_files import check_report_folder, write_reports
from edgetune.verify.compare_models import CompareOptions, ModelComparison, compare_models
from edgetune.verify.localize import LocalizeJob, localize, not_localised


@dataclass(frozen=True)
class ModelsOptions:
    """`compare` says how images become inputs; `gates` is a TOML file; `max_drop` None takes the gates' own; `out`
    None writes nothing.
    """

    compare: CompareOptions = CompareOptions()  # noqa: RUF009 - frozen
    max_drop: float | None = None
    gates: Path | None = None
    out: Path | None = None
    force: bool = False
    localize: bool = False


def parity_of_models(
    reference: Path, candidate: Path, data: Path, options: ModelsOptions, *, progress: Progress = no_progress
) -> ParityReport:
    """See `compare_models`.

    Raises:
        ModelError, DataError, TensorError, UsageError, ConfigError, OutputExistsError: as their messages say.
    """
    if options.out is not None:
        check_report_folder(options.out, force=options.force)
    gates = load_gates(options.gates) if options.gates is not None else DEFAULT_GATES
    if options.max_drop is not None:
        gates = gates.with_max_drop(options.max_drop)
    compare = dataclasses.replace(options.compare, gates=gates, keep_inputs=options.localize)
    found = compare_models(reference, candidate, data, compare, progress=progress)
    report = storable(found.report)
    if options.localize and any(_is_localisable(entry) for entry in report.artifacts):
        repro = options.out / "repro" if options.out is not None else None
        localisation = _localised(reference, candidate, found, repro, progress)
        entries = [
            dataclasses.replace(entry, localisation=localisation) if _is_localisable(entry) else entry
            for entry in report.artifacts
        ]
        report = dataclasses.replace(report, artifacts=tuple(entries))
    if options.out is not None:
        write_reports(options.out, report, found.pairs, found.flipped)
    return report


def _is_localisable(entry: ParityEntry) -> bool:
    """No block is to blame for an output that the candidate does not have."""
    return entry.verdict == FAIL and entry.images > 0


def _localised(
    reference: Path, candidate: Path, found: ModelComparison, repro: Path | None, progress: Progress
) -> Localisation:
    if found.inputs is None:
        return not_localised("the two models are not fed the same one input, so their blocks cannot be compared.")
    precision = "fp32" if found.precision == "tf32" else found.precision
    job = LocalizeJob(candidate, precision, reference, images=found.inputs, repro=repro)
    return localize(job, progress=progress)
