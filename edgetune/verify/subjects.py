"""What parity judges: artifacts on their runners, engines, and a running server; and why something is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass

from edgetune.core.bundle import Bundle
from edgetune.core.engine_files import read_sidecar
from edgetune.core.engine_record import EngineRecord
from edgetune.core.errors import EdgetuneError, EngineError, MissingDependencyError
from edgetune.parity.records import ParityEntry, entry_failed, entry_not_run
from edgetune.runners.base import Runner
from edgetune.runners.choice import ENGINE, Choice, RunnerOptions, best_first, choose_all, find_engine
from edgetune.runners.from_bundle import enter_all, open_runner
from edgetune.runners.ort_providers import CPU
from edgetune.verify.by_the_book import open_for_parity
from edgetune.verify.judging import Candidate

REFERENCE_KEY = "reference"
_LACKS_ONNX = "onnx is not installed, which it takes to round to float16 on a CPU"


@dataclass(frozen=True)
class Subject:
    """An artifact and what runs it, not open yet. `sealed` is an engine's record before anything was judged."""

    choice: Choice
    runner: Runner
    sealed: EngineRecord | None

    def candidate(self) -> Candidate:
        """What it is called; the runner must be open."""
        artifact = self.choice.artifact
        return Candidate(artifact.name, artifact.precision, self.choice.runner, self.runner.name)


@dataclass(frozen=True)
class Subjects:
    """By name; and the entries of what cannot be judged here, each with its reason."""

    found: dict[str, Subject]
    missing: tuple[ParityEntry, ...]


def find_subjects(bundle: Bundle, kinds: tuple[str, ...], options: RunnerOptions, reference: str) -> Subjects:
    """Everything that `kinds` of runners can run; hardware and libraries that are missing leave a NOT-RUN entry."""
    found: dict[str, Subject] = {}
    missing: list[ParityEntry] = []
    for kind in dict.fromkeys(kinds):
        try:
            choices = choose_all(bundle, (kind,), options)
        except (EngineError, MissingDependencyError) as error:
            refused = _refused_engines(bundle, kind, options, reference)
            missing += refused or [_nothing_runs(bundle, kind, reference, error.message)]
            continue
        for name, choice in choices.items():
            reason = _why_not(choice)
            if reason:
                missing.append(entry_not_run(choice.artifact.name, choice.runner, reference, reason))
            elif name not in found:
                problem = _add_subject(found, name, bundle, choice, options)
                missing += [_not_opened(choice, reference, problem)] if problem else []
        missing += _refused_engines(bundle, kind, options, reference)
    return Subjects(found, tuple(missing))


def _add_subject(
    found: dict[str, Subject], name: str, bundle: Bundle, choice: Choice, options: RunnerOptions
) -> str:  # fmt: skip
    """Why there is none, if so: a damaged file may show before it is opened."""
    try:
        found[name] = _subject(bundle, choice, options)
    except EdgetuneError as error:
        return error.message
    return ""


def _refused_engines(bundle: Bundle, kind: str, options: RunnerOptions, reference: str) -> list[ParityEntry]:
    """Where engines were asked for, artifacts whose only engines do not fit or are damaged; each with its problem."""
    entries = []
    for artifact in best_first(bundle.manifest.artifacts, ENGINE) if kind == ENGINE else ():
        engine, problems = find_engine([artifact], options.cache, allow_failed=True)
        if engine is None and problems:
            entries.append(entry_not_run(artifact.name, ENGINE, reference, problems[0].message))
    return entries


def open_subjects(
    stack: contextlib.ExitStack, subjects: Subjects, reference: str
) -> tuple[dict[str, Subject], tuple[ParityEntry, ...]]:
    """Opens the runners; the entries are of those that do not open here. What the CPU cannot load has failed."""
    runners = {name: subject.runner for name, subject in subjects.found.items()}
    opened, problems = enter_all(stack, runners, may_fail=runners)
    lost = tuple(_not_opened(subjects.found[name].choice, reference, reason) for name, reason in problems.items())
    return {name: subjects.found[name] for name in opened}, lost


def _not_opened(choice: Choice, reference: str, reason: str) -> ParityEntry:
    if choice.runner == CPU:
        return entry_failed(choice.artifact.name, choice.runner, reference, reason, "load")
    return entry_not_run(choice.artifact.name, choice.runner, reference, reason)


def _nothing_runs(bundle: Bundle, kind: str, reference: str, reason: str) -> ParityEntry:
    suited = best_first(bundle.manifest.artifacts, kind)
    return entry_not_run(suited[0].name if suited else "any artifact", kind, reference, reason)


def _why_not(choice: Choice) -> str:
    lacks_onnx = choice.artifact.precision == "fp16" and importlib.util.find_spec("onnx") is None
    return _LACKS_ONNX if lacks_onnx and choice.runner == CPU else ""


def _subject(bundle: Bundle, choice: Choice, options: RunnerOptions) -> Subject:
    sealed = read_sidecar(choice.engine) if choice.engine is not None else None
    if choice.runner == CPU:
        path = bundle.path / choice.artifact.name
        return Subject(choice, open_for_parity(path, choice.artifact.precision, options.threads), sealed)
    return Subject(choice, open_runner(bundle, choice, options), sealed)
