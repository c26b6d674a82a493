"""Stages judged on numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.errors import ConfigError
from edgetune.core.preprocess import PreprocessSpec
from edgetune.parity.records import StageCheck
from edgetune.parity.stages import STAGES, StageTensors, first_failed, judge_stages, normalise, permuted_classes

SPEC = PreprocessSpec(8, 8, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = PreprocessSpec(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGES = 16

Floats = npt.NDArray[np.float32]


def _pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)


def _normal(rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def _reference(spec: PreprocessSpec = SPEC) -> StageTensors:
    return StageTensors(normalise(_pixels(), spec), _normal(IMAGES, 32), 4.0 * _normal(IMAGES, 6, 2))


def _judged(
    candidate: StageTensors, precision: str = "fp32", spec: PreprocessSpec = SPEC, reference: StageTensors | None = None
) -> dict[str, StageCheck]:
    checks = judge_stages(reference or _reference(spec), candidate, spec, precision)
    assert [check.stage for check in checks] == list(STAGES[1:])
    return {check.stage: check for check in checks}


def _with(**changed: Floats | None) -> StageTensors:
    return dataclasses.replace(_reference(), **changed)  # type: ignore[arg-type]


def _noisy(values: Floats, sqnr_db: float, seed: int = 3) -> Floats:
    noise = np.random.default_rng(seed).normal(size=values.shape)
    noise *= np.sqrt(np.square(values).sum() / np.square(noise).sum()) * 10 ** (-sqnr_db / 20)
    return (values + noise).astype(np.float32)


def _verdicts(checks: dict[str, StageCheck]) -> list[str]:
    return [check.verdict for check in checks.values()]


def test_normalising_is_worked_out_by_hand() -> None:
    """(0/255 - 0.485) / 0.229, (128/255 - 0.456) / 0.224, (255/255 - 0.406) / 0.225."""
    image = np.full((1, 2, 3, 3), (0, 128, 255), dtype=np.uint8)
    normalised = normalise(image, SPEC)
    assert normalised.shape == (1, 3, 2, 3)
    np.testing.assert_allclose(normalised[0, :, 1, 2], [-2.1179039, 0.2051820, 2.64], rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
def test_the_reference_itself_passes_every_stage(precision: str) -> None:
    checks = _judged(_reference(), precision)
    assert _verdicts(checks) == [PASS] * 5
    assert {check.max_abs_diff for check in checks.values()} == {0.0}
    assert first_failed(tuple(checks.values())) == ""


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="no gate for 'fp8'"):
        _judged(_reference(), "fp8")


def test_the_earliest_stage_that_failed_is_named() -> None:
    def check(stage: str, verdict: str) -> StageCheck:
        return StageCheck(stage, verdict, None, None)

    assert first_failed([check("labels", FAIL), check("features", FAIL), check("pixels", PASS)]) == "features"
    assert first_failed([check("pixels", NOT_RUN), check("labels", PASS)]) == ""
    assert first_failed([]) == ""


def _line(values: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Floats:
    exact = (values.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return np.asarray(exact.transpose(0, 3, 1, 2), dtype=np.float32)


NORMALISED: dict[str, tuple[Floats, str]] = {
    "mean and std swapped": (
        _line(_pixels(), SPEC.std, SPEC.mean),
        r"^the graph normalises with mean \(0.229, 0.224, 0.225\) and std \(0.485, 0.456, 0.406\), "
        r"expected mean \(0.485, 0.456, 0.406\) and std \(0.229, 0.224, 0.225\)$",
    ),
    "BGR": (
        _line(_pixels()[..., ::-1], SPEC.mean[::-1], SPEC.std[::-1]),
        "^the graph reads the channels as BGR, expected RGB$",
    ),
    "BGR, with the constants of RGB": (
        _line(_pixels()[..., ::-1], SPEC.mean, SPEC.std),
        r"^the graph reads the channels as BGR, expected RGB; the graph normalises with mean \(0.485, 0.456, 0.406\)",
    ),
    "not divided by 255": (
        _line(_pixels(), [0.0] * 3, [1 / 255] * 3),
        r"normalises with mean \(.*\) and std \(0.00392, 0.00392, 0.00392\)",
    ),
    "height and width changed places": (normalise(_pixels(), SPEC).swapaxes(2, 3), "^it is no scaling of the pixels"),
    "zeros": (np.zeros((IMAGES, 3, 8, 8), np.float32), "^it is no scaling of the pixels"),
    "NaN": (np.full((IMAGES, 3, 8, 8), np.nan, np.float32), "NaN or infinity"),
    "half a grey level off": (
        normalise(_pixels(), dataclasses.replace(SPEC, mean=(0.485 + 0.5 / 255, 0.456, 0.406))),
        r"mean \(0.487, 0.456, 0.406\)",
    ),
}


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_wrong_normalisation_is_named_with_what_it_does(name: str, precision: str) -> None:
    normalised, words = NORMALISED[name]
    checks = _judged(_with(normalised=normalised), precision)
    assert checks["normalised"].verdict == FAIL
    assert re.search(words, checks["normalised"].reason), checks["normalised"].reason
    assert first_failed(tuple(checks.values())) == "normalised"


def test_the_limit_of_normalising_is_float32s_rounding() -> None:
    """4 * 2^-24 / 0.224 = 1.064e-6: a float32 evaluation stays below, a float16 one does not."""
    pixels = _pixels().astype(np.float32).transpose(0, 3, 1, 2)
    constants = [np.array(values, np.float32).reshape(3, 1, 1) * np.float32(255) for values in (SPEC.mean, SPEC.std)]
    check = _judged(_with(normalised=(pixels - constants[0]) / constants[1]))["normalised"]
    assert check.verdict == PASS
    assert check.limit == pytest.approx(1.0644e-6, rel=1e-4, abs=0)
    assert check.max_abs_diff is not None
    assert 0 < check.max_abs_diff < 1.0644e-6
    half = normalise(_pixels(), SPEC).astype(np.float16).astype(np.float32)
    assert _judged(_with(normalised=half))["normalised"].verdict == FAIL


UNEVEN = dataclasses.replace(HALVES, mean=(0.5, 0.4, 0.5))


@pytest.mark.parametrize(
    ("precision", "spec", "verdict"),
    [("int8", HALVES, PASS), ("fp32", HALVES, FAIL), ("int8", SPEC, FAIL), ("int8", UNEVEN, FAIL)],
    ids=["INT8", "FP32", "INT8 of ImageNet's mean", "INT8 of channels that differ"],
)
def test_only_int8_of_an_even_normalisation_may_take_128_for_the_middle(
    precision: str, spec: PreprocessSpec, verdict: str
) -> None:
    """(x - 128) / 127.5 in place of (x - 127.5) / 127.5 is 0.5 / 127.5 = 0.003922 off everywhere."""
    moved = normalise(_pixels(), spec) - np.float32(0.5 / (255 * spec.std[0]))
    check = _judged(StageTensors(moved, None, None), precision, spec)["normalised"]
    assert check.verdict == verdict
    if verdict == PASS:
        assert check.max_abs_diff == pytest.approx(0.5 / 127.5, rel=1e-3, abs=0)
        assert check.limit == pytest.approx(0.5 / 127.5, rel=1e-3, abs=0)
        assert "knowingly" in check.reason


@pytest.mark.parametrize(
    ("precision", "inside", "outside"), [("fp32", 81, 79), ("tf32", 41, 39), ("fp16", 26, 24), ("int8", 10.5, 9.5)]
)
def test_features_fail_below_what_their_precision_has(precision: str, inside: float, outside: float) -> None:
    features = _reference().features
    assert features is not None
    assert _judged(_with(features=_noisy(features, inside)), precision)["features"].verdict == PASS
    checks = _judged(_with(features=_noisy(features, outside)), precision)
    assert checks["features"].verdict == FAIL
    assert f"SQNR is {outside:.1f} dB, expected at least" in checks["features"].reason
    assert checks["features"].reason.endswith("the normalised image is right, so the backbone is not")
    assert checks["logits"].verdict == PASS


def test_one_feature_that_is_off_fails_float32_though_the_sqnr_is_good() -> None:
    reference = _reference().features
    assert reference is not None
    features = np.array(reference)
    features[3, 5] += 1e-2
    large = dataclasses.replace(_reference(), features=np.concatenate([reference] * 500, axis=1))
    candidate = dataclasses.replace(large, features=np.concatenate([features, *[reference] * 499], axis=1))
    check = _judged(candidate, reference=large)["features"]
    assert check.verdict == FAIL
    assert check.limit == pytest.approx(1e-3 * float(np.abs(reference).max()), rel=1e-6, abs=0)
    assert "SQNR is 94" in check.reason or "SQNR is 93" in check.reason or "SQNR is 92" in check.reason


def test_features_of_any_size_are_judged_by_their_own() -> None:
    """A backbone whose weights are random may give features of 1e-12: an absolute limit would let anything pass."""
    features = np.asarray(1e-12 * _normal(IMAGES, 32), np.float32)
    reference = dataclasses.replace(_reference(), features=features)
    for sqnr_db, verdict in ((120, PASS), (40, FAIL)):
        check = _judged(dataclasses.replace(reference, features=_noisy(features, sqnr_db)), reference=reference)[
            "features"
        ]
        assert check.verdict == verdict
        assert check.limit == pytest.approx(1e-3 * float(np.abs(features).max()), rel=1e-6, abs=0)


@pytest.mark.parametrize(("precision", "inside", "outside"), [("fp32", 101, 99), ("fp16", 36, 34), ("int8", 6.5, 5.5)])
def test_logits_that_fail_behind_right_features_blame_the_head(
    precision: str, inside: float, outside: float
) -> None:  # fmt: skip
    logits = _reference().logits
    assert logits is not None
    assert _judged(_with(logits=_noisy(logits, inside)), precision)["logits"].verdict == PASS
    checks = _judged(_with(logits=_noisy(logits, outside)), precision)
    assert checks["logits"].verdict == FAIL
    assert checks["logits"].reason.endswith("the features are right, so the head is not")
    assert first_failed(tuple(checks.values())) == "logits"


def test_the_head_is_not_blamed_where_the_features_are_wrong_or_unknown() -> None:
    wrong, logits = 2.0 * _normal(IMAGES, 32, 9), _normal(IMAGES, 6, 8)
    assert "the head" not in _judged(_with(features=wrong, logits=logits))["logits"].reason
    assert "the head" not in _judged(_with(features=None, logits=logits))["logits"].reason


def test_other_shapes_and_numbers_that_are_none_fail() -> None:
    checks = _judged(_with(features=_normal(IMAGES, 31), logits=_normal(IMAGES, 5)))
    assert checks["features"].reason.startswith("the features are (16, 31), expected (16, 32)")
    assert checks["logits"].reason == "the logits are (16, 5), expected (16, 6)"
    assert _verdicts(checks) == [PASS, FAIL, FAIL, NOT_RUN, NOT_RUN]
    checks = _judged(_with(logits=np.full((IMAGES, 6), np.inf, np.float32)))
    assert checks["logits"].reason.startswith("the logits hold NaN or infinity")
    assert _verdicts(checks) == [PASS, PASS, FAIL, NOT_RUN, NOT_RUN]


def test_what_could_not_be_had_is_not_run_and_says_why() -> None:
    checks = _judged(StageTensors(None, None, _reference().logits, "onnx is not installed"))
    assert _verdicts(checks) == [NOT_RUN, NOT_RUN, PASS, PASS, PASS]
    assert checks["features"].reason == "onnx is not installed"
    checks = _judged(
        _reference(), reference=StageTensors(_reference().normalised, None, None, "torch is not installed")
    )
    assert _verdicts(checks) == [PASS, NOT_RUN, NOT_RUN, NOT_RUN, NOT_RUN]
    assert {check.reason for check in list(checks.values())[1:]} == {"torch is not installed"}


def test_a_first_layer_that_reads_no_image_is_not_judged() -> None:
    check = _judged(_with(normalised=np.zeros((IMAGES, 12, 4, 4), np.float32)))["normalised"]
    assert check.verdict == NOT_RUN
    assert check.reason == "the first layer reads (16, 12, 4, 4), which is not the image's (16, 3, 8, 8)"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2, 3], ()),
        ([0, 2, 1, 3], ((1, 2), (2, 1))),
        ([3, 0, 1, 2], ((0, 3), (1, 0), (2, 1), (3, 2))),
        ([1, 1, 2, 3], ()),
    ],
    ids=["in order", "a swap", "a cycle", "a copy"],
)
def test_classes_that_changed_places_are_told(order: list[int], expected: tuple[tuple[int, int], ...]) -> None:
    """A copy of another class's logit is a fault too, but none of order."""
    reference = _normal(IMAGES, 4)
    assert permuted_classes(reference, reference[:, order]) == expected
    assert permuted_classes(reference, _noisy(reference[:, order], 15)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_noise_changes_no_places(seed: int) -> None:
    reference = _normal(IMAGES, 50, seed)
    assert permuted_classes(reference, _noisy(reference, 6, seed)) == ()
    assert permuted_classes(reference, reference + np.float32(0.3)) == ()


def test_two_of_many_classes_that_changed_places_fail_int8_too() -> None:
    """2 of 1000 columns at an SQNR of 24 dB: no limit on the distance finds that."""
    logits = _normal(IMAGES, 1000)
    order = np.arange(1000)
    order[[17, 400]] = [400, 17]
    reference = dataclasses.replace(_reference(), logits=logits)
    checks = _judged(dataclasses.replace(reference, logits=logits[:, order]), "int8", reference=reference)
    assert checks["logits"].verdict == FAIL
    assert (
        "logits have changed places: class 17 has the logit of class 400, class 400 has the logit of class 17"
        in checks["logits"].reason
    )
    ratio = float(checks["logits"].reason.split("SQNR is ")[1].split(" dB")[0])
    assert 20 < ratio < 30


def test_probabilities_are_those_of_the_softmax() -> None:
    """Logits (0, 0) give (1/2, 1/2), (ln 3, 0) give (3/4, 1/4): a difference of a quarter."""
    reference = dataclasses.replace(_reference(), logits=np.zeros((IMAGES, 2), np.float32))
    moved = np.zeros((IMAGES, 2), np.float32)
    moved[0, 0] = np.log(3.0)
    check = _judged(dataclasses.replace(reference, logits=moved), reference=reference)["probabilities"]
    assert check.max_abs_diff == pytest.approx(0.25, rel=1e-6, abs=0)
    assert check.verdict == FAIL
    assert check.limit == pytest.approx(0.5e-4, rel=1e-9, abs=0)  # half of what a logit may move by


def test_float32_probabilities_cannot_fail_alone() -> None:
    """Their limit follows from the logits': what passes there passes here, whatever the logits are."""
    random = np.random.default_rng(5)
    for scale in (0.1, 1.0, 10.0):
        logits = (scale * random.normal(size=(IMAGES, 6))).astype(np.float32)
        limit = 1e-4 * max(1.0, float(np.abs(logits).max()))
        moved = (logits + 0.99 * limit * random.choice([-1.0, 1.0], size=logits.shape)).astype(np.float32)
        reference = dataclasses.replace(_reference(), logits=logits)
        checks = _judged(dataclasses.replace(reference, logits=moved), reference=reference)
        assert checks["probabilities"].verdict == PASS


def test_int8_probabilities_are_stated_and_not_judged() -> None:
    logits = _reference().logits
    assert logits is not None
    check = _judged(_with(logits=_noisy(logits, 12)), "int8")["probabilities"]
    assert (check.verdict, check.limit, check.reason) == (PASS, None, "stated, not judged")
    assert check.max_abs_diff is not None
    assert check.max_abs_diff > 0.05


def _flipped(count: int) -> tuple[StageTensors, StageTensors]:
    logits = np.tile(np.array([[4.0, -4.0, 0.0]], np.float32), (IMAGES, 1))
    turned = logits.copy()
    turned[:count] = turned[:count, [1, 0, 2]]
    reference = dataclasses.replace(_reference(), logits=logits)
    return reference, dataclasses.replace(reference, logits=turned)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 0), ("fp16", 3), ("int8", 4)], ids=["FP32", "FP16", "INT8"])
def test_labels_fail_when_chance_hardly_explains_so_many(precision: str, most: int) -> None:
    """Of 16 images at a share of 0.02: P(4 or more) = 2.4e-4, P(3 or more) = 3.7e-3; at 0.03, P(5 or more) = 7.6e-5 and
    P(4 or more) = 1.14e-3. One in a thousand is the line.
    """
    for count, verdict in ((most, PASS), (most + 1, FAIL)):
        reference, candidate = _flipped(count)
        check = _judged(candidate, precision, reference=reference)["labels"]
        assert check.verdict == verdict
        assert (check.max_abs_diff, check.limit) == (float(count), float(most))
        assert check.reason == f"{count} of 16 labels differ, {count} of them clearly"


def test_near_ties_are_no_other_labels() -> None:
    logits = np.tile(np.array([[4.0, 3.99999, 0.0]], np.float32), (IMAGES, 1))
    turned = logits.copy()
    turned[:, 0] -= np.float32(5e-5)
    reference = dataclasses.replace(_reference(), logits=logits)
    check = _judged(dataclasses.replace(reference, logits=turned), reference=reference)["labels"]
    assert (check.verdict, check.reason) == (PASS, "16 of 16 labels differ, 0 of them clearly")
