"""Files of one network with other tensor names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgetune.core.errors import ModelError
from edgetune.graph.alignment import aligned
from edgetune.graph.blocks import BlockGraph, common_cuts
from edgetune.verify.localize import LocalizeJob, localize
from tests.unit.quantize.small_graphs import chain
from tests.unit.verify.planted import PICTURES, change, network, planted, write


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every tensor is called n0, n1, ... as another exporter would."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names: dict[str, str] = {}
    graph = copy.graph
    for node in graph.node:
        for tensors in (node.input, node.output):
            for index, name in enumerate(tensors):
                tensors[index] = names.setdefault(name, f"n{len(names)}")
        node.name = ""
    for entry in (*graph.initializer, *graph.input, *graph.output):
        entry.name = names.get(entry.name, entry.name)
    return copy


def test_layers_are_matched_by_order() -> None:
    reference, candidate = BlockGraph(network()), BlockGraph(_renamed(network()))
    assert common_cuts(reference, aligned(reference, candidate)) == ("r1", "r2", "c3", "r4", "r5", "logits")


def test_a_file_with_the_same_names_stays_as_it_is() -> None:
    reference, candidate = BlockGraph(network()), BlockGraph(network())
    assert aligned(reference, candidate) is candidate


def test_a_fault_is_found_across_names(tmp_path: Path) -> None:
    bad = write(_renamed(planted(network(), change("c4.w", np.negative))), tmp_path / "bad.onnx")
    reference = write(network(), tmp_path / "reference.onnx")
    found = localize(LocalizeJob(bad, "fp32", reference, images=PICTURES, repro=tmp_path / "repro"))
    assert found.kind == "sign", found.explanation
    assert found.blocks[3].tensor == "r4"
    assert found.culprit == "Conv_c4"  # its node has no name of its own
    healthy = write(_renamed(network()), tmp_path / "healthy.onnx")
    assert localize(dataclasses.replace(LocalizeJob(healthy, "fp32", reference, images=PICTURES))).culprit == ""


def test_what_cannot_be_aligned_is_refused() -> None:
    with pytest.raises(ModelError, match="no names in common, and 6 and 3 layers"):
        aligned(BlockGraph(network()), BlockGraph(_renamed(chain().model())))
    other = network()
    del other.graph.input[0].type.tensor_type.shape.dim[0]
    with pytest.raises(ModelError, match=r"uint8 of rank 4.*uint8 of rank 3"):
        aligned(BlockGraph(network()), BlockGraph(other))
