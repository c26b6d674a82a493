"""A running server as a candidate: whether it serves this bundle, and what it makes of tensors and of image files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, MANIFEST_NAME, NOT_RUN, PASS, Artifact, Bundle
from edgetune.core.errors import EdgetuneError
from edgetune.core.files import sha256_of_file
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.diagnosis import explain_preprocessing
from edgetune.parity.metrics import compare_logits
from edgetune.parity.records import ParityEntry, Variation, entry_not_run, failed
from edgetune.parity.variations import DEVICE_LIMITS, measure_variations
from edgetune.parity.variations import Subject as Varied
from edgetune.runners.base import FileRunner, Runner, infer_images
from edgetune.runners.served_model import RemoteModel
from edgetune.runners.server_runner import ServerImages, ServerRunner
from edgetune.verify.details import failed_by_variations
from edgetune.verify.judging import Candidate

TENSORS_KEY, FILES_KEY = "server tensors", "server files"
SERVED = "served bundle"
# Decimal text of float32 and back is exact.
_JSON_LIMIT = 0.0


@dataclass(frozen=True)
class Server:
    """An open server: `tensors` over binary, `texts` over JSON, `files` where it takes image files."""

    told: RemoteModel
    artifact: Artifact | None
    tensors: Runner
    texts: Runner
    files: FileRunner | None

    @property
    def runners(self) -> dict[str, Runner]:
        return {TENSORS_KEY: self.tensors}

    @property
    def readers(self) -> dict[str, FileRunner]:
        return {} if self.files is None else {FILES_KEY: self.files}

    def candidates(self) -> dict[str, Candidate]:
        """What each key of the runners and readers is called."""
        found = self.artifact
        name = self.told.artifact or self.told.name
        precision = found.precision if found is not None else "fp32"
        candidates = {TENSORS_KEY: Candidate(name, precision, "server", self.tensors.name)}
        if self.files is not None:
            candidates[FILES_KEY] = Candidate(name, precision, "server", self.files.name)
        return candidates


def open_server(stack: contextlib.ExitStack, url: str, bundle: Bundle) -> Server:
    """Raises `AddressError`, `ModelError` or `UsageError` where there is no such server."""
    tensors = stack.enter_context(ServerRunner(url))
    texts = stack.enter_context(ServerRunner(url, wire="json"))
    files = stack.enter_context(ServerImages(url)) if tensors.served.artifact else None
    return Server(tensors.served, _its_artifact(bundle, tensors.served), tensors, texts, files)


def _its_artifact(bundle: Bundle, told: RemoteModel) -> Artifact | None:
    artifacts = bundle.manifest.artifacts
    same = [artifact for artifact in artifacts if artifact.sha256 == told.artifact_sha256]
    named = [artifact for artifact in artifacts if artifact.name == told.artifact]
    return next(iter((*same, *named)), None)


def with_server_details(
    entries: dict[str, ParityEntry], server: Server, bundle: Bundle, images: npt.NDArray[np.uint8]
) -> dict[str, ParityEntry]:
    """The server's entries; they fail where it serves another bundle, or answers JSON or other batches otherwise."""
    differences = what_differs(bundle, server.told)
    judged = {name: entry for name, entry in entries.items() if name in (TENSORS_KEY, FILES_KEY)}
    if TENSORS_KEY in judged and judged[TENSORS_KEY].verdict != NOT_RUN:
        judged[TENSORS_KEY] = _with_variations(judged[TENSORS_KEY], server, images)
    judged = {name: _with_differences(entry, differences) for name, entry in judged.items()}
    if server.files is None:
        reason = "only edgetune's own server takes image files"
        name = server.told.name
        judged[FILES_KEY] = entry_not_run(name, "server (image bytes)", judged[TENSORS_KEY].reference, reason)
    return judged


def _with_differences(entry: ParityEntry, differences: list[tuple[str, str]]) -> ParityEntry:
    """What the server says of itself is the first stage, whatever its answers are."""
    for stage, reason in differences:
        entry = failed(entry, reason, stage=stage)
    return dataclasses.replace(entry, stage=differences[0][0]) if differences else entry


def what_differs(bundle: Bundle, told: RemoteModel) -> list[tuple[str, str]]:
    """Stage and reason where the server's own words are not the bundle's; nothing for what it does not tell."""
    manifest, found = bundle.manifest, []
    own = sha256_of_file(bundle.path / MANIFEST_NAME)
    known = {artifact.sha256 for artifact in manifest.artifacts}
    if told.artifact_sha256 and told.artifact_sha256 not in known:
        found.append((
            SERVED,
            f"the server runs another bundle: its {told.artifact} has the sha256 {told.artifact_sha256[:12]}..., "
            "which no artifact of this bundle has",
        ))  # fmt: skip
    elif told.bundle_digest and told.bundle_digest != own:
        found.append((
            SERVED,
            f"the server runs another bundle: its manifest has the sha256 {told.bundle_digest[:12]}..., "
            f"this bundle's {own[:12]}...",
        ))  # fmt: skip
    if told.preprocess is not None and told.preprocess != manifest.preprocess:
        found.append(("pixels", f"the server prepares images with {told.preprocess}, expected {manifest.preprocess}"))
    if told.classes and told.classes != manifest.classes:
        found.append(("labels", "the server has other classes, or in another order, than the bundle"))
    return found


def _with_variations(entry: ParityEntry, server: Server, images: npt.NDArray[np.uint8]) -> ParityEntry:
    precision = server.artifact.precision if server.artifact is not None else "fp32"
    try:
        variations = measure_variations(Varied(server.tensors), images, DEVICE_LIMITS[precision])
        plain = infer_images(server.tensors, images, LOGITS_OUTPUT)
        variations = (*variations, _as_json(plain, server.texts, images))
    except EdgetuneError as error:
        return failed(entry, f"a few images alone do not run: {error.message}", stage="invariance")
    return dataclasses.replace(failed_by_variations(entry, variations), variations=variations)


def _as_json(plain: npt.NDArray[np.float32], texts: Runner, images: npt.NDArray[np.uint8]) -> Variation:
    """Tensors as decimal text against the same tensors as bytes."""
    try:
        comparison = compare_logits(plain, infer_images(texts, images, LOGITS_OUTPUT), None)
    except EdgetuneError as error:
        return Variation("json", len(images), None, None, 0, _JSON_LIMIT, FAIL, error.message)
    same = comparison.finite and comparison.max_abs_diff <= _JSON_LIMIT
    reason = "" if same else f"the answer as JSON differs from the binary one by up to {comparison.max_abs_diff:.3g}"
    return Variation(
        "json", len(images), comparison.max_abs_diff if comparison.finite else None, comparison.sqnr_db,
        len(comparison.flip_margins), _JSON_LIMIT, PASS if same else FAIL, reason,
    )  # fmt: skip


def with_file_diagnosis(
    entries: dict[str, ParityEntry], server: Server, bundle: Bundle, files: Sequence[bytes],
    logits: npt.NDArray[np.float32],
) -> dict[str, ParityEntry]:  # fmt: skip
    """Where tensors are answered rightly and image files are not, the server prepares images otherwise; the `logits`
    that it gave for `files` tell how.
    """
    tensors, images = entries.get(TENSORS_KEY), entries.get(FILES_KEY)
    if tensors is None or images is None or images.verdict != FAIL or tensors.verdict == FAIL:
        return entries
    spec = bundle.manifest.preprocess
    try:
        diagnosis = explain_preprocessing(
            files, spec, lambda pixels: infer_images(server.tensors, pixels, LOGITS_OUTPUT), logits
        )
    except EdgetuneError:
        diagnosis = ""
    reason = "tensors are answered rightly, image files are not: the server prepares images otherwise"
    entry = dataclasses.replace(failed(images, reason), stage="pixels", diagnosis=diagnosis)
    return {**entries, FILES_KEY: entry}
