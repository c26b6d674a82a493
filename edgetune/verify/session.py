"""One pass of judging: a bundle's artifacts, engines and a server against PyTorch, with all that a verdict rests on."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.bundle import FAIL, Bundle
from edgetune.core.errors import DataError, ModelError, WeightsError
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import Run
from edgetune.data.image_folder import ImageFile
from edgetune.parity.compare import LogitsTable, collect_logits, spread_rows
from edgetune.parity.gate_set import GateSet
from edgetune.parity.records import LogitsPair, ParityEntry, incomplete
from edgetune.runners.choice import RunnerOptions
from edgetune.verify.details import Scene, with_details
from edgetune.verify.float32_noise import float32_noise_db, known_noise_db
from edgetune.verify.judging import Reference, judge_table, known_reference, live_reference
from edgetune.verify.localisation import EngineBuilder, Place, with_localisation
from edgetune.verify.reference import StoredReference, load_stored_reference, open_live_reference
from edgetune.verify.server import (
    FILES_KEY,
    Server,
    open_server,
    with_file_diagnosis,
    with_server_details,
)
from edgetune.verify.stages import stage_reference
from edgetune.verify.subjects import REFERENCE_KEY, Subject, find_subjects, open_subjects

if TYPE_CHECKING:
    from edgetune.runners.torch_runner import TorchRunner

_UNREAD_SHARE = 0.1
_EXPLAINED_FILES = 16  # fewer say too little where there are two classes only


@dataclass(frozen=True)
class JudgeJob:
    """What is judged, on which images. `found` is the run, `kinds` are runners, `url` is a server. With `localize`, the
    broken block of what failed is looked for, and written into `repro`, if that is a folder; `build` makes engines of
    parts of the network for that.
    """

    bundle: Bundle
    found: tuple[Path, Run] | None
    files: tuple[ImageFile, ...]
    gates: GateSet
    kinds: tuple[str, ...]
    runner: RunnerOptions = RunnerOptions()  # noqa: RUF009 - frozen
    url: str | None = None
    localize: bool = False
    repro: Path | None = None
    build: EngineBuilder | None = None
    require: bool = False


@dataclass(frozen=True)
class Judged:
    """Entries in the order of the report, the logits they compare, and what was judged, by the same names; the subjects
    are closed again. `table` has all logits.
    """

    entries: dict[str, ParityEntry]
    pairs: dict[str, LogitsPair]
    subjects: dict[str, Subject]
    table: LogitsTable
    reference: Reference
    noise_db: float | None


def judge_bundle(job: JudgeJob, progress: Progress = no_progress) -> Judged:
    """Opens everything side by side, runs the images once, and looks closer at a few of them.

    Raises:
        DataError: not one image can be read.
        ModelError: the reference fails.
        AddressError: there is no server at the url.
    """
    with contextlib.ExitStack() as stack:
        server = open_server(stack, job.url, job.bundle) if job.url is not None else None
        live = _open_live(stack, job)
        stored = load_stored_reference(job.bundle) if live is None else None
        name = live.name if live is not None else stored.name if stored is not None else ""
        subjects = find_subjects(job.bundle, job.kinds, job.runner, name)
        opened, lost = open_subjects(stack, subjects, name)
        table = _collect(job, live, opened, server, progress)
        reference = _reference(table, live, stored)
        candidates = {key: subject.candidate() for key, subject in opened.items()}
        candidates |= server.candidates() if server is not None else {}
        few = stage_reference(job.bundle, job.found, table.files, live)
        noise_db = float32_noise_db(live, few.pixels) if live is not None else known_noise_db(job.bundle)
        scene = Scene(job.bundle, job.gates.with_noise(noise_db), job.runner, few)
        entries, pairs = judge_table(table, reference, candidates, scene.gates)
        entries = {key: _of_enough(entry, table, require=job.require) for key, entry in entries.items()}
        for key, subject in opened.items():
            entry = with_details(entries[key], subject, pairs.get(key), scene)
            entry = _gave_way(entry, job.gates, noise_db)
            entries[key] = _localised(entry, subject, scene, job, progress)
        if server is not None:
            entries |= _look_at_server(entries, pairs, server, scene, table)
    missing = {f"missing {index}": entry for index, entry in enumerate((*subjects.missing, *lost))}
    return Judged(entries | missing, pairs, opened, table, reference, noise_db)


def _open_live(stack: contextlib.ExitStack, job: JudgeJob) -> TorchRunner | None:
    """The live model; without torch, the run or its weights the stored logits take its place."""
    try:
        live = open_live_reference(job.found)
    except (WeightsError, ModuleNotFoundError):
        return None
    return stack.enter_context(live) if live is not None else None


def _collect(
    job: JudgeJob, live: TorchRunner | None, opened: dict[str, Subject], server: Server | None, progress: Progress
) -> LogitsTable:
    """The candidates see what the bundle makes of the files, PyTorch what the run made of them at the fit."""
    spec = job.bundle.manifest.preprocess
    fitted = job.found[1].preprocess if job.found is not None else spec
    runners = {key: subject.runner for key, subject in opened.items()} | (server.runners if server is not None else {})
    readers = server.readers if server is not None else None
    if live is not None and fitted == spec:
        runners = {REFERENCE_KEY: live, **runners}
    table = collect_logits(job.files, spec, runners, file_runners=readers, progress=progress)
    if live is None or fitted == spec:
        return table
    other = collect_logits(job.files, fitted, {REFERENCE_KEY: live}, progress=progress)
    if other.hashes != table.hashes:
        raise DataError("some images can be read with the run's preprocessing and not with the bundle's.")
    return dataclasses.replace(
        table, logits={**other.logits, **table.logits}, failures={**other.failures, **table.failures}
    )


def _reference(table: LogitsTable, live: TorchRunner | None, stored: StoredReference | None) -> Reference:
    if live is None:
        return known_reference(table, stored or StoredReference("", {}))
    if REFERENCE_KEY in table.failures:
        raise ModelError(f"the PyTorch model does not get through the images: {table.failures[REFERENCE_KEY]}")
    return live_reference(live.name, table.logits[REFERENCE_KEY])


def _gave_way(entry: ParityEntry, gates: GateSet, noise_db: float | None) -> ParityEntry:
    if noise_db is None or entry.gate is None or entry.gate.min_sqnr_db == gates.fp32.min_sqnr_db:
        return entry
    if entry.gate != gates.with_noise(noise_db).fp32:
        return entry
    told = f"PyTorch's own float32 is {noise_db:.1f} dB from float64: {entry.gate.min_sqnr_db:.1f} dB are expected"
    return dataclasses.replace(entry, remarks=(*entry.remarks, told))


def _of_enough(entry: ParityEntry, table: LogitsTable, *, require: bool) -> ParityEntry:
    """Images that cannot be read say nothing; where they are many, neither does the rest of them."""
    unread = len(table.skipped)
    total = unread + len(table.files)
    if unread <= (0.0 if require else _UNREAD_SHARE) * total:
        return entry
    return incomplete(entry, f"{unread} of {total} images could not be read")


def _localised(entry: ParityEntry, subject: Subject, scene: Scene, job: JudgeJob, progress: Progress) -> ParityEntry:
    """The entry with the block that broke, where one is looked for."""
    if job.localize and entry.verdict == FAIL:
        entry = with_localisation(entry, subject, scene, Place(job.found, job.repro, job.build), progress=progress)
    return entry


def _look_at_server(
    entries: dict[str, ParityEntry], pairs: dict[str, LogitsPair], server: Server, scene: Scene, table: LogitsTable
) -> dict[str, ParityEntry]:
    found = with_server_details(entries, server, scene.bundle, scene.stages.pixels)
    if FILES_KEY not in pairs:
        return found
    rows = spread_rows(len(table.files), _EXPLAINED_FILES)
    try:
        files = [table.files[row].path.read_bytes() for row in rows]
    except OSError:  # gone meanwhile; the verdict stands without an explanation
        return found
    return with_file_diagnosis(found, server, scene.bundle, files, table.logits[FILES_KEY][rows])
