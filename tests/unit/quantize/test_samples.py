"""Patches multiplied by weights are ONNX Runtime's convolution, and samples come back as they went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edgetune.core.tensors import IMAGE_INPUT, LOGITS_OUTPUT
from edgetune.quantize.canonical import canonical_network
from edgetune.quantize.placement import as_rows, find_layers
from edgetune.quantize.samples import OutputSamples, PatchReader
from tests.unit.quantize.small_graphs import SmallGraph, everything, images, run

_ZERO_POINT = 77

_CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel": 1},
    {"kernel": 1, "strides": [2, 2]},
    {"kernel": 3},
    {"kernel": 3, "strides": [2, 2]},
    {"kernel": 3, "strides": [2, 1], "pads": [0, 0, 1, 1]},
    {"kernel": 3, "pads": [2, 0, 1, 3], "strides": [1, 3]},
    {"kernel": 3, "dilations": [2, 2], "pads": [2, 2, 2, 2]},
    {"kernel": 3, "dilations": [1, 3], "pads": [0, 3, 1, 2], "strides": [2, 2]},
    {"kernel": 5},
    {"kernel": 5, "strides": [3, 3], "pads": [1, 2, 2, 1]},
    {"kernel": 3, "group": 3},
    {"kernel": 5, "group": 3, "strides": [2, 2], "pads": [1, 1, 2, 2]},
]


def _integer_graph(kernel: int, **attributes: Any) -> SmallGraph:
    """A convolution with whole weights of pixel - zero point, so that every sum is exact."""
    graph = SmallGraph(size=9)
    graph.node("Cast", [IMAGE_INPUT], "cast", to=TensorProto.FLOAT)
    graph.node("Transpose", ["cast"], "transposed", perm=[0, 3, 1, 2])
    graph.node("Sub", ["transposed", graph.constant("zero", _ZERO_POINT)], "x")
    graph.conv("c1", "x", (3, 6), kernel, bias=False, **attributes)
    graph.constants["c1.w"] = np.float32(graph.random.integers(-9, 10, graph.constants["c1.w"].shape))
    return graph


@pytest.mark.parametrize("attributes", _CONVOLUTIONS, ids=str)
def test_patches_times_weights_are_the_convolution(attributes: dict[str, Any]) -> None:
    graph, pictures = _integer_graph(**attributes), images(2, 9)
    network, weights = graph.network("c1"), graph.constants["c1.w"]
    (layer,) = find_layers(network)
    reader = PatchReader(network, layer, weights.shape)
    (expected,) = run(graph.model("c1"), pictures)
    assert reader.output_pixels(9, 9) == expected.shape[2:]
    pixels = np.arange(expected[0, 0].size)[::2]
    own = weights.reshape(reader.groups, len(weights) // reader.groups, -1)
    for picture, wanted in zip(pictures.transpose(0, 3, 1, 2), expected, strict=True):
        patches = reader.cut(picture, pixels, _ZERO_POINT)
        assert patches.shape == (len(pixels), 3, attributes["kernel"] ** 2)
        centred = patches.astype(np.float64).reshape(len(pixels), reader.groups, -1) - _ZERO_POINT
        got = np.einsum("ngk,gok->gon", centred, own).reshape(len(weights), -1)
        np.testing.assert_array_equal(got, wanted.reshape(len(weights), -1)[:, pixels])


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_reads_its_whole_input_as_one_patch(transposed: int) -> None:
    graph = SmallGraph()
    graph.gemm(LOGITS_OUTPUT, graph.mean("features", graph.image()), (3, 5), transB=transposed)
    network = graph.network()
    (layer,) = find_layers(network)
    rows = as_rows(network, layer, network.constants[layer.weight])
    assert rows.shape == (5, 3)
    features, logits = run(graph.model(), images(3), ["features", LOGITS_OUTPUT])
    for vector, expected in zip(features, logits, strict=True):
        (patch,) = PatchReader(network, layer, rows.shape).cut(vector, np.arange(1), 0)
        got = rows @ patch[:, 0] + network.constants[layer.bias]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("wanted", "batch"), [(10_000, 8), (10_000, 3), (5, 8), (5, 1)])
def test_samples_read_back_are_the_networks_outputs(wanted: int, batch: int) -> None:
    network, _ = canonical_network(everything().model())
    layers, pictures = find_layers(network), images(8, 16)
    expected = run(network.model(), pictures, [layer.product for layer in layers])
    batches = [pictures[start : start + batch] for start in range(0, 8, batch)]
    with OutputSamples(layers, {layer.name: wanted for layer in layers}) as samples:
        samples.fill(network, batches)
        for layer, values in zip(layers, expected, strict=True):
            flat = values.reshape(8, values.shape[1], -1)
            parts = [
                image[:, samples.pixels_of(layer, index, flat.shape[2])].T for index, image in enumerate(flat)
            ]  # fmt: skip
            assert len(parts[0]) == min(wanted, flat.shape[2])
            np.testing.assert_allclose(samples.read(layer), np.concatenate(parts), rtol=1e-4, atol=1e-4)


def test_the_pixels_are_sorted_different_between_images_and_the_same_in_every_run() -> None:
    network, _ = canonical_network(everything().model())
    layers = find_layers(network)
    chosen = []
    for _ in range(2):
        with OutputSamples(layers, {layer.name: 6 for layer in layers}) as samples:
            chosen.append([samples.pixels_of(layers[0], image, 64).tolist() for image in range(20)])
    assert chosen[0] == chosen[1]
    assert all(pixels == sorted(set(pixels)) and len(pixels) == 6 for pixels in chosen[0])
    assert len({tuple(pixels) for pixels in chosen[0]}) == 20
    assert {pixel for pixels in chosen[0] for pixel in pixels} > set(range(0, 64, 16))  # all over the image
