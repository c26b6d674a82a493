"""quantize: a float32 ONNX classifier, made by any tool, to one INT8 file, with a first look at what it lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgetune.bench.latency import time_runners
from edgetune.core.errors import DataError, OutputExistsError, UsageError
from edgetune.core.files import sha256_of_file, write_bytes_atomic
from edgetune.core.preprocess import IMAGE_SUFFIXES, PreprocessSpec
from edgetune.core.progress import Progress, no_progress
from edgetune.core.run import Skipped
from edgetune.data.image_folder import ImageFile, SkippedFile
from edgetune.data.samples import SampleStream, batches
from edgetune.graph.foreign import embedded_preprocess, image_size, load_classifier, with_image_input
from edgetune.parity.metrics import Comparison, compare_logits
from edgetune.quantize.census import count_operators, fused_layers
from edgetune.quantize.images import ImageSpool
from edgetune.quantize.quantizer import calibrate, check_kept_float, quantize, with_requests
from edgetune.quantize.rounding import WeightOptions
from edgetune.quantize.targets import find_target
from edgetune.runners.base import Runner, infer_images
from edgetune.runners.choice import runs_here
from edgetune.runners.ort_runner import OrtRunner

_BATCH = 8
_COMPARED_IMAGES, _TIMED_RUNS = 32, 20


@dataclass(frozen=True)
class QuantizeOptions:
    """`mean` and `std` are for pixels in 0..1, and needed where the model does not carry its preprocessing.
    `kept_float` names layers that are not quantized.
    """

    target: str = "cpu-x86"
    calibration_images: int = 300
    rounding: bool = True
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize: int | None = None
    interpolation: str = "bicubic"
    force: bool = False
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeResult:
    """`comparison` is with the float model on calibration images, so it flatters. `speedup` is at batch 1 here, None
    where the target is another machine; `fused_layers` of the integer layers run as integers in ONNX Runtime here.
    """

    path: Path
    size_bytes: int
    float_size_bytes: int
    images: int
    integer_layers: int
    kept_float: dict[str, str]
    comparison: Comparison
    speedup: float | None
    fused_layers: int
    skipped: tuple[Skipped, ...]


def quantize_file(
    source: Path, images: Path, out: Path, options: QuantizeOptions, *, progress: Progress = no_progress
) -> QuantizeResult:
    """Writes the INT8 model whole or not at all. The result takes `image` uint8 `(N, H, W, 3)`.

    Raises:
        ModelError: `source` is no float32 image classifier that can be quantized.
        DataError: no image to calibrate with.
        UsageError, OutputExistsError: as their messages say.
    """
    target = find_target(options.target)
    if out.exists() and not options.force:
        raise OutputExistsError(f"{out} exists already.", hint="choose another --out, or add --force")
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError("--out is the model itself.", hint="choose another --out")
    model = load_classifier(source)
    check_kept_float(model, options.kept_float)
    spec = embedded_preprocess(model)
    if spec is None:
        spec = _spec_from_options(image_size(model), options)
        model = with_image_input(model, spec)
    skipped: list[SkippedFile] = []
    with ImageSpool(_stream(_list_images(images, options.calibration_images), spec, skipped)) as spool:
        calibration = calibrate(model, spool, (target,), progress=progress)
        quantized = quantize(
            calibration, target, spool, options=WeightOptions(options.rounding), kept_float=options.kept_float,
            progress=progress,
        )  # fmt: skip
        if not quantized.model.metadata_props:  # lost where another opset had to be converted
            quantized.model.metadata_props.extend(model.metadata_props)
        content = quantized.model.SerializeToString()
        with OrtRunner(model.SerializeToString()) as reference, OrtRunner(content) as candidate:
            runners = {"float": reference, "int8": candidate}
            comparison = _compare(runners, spool)
            speedup = _time(runners, spool) if runs_here(target.name) else None
        write_bytes_atomic(out, content)
        count = spool.count
    return QuantizeResult(
        path=out,
        size_bytes=len(content),
        float_size_bytes=source.stat().st_size,
        images=count,
        integer_layers=len(quantized.placement.layers),
        kept_float=with_requests(quantized.placement.kept_float, options.kept_float),
        comparison=comparison,
        speedup=speedup,
        fused_layers=fused_layers(count_operators(content))[0],
        skipped=tuple(Skipped(str(file.path), file.reason) for file in skipped),
    )


def _spec_from_options(size: int, options: QuantizeOptions) -> PreprocessSpec:
    if options.mean is None or options.std is None:
        raise UsageError(
            "the model does not say how its images are normalised.",
            hint="give --mean and --std, for instance --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        )
    return PreprocessSpec(options.resize or size, size, options.interpolation, options.mean, options.std)


def _list_images(folder: Path, count: int) -> list[ImageFile]:
    """Up to `count` images anywhere below `folder`, by the order of their contents' hashes."""
    if not folder.is_dir():
        raise DataError(f"--calib {folder} is not a folder.", hint="give a folder of images like those of the camera")
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not paths:
        raise DataError(f"--calib {folder} holds no images.", hint=f"supported: {', '.join(IMAGE_SUFFIXES)}")
    return [ImageFile(path, 0) for path in sorted(paths, key=sha256_of_file)[:count]]


def _stream(
    files: list[ImageFile], spec: PreprocessSpec, skipped: list[SkippedFile]
) -> Iterator[npt.NDArray[np.uint8]]:  # fmt: skip
    with SampleStream(files, spec) as stream:
        for _, images in batches(stream, _BATCH, skipped.append):
            yield images


def _compare(runners: Mapping[str, OrtRunner], spool: ImageSpool) -> Comparison:
    output = runners["float"].output_specs[0].name
    outputs: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in runners}
    for batch in spool.batches(_BATCH, _COMPARED_IMAGES):
        for name, runner in runners.items():
            outputs[name].append(infer_images(runner, batch, output))
    return compare_logits(np.concatenate(outputs["float"]), np.concatenate(outputs["int8"]), None)


def _time(runners: Mapping[str, OrtRunner], spool: ImageSpool) -> float:
    """How many times as fast INT8 is, one image at a time, with all threads."""
    output = runners["float"].output_specs[0].name
    timed: Mapping[str, Runner] = runners
    latency = time_runners(timed, next(spool.batches(1, 1)), _TIMED_RUNS, output=output)
    return latency["float"].p50_ms / latency["int8"].p50_ms
