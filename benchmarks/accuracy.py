"""What INT8 costs on labelled datasets: FP32, INT8 with the FP32 head, INT8 with a head fitted on its own features.

Each FOLDER is an image folder that `edgetune fit` takes; calibration and both heads use its training images only, and
accuracy is on its validation images, with 95 % intervals (Wilson). The drop is paired with FP32; its bound is one-sided
at 95 %. Every backbone graph runs in ONNX Runtime on this CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.core.run import HEAD_NAME, Run, SplitFile
from edgetune.core.stats import paired_drop_upper_bound, wilson_interval
from edgetune.data.image_folder import ImageFile
from edgetune.data.samples import SampleStream, batches
from edgetune.features.cache import FeatureCache
from edgetune.graph.compose import read_model
from edgetune.heads.fit import refit_head
from edgetune.heads.head import load_head
from edgetune.quantize.calibrate import pick_calibration_files
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.quantizer import calibrate, quantize
from edgetune.quantize.targets import find_target
from edgetune.runners.ort_runner import OrtRunner
from edgetune.steps.feature_source import features_model_path, identity_now
from edgetune.steps.fit import FitOptions, fit
from edgetune.steps.training_features import TrainingFeatures, TrainingImages
from edgetune.verify.reference import load_run_backbone

_CALIBRATION_IMAGES = 300
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    name: str
    hits: Hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--targets", nargs="+", default=["cpu-x86"])
    arguments = parser.parse_args()
    for folder in arguments.folders:
        with tempfile.TemporaryDirectory() as scratch:
            rows = measure(folder, Path(scratch), arguments.model, arguments.targets)
        print(f"\n{folder.name}: {len(rows[0].hits)} validation images, {arguments.model}")
        for line in table(rows):
            print(line)


def measure(folder: Path, scratch: Path, model: str, targets: Sequence[str]) -> list[Row]:
    """Hits per validation image: FP32 first, then both heads for each target."""
    fitted = fit(folder, scratch / "run", FitOptions(model=model))
    run, root = fitted.run, folder.absolute()
    head = load_head(fitted.run_path / HEAD_NAME)
    backbone = load_run_backbone(run)
    float_graph = features_model_path(identity_now(backbone), lambda: backbone)
    exact = _features(run, root, float_graph.read_bytes(), run.split.val)
    rows = [Row("FP32", _hits(head.logits(exact.features), exact))]
    with ImageSpool(iter(_images(run, root))) as spool:
        calibration = calibrate(read_model(float_graph), spool, tuple(find_target(name) for name in targets))
        for name in targets:
            graph = quantize(calibration, find_target(name), spool).model.SerializeToString()
            val, train = (_features(run, root, graph, files) for files in (run.split.val, run.split.train))
            own = refit_head(train.features, train.labels, len(run.classes), run.head.recipe)
            rows.append(Row(f"INT8 {name}, FP32 head", _hits(head.logits(val.features), val)))
            rows.append(Row(f"INT8 {name}, re-fitted head", _hits(own.logits(val.features), val)))
    return rows


def _images(run: Run, root: Path) -> list[npt.NDArray[np.uint8]]:
    picked = pick_calibration_files(run, _CALIBRATION_IMAGES)
    files = [ImageFile(root / file.path, file.label) for file in picked]
    with SampleStream(files, run.preprocess) as stream:
        return [images for _, images in batches(stream, 8, print)]


def _features(run: Run, root: Path, graph: bytes, files: Sequence[SplitFile]) -> TrainingFeatures:
    with tempfile.TemporaryDirectory() as cache:
        images = TrainingImages(run, root)
        return images.features(FeatureCache(Path(cache)), lambda: OrtRunner(graph), files, lambda *_: None)


def _hits(logits: npt.NDArray[np.float32], table: TrainingFeatures) -> Hits:
    hits: Hits = logits.argmax(axis=1) == table.labels
    return hits


def table(rows: Sequence[Row]) -> list[str]:
    lines = [f"{'':<32}{'accuracy':>9}{'95 % interval':>19}{'drop':>9}{'bound':>9}{'same hit':>10}"]
    exact = rows[0].hits
    for row in rows:
        low, high = wilson_interval(int(row.hits.sum()), len(row.hits))
        worse, better = int((exact & ~row.hits).sum()), int((~exact & row.hits).sum())
        bound = paired_drop_upper_bound(worse, better, len(exact))
        lines.append(
            f"{row.name:<32}{row.hits.mean():>9.2%}{f'{low:.2%} - {high:.2%}':>19}"
            f"{exact.mean() - row.hits.mean():>9.2%}{bound:>9.2%}{(exact == row.hits).mean():>10.2%}"
        )
    return lines


if __name__ == "__main__":
    main()
