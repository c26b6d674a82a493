"""fit: a folder of images and a frozen backbone to a run with a fitted head."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.config import to_dict
from edgetune.core.errors import DataError, EdgetuneError, MissingDependencyError, UsageError
from edgetune.core.files import cache_root, check_output, output_folder, pretty_json, printable, sha256_of_file
from edgetune.core.fingerprint import fingerprint
from edgetune.core.preprocess import PreprocessSpec, decoder_version
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import (
    HEAD_NAME,
    METRICS_NAME,
    RUN_NAME,
    SCHEMA_VERSION,
    BackboneRecord,
    FeaturesRecord,
    HeadRecord,
    Run,
    Skipped,
    Split,
    SplitFile,
    write_run,
)  # fmt: skip
from edgetune.core.tensors import FEATURES_OUTPUT
from edgetune.core.versions import installed_version, library_versions
from edgetune.data.image_folder import ImageFile, ImageFolder, scan_image_folder
from edgetune.features.cache import FeatureCache
from edgetune.features.extract import FeatureTable, extract_features
from edgetune.heads.evaluate import Metrics, evaluate
from edgetune.heads.linear import LinearFit, fit_linear, save_head
from edgetune.heads.report import confusion_png, path_png, report_html, results_csv
from edgetune.models.backbones import DEFAULT_BACKBONE
from edgetune.models.head import FeatureExtractor
from edgetune.models.weights import Backbone, FrozenProof, check_frozen, load_backbone
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner, ort_version

_CPU_BATCH, _CUDA_BATCH = 8, 128


@dataclass(frozen=True)
class FitOptions:
    """`weights` is a file, or None for the published weights of `model`; `device` is auto, cpu or cuda."""

    model: str = DEFAULT_BACKBONE
    weights: Path | None = None
    head: str = "linear"
    device: str = "auto"
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class FitResult:
    run_path: Path
    run: Run
    metrics: Metrics


@dataclass(frozen=True)
class _Tables:
    train: FeatureTable
    val: FeatureTable
    source: _FeatureSource


@dataclass(frozen=True)
class _FeatureSource:
    """Which runner computes features here, what its results are called in the cache, and how to open it."""

    runner: str
    precision: str
    batch_size: int
    open: Callable[[], Runner]


def fit(data: Path, out: Path, options: FitOptions, *, progress: Progress = no_progress) -> FitResult:
    """Fits the head on the training images and judges it on the validation images; writes the run folder.

    Raises:
        DataError, WeightsError, UsageError, OutputExistsError: as their messages say.
        BackboneChangedError: a bit of the backbone changed, which a fit must never do.
    """
    check_output(out, RUN_NAME, force=options.force)
    if out.resolve().is_relative_to(data.resolve()):
        raise UsageError(f"--out {out} lies inside the images' folder {data}, where it would become a class.")
    folder = scan_image_folder(data)
    device = choose_device(options.device)
    backbone = load_backbone(options.model, options.weights)
    tables = _extract(folder, backbone, device, progress)
    _check_counts(folder.classes, tables.train)
    solved = fit_linear(
        tables.train.features, tables.train.labels, len(folder.classes), seed=options.seed,
        progress=progress,
    )  # fmt: skip
    metrics = evaluate(solved.head.logits(tables.val.features), tables.val.labels, folder.classes)
    proof = check_frozen(backbone)
    with output_folder(out, RUN_NAME, force=options.force) as partial:
        save_head(partial / HEAD_NAME, solved.head)
        run = _record(folder, backbone, options, tables, (solved, proof, sha256_of_file(partial / HEAD_NAME)))
        _write_reports(partial, run, metrics, solved)
        write_run(partial, run)
    return FitResult(out, run, metrics)


def choose_device(wanted: str) -> str:
    """Raises `UsageError` when CUDA is asked for and PyTorch sees no GPU."""
    if wanted == "cpu":
        return "cpu"
    from edgetune.runners.torch_runner import has_cuda

    if wanted == "cuda" and not has_cuda():
        raise UsageError("--device cuda: PyTorch sees no CUDA device.", hint="edgetune doctor; or use --device cpu")
    return "cuda" if has_cuda() else "cpu"


def _check_counts(classes: tuple[str, ...], train: FeatureTable) -> None:
    for label, name in enumerate(classes):
        count = int((train.labels == label).sum())
        if count < 2:
            raise DataError(f"the class {name!r} has {count} readable training images, expected at least 2.")


def _extract(folder: ImageFolder, backbone: Backbone, device: str, progress: Progress) -> _Tables:
    source = _feature_source(backbone, device)
    spec = backbone.architecture.preprocess
    cache = feature_cache(backbone, source.runner, source.precision)
    # One pass over both splits, so that one session and one decoding pool serve them.
    files = (*folder.train, *folder.val)
    table = extract_features(files, spec, cache, source.open, batch_size=source.batch_size, progress=progress)
    return _Tables(_part_of(table, folder.train), _part_of(table, folder.val), source)


def feature_cache(backbone: Backbone, runner: str, precision: str) -> FeatureCache:
    """The cache of a backbone's features as `runner` computes them."""
    key = fingerprint({
        "backbone": _identity(backbone), "preprocess": to_dict(backbone.architecture.preprocess),
        "decoder": decoder_version(), "layer": "pooled", "view": None, "runner": runner, "precision": precision,
    })  # fmt: skip
    return FeatureCache(cache_root() / "features" / key)


def _part_of(table: FeatureTable, files: tuple[ImageFile, ...]) -> FeatureTable:
    wanted = {file.path for file in files}
    rows = [row for row, file in enumerate(table.files) if file.path in wanted]
    if not rows:
        raise EdgetuneError(
            "not one image of a split could be read; the run would have nothing to learn from or judge."
        )
    return FeatureTable(
        features=table.features[rows],
        labels=table.labels[rows],
        files=tuple(table.files[row] for row in rows),
        hashes=tuple(table.hashes[row] for row in rows),
        skipped=tuple(file for file in table.skipped if file.path in wanted),
        from_cache=table.from_cache,
    )


def _feature_source(backbone: Backbone, device: str) -> _FeatureSource:
    """ONNX Runtime on a CPU, where it is several times faster than eager PyTorch; PyTorch with autocast on a GPU."""
    spec = backbone.architecture.preprocess
    extractor = FeatureExtractor(backbone.module, spec)
    if device == "cuda":
        from edgetune.runners.torch_runner import TorchRunner, torch_version

        def open_torch() -> Runner:
            return TorchRunner(extractor, spec.crop_size, FEATURES_OUTPUT, device="cuda", precision="fp16")

        return _FeatureSource(f"torch {torch_version()} cuda", "fp16", _CUDA_BATCH, open_torch)
    version = ort_version()
    if version is None:
        raise MissingDependencyError("ONNX Runtime is not installed.", hint="pip install 'edgetune[train,cpu]'")

    def open_ort() -> Runner:
        return OrtRunner(features_model_path(backbone, spec))

    return _FeatureSource(f"onnxruntime {version} CPU", "fp32", _CPU_BATCH, open_ort)


def features_model_path(backbone: Backbone, spec: PreprocessSpec) -> Path:
    """The backbone as ONNX, from the graph cache; its bits are the same for every task, so it is exported once."""
    from edgetune.graph.to_onnx import cached_features_model

    key = {"backbone": _identity(backbone), "preprocess": fingerprint(to_dict(spec))}
    return cached_features_model(FeatureExtractor(backbone.module, spec), spec.crop_size, key)


def _identity(backbone: Backbone) -> str:
    """What the backbone computes: its tensors, and the code around them, which lives in timm and torchvision. Two
    architectures may share every tensor and still differ, in padding for instance.
    """
    code = {name: installed_version(name) for name in ("timm", "torchvision")}
    return fingerprint({"name": backbone.architecture.name, "tensors": backbone.tensors_sha256, "code": code})


def _record(
    folder: ImageFolder,
    backbone: Backbone,
    options: FitOptions,
    tables: _Tables,
    solved: tuple[LinearFit, FrozenProof, str],
) -> Run:
    fitted, proof, head_sha256 = solved
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return Run(
        schema_version=SCHEMA_VERSION,
        task="classification",
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        options=chosen,
        versions=library_versions(),
        classes=folder.classes,
        preprocess=backbone.architecture.preprocess,
        backbone=BackboneRecord(
            name=backbone.architecture.name,
            weights_path=str(backbone.weights_path),
            weights_sha256=backbone.weights_sha256,
            tensors_sha256=proof.tensors_sha256,
            feature_dim=backbone.feature_dim,
            unchanged_tensors=proof.tensors,
            unchanged_buffers=proof.buffers,
        ),
        features=FeaturesRecord(
            tables.source.runner, tables.source.precision, tables.train.from_cache,
            len(tables.train.files) + len(tables.val.files) - tables.train.from_cache,
        ),
        head=HeadRecord(options.head, fitted.l2, fitted.folds, head_sha256),
        split=_record_split(folder, tables),
    )  # fmt: skip


def _record_split(folder: ImageFolder, tables: _Tables) -> Split:
    def relative(path: Path) -> str:
        return printable(path.relative_to(folder.root).as_posix())

    def files(table: FeatureTable) -> tuple[SplitFile, ...]:
        pairs = zip(table.files, table.hashes, strict=True)
        return tuple(SplitFile(relative(file.path), sha256, file.label) for file, sha256 in pairs)

    skipped = (*folder.skipped, *tables.train.skipped, *tables.val.skipped)
    named = tuple(Skipped(relative(file.path), file.reason) for file in skipped)
    return Split(str(folder.root.absolute()), files(tables.train), files(tables.val), named)


def _write_reports(partial: Path, run: Run, metrics: Metrics, solved: LinearFit) -> None:
    pictures = {"Confusion matrix": confusion_png(metrics), "Regularisation path": path_png(solved.path, solved.l2)}
    (partial / METRICS_NAME).write_bytes(pretty_json(to_dict(metrics)))
    (partial / "results.csv").write_bytes(results_csv(solved.path))
    (partial / "confusion_matrix.png").write_bytes(pictures["Confusion matrix"])
    (partial / "regularisation_path.png").write_bytes(pictures["Regularisation path"])
    (partial / "report.html").write_bytes(report_html(run, metrics, pictures))
