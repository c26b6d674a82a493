"""What must not matter: dependence on batch, place, order, chance and earlier calls fails; healthy graphs pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType

import numpy as np
import onnx
import pytest
from onnx import helper

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.errors import ModelError, TensorError
from edgetune.core.tensors import LOGITS_OUTPUT, Array, Feed, TensorSpec
from edgetune.parity.records import Variation
from edgetune.parity.variations import (
    CPU_LIMITS,
    DEVICE_LIMITS,
    Limits,
    Subject,
    measure,
    measure_variations,
    noise_floor,
)
from edgetune.runners.base import Runner
from edgetune.runners.ort_runner import OrtRunner
from tests.unit.quantize.qdq_graphs import find, good, put, sort
from tests.unit.quantize.small_graphs import SmallGraph, chain, everything, images, residual

FP32 = CPU_LIMITS["fp32"]
ALL = ("repeated", "cold", "position", "order", "batch 1", "batch 3", "batch 16", "threads 1", "unoptimised")


def _broken(fault: Callable[[SmallGraph], str]) -> onnx.ModelProto:
    """A small classifier with `fault` between the features and the head."""
    graph = SmallGraph(seed=0)
    graph.conv("c1", graph.image(), (3, 8), 3)
    graph.node("Relu", ["c1"], "r1")
    graph.mean("features", "r1")
    graph.gemm(LOGITS_OUTPUT, fault(graph), (8, 4))
    return graph.model()


def _less_the_batch_mean(graph: SmallGraph) -> str:
    graph.node("ReduceMean", ["features", graph.constant("batch_axis", [0], np.int64)], "batch_mean", keepdims=1)
    return graph.node("Sub", ["features", "batch_mean"], "centred")


def _batch_norm_in_training(graph: SmallGraph) -> str:
    names = [graph.constant(name, np.full(8, value)) for name, value in (("g", 1), ("h", 0), ("m", 0), ("v", 1))]
    outputs = ["normed", "running_mean", "running_variance"]
    graph.nodes.append(helper.make_node("BatchNormalization", ["features", *names], outputs, training_mode=1))
    return "normed"


def _noise(graph: SmallGraph) -> str:
    graph.node("RandomNormalLike", ["features"], "noise", scale=1e-3)
    return graph.node("Add", ["features", "noise"], "noisy")


def _not_a_number(graph: SmallGraph) -> str:
    graph.node("Neg", ["features"], "negative")
    return graph.node("Log", ["negative"], "nan")


def _dropout_in_training(graph: SmallGraph) -> str:
    inputs = ["features", graph.constant("ratio", 0.5), graph.constant("training", True, np.bool_)]
    return graph.node("Dropout", inputs, "dropped")


def _centred_int8() -> onnx.ModelProto:
    """The Q/DQ graph whose features lose the mean of the batch before they are quantized."""
    model = good("cpu-x86")
    put(model, "batch_axis", np.array([0]))
    model.graph.node.append(helper.make_node("ReduceMean", ["f", "batch_axis"], ["bm"], name="bm", keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["f", "bm"], ["centred"], name="centred"))
    find(model, "q_f").input[0] = "centred"
    sort(model)
    return model


def _subject(model: onnx.ModelProto, runner: Runner) -> Subject:
    data = model.SerializeToString()
    return Subject(
        runner,
        reopen=functools.partial(OrtRunner, data, threads=2),
        with_threads=lambda count: OrtRunner(data, threads=count),
        unoptimised=functools.partial(OrtRunner, data, threads=2, optimise=False),
    )


def _vary(model: onnx.ModelProto, limits: Limits = FP32, count: int = 16) -> dict[str, Variation]:
    with OrtRunner(model.SerializeToString(), threads=2) as runner:
        found = measure_variations(_subject(model, runner), images(count), limits)
    return {each.name: each for each in found}


def _failed(found: dict[str, Variation]) -> set[str]:
    return {name for name, each in found.items() if each.verdict == FAIL}


@pytest.mark.parametrize("make", [chain, residual, everything])
def test_healthy_graphs_pass_everything(make: Callable[[], SmallGraph]) -> None:
    graph = make()
    with OrtRunner(graph.model().SerializeToString(), threads=2) as runner:
        found = measure_variations(_subject(graph.model(), runner), images(16, graph.size), FP32)
    assert tuple(each.name for each in found) == ALL
    assert {each.verdict for each in found} == {PASS}
    assert all(each.reason == "" for each in found)
    by_name = {each.name: each for each in found}
    assert by_name["repeated"].max_abs_diff == by_name["cold"].max_abs_diff == 0.0
    assert (by_name["repeated"].images, by_name["batch 16"].images, by_name["order"].images) == (8, 16, 16)


@pytest.mark.parametrize("target", ["cpu-x86", "cpu-arm", "tensorrt"])
def test_healthy_int8_passes_everything(target: str) -> None:
    found = _vary(good(target), CPU_LIMITS["int8"])
    assert tuple(found) == ALL
    assert _failed(found) == set()
    assert found["unoptimised"].limit is None


def test_the_batch_mean_fails_wherever_neighbours_change() -> None:
    found = _vary(_broken(_less_the_batch_mean))
    assert _failed(found) == {"position", "order", "batch 1", "batch 3", "batch 16"}
    assert "its place or its neighbours in the batch" in found["position"].reason
    assert "the size of its batch" in found["batch 1"].reason
    assert "beside it" in found["order"].reason


def test_the_batch_mean_fails_in_int8_too() -> None:
    found = _vary(_centred_int8(), CPU_LIMITS["int8"])
    assert {"position", "batch 1"} <= _failed(found)
    for name in ("position", "batch 1"):
        difference, limit = found[name].max_abs_diff, found[name].limit
        assert difference is not None
        assert limit is not None
        assert difference > 5 * limit


def test_batch_norm_left_in_training_fails() -> None:
    """ONNX Runtime's CPU takes it: statistics of the batch, and running ones that it keeps from call to call."""
    found = _vary(_broken(_batch_norm_in_training))
    assert {"position", "batch 1", "batch 3", "batch 16"} <= _failed(found)


def test_noise_fails_when_repeated_even_if_small() -> None:
    found = _vary(_broken(_noise))
    assert {"repeated", "cold"} <= _failed(found)
    assert found["repeated"].limit == 0.0
    assert found["repeated"].sqnr_db is not None
    assert "random or kept from before" in found["repeated"].reason


def test_dropout_left_in_training_fails() -> None:
    """ONNX Runtime's optimiser takes the node out, whatever its mode says: only the unoptimised graph drops values."""
    assert "unoptimised" in _failed(_vary(_broken(_dropout_in_training)))


def test_nan_fails_everywhere_and_leaves_no_figures() -> None:
    found = _vary(_broken(_not_a_number))
    assert _failed(found) == set(ALL)
    assert {each.reason for each in found.values()} == {"the logits hold NaN or infinity"}
    assert {each.max_abs_diff for each in found.values()} == {None}
    assert noise_floor(tuple(found.values())) == (None, None)


class _Double:
    """A runner in Python: logits are the mean of each image's channels, times what `factor` makes of the feed."""

    def __init__(self, batches: tuple[int, int | None] = (1, None), fixed: int | None = None) -> None:
        self.min_batch, self.max_batch = batches
        self.name = "double"
        self.input_specs = (TensorSpec("image", "uint8", (fixed, 8, 8, 3)),)
        self.output_specs = (TensorSpec(LOGITS_OUTPUT, "float32", (fixed, 3)),)
        self.sizes: list[int] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def infer(self, feed: Feed) -> dict[str, Array]:
        self.sizes.append(len(feed["image"]))
        return {LOGITS_OUTPUT: feed["image"].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)}


class _Remembering(_Double):
    """Adds a little of the call before."""

    kept = 0.0

    def infer(self, feed: Feed) -> dict[str, Array]:
        logits = super().infer(feed)[LOGITS_OUTPUT]
        answer = logits + np.float32(self.kept)
        self.kept = 0.01 * float(logits.mean())
        return {LOGITS_OUTPUT: answer}


class _Refusing(_Double):
    """Takes batches of 8 only, and says that it takes any."""

    def infer(self, feed: Feed) -> dict[str, Array]:
        if len(feed["image"]) != 8:
            raise ModelError("reshape failed: 8 is in the graph.")
        return super().infer(feed)


def _names(subject: Subject, count: int = 16, limits: Limits = FP32) -> dict[str, str]:
    return {each.name: each.verdict for each in measure_variations(subject, images(count), limits)}


def test_a_runner_that_remembers_its_last_call_fails() -> None:
    found = _names(Subject(_Remembering(), reopen=_Remembering))
    assert found["cold"] == found["order"] == found["repeated"] == FAIL


def test_only_what_applies_is_varied() -> None:
    """A server is never opened again."""
    assert set(_names(Subject(_Double()))) == {"repeated", "position", "order", "batch 1", "batch 3", "batch 16"}


def test_an_engines_range_of_batches_is_kept() -> None:
    runner = _Double((2, 4))
    found = _names(Subject(runner))
    assert found == {"repeated": PASS, "position": PASS, "order": PASS, "batch 1": NOT_RUN, "batch 3": PASS}
    assert set(runner.sizes) == {3, 4, 2}  # 16 images in threes leave one, which is filled up


@pytest.mark.parametrize(("batches", "fixed"), [((4, 4), None), ((1, None), 4)])
def test_a_fixed_batch_is_kept_and_the_others_are_not_run(batches: tuple[int, int | None], fixed: int | None) -> None:
    runner = _Double(batches, fixed)
    found = {each.name: each for each in measure_variations(Subject(runner), images(10), FP32)}
    assert set(runner.sizes) == {4}
    assert {name: each.verdict for name, each in found.items()} == {
        "repeated": PASS, "position": PASS, "order": PASS, "batch 1": NOT_RUN, "batch 3": NOT_RUN,
    }  # fmt: skip
    assert found["batch 1"].reason == "double takes only batches of 4"


def test_one_image_has_no_order_and_no_neighbours() -> None:
    assert set(_names(Subject(_Double()), count=1)) == {"repeated"}


def test_a_fixed_batch_larger_than_the_set_is_filled_up() -> None:
    runner = _Double((8, 8))
    assert _names(Subject(runner), count=2) == {
        "repeated": PASS, "position": PASS, "order": PASS, "batch 1": NOT_RUN,
    }  # fmt: skip
    assert set(runner.sizes) == {8}


def test_a_batch_that_the_runner_cannot_take_after_all_fails() -> None:
    found = {each.name: each for each in measure_variations(Subject(_Refusing()), images(16), FP32)}
    assert (found["batch 3"].verdict, found["batch 3"].reason) == (FAIL, "reshape failed: 8 is in the graph.")


def test_an_unoptimised_session_that_does_not_open_is_not_run() -> None:
    def refuse() -> Runner:
        raise ModelError("there is no kernel for it.")

    found = measure(Subject(_Double(), reopen=refuse, unoptimised=refuse), images(16), FP32)
    verdicts = {each.name: each.verdict for each in found.variations}
    assert (verdicts["unoptimised"], verdicts["cold"]) == (NOT_RUN, FAIL)
    assert found.unoptimised is None


def _limits_beside(unoptimised_is_off_by: float) -> dict[str, float | None]:
    class Off(_Double):
        def infer(self, feed: Feed) -> dict[str, Array]:
            return {LOGITS_OUTPUT: super().infer(feed)[LOGITS_OUTPUT] + np.float32(unoptimised_is_off_by)}

    subject = Subject(_Double(), unoptimised=Off)
    return {each.name: each.limit for each in measure_variations(subject, images(16), Limits(0.0, 0.1, 0.5, None))}


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.1), (0.1, 0.3), (0.2, 0.5)])
def test_rounding_is_limited_by_three_times_what_other_kernels_do(share: float, expected: float) -> None:
    largest = float(images(16).mean(axis=(1, 2)).max())
    limits = _limits_beside(share * largest)
    assert limits["order"] == limits["batch 1"] == pytest.approx(expected * largest, rel=1e-4)
    assert (limits["repeated"], limits["unoptimised"]) == (0.0, None)


def test_no_images_are_refused() -> None:
    with pytest.raises(TensorError, match="no images"):
        measure_variations(Subject(_Double()), images(1)[:0], FP32)


def test_flips_are_counted() -> None:
    """Channels in reverse order: 16 of 16 labels that differ, but for images whose middle channel is largest."""

    class Reversed(_Double):
        def infer(self, feed: Feed) -> dict[str, Array]:
            return {LOGITS_OUTPUT: super().infer(feed)[LOGITS_OUTPUT][:, ::-1]}

    pictures = images(16)
    labels = pictures.mean(axis=(1, 2)).argmax(axis=1)
    (found,) = [
        each
        for each in measure_variations(Subject(_Double(), unoptimised=Reversed), pictures, FP32)
        if each.name == "unoptimised"
    ]
    assert found.flips == int((labels != 1).sum()) > 0
    assert found.verdict == FAIL


def test_the_noise_floor_is_the_largest_of_what_rounds_and_passed() -> None:
    def made(name: str, difference: float | None, sqnr_db: float | None, verdict: str = PASS) -> Variation:
        return Variation(name, 16, difference, sqnr_db, 0, 1.0, verdict)

    rounding = (made("unoptimised", 0.2, 40.0), made("batch 1", 0.3, 45.0), made("threads 2", 0.1, 50.0))
    others = (made("order", 0.5, 30.0), made("batch 16", 0.5, 30.0), made("threads 1", 9.0, 1.0, FAIL))
    assert noise_floor((*rounding, *others)) == (0.3, 40.0)
    assert noise_floor((made("batch 1", 0.0, None), made("unoptimised", 0.0, None))) == (0.0, None)
    assert noise_floor((made("order", 0.0, None), made("unoptimised", None, None, NOT_RUN))) == (None, None)


def test_limits_are_shares_of_the_largest_logit_and_of_one_at_least() -> None:
    runner = _Double()
    found = {each.name: each for each in measure_variations(Subject(runner), images(16), Limits(0.0, 0.1, 0.5, None))}
    assert found["order"].limit == pytest.approx(0.5 * images(16).mean(axis=(1, 2)).max(), rel=1e-6)
    assert found["repeated"].limit == 0.0
    assert set(DEVICE_LIMITS) == {"fp32", "tf32", "fp16", "int8"}
