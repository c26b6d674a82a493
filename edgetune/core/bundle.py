"""The bundle: the folder that a device receives, and its manifest, which vouches for every byte in it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.config import from_dict, to_dict
from edgetune.core.errors import ArtifactError, BundleError, ConfigError, DataError
from edgetune.core.files import canonical_json, pretty_json, read_json, sha256_of_bytes, sha256_of_file
from edgetune.core.preprocess import PreprocessSpec

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT-RUN"


@dataclass(frozen=True)
class Artifact:
    """One file that computes logits; `accuracy` is top-1 on the parity images, None where no parity ran."""

    name: str
    role: str
    precision: str
    target: str
    sha256: str
    size_bytes: int
    verdict: str
    accuracy: float | None


@dataclass(frozen=True)
class BundleFile:
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class RunOrigin:
    """The run a bundle came from: where it was, and the sha256 of its `run.json`."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`files` lists every file of the bundle but the manifest; `classes` are in the order of the logits. An image whose
    highest probability is below `reject_below` is none of the classes; None where nothing is rejected.
    """

    schema_version: int
    task: str
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    run: RunOrigin
    backbone: str
    edgetune_version: str
    created: str
    artifacts: tuple[Artifact, ...]
    files: dict[str, BundleFile]
    reject_below: float | None = None


@dataclass(frozen=True)
class Bundle:
    path: Path
    manifest: Manifest

    def artifact(self, name: str) -> Artifact:
        """Raises `ArtifactError` naming what the bundle has, when it has no such artifact."""
        for artifact in self.manifest.artifacts:
            if artifact.name == name:
                return artifact
        names = ", ".join(artifact.name for artifact in self.manifest.artifacts)
        raise ArtifactError(f"{self.path} has no artifact {name!r}.", hint=f"it has: {names}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Lists the folder's files with their digests and writes the manifest, closed by a digest of itself."""
    files = {
        file.relative_to(folder).as_posix(): BundleFile(sha256_of_file(file), file.stat().st_size)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != MANIFEST_NAME
    }
    content = to_dict(dataclasses.replace(manifest, files=files))
    if manifest.reject_below is None:
        del content["reject_below"]  # an edgetune that does not know the key reads the bundle too
    (folder / MANIFEST_NAME).write_bytes(_with_digest(content))


def _with_digest(content: dict[str, Any]) -> bytes:
    return pretty_json({**content, "digest": sha256_of_bytes(canonical_json(content))})


def load_bundle(path: Path) -> Bundle:
    """Reads the manifest and checks every file of the bundle against it.

    Raises:
        BundleError: no bundle, another schema version, or any byte differs from what was written.
    """
    manifest_path = path / MANIFEST_NAME
    if not manifest_path.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST_NAME}.", hint="write one with edgetune export")
    manifest = _read_manifest(manifest_path)
    _check_files(path, manifest)
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise BundleError(f"{path} is not a JSON object.")
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema version {version!r}, this edgetune reads {SCHEMA_VERSION}.",
                hint="install the edgetune that wrote it, or export the run again",
            )
        content.pop("digest", None)
        if _with_digest(content) != path.read_bytes():
            raise BundleError(f"{path} was changed after it was written: its digest does not match.", hint=_RESTORE)
        return from_dict(Manifest, content, str(path))
    except (DataError, ConfigError, ValueError) as error:
        raise BundleError(f"the bundle's manifest is damaged: {error}", hint=_RESTORE) from error


_RESTORE = "copy the bundle again, or export the run again"


def _check_files(path: Path, manifest: Manifest) -> None:
    entries = list(path.rglob("*"))
    links = sorted(entry.relative_to(path).as_posix() for entry in entries if entry.is_symlink())
    if links:
        raise BundleError(f"{path} holds symbolic links, which a bundle never has: {', '.join(links)}.", hint=_RESTORE)
    present = {entry.relative_to(path).as_posix() for entry in entries if not entry.is_dir()}
    unknown = sorted(present - set(manifest.files) - {MANIFEST_NAME})
    if unknown:
        raise BundleError(f"{path} holds files that its manifest does not list: {', '.join(unknown)}.", hint=_RESTORE)
    for name, expected in manifest.files.items():
        if name not in present:
            raise BundleError(f"{path} lacks {name[:128]}, which its manifest lists.", hint=_RESTORE)
        _check_file(path, name, expected)
    for artifact in manifest.artifacts:
        listed = manifest.files.get(artifact.name)
        if listed is None or listed.sha256 != artifact.sha256:
            raise BundleError(
                f"{path}: the manifest's artifact {artifact.name!r} is not among its files.", hint=_RESTORE
            )


def _check_file(path: Path, name: str, expected: BundleFile) -> None:
    file = path / name
    size_bytes = file.stat().st_size
    if size_bytes != expected.size_bytes or sha256_of_file(file) != expected.sha256:
        raise BundleError(
            f"{file} was changed after it was written: {size_bytes} bytes whose sha256 is not "
            f"{expected.sha256[:12]}... ({expected.size_bytes} bytes).",
            hint=_RESTORE,
        )
