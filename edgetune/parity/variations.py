"""The same artifact on the same images, run otherwise: what must not matter, and how large the noise is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.errors import EdgetuneError, TensorError
from edgetune.core.tensors import LOGITS_OUTPUT
from edgetune.parity.metrics import Logits, compare_logits
from edgetune.parity.records import Variation
from edgetune.runners.base import Runner, infer_images

Images = npt.NDArray[np.uint8]

BATCH = 8
_OTHER_BATCHES = (1, 3)
REPEATED, COLD, POSITION, ORDER, UNOPTIMISED = "repeated", "cold", "position", "order", "unoptimised"
# An artifact's other variations may differ by this many times what changing every kernel does to it.
_NOISES = 3.0


@dataclass(frozen=True)
class Limits:
    """Largest differences, as shares of the largest logit: `same` for the same call again, `unoptimised` for other
    kernels, None where that is stated and not judged. What else varies may round otherwise: by three times what
    `unoptimised` did to this artifact, but by `least` at any rate, and by `most` at most.
    """

    same: float
    least: float
    most: float
    unoptimised: float | None


# Measured with ONNX Runtime 1.31 on x86 and 16 photos, on EfficientNet-Lite0, MobileNetV3, ResNet-18 and SqueezeNet:
# whatever is varied but the optimisations, answers are the same to the bit, in all three precisions. `unoptimised` is
# off by at most 1.4e-6 of the largest logit in FP32, 0.0023 in FP16 and 0.06 in INT8.
# FP32: what may be between an artifact and PyTorch may be between two of its own runs; EfficientNet-B0 with random
# weights, where float32 is least exact, has 4.5e-5.
# FP16: a value near a half is rounded the other way, by 2^-11, and every layer passes it on; ten times again.
# INT8: an integer that moved by one step is spread by the layers behind it, until the answer is as far off as INT8
# itself is; more cannot happen. How far that is depends on the network, so `unoptimised` tells, judged as a rung.
CPU_LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(same=0.0, least=1e-4, most=1e-4, unoptimised=1e-4),
    "fp16": Limits(same=0.0, least=2e-3, most=0.02, unoptimised=0.02),
    "int8": Limits(same=0.0, least=0.02, most=0.15, unoptimised=None),
}
# GPUs may pick another kernel for another batch, and add in the order that their threads finish.
DEVICE_LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(same=1e-4, least=1e-4, most=1e-4, unoptimised=None),
    "tf32": Limits(same=1e-2, least=1e-2, most=1e-2, unoptimised=None),
    "fp16": Limits(same=0.02, least=0.02, most=0.02, unoptimised=None),
    "int8": Limits(same=0.15, least=0.15, most=0.15, unoptimised=None),
}


@dataclass(frozen=True)
class Subject:
    """An open runner, and what gives others of the same artifact that are not entered yet: `reopen` one alike,
    `with_threads` one with `other_threads`, `unoptimised` one that runs the graph as it is in the file. What is None
    cannot be varied.
    """

    runner: Runner
    reopen: Callable[[], Runner] | None = None
    with_threads: Callable[[int], Runner] | None = None
    other_threads: int = 1
    unoptimised: Callable[[], Runner] | None = None


@dataclass(frozen=True)
class Measured:
    """`plain` are the artifact's logits `(N, classes)`, `unoptimised` those of the graph as it is in the file, None
    where that did not run.
    """

    variations: tuple[Variation, ...]
    plain: Logits
    unoptimised: Logits | None


@dataclass(frozen=True)
class _Trial:
    """One variation: `rows` of the plain answer that `answer` has to repeat."""

    name: str
    rows: npt.NDArray[np.int64]
    answer: Callable[[], Logits]


def measure_variations(subject: Subject, images: Images, limits: Limits) -> tuple[Variation, ...]:
    """Every variation that applies, on uint8 `(N, H, W, 3)`; see `measure`."""
    return measure(subject, images, limits).variations


def measure(subject: Subject, images: Images, limits: Limits) -> Measured:
    """Runs every variation that applies, on uint8 `(N, H, W, 3)`; 16 images are enough. A variation that raises
    fails, but for `unoptimised`, where the artifact itself has run.

    Raises:
        TensorError: there are no images.
        EdgetuneError: the plain run's error.
    """
    if len(images) == 0:
        raise TensorError("there are no images to run in other ways.")
    size = _plain_size(subject.runner, len(images))
    # A call of its own, so that the same images come behind another call when they come again, or behind none.
    _answers(subject.runner, images[np.zeros(size, np.int64)], size)
    plain = _answers(subject.runner, images, size)
    results = [_not_run(f"batch {other}", why) for other, why in _refused_batches(subject.runner, len(images))]
    unoptimised, noise = None, None
    for trial in _trials(subject, images, size):
        variation, answer = _measure_trial(trial, plain, _limit(trial.name, plain, limits, noise))
        results.append(variation)
        if trial.name == UNOPTIMISED:
            unoptimised, noise = answer, variation.max_abs_diff
    return Measured(tuple(sorted(results, key=_place)), plain, unoptimised)


def noise_floor(variations: tuple[Variation, ...]) -> tuple[float | None, float | None]:
    """What rounding alone does to this artifact's logits: `max_abs_diff` and `sqnr_db` of the variation of `batch 1`,
    threads and `unoptimised` that differs most. (0, None) is no difference at all, (None, None) is not measured.
    What failed is no noise.
    """
    noises = [each for each in variations if _is_noise(each)]
    largest = [each.max_abs_diff for each in noises if each.max_abs_diff is not None]
    smallest_db = [each.sqnr_db for each in noises if each.sqnr_db is not None]
    return max(largest, default=None), min(smallest_db, default=None)


def _is_noise(variation: Variation) -> bool:
    rounds = variation.name in (UNOPTIMISED, "batch 1") or variation.name.startswith("threads ")
    return rounds and variation.verdict == PASS


def _trials(subject: Subject, images: Images, size: int) -> list[_Trial]:
    """`unoptimised` first, whose noise limits the others."""
    runner, count = subject.runner, len(images)
    reopen, with_threads, unoptimised = subject.reopen, subject.with_threads, subject.unoptimised
    everything, first, trials = np.arange(count), np.arange(min(size, count)), []
    if unoptimised is not None:
        trials.append(_Trial(UNOPTIMISED, everything, lambda: _opened_answers(unoptimised(), images, size)))
    trials.append(_Trial(REPEATED, first, lambda: _answers(runner, images[first], size)))
    trials += [_batch_trial(runner, images, other) for other in _other_batches(runner, count, size)]
    if size > 1:
        places = np.full(size, count // 2)
        trials.append(_Trial(POSITION, places, lambda: _answers(runner, images[places], size)))
    if count > 1:
        shuffled = np.random.default_rng(0).permutation(count)
        trials.append(_Trial(ORDER, shuffled, lambda: _answers(runner, images[shuffled], size)))
    if reopen is not None:
        trials.append(_Trial(COLD, first, lambda: _opened_answers(reopen(), images[first], size)))
    if with_threads is not None:
        name, threads = f"threads {subject.other_threads}", subject.other_threads
        trials.append(_Trial(name, first, lambda: _opened_answers(with_threads(threads), images[first], size)))
    return trials


def _batch_trial(runner: Runner, images: Images, size: int) -> _Trial:
    """Small batches take long, so only the first images go through them."""
    rows = np.arange(min(len(images), max(size, BATCH)))
    return _Trial(f"batch {size}", rows, lambda: _answers(runner, images[rows], size))


def _measure_trial(trial: _Trial, plain: Logits, limit: float | None) -> tuple[Variation, Logits | None]:
    try:
        answer = trial.answer()
        comparison = compare_logits(plain[trial.rows], answer, None)
    except EdgetuneError as error:
        verdict = NOT_RUN if trial.name == UNOPTIMISED else FAIL
        return _without_figures(trial.name, verdict, error.message), None
    if not comparison.finite:
        return _without_figures(trial.name, FAIL, "the logits hold NaN or infinity", len(answer)), None
    difference = comparison.max_abs_diff
    is_right = limit is None or difference <= limit
    reason = "" if is_right else f"{_meaning(trial.name)}: logits differ by up to {difference:.3g}"
    sqnr_db = comparison.sqnr_db if comparison.sqnr_db is not None and np.isfinite(comparison.sqnr_db) else None
    flips, verdict = len(comparison.flip_rows), PASS if is_right else FAIL
    return Variation(trial.name, len(answer), difference, sqnr_db, flips, limit, verdict, reason), answer


def _limit(name: str, plain: Logits, limits: Limits, noise: float | None) -> float | None:
    """Absolute; `noise` is the difference of `unoptimised`, None where that is not known."""
    largest = max(1.0, float(np.abs(plain).max()))
    if name == UNOPTIMISED:
        return None if limits.unoptimised is None else limits.unoptimised * largest
    if name in (REPEATED, COLD):
        return limits.same * largest
    most = limits.most * largest
    return most if noise is None else min(most, max(limits.least * largest, _NOISES * noise))


def _meaning(name: str) -> str:
    meanings = {
        REPEATED: "the same call gives another answer, so something in it is random or kept from before",
        COLD: "a new session gives another answer, so something is kept from call to call",
        ORDER: "an image's answer depends on the images before or beside it",
        POSITION: "an image's answer depends on its place or its neighbours in the batch",
        UNOPTIMISED: "the optimised graph computes something else than the file says",
    }
    if name.startswith("batch "):
        return "an image's answer depends on the size of its batch"
    return meanings.get(name, "the answer depends on the number of threads")


def _place(variation: Variation) -> int:
    """In reports: what must be the same first, then what may round."""
    order = (REPEATED, COLD, POSITION, ORDER, "batch", "threads", UNOPTIMISED)
    return order.index(variation.name.partition(" ")[0])


def _not_run(name: str, reason: str) -> Variation:
    return _without_figures(name, NOT_RUN, reason)


def _without_figures(name: str, verdict: str, reason: str, images: int = 0) -> Variation:
    return Variation(name, images, None, None, 0, None, verdict, reason)


def _batch_range(runner: Runner) -> tuple[int, int | None]:
    """The batches that a runner takes, be it that its model's first dimension is fixed."""
    fixed = next((spec.shape[0] for spec in runner.input_specs if spec.shape), None)
    return (fixed, fixed) if fixed is not None else (runner.min_batch, runner.max_batch)


def _takes(runner: Runner, size: int) -> bool:
    low, high = _batch_range(runner)
    return low <= size and (high is None or size <= high)


def _plain_size(runner: Runner, count: int) -> int:
    low, high = _batch_range(runner)
    return max(low, min(BATCH, count, high or BATCH))


def _other_batches(runner: Runner, count: int, size: int) -> list[int]:
    """Odd sizes and the largest that there are images for."""
    _, high = _batch_range(runner)
    wanted = dict.fromkeys((*_OTHER_BATCHES, min(count, high or count)))
    return [other for other in wanted if other != size and other <= count and _takes(runner, other)]


def _refused_batches(runner: Runner, count: int) -> list[tuple[int, str]]:
    low, high = _batch_range(runner)
    takes = f"only batches of {low}" if low == high else f"batches of {low} to {high or 'any number'}"
    refused = [size for size in _OTHER_BATCHES if size <= count and not _takes(runner, size)]
    return [(size, f"{runner.name} takes {takes}") for size in refused]


def _answers(runner: Runner, images: Images, size: int) -> Logits:
    """The logits float32 `(N, classes)`, in batches of `size`; the last is filled up where the runner takes no less."""
    low, _ = _batch_range(runner)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = part[np.arange(max(low, len(part))) % len(part)]
        parts.append(infer_images(runner, filled, LOGITS_OUTPUT)[: len(part)])
    return np.concatenate(parts)


def _opened_answers(runner: Runner, images: Images, size: int) -> Logits:
    with contextlib.ExitStack() as stack:
        return _answers(stack.enter_context(runner), images, size)
