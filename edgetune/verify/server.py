"""A running server as a candidate: whether it serves this bundle, and what it makes of tensors and of image files."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, MANIFEST_NAME, NOT_RUN, PASS, Artifact, Bundle
from edgetune.core.errors import EdgetuneError, TensorError
from edgetune.core.files import sha256_of_file
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.parity.diagnosis import explain_preprocessing
from edgetune.parity.metrics import compare_logits
from edgetune.parity.records import ParityEntry, Variation, failed
from edgetune.parity.variations import BATCH, DEVICE_LIMITS, measure_variations
from edgetune.parity.variations import Subject as Varied
from edgetune.runners.base import FileRunner, Runner, infer_images
from edgetune.runners.ort_providers import TENSORRT_EP, EpChoice, provider_label
from edgetune.runners.served_model import RemoteModel
from edgetune.runners.server_runner import ServerImages, ServerRunner
from edgetune.verify.details import failed_by_variations
from edgetune.verify.judging import Candidate

TENSORS_KEY, FILES_KEY = "server tensors", "server files"
SERVED = "served bundle"
NO_FILES = "no image files were sent: only edgetune's own server takes them"
# What an edgetune server on ONNX Runtime's TensorRT provider says of its runner.
_TENSORRT_EP_RUNNER = f"onnxruntime {provider_label(EpChoice(TENSORRT_EP).ort_name)}"
_IDENTITY = ("artifact_sha256", "bundle_digest", "classes", "preprocess")


@dataclass(frozen=True)
class Server:
    """An open server: `tensors` over binary, `texts` over JSON, `files` where it takes image files. `told` is what it
    said over the first connection.
    """

    told: RemoteModel
    artifact: Artifact | None
    tensors: ServerRunner
    texts: ServerRunner
    files: ServerImages | None

    @property
    def runners(self) -> dict[str, Runner]:
        return {TENSORS_KEY: self.tensors}

    @property
    def readers(self) -> dict[str, FileRunner]:
        return {} if self.files is None else {FILES_KEY: self.files}

    def candidates(self) -> dict[str, Candidate]:
        """What each key of the runners and readers is called."""
        runners = {TENSORS_KEY: self.tensors.name}
        if self.files is not None:
            runners[FILES_KEY] = self.files.name
        name = self.told.artifact or self.told.name
        precision = self.artifact.precision if self.artifact is not None else "fp32"
        kind = TENSORRT_EP if self.told.runner == _TENSORRT_EP_RUNNER else "server"
        return {key: Candidate(name, precision, kind, runner) for key, runner in runners.items()}


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
    differences = [*what_differs(bundle, server.told), *_differs_between_connections(server)]
    judged = {name: entry for name, entry in entries.items() if name in (TENSORS_KEY, FILES_KEY)}
    if TENSORS_KEY in judged:
        entry = judged[TENSORS_KEY]
        # Of NaN every comparison says the same, and a server that went away is not waited for again.
        if entry.verdict != NOT_RUN and entry.max_abs_diff is not None:
            entry = _with_variations(entry, server, images)
        if server.files is None:
            entry = dataclasses.replace(entry, remarks=(*entry.remarks, NO_FILES))
        judged[TENSORS_KEY] = entry
    return {name: _with_differences(entry, differences) for name, entry in judged.items()}


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


def _differs_between_connections(server: Server) -> list[tuple[str, str]]:
    """Behind one address there may be several servers, and each connection may lead to another of them."""
    for other in (server.texts, server.files):
        changed = [] if other is None else [
            name for name in _IDENTITY if getattr(other.served, name) != getattr(server.told, name)
        ]  # fmt: skip
        if other is not None and changed:
            return [(
                SERVED,
                f"several servers answer behind {server.told.url}, and not with one bundle: over another connection, "
                f"{other.name} has another {', '.join(changed)}",
            )]  # fmt: skip
    return []


def _with_variations(entry: ParityEntry, server: Server, images: npt.NDArray[np.uint8]) -> ParityEntry:
    limits = DEVICE_LIMITS[server.candidates()[TENSORS_KEY].arithmetic]
    try:
        refused = _refused_batch(server, images)
        measured = measure_variations(Varied(server.tensors), images, limits)
        variations = (*measured, *refused, _as_json(server, images, limits.same))
    except EdgetuneError as error:
        return failed(entry, f"a few images alone do not run: {error.message}", stage="invariance")
    return dataclasses.replace(failed_by_variations(entry, variations), variations=variations)


def _refused_batch(server: Server, images: npt.NDArray[np.uint8]) -> tuple[Variation, ...]:
    """A server that does not say how many images it takes may refuse more than it was sent so far, which is no fault;
    then it is sent no more than that.
    """
    if server.tensors.max_batch is not None or len(images) <= BATCH:
        return ()
    try:
        server.tensors.infer({IMAGE_INPUT: images})
    except TensorError as error:
        server.tensors.keep_to(BATCH)
        return (Variation(f"batch {len(images)}", 0, None, None, 0, None, NOT_RUN, error.message),)
    return ()


def _as_json(server: Server, images: npt.NDArray[np.uint8], share: float) -> Variation:
    """Tensors as decimal text, which is exact, against the same tensors as bytes. They are run twice, so they may
    differ by as much as any call that is made again: `share` of the largest logit.
    """
    for runner in (server.tensors, server.texts):
        runner.keep_to(BATCH)
    plain = infer_images(server.tensors, images, LOGITS_OUTPUT)
    try:
        comparison = compare_logits(plain, infer_images(server.texts, images, LOGITS_OUTPUT), None)
    except EdgetuneError as error:
        return Variation("json", len(images), None, None, 0, None, FAIL, error.message)
    if not comparison.finite:
        return Variation("json", len(images), None, None, 0, None, FAIL, "the logits hold NaN or infinity")
    difference, limit = comparison.max_abs_diff, share * max(1.0, comparison.reference_max_abs)
    same = difference <= limit
    reason = "" if same else f"the answer as JSON differs from the binary one by up to {difference:.3g}"
    sqnr_db = comparison.sqnr_db if comparison.sqnr_db is not None and np.isfinite(comparison.sqnr_db) else None
    flips = len(comparison.flip_rows)
    return Variation("json", len(images), difference, sqnr_db, flips, limit, PASS if same else FAIL, reason)


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
