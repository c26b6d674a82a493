"""info: what a run, a bundle, an ONNX file or an engine is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from edgetune.core.bundle import MANIFEST_NAME, load_bundle
from edgetune.core.config import to_dict
from edgetune.core.engine_files import ENGINE_NAME, SIDECAR_NAME, check_engine
from edgetune.core.errors import DataError, MissingDependencyError
from edgetune.core.files import read_json
from edgetune.core.run import METRICS_NAME, RUN_NAME, load_run


def info(path: Path) -> dict[str, Any]:
    """A plain description; a bundle is checked byte by byte on the way.

    Raises:
        DataError: the path is neither a run, a bundle, an ONNX file nor an engine.
        EngineError: the engine or its sidecar was changed.
    """
    if (path / MANIFEST_NAME).is_file():
        return _describe_bundle(path)
    if (path / RUN_NAME).is_file():
        return _describe_run(path)
    if path.suffix == ".onnx" and path.is_file():
        return _describe_onnx(path)
    if (path / SIDECAR_NAME).is_file() or path.name == ENGINE_NAME:
        return _describe_engine(path if path.is_dir() else path.parent)
    what = "does not exist" if not path.exists() else "is neither a run, a bundle, an ONNX file nor an engine"
    raise DataError(f"{path} {what}.", hint="give what edgetune fit, export or build wrote, or an .onnx file")


def _describe_bundle(path: Path) -> dict[str, Any]:
    manifest = load_bundle(path).manifest
    content = to_dict(manifest)
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    return {"kind": "bundle", "path": str(path), "intact": True, "size_bytes": size_bytes, **content}


def _describe_run(path: Path) -> dict[str, Any]:
    run = load_run(path)
    metrics = read_json(path / METRICS_NAME) if (path / METRICS_NAME).is_file() else {}
    accuracy = metrics.get("top1_accuracy") if isinstance(metrics, dict) else None
    split = {"root": run.split.root, "train": len(run.split.train), "val": len(run.split.val)}
    return {
        "kind": "run",
        "path": str(path),
        **{key: value for key, value in to_dict(run).items() if key != "split"},
        "split": {**split, "skipped": to_dict(run.split)["skipped"]},
        "top1_accuracy": accuracy,
    }


def _describe_engine(folder: Path) -> dict[str, Any]:
    """Read from the sidecar, with the engine's bytes checked against it: no GPU and no backend is needed."""
    record = check_engine(folder)
    content = to_dict(record)
    kinds = Counter(layer.kind for layer in record.layers)
    content["layers"] = {"count": len(record.layers), **dict(kinds.most_common())}
    content["proof"]["holds"] = record.proof.holds
    return {"kind": "engine", "path": str(folder), "intact": True, **content}


def _describe_onnx(path: Path) -> dict[str, Any]:
    try:
        from edgetune.graph.inspect import describe_onnx
    except ImportError as error:
        raise MissingDependencyError(
            "the onnx package is not installed.", hint="pip install 'edgetune[onnx]'"
        ) from error
    return describe_onnx(path)
