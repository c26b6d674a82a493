"""export: a run to a bundle, with every artifact proved against the PyTorch model."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetune.core.bundle import (
    MANIFEST_NAME,
    NOT_RUN,
    SCHEMA_VERSION,
    Artifact,
    Bundle,
    Manifest,
    RunOrigin,
    write_manifest,
)
from edgetune.core.config import to_dict
from edgetune.core.files import check_output, output_folder, pretty_json, sha256_of_file
from edgetune.core.golden import GoldenSet, write_golden
from edgetune.core.preprocess import preprocess_image
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import HEAD_NAME, RUN_NAME, Run, load_run
from edgetune.core.versions import edgetune_version
from edgetune.data.image_folder import ImageFile
from edgetune.data.splits import pick_stratified
from edgetune.graph.compose import add_head, read_model, set_metadata, write_model
from edgetune.heads.head import load_head
from edgetune.parity.compare import LogitsTable
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.gates import DEFAULT_MAX_DROP
from edgetune.parity.page import report_html
from edgetune.parity.records import ParityReport, report_json, storable
from edgetune.parity.report import COLUMNS, report_rows, titles
from edgetune.quantize.calibrate import (
    DEFAULT_IMAGES,
    DEFAULT_TARGETS,
    CalibrationRecord,
    files_of_recipe,
    pick_calibration_files,
)
from edgetune.quantize.report import quantization_html
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import find_target
from edgetune.runners.ort_providers import CPU
from edgetune.runners.ort_runner import ort_version
from edgetune.steps.feature_source import feature_cache, features_model_path, identity_now
from edgetune.steps.fp16 import FP16_NAME, FP16_TARGET, Fp16Record, write_fp16
from edgetune.steps.int8 import DEFAULT_SEARCH_S, Int8Job, Int8Options, int8_name, write_int8
from edgetune.steps.parity_files import REPORT_NAME, paths_by_hash, thumbnails, validation_files
from edgetune.verify.new_report import make_report
from edgetune.verify.reference import REFERENCE_NAME, load_run_backbone, stored_reference_bytes
from edgetune.verify.session import Judged, JudgeJob, judge_bundle

if TYPE_CHECKING:
    from edgetune.models.identity import BackboneIdentity

FLOAT_NAME = "model.onnx"
GOLDEN_IMAGES = 4


@dataclass(frozen=True)
class ExportOptions:
    """`data` says where the run's images are now, if they moved; `recipe` lists calibration images by hash;
    `max_drop` is a share of images, and `search_s` bounds the search for layers to keep in float. The calibration
    images also give the ranges for `fp16`.

    `refit_head` fits each INT8 target's head again on the features of its quantized backbone. `kept_float` names
    layers that stay float in the INT8 and float16 artifacts.
    """

    int8: bool = False
    targets: tuple[str, ...] = DEFAULT_TARGETS
    data: Path | None = None
    calibration_images: int = DEFAULT_IMAGES
    recipe: Path | None = None
    refit_head: bool = True
    weights: WeightOptions = WeightOptions()  # noqa: RUF009 - frozen
    max_drop: float = DEFAULT_MAX_DROP
    search_s: float = DEFAULT_SEARCH_S
    force: bool = False
    fp16: bool = False
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    bundle_path: Path
    manifest: Manifest
    report: ParityReport
    calibration: CalibrationRecord | None
    fp16: Fp16Record | None = None


def export(run_folder: Path, out: Path, options: ExportOptions, *, progress: Progress = no_progress) -> ExportResult:
    """Writes the bundle whole or not at all; artifacts that fail parity stay in it, marked FAIL.

    Raises:
        RunError, WeightsError, DataError, OutputExistsError: as their messages say.
    """
    for target in options.targets:
        find_target(target)
    run = load_run(run_folder)
    check_output(out, MANIFEST_NAME, force=options.force)
    with output_folder(out, MANIFEST_NAME, force=options.force) as partial:
        maker = _Maker(run_folder, run, partial, options, progress)
        result = maker.make()
    return dataclasses.replace(result, bundle_path=out)


class _Maker:
    """One export: its inputs, and the steps in the order they happen."""

    def __init__(self, run_folder: Path, run: Run, folder: Path, options: ExportOptions, progress: Progress) -> None:
        self._run_folder = run_folder
        self._run = run
        self._folder = folder
        self._options = options
        self._progress = progress
        self._root = options.data if options.data is not None else Path(run.split.root)

    def make(self) -> ExportResult:
        """The result's `bundle_path` is the folder that was written to."""
        files = validation_files(self._run, self._root)
        self._progress("graph", 0, 1)
        backbone = load_run_backbone(self._run)
        identity = identity_now(backbone)
        features_model = features_model_path(identity, lambda: backbone)
        artifacts = [self._write_float(features_model)]
        self._progress("graph", 1, 1)
        calibration = self._write_int8(features_model, identity) if self._options.int8 else None
        targets = [record.target for record in calibration.targets] if calibration else []
        artifacts += [_describe(self._folder / int8_name(target), "int8", target) for target in targets]
        fp16 = self._write_fp16() if self._options.fp16 else None
        if fp16 is not None:
            artifacts.append(_describe(self._folder / FP16_NAME, "fp16", FP16_TARGET))
        judged = self._judge(files, artifacts)
        report, artifacts = self._report(judged, artifacts)
        if calibration is not None:
            page = quantization_html(calibration, COLUMNS, report_rows(report), self._run.classes)
            (self._folder / "quantization.html").write_bytes(page)
        self._write_golden(judged.table)
        manifest = self._manifest(artifacts)
        write_manifest(self._folder, manifest)
        return ExportResult(self._folder, manifest, report, calibration, fp16)

    def _write_float(self, features_model: Path) -> Artifact:
        head = load_head(self._run_folder / HEAD_NAME)
        model = add_head(read_model(features_model), head.weight, head.bias, head.hidden)
        set_metadata(model, self._run.classes, self._run.preprocess)
        write_model(self._folder / FLOAT_NAME, model)
        return _describe(self._folder / FLOAT_NAME, "fp32", "any")

    def _write_int8(self, features_model: Path, identity: BackboneIdentity) -> CalibrationRecord:
        options = self._options
        chosen = Int8Options(
            tuple(dict.fromkeys(options.targets)), options.calibration_images, options.recipe, options.refit_head,
            options.weights, options.max_drop, options.search_s, options.kept_float,
        )  # fmt: skip
        cache = feature_cache(identity, f"onnxruntime {ort_version()} CPU", "fp32")
        head = load_head(self._run_folder / HEAD_NAME)
        job = Int8Job(self._run, self._root, features_model, cache, head, chosen)
        record = write_int8(job, self._folder, self._progress)
        (self._folder / "calibration.json").write_bytes(pretty_json(to_dict(record)))
        return record

    def _write_fp16(self) -> Fp16Record:
        options = self._options
        files = (
            files_of_recipe(self._run, options.recipe)
            if options.recipe is not None
            else pick_calibration_files(self._run, options.calibration_images)
        )
        return write_fp16(
            self._run, self._root, files, self._folder / FLOAT_NAME, self._progress, kept_float=options.kept_float
        )

    def _judge(self, files: tuple[ImageFile, ...], artifacts: list[Artifact]) -> Judged:
        """As `parity` judges a bundle: this one is whole but for its verdicts."""
        bundle = Bundle(self._folder, self._manifest(artifacts))
        gates = DEFAULT_GATES.with_max_drop(self._options.max_drop)
        found = (self._run_folder, self._run)
        return judge_bundle(JudgeJob(bundle, found, files, gates, (CPU,)), self._progress)

    def _report(self, judged: Judged, artifacts: list[Artifact]) -> tuple[ParityReport, list[Artifact]]:
        entries, table = judged.entries, judged.table
        report = make_report("the run's validation split", self._run.classes, tuple(entries.values()), table.skipped)
        report = storable(dataclasses.replace(report, noise_db=judged.noise_db))
        (self._folder / REPORT_NAME).write_bytes(report_json(report))
        keys = dict(zip(entries, titles(report), strict=True))
        pairs = {keys[name]: pair for name, pair in judged.pairs.items()}
        small = thumbnails(report, paths_by_hash(table))
        (self._folder / "parity.html").write_bytes(report_html(report, pairs, small))
        reference = stored_reference_bytes(judged.reference.name, table.hashes, judged.reference.logits)
        (self._folder / REFERENCE_NAME).write_bytes(reference)
        by_name = {entry.artifact: entry for entry in entries.values()}
        described = [
            dataclasses.replace(
                artifact, verdict=by_name[artifact.name].verdict, accuracy=by_name[artifact.name].candidate_accuracy
            )
            for artifact in artifacts
        ]
        return report, described

    def _write_golden(self, table: LogitsTable) -> None:
        rows = list(range(len(table.files)))
        picked = pick_stratified(rows, [int(label) for label in table.labels], table.hashes, GOLDEN_IMAGES)
        data = [table.files[row].path.read_bytes() for row in picked]
        names = tuple(f"{index}{table.files[row].path.suffix.lower()}" for index, row in enumerate(picked))
        pixels = np.stack([preprocess_image(item, self._run.preprocess) for item in data])
        logits = {name: values[picked] for name, values in table.logits.items()}
        write_golden(self._folder, GoldenSet(names, pixels, logits), dict(zip(names, data, strict=True)))

    def _manifest(self, artifacts: list[Artifact]) -> Manifest:
        return Manifest(
            schema_version=SCHEMA_VERSION,
            task=self._run.task,
            classes=self._run.classes,
            preprocess=self._run.preprocess,
            run=RunOrigin(str(self._run_folder.absolute()), sha256_of_file(self._run_folder / RUN_NAME)),
            backbone=self._run.backbone.name,
            edgetune_version=edgetune_version(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            artifacts=tuple(artifacts),
            files={},
            reject_below=self._run.head.reject_below,
        )


def _describe(path: Path, precision: str, target: str) -> Artifact:
    return Artifact(path.name, "onnx", precision, target, sha256_of_file(path), path.stat().st_size, NOT_RUN, None)
