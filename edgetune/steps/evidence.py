"""evidence: one file that tells what a device is, what it was built for, and how fast and how right it computed.

It is made to be sent to somebody else: it names no person, no machine, no image and no class.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgetune.core.anonymous import anonymous, names_below, this_identity, without_names
from edgetune.core.bundle import MANIFEST_NAME, NOT_RUN, Bundle, load_bundle
from edgetune.core.config import to_dict
from edgetune.core.engine_files import engine_cache, find_engines
from edgetune.core.engine_record import EngineRecord
from edgetune.core.errors import DataError, EdgetuneError, OutputExistsError
from edgetune.core.files import (
    cache_root,
    canonical_json,
    pretty_json,
    read_json,
    sha256_of_bytes,
    write_bytes_atomic,
)
from edgetune.core.machine import cpu_name, usable_cpus
from edgetune.core.power import PowerState, read_power_state, slowdowns
from edgetune.core.preprocess import IMAGE_SUFFIXES
from edgetune.core.progress import Progress, no_progress
from edgetune.core.versions import library_versions
from edgetune.runners.cuda import GpuIdentity, gpu_identity
from edgetune.steps.doctor import Finding, Jetson, backend_versions, doctor, find_jetson
from edgetune.steps.measured import BENCH, PARITY, Subject, measure, note

SCHEMA_VERSION = 1
KIND = "edgetune-evidence"

T = TypeVar("T")

_SENTENCES = {"reasons", "remarks", "reason", "diagnosis", "explanation"}


@dataclass(frozen=True)
class EvidenceOptions:
    """`bundle` is measured, with the engines of `cache` (None: the user's cache folder); `data` has labelled images for
    parity. `force` replaces evidence that is there.
    """

    bundle: Path | None = None
    data: Path | None = None
    cache: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Machine:
    cpu: str
    cpus: int
    architecture: str
    memory_bytes: int | None
    os: str
    kernel: str
    python: str
    gpu: GpuIdentity | None
    jetson: Jetson | None


@dataclass(frozen=True)
class Evidence:
    """`bench` and `parity` are what those commands give with --json, None without a bundle; `engines` are the sidecars
    of the bundle's engines with their layers counted. `errors` has a message for each part that could not be had.
    """

    kind: str
    schema_version: int
    created: str
    versions: dict[str, str]
    backends: dict[str, str | None]
    machine: Machine | None
    findings: tuple[Finding, ...]
    power_before: PowerState | None
    power_after: PowerState | None
    slowdowns: tuple[str, ...]
    bundle: dict[str, Any] | None
    bench: dict[str, Any] | None
    parity: dict[str, Any] | None
    engines: tuple[dict[str, Any], ...]
    errors: dict[str, str]


@dataclass(frozen=True)
class EvidenceFile:
    """Where the evidence went; `content` is what the file holds, and `digest` the last key of it."""

    path: Path
    size_bytes: int
    digest: str
    content: dict[str, Any]


_DEFAULTS = EvidenceOptions()


def write_evidence(
    path: Path, options: EvidenceOptions = _DEFAULTS, *, progress: Progress = no_progress
) -> EvidenceFile:  # fmt: skip
    """Looks at the machine, measures the bundle on it if there is one, and writes all of it as one JSON file.

    A part that fails is recorded with its message, and the others go on.

    Raises:
        OutputExistsError: the file is there and was not to be replaced, or would lie in a bundle.
        EdgetuneError: the file cannot be written.
    """
    _check_file(path, force=options.force)
    places = {"bundle": options.bundle, "data": options.data, "cache": options.cache}
    whole = {name: place.absolute() for name, place in places.items() if place is not None}
    options = dataclasses.replace(options, **whole)  # type: ignore[arg-type]
    clean = anonymous(to_dict(_collect(options, progress)), this_identity(_folders(options)))
    digest = sha256_of_bytes(canonical_json(clean))
    text = pretty_json({**clean, "digest": digest})
    write_bytes_atomic(path, text)
    return EvidenceFile(path, len(text), digest, clean)


def _check_file(path: Path, *, force: bool) -> None:
    """Before minutes of measuring, not after them."""
    if any((folder / MANIFEST_NAME).is_file() for folder in path.absolute().parents):
        raise OutputExistsError(f"{path} lies in a bundle, and a bundle never changes.", hint="choose another file")
    if path.is_dir():
        raise OutputExistsError(f"{path} is a folder.", hint="name a file, as evidence.json")
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists already.", hint="choose another file, or replace it with --force")
    if path.exists() and not _is_ours(path):
        raise OutputExistsError(f"{path} exists and is no evidence that edgetune wrote.", hint="choose another file")
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise EdgetuneError(f"{path} cannot be written: {place} takes no new files.", hint="choose another folder")


def _is_ours(path: Path) -> bool:
    try:
        content = read_json(path)
    except DataError:
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def _folders(options: EvidenceOptions) -> dict[Path, str]:
    folders = {Path.cwd(): "<here>", cache_root(): "<cache>"}
    if sys.prefix != sys.base_prefix:
        folders[Path(sys.prefix)] = "<environment>"
    named = {options.cache: "<engine cache>", options.bundle: "<bundle>", options.data: "<data>"}
    return folders | {place: label for place, label in named.items() if place is not None}


def _private_names(options: EvidenceOptions) -> set[str]:
    """Classes, and what lies below the data; of a bundle that does not load, as much as can be had."""
    names = names_below(options.data) if options.data is not None else set()
    if options.bundle is None:
        return names
    names |= {name for name in names_below(options.bundle) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    with contextlib.suppress(DataError):
        manifest = read_json(options.bundle / MANIFEST_NAME)
        classes = manifest.get("classes") if isinstance(manifest, dict) else None
        names |= {name for name in classes if isinstance(name, str)} if isinstance(classes, list) else set()
    return names


class _Parts:
    """Takes one part after the other; what goes wrong with one is noted without `names`, and None stands for it."""

    def __init__(self, names: set[str]) -> None:
        self.errors: dict[str, str] = {}
        self._names = names

    def take(self, name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 - on a machine that nobody has seen, a bug is evidence as well
            self.errors[name] = without_names(note(name, error), self._names)
        return None

    def nameless(self, judged: dict[str, Any]) -> dict[str, Any]:
        """Parity's report without the user's images and classes: how many could not be read, or changed their label."""
        told = {check["reason"] for check in judged["stages"]}
        entries = [_anonymous_entry(entry, told) for entry in judged["artifacts"]]
        bare = {key: value for key, value in judged.items() if key != "class_names"}
        bare["stages"] = [{**check, "reason": ""} for check in judged["stages"]]
        cleaned: dict[str, Any] = self._clean({**bare, "artifacts": entries, "skipped": len(judged["skipped"])})
        return cleaned

    def _clean(self, value: Any, key: str = "") -> Any:
        """Names are looked for in what is told in sentences."""
        if isinstance(value, str):
            return without_names(value, self._names) if key in _SENTENCES else value
        if isinstance(value, dict):
            return {name: self._clean(item, name) for name, item in value.items()}
        return [self._clean(item, key) for item in value] if isinstance(value, list) else value


def _anonymous_entry(entry: dict[str, Any], told: set[str]) -> dict[str, Any]:
    """What the common stages say may quote names that are nowhere else; their verdicts are told without it."""
    reasons = ["a stage before all artifacts failed" if reason in told else reason for reason in entry["reasons"]]
    return {**entry, "reasons": reasons, "flips": len(entry["flips"])}


def _collect(options: EvidenceOptions, progress: Progress) -> Evidence:
    parts = _Parts(_private_names(options))
    machine = parts.take("machine", _machine)
    looked = parts.take("findings", lambda: doctor(options.cache))
    path = options.bundle
    bundle = parts.take("bundle", lambda: load_bundle(path)) if path is not None else None
    before = parts.take("power", read_power_state)
    subject = Subject(path, options.data, options.cache) if path is not None and bundle is not None else None
    timed, judged = _measure(subject, parts, progress) if subject is not None else (None, None)
    after = parts.take("power", read_power_state)
    engines = parts.take("engines", lambda: _engines(bundle, options.cache)) if bundle is not None else None
    return Evidence(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=library_versions(),
        backends=parts.take("backends", backend_versions) or {},
        machine=machine,
        findings=looked.findings if looked is not None else (),
        power_before=before,
        power_after=after,
        slowdowns=slowdowns(before, after) if before is not None and after is not None else (),
        bundle=parts.take("bundle", lambda: _describe(bundle)) if bundle is not None else None,
        bench=timed,
        parity=judged,
        engines=tuple(engines or ()),
        errors=parts.errors,
    )


def _machine() -> Machine:
    return Machine(
        cpu=cpu_name(),
        cpus=usable_cpus(),
        architecture=platform.machine(),
        memory_bytes=_memory_bytes(),
        os=_os_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        gpu=gpu_identity(),
        jetson=find_jetson(),
    )


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _measure(subject: Subject, parts: _Parts, progress: Progress) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    timed = parts.take(BENCH, lambda: measure(BENCH, subject, progress))
    judged = parts.take(PARITY, lambda: measure(PARITY, subject, progress))
    if judged is None:
        return timed, {"verdict": NOT_RUN, "artifacts": [], "reasons": [parts.errors[PARITY]]}
    return timed, parts.nameless(judged)


def _describe(bundle: Bundle) -> dict[str, Any]:
    """Which bundle this is, to the byte; the names of its classes are the user's own."""
    manifest = bundle.manifest
    return {
        "digest": read_json(bundle.path / MANIFEST_NAME)["digest"],
        "created": manifest.created,
        "edgetune_version": manifest.edgetune_version,
        "task": manifest.task,
        "backbone": manifest.backbone,
        "classes": len(manifest.classes),
        "preprocess": to_dict(manifest.preprocess),
        "artifacts": [to_dict(artifact) for artifact in manifest.artifacts],
    }


def _engines(bundle: Bundle, cache: Path | None) -> list[dict[str, Any]]:
    return [
        _engine(folder.name, dataclasses.replace(record, artifact=artifact.name))
        for artifact in bundle.manifest.artifacts
        for folder, record in find_engines(engine_cache(cache), artifact.sha256)
    ]


def _engine(fingerprint: str, record: EngineRecord) -> dict[str, Any]:
    """Its artifact is called as in the bundle, even where it was built from a copy of another name."""
    kinds = Counter(layer.kind for layer in record.layers)
    content = to_dict(record)
    content["layers"] = {"count": len(record.layers), "kinds": dict(kinds.most_common())}
    content["proof"]["unseen"] = len(record.proof.unseen)
    content["proof"]["holds"] = record.proof.holds
    return {"fingerprint": fingerprint, **content}
