"""parity: every artifact of a bundle against the PyTorch model, on labelled images."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.util
import math
import platform
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetune.core.bundle import MANIFEST_NAME, NOT_RUN, Artifact, Bundle, load_bundle
from edgetune.core.engine_files import read_sidecar, record_parity
from edgetune.core.engine_record import EngineParity, EngineRecord
from edgetune.core.errors import DataError, EngineError, OutputExistsError, WeightsError
from edgetune.core.files import sha256_of_file, write_bytes_atomic
from edgetune.core.machine import cpu_name
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import Run, Skipped
from edgetune.data.image_folder import ImageFile, SkippedFile, labelled_root, scan_labelled
from edgetune.parity.compare import LogitsTable, collect_logits
from edgetune.parity.gates import DEFAULT_MAX_DROP, gate_for, judge
from edgetune.parity.metrics import compare_logits
from edgetune.parity.report import (
    SCHEMA_VERSION,
    ParityEntry,
    ParityReport,
    entry_from_comparison,
    entry_not_run,
    incomplete,
    report_html,
    report_json,
)  # fmt: skip
from edgetune.runners.base import Runner
from edgetune.runners.choice import AUTO, Choice, RunnerOptions, choose_all
from edgetune.runners.from_bundle import enter_all, open_runner
from edgetune.runners.ort_providers import CPU
from edgetune.runners.ort_runner import ort_version
from edgetune.runners.trt_runner import this_host
from edgetune.steps.fp16 import open_for_parity
from edgetune.steps.reference import StoredReference, find_run, load_stored_reference, open_live_reference

REFERENCE_KEY = "reference"
REPORT_NAME = "parity.json"


@dataclass(frozen=True)
class ParityOptions:
    """`run` None takes the bundle's recorded run; `out` None writes nothing; `max_drop` is a share of images.

    `runner` says what runs the artifacts: `auto` is the CPU, and every engine of the cache that fits this machine.
    """

    run: Path | None = None
    out: Path | None = None
    max_drop: float = DEFAULT_MAX_DROP
    force: bool = False
    runner: RunnerOptions = RunnerOptions()  # noqa: RUF009 - frozen


def parity(
    bundle_path: Path, data: Path | None, options: ParityOptions, *, progress: Progress = no_progress
) -> ParityReport:
    """Compares on the images below `data` (its `val` folder, if it has one), or on the run's validation split.

    Raises:
        BundleError, RunError, DataError: as their messages say.
    """
    if options.out is not None:
        _check_report_folder(options.out, force=options.force)
    bundle = load_bundle(bundle_path)
    found = find_run(bundle, options.run)
    choices = choose_all(bundle, (options.runner.kind,), options.runner)
    files, listed = _files_to_judge(bundle, data, found[1] if found else None)
    live, stored = _open_reference(bundle, found)
    candidates, unjudged = _candidates(bundle, choices, options.runner)
    runners = candidates if live is None else {REFERENCE_KEY: live, **candidates}
    may_fail = {name for name, choice in choices.items() if choice.runner != CPU and options.runner.kind == AUTO}
    seals = {name: read_sidecar(choice.engine) for name, choice in choices.items() if choice.engine is not None}
    table, names, problems = _collect(files, bundle.manifest.preprocess, runners, may_fail, progress)
    unjudged |= problems
    names.setdefault(REFERENCE_KEY, stored.name if stored is not None else "")
    judged = {name: choice for name, choice in choices.items() if name not in unjudged}
    artifacts = {name: choice.artifact for name, choice in judged.items()}
    judgements = judge_table(table, names, artifacts, options.max_drop, stored)
    entries = tuple(
        _told(judged[name], entry, seals[name]) if name in seals else entry
        for name, entry in zip(judged, judgements, strict=True)
    )
    entries += tuple(
        entry_not_run(choices[name].artifact.name, choices[name].runner, names[REFERENCE_KEY], reason)
        for name, reason in unjudged.items()
    )
    source = str(data) if data is not None else "the run's validation split"
    report = make_report(source, len(bundle.manifest.classes), entries, (*listed, *table.skipped))
    if options.out is not None:
        write_bytes_atomic(options.out / REPORT_NAME, report_json(report))
        write_bytes_atomic(options.out / "parity.html", report_html(report))
    return report


def _open_reference(bundle: Bundle, found: tuple[Path, Run] | None) -> tuple[Runner | None, StoredReference | None]:
    """The live model, or else the stored logits, and the report names which."""
    try:
        live = open_live_reference(found)
    except (WeightsError, ModuleNotFoundError):
        live = None
    return (live, None) if live is not None else (None, load_stored_reference(bundle))


def _candidates(
    bundle: Bundle, choices: Mapping[str, Choice], options: RunnerOptions
) -> tuple[dict[str, Runner], dict[str, str]]:
    """Runners that are not open yet, and why there is none for a choice."""
    lacks_onnx = importlib.util.find_spec("onnx") is None
    unjudged = {
        name: "onnx is not installed, which it takes to round to float16 on a CPU"
        for name, choice in choices.items()
        if lacks_onnx and choice.runner == CPU and choice.artifact.precision == "fp16"
    }
    judged = {name: choice for name, choice in choices.items() if name not in unjudged}
    return {name: _runner_to_judge(bundle, choice, options) for name, choice in judged.items()}, unjudged


def _collect(
    files: tuple[ImageFile, ...], spec: PreprocessSpec, runners: Mapping[str, Runner], may_fail: Container[str],
    progress: Progress,
) -> tuple[LogitsTable, dict[str, str], dict[str, str]]:  # fmt: skip
    """The logits, what the open runners call themselves, and why others did not open."""
    with contextlib.ExitStack() as stack:
        opened, problems = enter_all(stack, runners, may_fail=may_fail)
        table = collect_logits(files, spec, opened, progress=progress)
        return table, {name: runner.name for name, runner in opened.items()}, problems


def _runner_to_judge(bundle: Bundle, choice: Choice, options: RunnerOptions) -> Runner:
    if choice.runner == CPU:
        return open_for_parity(bundle.path / choice.artifact.name, choice.artifact.precision)
    return open_runner(bundle, choice, options)


def judge_table(
    table: LogitsTable,
    runner_names: dict[str, str],
    artifacts: Mapping[str, Artifact],
    max_drop: float,
    stored: StoredReference | None = None,
) -> tuple[ParityEntry, ...]:
    """One entry per artifact, by the names of the table; with a stored reference, on the images it knows."""
    rows = np.arange(len(table.hashes))
    if stored is not None:
        rows = np.array([row for row, sha256 in enumerate(table.hashes) if sha256 in stored.rows], dtype=np.int64)
    reference_name = runner_names[REFERENCE_KEY]
    if len(rows) == 0:
        reason = "no PyTorch reference: neither torch with the run, nor stored logits of these images"
        return tuple(
            entry_not_run(artifact.name, runner_names[name], reference_name, reason)
            for name, artifact in artifacts.items()
        )
    reference = (
        table.logits[REFERENCE_KEY] if stored is None else np.stack([stored.rows[table.hashes[row]] for row in rows])
    )
    entries = []
    for name, artifact in artifacts.items():
        comparison = compare_logits(reference, table.logits[name][rows], table.labels[rows])
        judgement = judge(comparison, gate_for(artifact.precision, max_drop))
        entry = entry_from_comparison((artifact.name, runner_names[name], reference_name), comparison, judgement)
        if len(rows) < len(table.hashes):
            missing = len(table.hashes) - len(rows)
            entry = incomplete(entry, f"{missing} of {len(table.hashes)} images have no stored reference logits")
        entries.append(entry)
    return tuple(entries)


def _told(choice: Choice, entry: ParityEntry, measured: EngineRecord) -> ParityEntry:
    """The entry, after its verdict was written beside the engine: it is the engine's own, whatever the artifact's was.

    What was not judged takes no earlier verdict away; a verdict that cannot be written is a remark and loses nothing.
    """
    if entry.verdict == NOT_RUN or choice.engine is None:
        return entry
    sqnr_db = entry.sqnr_db if entry.sqnr_db is not None and math.isfinite(entry.sqnr_db) else None
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    host = this_host(measured.key.host.backend)
    parity = EngineParity(host, entry.verdict, entry.images, entry.top1_agreement, sqnr_db, created)
    try:
        record_parity(choice.engine, parity, measured.sha256)
    except EngineError as error:
        return dataclasses.replace(entry, reasons=(*entry.reasons, error.message))
    return entry


def make_report(
    source: str, classes: int, entries: tuple[ParityEntry, ...], skipped: tuple[SkippedFile, ...]
) -> ParityReport:
    return ParityReport(
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        data=source,
        classes=classes,
        machine={"cpu": cpu_name(), "architecture": platform.machine(), "onnxruntime": ort_version() or "none"},
        artifacts=entries,
        skipped=tuple(Skipped(str(file.path), file.reason) for file in skipped),
    )


def _check_report_folder(out: Path, *, force: bool) -> None:
    if (out / MANIFEST_NAME).exists():
        raise OutputExistsError(f"{out} is a bundle, and a bundle never changes.", hint="choose another --out")
    if (out / REPORT_NAME).exists() and not force:
        raise OutputExistsError(f"{out / REPORT_NAME} exists already.", hint="choose another --out, or add --force")


def validation_files(run: Run, root: Path) -> tuple[ImageFile, ...]:
    """The run's validation images below `root`, each with the content it had at the fit.

    Raises:
        DataError: the data folder is gone, or an image is missing or was changed: a proof on other images than the
            run's would prove something else.
    """
    if not root.is_dir():
        raise DataError(f"the run's images are no longer at {root}.", hint="say where they are with --data DIR")
    lost = [file.path for file in run.split.val if not _is_unchanged(root / file.path, file.sha256)]
    if lost:
        raise DataError(
            f"{len(lost)} of the run's {len(run.split.val)} validation images below {root} are missing or were "
            f"changed after the fit; the first is {lost[0]}.",
            hint="put the images back, or fit again",
        )
    return tuple(ImageFile(root / file.path, file.label) for file in run.split.val)


def _is_unchanged(path: Path, sha256: str) -> bool:
    try:
        return sha256_of_file(path) == sha256
    except OSError:
        return False


def _files_to_judge(
    bundle: Bundle, data: Path | None, run: Run | None
) -> tuple[tuple[ImageFile, ...], tuple[SkippedFile, ...]]:
    if data is not None:
        if not data.is_dir():
            raise DataError(f"{data} is not a folder.", hint="give a folder with one folder of images a class")
        return scan_labelled(labelled_root(data), bundle.manifest.classes)
    if run is None:
        raise DataError(
            "there are no images to compare on: the bundle's run is gone or has changed.",
            hint="give labelled images with --data DIR, or the run with --run RUN",
        )
    return validation_files(run, Path(run.split.root)), ()
