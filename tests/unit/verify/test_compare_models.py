"""Two ONNX files on the same data: small graphs whose outputs can be worked out by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgetune.core.bundle import FAIL, NOT_RUN, PASS
from edgetune.core.errors import DataError, EdgetuneError, ModelError, TensorError, UsageError
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import ParityEntry
from edgetune.steps.parity_models import ModelsOptions, parity_of_models
from edgetune.verify.compare_models import CompareOptions, ModelComparison, compare_models

FLOAT, INT64, UINT8, HALF = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8, TensorProto.FLOAT16
SIZE = 8
NORMALISED = CompareOptions(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
_random = np.random.default_rng(0)
X = _random.normal(size=(20, 4)).astype(np.float32)
WEIGHTS = _random.normal(size=(4, 3)).astype(np.float32)
IMAGE_WEIGHTS = (_random.normal(size=(3 * SIZE * SIZE, 2)) / 4).astype(np.float32)


def write(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, int], constants: Mapping[str, Any], metadata: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, *each) for name, each in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(model, path)
    return path


def linear(
    path: Path, weights: Any = WEIGHTS, *, batch: Any = "n", output: str = "y", name: str = "x", extra: bool = False
) -> Path:  # fmt: skip
    """`y` = x W, and with `extra` also `map` = ReLU of x as `(N, 2, 2)`."""
    nodes = [helper.make_node("MatMul", [name, "w"], [output])]
    constants = {"w": weights}
    outputs = {output: FLOAT}
    if extra:
        nodes += [helper.make_node("Relu", [name], ["r"]), helper.make_node("Reshape", ["r", "shape"], ["map"])]
        constants["shape"] = np.array([-1, 2, 2], np.int64)
        outputs = {"map": FLOAT, **outputs}
    return write(path, nodes, {name: (FLOAT, [batch, 4])}, outputs, constants)


def classifier(path: Path, form: str, weights: Any = IMAGE_WEIGHTS, *, metadata: Any = None, size: Any = SIZE) -> Path:
    """Logits of the normalised image, which comes as `planes`, `last` or `pixels` and is normalised inside."""
    shape = [-1, 3 * SIZE * SIZE]
    constants = {"w": weights, "shape": np.array(shape, np.int64)}
    nodes, kind, dims, name = [], FLOAT, ["n", 3, size, size], "input"
    data = name
    if form != "planes":
        dims = ["n", size, size, 3]
        if form == "pixels":
            kind = UINT8
            constants["mean"] = np.array([0.5, 0.4, 0.3], np.float32) * np.float32(255)
            constants["std"] = np.array([0.2, 0.3, 0.4], np.float32) * np.float32(255)
            nodes += [
                helper.make_node("Cast", [data], ["c"], to=FLOAT),
                helper.make_node("Sub", ["c", "mean"], ["s"]),
                helper.make_node("Div", ["s", "std"], ["d"]),
            ]
            data = "d"
        nodes.append(helper.make_node("Transpose", [data], ["t"], perm=[0, 3, 1, 2]))
        data = "t"
    nodes += [
        helper.make_node("Reshape", [data, "shape"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])
    ]  # fmt: skip
    return write(path, nodes, {name: (kind, dims)}, {"logits": FLOAT}, constants, metadata)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    np.savez(tmp_path / "rows.npz", x=X)
    return tmp_path / "rows.npz"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 images of noise in two class folders."""
    random = np.random.default_rng(1)
    for index in range(24):
        folder = tmp_path / "images" / ("ants" if index % 2 else "bees")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return tmp_path / "images"


def compare(
    reference: Path, candidate: Path, data: Path, options: CompareOptions = CompareOptions()  # noqa: B008
) -> ModelComparison:  # fmt: skip
    return compare_models(reference, candidate, data, options)


def only(found: ModelComparison) -> ParityEntry:
    (entry,) = found.report.artifacts
    return entry


def test_a_model_is_at_parity_with_itself(tmp_path: Path, rows: Path) -> None:
    path = linear(tmp_path / "a.onnx")
    found = compare(path, path, rows)
    entry = only(found)
    assert (entry.artifact, entry.verdict, entry.images, entry.max_abs_diff) == ("a.onnx", PASS, 20, 0.0)
    assert (entry.top1_agreement, entry.sqnr_db, entry.diagnosis) == (1.0, None, "")
    assert "both are the same file" in entry.remarks
    assert "judged by the gate for fp32, which a.onnx computes in" in entry.remarks
    assert "arrays have no labels, so there is no accuracy" in entry.remarks
    assert (found.report.verdict, found.report.classes, found.report.class_names) == (PASS, 3, ())
    np.testing.assert_allclose(found.pairs["a.onnx"].candidate, X @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_figures_are_those_of_the_products_by_numpy(tmp_path: Path, rows: Path) -> None:
    other = WEIGHTS + np.random.default_rng(9).normal(size=WEIGHTS.shape).astype(np.float32) * 0.3
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", other), rows))
    theirs, ours = X.astype(np.float64) @ WEIGHTS, X.astype(np.float64) @ other
    assert entry.verdict == FAIL
    assert entry.max_abs_diff == pytest.approx(np.abs(theirs - ours).max(), rel=1e-5)
    assert entry.sqnr_db == pytest.approx(10 * np.log10((theirs**2).sum() / ((theirs - ours) ** 2).sum()), rel=1e-5)
    flipped = np.flatnonzero(theirs.argmax(axis=1) != ours.argmax(axis=1))
    assert len(flipped) > 0
    assert entry.top1_agreement == 1 - len(flipped) / 20
    assert sorted(flip.file for flip in entry.flips) == sorted(f"row {row}" for row in flipped)
    assert entry.flips[0].margin == max(flip.margin for flip in entry.flips)
    assert entry.gate == DEFAULT_GATES.fp32


def test_what_explains_a_failure_is_told(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", WEIGHTS[:, [1, 0, 2]]), rows))
    assert entry.verdict == FAIL
    assert entry.diagnosis.startswith("the outputs are permuted: 0 is the candidate's 1, 1 is the candidate's 0 would")


def test_one_npy_is_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx"), tmp_path / "x.npy")).images == 20


def test_a_fixed_batch_is_filled_up(tmp_path: Path, rows: Path) -> None:
    """20 rows are not a multiple of 8, nor of 3."""
    found = compare(linear(tmp_path / "a.onnx", batch=3), linear(tmp_path / "b.onnx", batch=1), rows)
    assert (only(found).verdict, only(found).images) == (PASS, 20)
    np.testing.assert_allclose(found.pairs["b.onnx"].reference, X @ WEIGHTS, rtol=1e-5, atol=1e-6)


def test_outputs_of_other_ranks_are_judged_by_distance(tmp_path: Path, rows: Path) -> None:
    found = compare(linear(tmp_path / "a.onnx", extra=True), linear(tmp_path / "b.onnx", extra=True), rows)
    maps, logits = found.report.artifacts
    assert [entry.artifact for entry in found.report.artifacts] == ["b.onnx", "b.onnx: y"]
    assert (maps.top1_agreement, maps.verdict, maps.max_abs_diff) == (None, PASS, 0.0)
    assert (logits.top1_agreement, logits.verdict) == (1.0, PASS)
    assert set(found.pairs) == {"b.onnx: y"}


def test_logits_come_first_and_what_the_candidate_lacks_fails(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True, output="logits")
    found = compare(reference, linear(tmp_path / "b.onnx", output="logits"), rows)
    logits, lacking = found.report.artifacts
    assert (logits.artifact, logits.verdict, logits.top1_agreement) == ("b.onnx", PASS, 1.0)
    assert (lacking.artifact, lacking.verdict, lacking.images) == ("b.onnx: map", FAIL, 0)
    assert lacking.reasons == ("the candidate lacks the reference's output map float32 (any, 2, 2)",)
    assert lacking.remarks == ()
    assert found.report.verdict == FAIL
    assert set(found.pairs) == {"b.onnx"}


def test_what_the_candidate_alone_makes_is_said(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", extra=True), rows))
    assert (entry.artifact, entry.verdict) == ("b.onnx", PASS)
    assert "not compared, as the candidate alone makes them: map" in entry.remarks


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, PASS), (1.5, FAIL)])
def test_one_output_left_on_each_side_is_a_pair(tmp_path: Path, rows: Path, factor: float, verdict: str) -> None:
    """What both call `map` is equal; it must not speak for what they call otherwise."""
    reference = linear(tmp_path / "a.onnx", extra=True, output="logits")
    candidate = linear(tmp_path / "b.onnx", WEIGHTS * np.float32(factor), extra=True, output="scores")
    logits, maps = compare(reference, candidate, rows).report.artifacts
    assert (logits.artifact, logits.verdict, logits.images) == ("b.onnx", verdict, 20)
    assert "the candidate's only other output 'scores' is taken for the reference's 'logits'" in logits.remarks
    assert (maps.artifact, maps.verdict) == ("b.onnx: map", PASS)


def test_a_pair_of_two_names_goes_by_the_references(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True, output="y")
    found = compare(reference, linear(tmp_path / "b.onnx", extra=True, output="scores"), rows)
    assert [entry.artifact for entry in found.report.artifacts] == ["b.onnx", "b.onnx: y"]
    assert set(found.pairs) == {"b.onnx: y"}


def _second_output(path: Path, node: onnx.NodeProto, kind: int = FLOAT) -> Path:
    """`y` = x W, and what the node makes of x."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), node]
    outputs = {"y": FLOAT, node.output[0]: kind}
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, outputs, {"w": WEIGHTS, "axes": np.array([1])})


@pytest.mark.parametrize(
    ("node", "kind", "reason"),
    [
        (("Unsqueeze", ["x", "axes"], ["b"]), FLOAT, "the candidate lacks the reference's output a float32 (any, 4)"),
        (("Identity", ["y"], ["b"]), FLOAT, "the candidate lacks the reference's output a float32 (any, 4)"),
        (
            ("Cast", ["x"], ["a"]),
            TensorProto.STRING,
            "the reference's output is a float32 (any, 4), the candidate's a ",
        ),
    ],
    ids=["rank", "size", "kind"],
)
def test_what_cannot_be_the_same_output_is_no_pair(
    tmp_path: Path, rows: Path, node: tuple[str, list[str], list[str]], kind: int, reason: str
) -> None:
    reference = _second_output(tmp_path / "a.onnx", helper.make_node("Relu", ["x"], ["a"]))
    to: dict[str, Any] = {"to": kind} if node[0] == "Cast" else {}
    found = compare(reference, _second_output(tmp_path / "b.onnx", helper.make_node(*node, **to), kind), rows)
    compared, lacking = found.report.artifacts
    assert (compared.artifact, compared.verdict) == ("b.onnx", PASS)
    assert (lacking.artifact, lacking.verdict) == ("b.onnx: a", FAIL)
    assert lacking.reasons[0].startswith(reason)


def test_outputs_that_are_no_numbers_on_both_sides_are_said(tmp_path: Path, rows: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["names"], to=TensorProto.STRING)
    path = _second_output(tmp_path / "a.onnx", node, TensorProto.STRING)
    entry = only(compare(path, path, rows))
    assert entry.verdict == PASS
    assert "not compared, as these are no arrays of numbers: names" in entry.remarks


def test_single_outputs_of_other_names_are_compared_and_said(tmp_path: Path, rows: Path) -> None:
    entry = only(compare(linear(tmp_path / "a.onnx", output="495"), linear(tmp_path / "b.onnx", output="out"), rows))
    assert entry.verdict == PASS
    assert "the candidate's only output 'out' is taken for the reference's '495'" in entry.remarks


def test_one_number_a_row_is_no_label(tmp_path: Path, rows: Path) -> None:
    """With one output every argmax is 0: 100 % agreement would say nothing."""
    reference, candidate = linear(tmp_path / "a.onnx", WEIGHTS[:, :1]), linear(tmp_path / "b.onnx", -WEIGHTS[:, :1])
    entry = only(compare(reference, candidate, rows, CompareOptions(precision="int8")))
    assert (entry.verdict, entry.top1_agreement) == (FAIL, None)


def test_nan_fails_and_tells_whose(tmp_path: Path, rows: Path) -> None:
    bad = WEIGHTS.copy()
    bad[0, 0] = np.nan
    entry = only(compare(linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx", bad), rows))
    assert (entry.verdict, entry.max_abs_diff, entry.stage) == (FAIL, None, "logits")
    assert "NaN or infinity is in the output of the candidate" in entry.remarks


def _softmax_model(path: Path, weights: Any) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["l"]), helper.make_node("Softmax", ["l"], ["p"], axis=1)]
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, {"p": FLOAT}, {"w": weights})


def test_outputs_that_are_probabilities_diverge_as_such(tmp_path: Path, rows: Path) -> None:
    """Not as if they were logits, whose softmax would hide most of the difference."""
    other = WEIGHTS * 1.5
    entry = only(
        compare(_softmax_model(tmp_path / "a.onnx", WEIGHTS), _softmax_model(tmp_path / "b.onnx", other), rows)
    )
    logits = [X.astype(np.float64) @ weights for weights in (WEIGHTS, other)]
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in logits)
    assert entry.kl_mean == pytest.approx(float(np.mean(np.sum(p * np.log(p / q), axis=1))), rel=1e-4)


def test_the_coarser_files_gate_is_taken(tmp_path: Path, rows: Path) -> None:
    scale, zero = np.float32(1 / 64), np.int8(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["wd"]),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    constants = {"w": WEIGHTS, "s": scale, "z": zero}
    coarse = write(tmp_path / "q.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, constants)
    for pair in ((linear(tmp_path / "a.onnx"), coarse), (coarse, linear(tmp_path / "a.onnx"))):
        entry = only(compare(*pair, rows))
        assert entry.gate == DEFAULT_GATES.int8
        assert "judged by the gate for int8, which q.onnx computes in" in entry.remarks
    entry = only(compare(linear(tmp_path / "a.onnx"), coarse, rows, CompareOptions(precision="fp32")))
    assert (entry.gate, entry.verdict) == (DEFAULT_GATES.fp32, FAIL)
    with pytest.raises(UsageError, match="the precision 'int4' is not known; known: fp32, tf32, fp16, int8"):
        compare(coarse, coarse, rows, CompareOptions(precision="int4"))


def test_without_onnx_a_float16_model_that_passes_is_not_run(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's CPU computes it in float32, which proves nothing of a device."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF), helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=FLOAT),
    ]  # fmt: skip
    half = write(
        tmp_path / "h.onnx", nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, {"w": WEIGHTS.astype(np.float16)}
    )  # fmt: skip
    rounded = only(compare(linear(tmp_path / "a.onnx"), half, rows))
    assert (rounded.verdict, rounded.gate) == (PASS, DEFAULT_GATES.fp16)
    assert "rounding to float16" in rounded.runner
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    entry = only(compare(linear(tmp_path / "a.onnx"), half, rows))
    assert entry.verdict == NOT_RUN
    assert "does not round" in entry.reasons[0]


@pytest.mark.parametrize(("theirs", "ours"), [("planes", "pixels"), ("last", "planes"), ("pixels", "last")])
def test_images_reach_each_model_in_its_own_form(tmp_path: Path, images: Path, theirs: str, ours: str) -> None:
    """Normalised outside or inside, planes first or last: the same numbers."""
    entry = only(
        compare(classifier(tmp_path / "a.onnx", theirs), classifier(tmp_path / "b.onnx", ours), images, NORMALISED)
    )
    assert (entry.verdict, entry.images) == (PASS, 24), entry.reasons
    assert entry.max_abs_diff is not None
    assert entry.max_abs_diff < 1e-4


def test_class_folders_in_sorted_order_are_the_labels(tmp_path: Path, images: Path) -> None:
    path = classifier(tmp_path / "a.onnx", "pixels")
    found = compare(path, path, images)
    logits = found.pairs["a.onnx"].reference
    labels = np.array([0] * 12 + [1] * 12)  # ants, bees
    assert only(found).reference_accuracy == float(np.mean(logits.argmax(axis=1) == labels))
    assert [each.images for each in only(found).per_class] == [12, 12]


def test_names_in_the_metadata_go_before_the_folders_order(tmp_path: Path, images: Path) -> None:
    plain = classifier(tmp_path / "a.onnx", "pixels")
    named = classifier(tmp_path / "b.onnx", "pixels", metadata={"edgetune.classes": ["bees", "ants"]})
    sorted_, by_name = only(compare(plain, plain, images)), only(compare(named, named, images))
    assert sorted_.reference_accuracy is not None
    assert by_name.reference_accuracy == pytest.approx(1 - sorted_.reference_accuracy)
    assert compare(named, named, images).report.class_names == ("bees", "ants")


@pytest.mark.parametrize(
    ("layout", "remark"),
    [
        ("flat", "the images are in no class folders, so there is no accuracy"),
        ("three", "no accuracy: 3 class folders, and the models have 2 outputs"),
        ("named", "no accuracy: the class folder 'bees' is not in the model's metadata"),
    ],
)
def test_without_labels_a_remark_says_why(tmp_path: Path, images: Path, layout: str, remark: str) -> None:
    metadata = {"edgetune.classes": ["ants", "wasps"]} if layout == "named" else None
    path = classifier(tmp_path / "a.onnx", "pixels", metadata=metadata)
    if layout == "flat":
        for file in list(images.glob("*/*.png")):
            file.rename(images / file.name)
    if layout == "three":
        (images / "wasps").mkdir()
    entry = only(compare(path, path, images))
    assert (entry.verdict, entry.reference_accuracy) == (PASS, None)
    assert remark in entry.remarks


def test_splits_are_no_classes(tmp_path: Path, images: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
    (images / "ants").rename(tmp_path / "data" / "val" / "ants")
    (images / "bees").rename(tmp_path / "data" / "val" / "bees")
    path = classifier(tmp_path / "a.onnx", "pixels")
    entry = only(compare(path, path, tmp_path / "data"))
    assert entry.images == 24
    assert entry.reference_accuracy is not None


SPEC = {"resize_size": 9, "crop_size": 8, "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def test_metadata_replaces_options(tmp_path: Path, images: Path) -> None:
    """A model that says nothing is prepared like the one it was made of."""
    told = classifier(tmp_path / "a.onnx", "planes", metadata={"edgetune.preprocess": SPEC})
    assert only(compare(told, classifier(tmp_path / "b.onnx", "planes"), images)).verdict == PASS
    assert only(compare(told, classifier(tmp_path / "c.onnx", "pixels"), images)).verdict == PASS


@pytest.mark.parametrize(
    ("theirs", "ours", "reason", "stage"),
    [
        (
            {"edgetune.preprocess": SPEC},
            {"edgetune.preprocess": {**SPEC, "resize_size": 8, "interpolation": "bicubic"}},
            "its metadata prepares images otherwise: resize_size 8, the reference 9; "
            "interpolation bicubic, the reference bilinear",
            "pixels",
        ),
        (
            {"edgetune.classes": ["ants", "bees"]},
            {"edgetune.classes": ["bees", "ants"]},
            "its metadata names other classes, or in another order, than the reference's",
            "labels",
        ),
    ],
    ids=["preprocessing", "classes"],
)
def test_the_same_graph_with_other_metadata_is_another_classifier(
    tmp_path: Path, images: Path, theirs: Any, ours: Any, reason: str, stage: str
) -> None:
    models = (
        classifier(tmp_path / "a.onnx", "pixels", metadata=theirs),
        classifier(tmp_path / "b.onnx", "pixels", metadata=ours),
    )
    entry = only(compare(*models, images))
    assert (entry.verdict, entry.reasons, entry.stage) == (FAIL, (reason,), stage)


def test_what_a_candidate_does_to_pixels_is_told(tmp_path: Path, images: Path) -> None:
    swapped = IMAGE_WEIGHTS.reshape(3, SIZE * SIZE, 2)[::-1].reshape(-1, 2)
    models = (classifier(tmp_path / "a.onnx", "planes"), classifier(tmp_path / "b.onnx", "planes", swapped))
    entry = only(compare(*models, images, CompareOptions(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3))))
    assert entry.verdict == FAIL
    assert entry.diagnosis.startswith("red and blue are swapped would explain it")


def test_a_file_that_is_no_image_is_skipped_and_said(tmp_path: Path, images: Path) -> None:
    (images / "ants" / "broken.png").write_bytes(b"nothing")
    path = classifier(tmp_path / "a.onnx", "pixels")
    found = compare(path, path, images)
    assert only(found).images == 24
    assert [Path(file.path).name for file in found.report.skipped] == ["broken.png"]


def _text(path: Path) -> Path:
    path.write_text("not a model")
    return path


def _scalar_output(path: Path) -> Path:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
    return write(path, nodes, {"x": (FLOAT, ["n", 4])}, {"y": FLOAT}, {})


def _scalar_input(path: Path) -> Path:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return write(path, nodes, {"x": (FLOAT, [])}, {"y": FLOAT}, {})


def _two_batches(path: Path) -> Path:
    nodes = [helper.make_node("Concat", ["x", "z"], ["y"], axis=0)]
    return write(path, nodes, {"x": (FLOAT, [2, 4]), "z": (FLOAT, [3, 4])}, {"y": FLOAT}, {})


def _no_external_data(path: Path) -> Path:
    linear(path, np.ones((4, 300), np.float32))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (_text, ModelError, "b.onnx"),
        (lambda path: path, ModelError, "b.onnx does not exist or is not a file"),
        (_no_external_data, ModelError, "weights.bin"),
        (lambda path: linear(path, name="z"), ModelError, "takes z float32 (any, 4)"),
        (lambda path: linear(path, WEIGHTS[:, :2]), TensorError, "'y' is (8, 3), the candidate's 'y' (8, 2)"),
        (lambda path: linear(path, extra=True, output="other"), ModelError, "no output in common"),
        (_scalar_output, TensorError, "the output 'y' is () for 8 rows, expected (8, ...)"),
        (_scalar_input, ModelError, "the models take other inputs"),
    ],
    ids=["text", "missing", "no weights", "input", "shape", "outputs", "no batch out", "no batch in"],
)
def test_what_cannot_be_compared_is_one_line(
    tmp_path: Path, rows: Path, make: Any, kind: type[EdgetuneError], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)) as caught:
        compare(linear(tmp_path / "a.onnx"), make(tmp_path / "b.onnx"), rows)
    assert "\n" not in caught.value.message


def test_an_input_needs_a_batch_dimension(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.float32(1))
    path = _scalar_input(tmp_path / "a.onnx")
    with pytest.raises(EdgetuneError, match=r"'x' is float32 \(\)"):
        compare(path, path, tmp_path / "x.npz")
    np.savez(tmp_path / "xz.npz", x=X[:6], z=X[:6])
    path = _two_batches(tmp_path / "b.onnx")
    with pytest.raises(TensorError, match=r"its inputs have \['2', '3'\]"):
        compare(path, path, tmp_path / "xz.npz")


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        (CompareOptions(), SIZE, "does not say how its images are normalised"),
        (NORMALISED, "s", "leave the size of their images open"),
    ],
    ids=["mean", "size"],
)
def test_what_a_model_does_not_say_has_to_be_given(
    tmp_path: Path, images: Path, options: CompareOptions, size: Any, words: str
) -> None:
    path = classifier(tmp_path / "a.onnx", "planes", size=size)
    with pytest.raises(EdgetuneError, match=words):
        compare(path, path, images, options)


def test_images_are_for_models_of_one_image(tmp_path: Path, images: Path) -> None:
    path = linear(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match=re.escape("takes x float32 (any, 4); expected one image")) as caught:
        compare(path, path, images)
    assert ".npz" in caught.value.hint


@pytest.mark.parametrize(("data", "words"), [("none", "does not exist"), ("empty", "holds no images")])
def test_data_that_is_not_there(tmp_path: Path, data: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    path = classifier(tmp_path / "a.onnx", "pixels")
    with pytest.raises(DataError, match=words):
        compare(path, path, tmp_path / data)


def test_not_one_image_that_can_be_read(tmp_path: Path, images: Path) -> None:
    for file in images.glob("*/*.png"):
        file.write_bytes(b"nothing")
    path = classifier(tmp_path / "a.onnx", "pixels")
    with pytest.raises(DataError, match=r"none of 24 inputs could be read; the first: .*01\.png"):
        compare(path, path, images)


KEPT = dataclasses.replace(NORMALISED, keep_inputs=True)


def test_inputs_are_kept_where_both_models_are_fed_alike(tmp_path: Path, images: Path, rows: Path) -> None:
    reference = classifier(tmp_path / "a.onnx", "planes")
    inputs = compare(reference, classifier(tmp_path / "b.onnx", "planes", -IMAGE_WEIGHTS), images, KEPT).inputs
    first = np.asarray(Image.open(images / "ants" / "01.png"), np.float64) / 255
    normalised = (first - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert inputs is not None
    assert inputs.shape == (16, 3, SIZE, SIZE)
    assert inputs.dtype == np.float32
    np.testing.assert_allclose(inputs[0], normalised.transpose(2, 0, 1), atol=1e-5)
    kept = compare(linear(tmp_path / "c.onnx"), linear(tmp_path / "d.onnx"), rows, KEPT).inputs
    np.testing.assert_array_equal(kept, X[:16])
    assert compare(reference, reference, images, NORMALISED).inputs is None


@pytest.mark.parametrize(
    ("form", "spec"),
    [("last", None), ("planes", {"mean": [0.5, 0.4, 0.31]}), ("pixels", None)],
    ids=["axes", "mean", "dtype"],
)
def test_inputs_are_not_kept_where_models_are_fed_otherwise(
    tmp_path: Path, images: Path, form: str, spec: dict[str, Any] | None
) -> None:
    """float32 of rank 4 on both sides, and yet not the same numbers."""
    theirs = classifier(tmp_path / "a.onnx", "planes", metadata={"edgetune.preprocess": SPEC})
    ours = classifier(tmp_path / "b.onnx", form, metadata={"edgetune.preprocess": {**SPEC, **(spec or {})}})
    assert compare(theirs, ours, images, CompareOptions(keep_inputs=True)).inputs is None


def test_blocks_of_models_that_are_fed_otherwise_are_not_blamed(tmp_path: Path, images: Path) -> None:
    theirs, ours = (
        classifier(tmp_path / "a.onnx", "planes"), classifier(tmp_path / "b.onnx", "last", -IMAGE_WEIGHTS)
    )  # fmt: skip
    report = parity_of_models(theirs, ours, images, ModelsOptions(compare=NORMALISED, localize=True))
    (entry,) = report.artifacts
    assert entry.verdict == FAIL
    assert entry.localisation is not None
    assert entry.localisation.culprit == ""
    assert "are not fed the same one input" in entry.localisation.explanation


def test_an_output_that_is_not_there_has_no_block_to_blame(tmp_path: Path, rows: Path) -> None:
    reference = linear(tmp_path / "a.onnx", extra=True)
    report = parity_of_models(reference, linear(tmp_path / "b.onnx"), rows, ModelsOptions(localize=True))
    assert [entry.verdict for entry in report.artifacts] == [PASS, FAIL]
    assert [entry.localisation for entry in report.artifacts] == [None, None]


def test_flipped_images_are_named_by_folder_and_shown(tmp_path: Path, images: Path) -> None:
    """Negated weights turn every label of two."""
    models = classifier(tmp_path / "a.onnx", "pixels"), classifier(tmp_path / "b.onnx", "pixels", -IMAGE_WEIGHTS)
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in images.glob("*/*.png")}
    found = compare(*models, images)
    assert found.flipped == files
    assert len(files) == 24
    assert {flip.sha256: flip.file for flip in only(found).flips} == {
        sha256: f"{path.parent.name}/{path.name}" for sha256, path in files.items()
    }
    parity_of_models(*models, images, ModelsOptions(out=tmp_path / "out"))
    assert (tmp_path / "out" / "parity.html").read_text().count("data:image/jpeg") == 24


def test_only_flipped_images_are_given_out(tmp_path: Path, images: Path, rows: Path) -> None:
    path = classifier(tmp_path / "a.onnx", "pixels")
    assert compare(path, path, images).flipped == {}
    turned = compare(linear(tmp_path / "c.onnx"), linear(tmp_path / "d.onnx", -WEIGHTS), rows)
    assert len(only(turned).flips) > 0
    assert turned.flipped == {}


def test_images_that_disappear_while_running_are_one_line(tmp_path: Path, images: Path) -> None:
    """Localisation reads the first of them again."""

    def remove(stage: str, done: int, total: int) -> None:
        if stage == "parity" and done == total:
            for file in images.glob("*/*.png"):
                file.unlink()

    path = classifier(tmp_path / "a.onnx", "planes")
    with pytest.raises(DataError, match="can no longer be read"):
        compare_models(path, path, images, KEPT, progress=remove)


def test_a_model_that_disappears_while_running_is_one_line(tmp_path: Path, rows: Path) -> None:
    reference, candidate = linear(tmp_path / "a.onnx"), linear(tmp_path / "b.onnx")

    def remove(stage: str, done: int, total: int) -> None:
        if stage == "parity" and done == total:
            candidate.unlink(missing_ok=True)

    with pytest.raises(ModelError, match=r"b\.onnx cannot be read: No such file or directory\.$"):
        compare_models(reference, candidate, rows, CompareOptions(), progress=remove)


def test_a_folder_that_cannot_be_read_is_one_line(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    path = classifier(tmp_path / "a.onnx", "pixels")
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"images cannot be read: Permission denied\.$"):
        compare(path, path, images)
