"""info: what a run, a bundle or an ONNX file is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.core.bundle import MANIFEST_NAME, load_bundle
from edgetune.core.config import to_dict
from edgetune.core.errors import DataError, MissingDependencyError
from edgetune.core.files import read_json
from edgetune.core.run import METRICS_NAME, RUN_NAME, load_run


def info(path: Path) -> dict[str, Any]:
    """A plain description; a bundle is checked byte by byte on the way.

    Raises:
        DataError: the path is neither a run, a bundle nor an ONNX file.
    """
    if (path / MANIFEST_NAME).is_file():
        return _describe_bundle(path)
    if (path / RUN_NAME).is_file():
        return _describe_run(path)
    if path.suffix == ".onnx" and path.is_file():
        return _describe_onnx(path)
    what = "does not exist" if not path.exists() else "is neither a run, a bundle nor an ONNX file"
    raise DataError(f"{path} {what}.", hint="give a folder that edgetune fit or export wrote, or a .onnx file")


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


def _describe_onnx(path: Path) -> dict[str, Any]:
    try:
        from edgetune.graph.inspect import describe_onnx
    except ImportError as error:
        raise MissingDependencyError(
            "the onnx package is not installed.", hint="pip install 'edgetune[onnx]'"
        ) from error
    return describe_onnx(path)
