"""parity: every artifact of a bundle, and a running server, against the PyTorch model, on labelled images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.bundle import FAIL, NOT_RUN, load_bundle
from edgetune.core.progress import Progress, no_progress
from edgetune.parity.gate_set import DEFAULT_GATES, GateSet, load_gates
from edgetune.parity.records import ParityEntry, ParityReport, StageCheck, failed, storable
from edgetune.parity.report import titles
from edgetune.runners.choice import RunnerOptions
from edgetune.runners.server_runner import ServerRunner
from edgetune.steps.parity_files import check_report_folder, files_to_judge, write_reports
from edgetune.verify.engine_verdicts import told
from edgetune.verify.new_report import make_report
from edgetune.verify.reference import find_run
from edgetune.verify.session import Judged, JudgeJob, judge_bundle
from edgetune.verify.stages import check_bundle, check_pixels


@dataclass(frozen=True)
class ParityOptions:
    """`run` None takes the bundle's recorded run; `out` None writes nothing. `max_drop` is a share of images, None for
    the gates' own.

    `runner` says what runs the artifacts: `auto` is the CPU, and every engine of the cache that fits this machine;
    `kinds` asks for several. `gates` is a TOML file. With `require`, what could not run fails. `url` is a server that
    is judged too. With `localize`, a failed artifact's broken block is looked for.
    """

    run: Path | None = None
    out: Path | None = None
    max_drop: float | None = None
    force: bool = False
    runner: RunnerOptions = RunnerOptions()  # noqa: RUF009 - frozen
    kinds: tuple[str, ...] = ()
    gates: Path | None = None
    require: bool = False
    url: str | None = None
    localize: bool = False


def parity(
    bundle_path: Path, data: Path | None, options: ParityOptions, *, progress: Progress = no_progress
) -> ParityReport:
    """Compares on the images below `data` (its `val` folder, if it has one), or on the run's validation split.

    Raises:
        BundleError, RunError, DataError, ConfigError: as their messages say.
        AddressError: there is no server at `options.url`.
    """
    if options.out is not None:
        check_report_folder(options.out, force=options.force)
    if options.url is not None:
        ServerRunner(options.url)  # a url that is none is told before minutes of comparing
    gates = _gates(options)
    bundle = load_bundle(bundle_path)
    found = find_run(bundle, options.run)
    files, listed = files_to_judge(bundle, data, found[1] if found else None)
    job = JudgeJob(
        bundle, found, files, gates, options.kinds or (options.runner.kind,), options.runner, options.url,
        options.localize, options.out / "repro" if options.out is not None else None, _build_engine,
        options.require,
    )  # fmt: skip
    common = (*check_bundle(bundle, found), check_pixels(files, bundle.manifest.preprocess))
    judged = judge_bundle(job, progress)
    entries = _closed_entries(judged, common, gates, require=options.require)
    source = str(data) if data is not None else "the run's validation split"
    skipped = (*listed, *judged.table.skipped)
    report = make_report(source, bundle.manifest.classes, entries, skipped, common)
    report = storable(dataclasses.replace(report, noise_db=judged.noise_db))
    if options.out is not None:
        keys = dict(zip(judged.entries, titles(report), strict=True))
        write_reports(options.out, report, {keys[name]: pair for name, pair in judged.pairs.items()}, judged.table)
    return report


def _closed_entries(
    judged: Judged, common: tuple[StageCheck, ...], gates: GateSet, *, require: bool
) -> tuple[ParityEntry, ...]:
    """The entries with what the common stages say of them. An engine's verdict then lies beside it, if it was judged by
    the default gates: whoever takes the engine trusts what everybody means with PASS.
    """
    entries = {name: _with_common(entry, common, require=require) for name, entry in judged.entries.items()}
    if gates == DEFAULT_GATES:
        engines = {name: subject for name, subject in judged.subjects.items() if subject.sealed is not None}
        entries |= {name: told(subject, entries[name]) for name, subject in engines.items()}
    return tuple(entries.values())


def _build_engine(model: Path, backend: str, cache: Path) -> Path:
    from edgetune.steps.build import BuildRequest, build

    return build(model, BuildRequest(backend=backend, cache=cache, allow_failed=True)).folder


def _gates(options: ParityOptions) -> GateSet:
    gates = load_gates(options.gates) if options.gates is not None else DEFAULT_GATES
    return gates if options.max_drop is None else gates.with_max_drop(options.max_drop)


def _with_common(entry: ParityEntry, common: tuple[StageCheck, ...], *, require: bool) -> ParityEntry:
    """What the bundle's own files say differently of an artifact is that artifact's fault."""
    if require and entry.verdict == NOT_RUN:
        entry = dataclasses.replace(entry, verdict=FAIL)
    for check in common:
        if check.verdict == FAIL and entry.artifact in check.reason:
            entry = failed(entry, check.reason, stage=check.stage)
    return entry
