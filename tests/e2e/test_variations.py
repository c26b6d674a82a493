"""A real bundle on real images: healthy artifacts pass, and a dependence on the batch planted in them fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgetune.core.bundle import FAIL, PASS, Bundle, load_bundle
from edgetune.core.preprocess import preprocess_image
from edgetune.core.tensors import FEATURES_OUTPUT
from edgetune.graph.integer_layers import integer_models
from edgetune.parity.gate_set import DEFAULT_GATES
from edgetune.parity.records import Variation
from edgetune.parity.variations import noise_floor
from edgetune.quantize.census import count_operators, fused_layers
from edgetune.runners.choice import Choice, RunnerOptions
from edgetune.runners.ort_runner import OrtRunner
from edgetune.verify.variations import rung_of, variations_of
from tests.unit.quantize.small_graphs import Images

pytestmark = pytest.mark.e2e

NAMES = ["model.onnx", "model.int8.cpu-x86.onnx", "model.int8.tensorrt.onnx"]
NEIGHBOURS = {"position", "order", "batch 1", "batch 3", "batch 16"}


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Bundle:
    return load_bundle(small_bundle)


@pytest.fixture(scope="module")
def pictures(bundle: Bundle, photos: Path) -> Images:
    """16 digits of the three classes, one class after the other."""
    files = sorted(photos.glob("*/*"), key=lambda path: path.name)[:16]
    return np.stack([preprocess_image(path.read_bytes(), bundle.manifest.preprocess) for path in files])


def _vary(bundle: Bundle, name: str, pictures: Images) -> dict[str, Variation]:
    choice = Choice(bundle.artifact(name), "")
    with OrtRunner(bundle.path / name) as runner:
        found = variations_of(bundle, choice, runner, pictures, RunnerOptions())
    return {each.name: each for each in found.variations}


@pytest.mark.parametrize("name", NAMES)
def test_a_real_artifact_passes_and_its_noise_is_rounding(bundle: Bundle, pictures: Images, name: str) -> None:
    found = _vary(bundle, name, pictures)
    assert len(found) == 9
    assert {each.verdict for each in found.values()} == {PASS}, found
    largest, sqnr_db = noise_floor(tuple(found.values()))
    assert largest is not None
    assert sqnr_db is None or sqnr_db > (100.0 if name == "model.onnx" else 15.0)


@pytest.mark.parametrize("name", NAMES[1:])
def test_int8_is_a_step_from_its_integer_reference_at_most(bundle: Bundle, pictures: Images, name: str) -> None:
    with OrtRunner(bundle.path / name) as runner:
        measured = variations_of(bundle, Choice(bundle.artifact(name), ""), runner, pictures, RunnerOptions())
    gate = dataclasses.replace(DEFAULT_GATES.device.int8, min_sqnr_db=15.0)
    rung = rung_of(measured, "int8", gate)
    assert rung is not None
    assert (rung.verdict, rung.max_lsb) == (PASS, 1.0), rung.reasons


def test_integers_are_compared_on_the_kernels_that_ship(bundle: Bundle) -> None:
    path = bundle.path / "model.int8.cpu-x86.onnx"
    models = integer_models(onnx.load(path))
    assert models is not None
    shipped = fused_layers(count_operators(path))
    assert fused_layers(count_operators(models.fed.SerializeToString())) == shipped
    assert shipped[0] > 40


def _less_the_batch_mean(path: Path, changed: Path, share: float) -> None:
    """A share of the batch's mean taken off the features, as a normalisation over the batch would."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    (head,) = [node for node in nodes if FEATURES_OUTPUT in node.input]
    head.input[list(head.input).index(FEATURES_OUTPUT)] = "centred"
    planted = [
        helper.make_node("ReduceMean", [FEATURES_OUTPUT, "batch_axis"], ["batch_mean"], keepdims=1),
        helper.make_node("Mul", ["batch_mean", "batch_share"], ["batch_part"]),
        helper.make_node("Sub", [FEATURES_OUTPUT, "batch_part"], ["centred"]),
    ]
    place = nodes.index(head)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *planted, *nodes[place:]])
    constants = {"batch_axis": np.array([0]), "batch_share": np.float32(share)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items())
    onnx.save(model, changed)


@pytest.mark.parametrize(("name", "share"), [("model.onnx", 1e-3), *((name, 1.0) for name in NAMES[1:])])
def test_a_dependence_on_the_batch_fails(
    bundle: Bundle, pictures: Images, tmp_path: Path, name: str, share: float
) -> None:
    """In FP32 a thousandth of it is enough."""
    _less_the_batch_mean(bundle.path / name, tmp_path / name, share)
    found = _vary(dataclasses.replace(bundle, path=tmp_path), name, pictures)
    assert {"position", "batch 1"} <= {key for key, each in found.items() if each.verdict == FAIL} <= NEIGHBOURS, found
