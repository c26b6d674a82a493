"""What parity found, as plain records: the form of `parity.json`, and what every report is made from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.config import to_dict
from edgetune.core.files import pretty_json
from edgetune.core.run import Skipped
from edgetune.parity.gates import Gate, Judgement
from edgetune.parity.metrics import Comparison

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Flip:
    """An image that the candidate labels otherwise. `label`, `reference` and `candidate` are class indices, `margin`
    how far apart the reference holds the two labels' logits; a near tie is one that the noise allowed can turn. `file`
    is the image's folder and name.
    """

    file: str
    sha256: str
    label: int | None
    reference: int
    candidate: int
    margin: float
    is_tie: bool


@dataclass(frozen=True)
class ClassResult:
    """Images of one class that reference and candidate label right. `is_proven` says that the drop is over the gate's
    by more than chance explains, all classes considered.
    """

    index: int
    images: int
    reference_right: int
    candidate_right: int
    is_proven: bool


@dataclass(frozen=True)
class Variation:
    """The same artifact on the same images, run otherwise: `name` says how. `limit` is what `max_abs_diff` may be,
    None where it is stated and not judged; `max_lsb` counts steps of the integers of the layer that differs most, each
    layer fed the same integers, None where there are none.
    """

    name: str
    images: int
    max_abs_diff: float | None
    sqnr_db: float | None
    flips: int
    limit: float | None
    verdict: str
    reason: str = ""
    max_lsb: float | None = None


@dataclass(frozen=True)
class StageCheck:
    """One stage on the way from file bytes to label: `pixels`, `normalised`, `features`, `logits`, `probabilities` or
    `labels`. `max_abs_diff` is in the stage's own unit; None where nothing can be subtracted.
    """

    stage: str
    verdict: str
    max_abs_diff: float | None
    limit: float | None
    reason: str = ""


@dataclass(frozen=True)
class Rung:
    """An artifact against its nearest relative, which it should differ from by its own arithmetic alone."""

    reference: str
    images: int
    max_abs_diff: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    max_lsb: float | None
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BlockError:
    """One block of the network, in graph order. `cumulative_db` is the SQNR of its output with all errors before it,
    `injected_db` with the reference's own input; None stands for no error at all, -inf is kept as -1000.
    `expected_db` is what calibration recorded; None where nothing was.
    """

    block: str
    module: str
    tensor: str
    cumulative_db: float | None
    injected_db: float | None
    expected_db: float | None
    max_abs_diff: float | None


@dataclass(frozen=True)
class Localisation:
    """The block that broke: `kind` is its class of fault, `option` keeps it in float, `repro` runs it alone.

    `culprit` is empty where no block stands out.
    """

    culprit: str
    module: str
    kind: str
    explanation: str
    option: str
    repro: str
    images: int
    blocks: tuple[BlockError, ...]


@dataclass(frozen=True)
class ParityEntry:
    """One artifact against its reference; figures are None where nothing ran or nothing finite came out.

    `sqnr_db` is also None when the two do not differ at all, which `max_abs_diff` 0 tells. `drop` is reference
    accuracy minus candidate accuracy, with a 95 % interval; `kl` is of the softmax, reference to candidate, in nats.
    `detectable_drop` is the drop that this many images find with 80 % power, and `images_to_certify` how many would
    prove the gate's. `stage` is the first stage that differs, `diagnosis` what would explain it. The two of `noise` are
    what other kernels, batches and threads do to the logits: what rounding alone may explain.
    """

    artifact: str
    runner: str
    reference: str
    images: int
    max_abs_diff: float | None
    sqnr_db: float | None
    top1_agreement: float | None
    reference_accuracy: float | None
    candidate_accuracy: float | None
    certified: bool | None
    verdict: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    stage: str = ""
    diagnosis: str = ""
    drop: float | None = None
    drop_ci95: tuple[float, float] | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    ties: int = 0
    detectable_drop: float | None = None
    images_to_certify: int | None = None
    gate: Gate | None = None
    rung: Rung | None = None
    variations: tuple[Variation, ...] = ()
    stages: tuple[StageCheck, ...] = ()
    localisation: Localisation | None = None
    per_class: tuple[ClassResult, ...] = ()
    flips: tuple[Flip, ...] = ()
    noise_max_abs_diff: float | None = None
    noise_sqnr_db: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """`classes` counts them, `class_names` are in the order of the logits; empty where the models do not tell.
    `noise_db` is the SQNR of PyTorch's own float32 against float64, None where nobody could tell.
    """

    schema_version: int
    created: str
    data: str
    classes: int
    machine: dict[str, str]
    artifacts: tuple[ParityEntry, ...]
    skipped: tuple[Skipped, ...]
    class_names: tuple[str, ...] = ()
    stages: tuple[StageCheck, ...] = ()
    noise_db: float | None = None

    @property
    def verdict(self) -> str:
        """FAIL if any artifact or common stage failed; NOT-RUN if none was judged; else PASS."""
        verdicts = {entry.verdict for entry in self.artifacts}
        if FAIL in verdicts or FAIL in {stage.verdict for stage in self.stages}:
            return FAIL
        return PASS if PASS in verdicts else NOT_RUN


@dataclass(frozen=True)
class LogitsPair:
    """What plots are drawn from and JSON does not hold: logits float32 `(N, classes)` on the same images."""

    reference: npt.NDArray[np.float32]
    candidate: npt.NDArray[np.float32]


def entry_from_comparison(names: tuple[str, str, str], comparison: Comparison, judgement: Judgement) -> ParityEntry:
    """`names` are the artifact's, its runner's and the reference's."""
    artifact, runner, reference = names
    finite = comparison.finite
    return ParityEntry(
        artifact=artifact,
        runner=runner,
        reference=reference,
        images=comparison.images,
        max_abs_diff=_finite(comparison.max_abs_diff),
        sqnr_db=_finite(comparison.sqnr_db),
        top1_agreement=comparison.top1_agreement if finite else None,
        reference_accuracy=comparison.reference_accuracy,
        candidate_accuracy=comparison.candidate_accuracy if finite else None,
        certified=judgement.certified,
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        remarks=judgement.remarks,
        drop=comparison.drop if finite else None,
        drop_ci95=comparison.drop_ci95 if finite else None,
        kl_mean=_finite(comparison.kl_mean),
        kl_p99=_finite(comparison.kl_p99),
        ties=judgement.ties,
        detectable_drop=judgement.detectable_drop,
        images_to_certify=judgement.images_to_certify,
        gate=judgement.gate,
    )


def entry_not_run(artifact: str, runner: str, reference: str, reason: str) -> ParityEntry:
    return ParityEntry(
        artifact, runner, reference, 0, None, None, None, None, None, None, NOT_RUN, (reason,)
    )  # fmt: skip


def entry_failed(artifact: str, runner: str, reference: str, reason: str, stage: str) -> ParityEntry:
    """What could not even be compared, and should have been."""
    return failed(dataclasses.replace(entry_not_run(artifact, runner, reference, ""), reasons=()), reason, stage=stage)


def incomplete(entry: ParityEntry, reason: str) -> ParityEntry:
    """An entry over a part of the images only: a PASS on a part is not a PASS, a FAIL stays one."""
    verdict = NOT_RUN if entry.verdict == PASS else entry.verdict
    return dataclasses.replace(entry, verdict=verdict, reasons=(*entry.reasons, reason))


def failed(entry: ParityEntry, reason: str, *, stage: str = "") -> ParityEntry:
    """The entry with one more reason to fail; the first stage that was named stays."""
    return dataclasses.replace(
        entry, verdict=FAIL, reasons=(*entry.reasons, reason), stage=entry.stage or stage
    )  # fmt: skip


def storable(report: ParityReport) -> ParityReport:
    """NaN and infinity, which JSON does not have, become None; a distance of -inf dB is told by its other figures."""
    plain: ParityReport = _storable(report)
    return plain


def _storable(value: Any) -> Any:
    if isinstance(value, float):
        return _finite(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_storable(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {field.name: _storable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changes)
    return value


def report_json(report: ParityReport) -> bytes:
    content: dict[str, Any] = to_dict(report)
    return pretty_json({**content, "verdict": report.verdict})


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
