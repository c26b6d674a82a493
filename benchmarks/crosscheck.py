"""edgetune's figures for two ONNX files beside Polygraphy's, which shares no code with it: the same files and inputs.

    python benchmarks/crosscheck.py BUNDLE --data DIR [--images N]

Prints the largest difference, the signal-to-noise ratio and how many labels differ, by each tool, for every file of the
bundle against its FP32 model, and for that model against itself as ONNX Runtime rewrites it on this CPU.
Needs `pip install polygraphy`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgetune.core.bundle import load_bundle
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT, Array
from edgetune.data.samples import SampleStream, batches
from edgetune.runners.ort_runner import write_optimised
from edgetune.verify.compare_models import CompareOptions, compare_models
from edgetune.verify.model_inputs import list_images

FLOAT_MODEL = "model.onnx"


@dataclass(frozen=True)
class Figures:
    """`snr_db` is None where nothing differs. `passes` says whether the largest difference is within the tolerance."""

    max_abs_diff: float
    snr_db: float | None
    flips: int
    passes: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=32)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    feed = {IMAGE_INPUT: read_pixels(arguments.data, bundle.manifest.preprocess, arguments.images)}
    reference = arguments.bundle / FLOAT_MODEL
    print(f"{len(feed[IMAGE_INPUT])} images, against {FLOAT_MODEL}")
    print(f"{'file':<28}{'tool':<12}{'max diff':>14}{'SNR dB':>12}{'labels':>8}")
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "model.rewritten.onnx"
        write_optimised(reference, rewritten)
        for candidate in (*sorted(arguments.bundle.glob("model.int8.*.onnx")), rewritten):
            for tool, compare in (("edgetune", by_edgetune), ("polygraphy", by_polygraphy)):
                found = compare(reference, candidate, feed)
                snr = "-" if found.snr_db is None else f"{found.snr_db:.4f}"
                print(f"{candidate.name:<28}{tool:<12}{found.max_abs_diff:>14.8f}{snr:>12}{found.flips:>8}")


def read_pixels(data: Path, spec: PreprocessSpec, count: int) -> Array:
    """uint8 `(N, H, W, 3)`, of files spread over the folder."""
    files = list_images(data).files
    chosen = [files[index * len(files) // count] for index in range(min(count, len(files)))]
    with SampleStream(chosen, spec) as stream:
        return np.concatenate([images for _, images in batches(stream, 8, lambda _skipped: None)])


def by_edgetune(reference: Path, candidate: Path, feed: Mapping[str, Array], tolerance: float = 1e-5) -> Figures:
    """By `compare_models`, from a .npz of the same arrays."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        arrays: dict[str, Any] = dict(feed)
        np.savez(inputs, **arrays)
        (entry, *_) = compare_models(reference, candidate, inputs, CompareOptions()).report.artifacts
    if entry.max_abs_diff is None or entry.top1_agreement is None:
        raise SystemExit(f"{candidate} gives nothing finite that labels can be read from.")
    flips = round((1.0 - entry.top1_agreement) * entry.images)
    return Figures(entry.max_abs_diff, entry.sqnr_db, flips, entry.max_abs_diff <= tolerance)


def by_polygraphy(
    reference: Path, candidate: Path, feed: Mapping[str, Array], tolerance: float = 1e-5, output: str = LOGITS_OUTPUT
) -> Figures:
    """By `Comparator`; its signal is that of the runner named first. Labels are compared a row at a time."""
    from polygraphy.comparator import (
        Comparator,
        IndicesCompareFunc,
        SimpleCompareFunc,
        SnrCompareFunc,
        TopKPostprocessFunc,
    )

    rules = [SimpleCompareFunc(check_error_stat="max", atol=tolerance, rtol=0.0), SnrCompareFunc()]
    found = _run(reference, candidate, [dict(feed)])
    simple, snr = (_results(Comparator.compare_accuracy(found, compare_func=rule))[0][output] for rule in rules)
    rows = len(next(iter(feed.values())))
    alone = _run(
        reference, candidate, [{name: array[row : row + 1] for name, array in feed.items()} for row in range(rows)]
    )
    labels = Comparator.postprocess(alone, TopKPostprocessFunc(k={output: 1}))
    agree = _results(Comparator.compare_accuracy(labels, compare_func=IndicesCompareFunc()))
    snr_db = None if simple.max_absdiff == 0.0 else float(snr.snr)
    flips = sum(not each[output] for each in agree)
    return Figures(float(simple.max_absdiff), snr_db, flips, bool(simple))


def _run(reference: Path, candidate: Path, feeds: list[dict[str, Array]]) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    pair = (("reference", reference), ("candidate", candidate))
    runners = [OnnxrtRunner(SessionFromOnnx(str(path)), name=name) for name, path in pair]
    return Comparator.run(runners, data_loader=feeds)


def _results(found: Any) -> list[Any]:
    """One result an iteration, for the only pair and the only rule."""
    ((_, results),) = found[0].items()
    return list(results)


if __name__ == "__main__":
    main()
