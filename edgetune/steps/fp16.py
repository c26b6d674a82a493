"""The float16 artifact of an export: ranges on training images, the cast graph, and the record of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.config import to_dict
from edgetune.core.errors import DataError
from edgetune.core.files import pretty_json
from edgetune.core.progress import Progress
from edgetune.core.run import Run, Skipped, SplitFile
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import SampleStream, batches

FP16_NAME = "model.fp16.onnx"
FP16_TARGET = "tensorrt"
RECORD_NAME = "fp16.json"
SCHEMA_VERSION = 1

_BATCH = 4


@dataclass(frozen=True)
class Fp16Record:
    """`half_nodes` of the graph compute in float16; `kept_float` gives the reason for each node that could not.

    `limit` is the largest magnitude that a tensor may have on `images` and still be float16.
    """

    schema_version: int
    limit: float
    half_nodes: int
    kept_float: dict[str, str]
    images: tuple[SplitFile, ...]
    skipped: tuple[Skipped, ...]


def write_fp16(
    run: Run, root: Path, files: tuple[SplitFile, ...], float_model: Path, progress: Progress, *,
    kept_float: tuple[str, ...] = (),
) -> Fp16Record:  # fmt: skip
    """Writes the float16 model and its record beside `float_model`. `files` are training images below `root`;
    `kept_float` names nodes that stay float32.

    Raises:
        DataError: not one of the images can be read and is what it was at the fit.
        ModelError: the model is not plain float32.
    """
    from edgetune.graph.compose import read_model, write_model
    from edgetune.graph.float_view import largest_values
    from edgetune.graph.fp16 import cast_to_fp16
    from edgetune.graph.fp16_guards import LIMIT

    skipped: list[SkippedFile] = []
    model = read_model(float_model)
    ranges = largest_values(model, _unchanged_images(run, root, files, skipped, progress))
    if len(skipped) == len(files):
        raise DataError(f"not one of {len(files)} training images could be read to observe the ranges for float16.")
    cast = cast_to_fp16(model, ranges, kept_float)
    write_model(float_model.with_name(FP16_NAME), cast.model)
    unread = {file.path for file in skipped}
    record = Fp16Record(
        schema_version=SCHEMA_VERSION,
        limit=LIMIT,
        half_nodes=len(cast.half),
        kept_float=cast.kept_float,
        images=tuple(file for file in files if root / file.path not in unread),
        skipped=tuple(Skipped(file.path.relative_to(root).as_posix(), file.reason) for file in skipped),
    )
    float_model.with_name(RECORD_NAME).write_bytes(pretty_json(to_dict(record)))
    return record


def _unchanged_images(
    run: Run, root: Path, files: tuple[SplitFile, ...], skipped: list[SkippedFile], progress: Progress
) -> Iterator[npt.NDArray[np.uint8]]:
    """Images whose content is what it was at the fit; others go to `skipped`."""
    expected = {root / file.path: file.sha256 for file in files}
    done = 0
    with SampleStream([ImageFile(root / file.path, file.label) for file in files], run.preprocess) as stream:
        for samples, images in batches(stream, _BATCH, skipped.append):
            same = np.array([expected[sample.file.path] == sample.sha256 for sample in samples])
            changed = [sample.file.path for sample, unchanged in zip(samples, same, strict=True) if not unchanged]
            skipped += [SkippedFile(path, "was changed after the fit") for path in changed]
            if same.any():
                yield images[same]
            done += len(images)
            progress("float16 ranges", done, len(files))
