"""ONNX files of any tool: whole, finite, their weights where they may be, or a `ModelError` that says why not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetune.core.errors import ModelError
from edgetune.core.files import sha256_of_bytes, sha256_of_file
from edgetune.graph.onnx_file import read_onnx_file
from tests.unit.quantize.qdq_breaks import set_to
from tests.unit.quantize.qdq_graphs import good


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def _with_data(folder: Path) -> Path:
    path = folder / "m.onnx"
    onnx.save(good("tensorrt"), path, save_as_external_data=True, location="w.bin", size_threshold=16)
    return path


def _names(model: onnx.ModelProto) -> set[str]:
    return {entry.name for entry in model.graph.initializer}


def test_a_single_file(tmp_path: Path) -> None:
    path = _saved(good("tensorrt"), tmp_path)
    file = read_onnx_file(path)
    assert file.is_single
    assert file.sha256 == sha256_of_file(path)
    assert file.model == good("tensorrt")


def test_weights_beside_the_file_are_read_and_digested(tmp_path: Path) -> None:
    path = _with_data(tmp_path)
    file = read_onnx_file(path)
    assert not file.is_single
    both = sha256_of_file(path) + sha256_of_file(tmp_path / "w.bin")
    assert file.sha256 == sha256_of_bytes(both.encode())
    weights = {entry.name: numpy_helper.to_array(entry) for entry in file.model.graph.initializer}
    for entry in good("tensorrt").graph.initializer:
        assert np.array_equal(weights[entry.name], numpy_helper.to_array(entry))
    content = bytearray((tmp_path / "w.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "w.bin").write_bytes(content)
    assert read_onnx_file(path).sha256 != file.sha256


def _constants_as_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    for entry in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [entry.name], value=entry))
    del model.graph.initializer[:]
    return model


def test_constant_nodes_become_initializers(tmp_path: Path) -> None:
    model = _constants_as_nodes(good("tensorrt"))
    numbers: dict[str, dict[str, Any]] = {
        "k1": {"value_float": 0.5}, "k2": {"value_floats": [1.5, 2]}, "k3": {"value_int": 3}, "k4": {"value_ints": [4]},
    }  # fmt: skip
    for name, value in numbers.items():
        model.graph.node.append(helper.make_node("Constant", [], [name], **value))
    model.graph.node.append(helper.make_node("Constant", [], ["text"], value_string="x"))
    found = read_onnx_file(_saved(model, tmp_path)).model
    assert _names(found) == {*_names(good("tensorrt")), *numbers}
    assert [node.output[0] for node in found.graph.node if node.op_type == "Constant"] == ["text"]
    values = {entry.name: numpy_helper.to_array(entry) for entry in found.graph.initializer}
    assert [values[name].tolist() for name in numbers] == [0.5, [1.5, 2], 3, [4]]
    assert [values[name].dtype for name in numbers] == [np.float32, np.float32, np.int64, np.int64]


@pytest.mark.parametrize(
    ("name", "value", "is_refused"),
    [
        ("bias2", [1, np.nan, 0, 0], True),
        ("bias2", [1, np.inf, 0, 0], True),
        ("c_scale", np.nan, True),
        ("four", np.inf, False),
    ],
    ids=["NaN", "infinity", "a scalar NaN", "a scalar infinity"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("as_nodes", [False, True], ids=["initializers", "nodes"])
def test_weights_are_finite(
    name: str, value: float | list[float], is_refused: bool, dtype: type, as_nodes: bool, tmp_path: Path
) -> None:
    model = good("tensorrt")
    set_to(name, np.array(value, dtype))(model)
    path = _saved(_constants_as_nodes(model) if as_nodes else model, tmp_path)
    if is_refused:
        with pytest.raises(ModelError, match=f"the weights '{name}' hold NaN or infinity"):
            read_onnx_file(path)
    else:
        read_onnx_file(path)


def _outside(tensor: TensorProto, location: str = "../w.bin") -> TensorProto:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def _branch(tensor: TensorProto) -> onnx.GraphProto:
    """A graph without inputs, for an If."""
    output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2])
    return helper.make_graph([helper.make_node("Identity", ["t"], ["o"])], "branch", [], [output], [tensor])


def _in_a_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["k"], value=tensor))


def _in_a_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    inner, other = _branch(tensor), _branch(numpy_helper.from_array(np.zeros(2, np.float32), "t"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["k"], then_branch=other, else_branch=inner))


def _in_a_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    opset = [helper.make_opsetid("", 20)]
    nodes = [helper.make_node("Constant", [], ["k"], value=tensor)]
    model.functions.append(helper.make_function("my.own", "F", [], ["k"], nodes, opset))


@pytest.mark.parametrize(
    "put_in",
    [lambda model, tensor: model.graph.initializer.append(tensor), _in_a_constant, _in_a_branch, _in_a_function],
    ids=["an initializer", "a constant node", "a branch", "a function"],
)
def test_no_weights_are_read_from_outside_wherever_they_hide(
    put_in: Callable[[onnx.ModelProto, TensorProto], None], tmp_path: Path
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "model").mkdir()
    model = good("tensorrt")
    put_in(model, _outside(numpy_helper.from_array(np.zeros(2, np.float32), "t")))
    with pytest.raises(ModelError, match=r"the weights of 't' lie outside the model's folder, at '../w.bin'"):
        read_onnx_file(_saved(model, tmp_path / "model"))


def test_a_location_in_a_circle_of_links(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    model = good("tensorrt")
    model.graph.initializer.append(_outside(numpy_helper.from_array(np.zeros(2, np.float32), "t"), "circle/w.bin"))
    with pytest.raises(
        ModelError, match=r"the weights of 't'.* at 'circle/w.bin'|'circle/w.bin' with the weights of 't'"
    ):
        read_onnx_file(_saved(model, tmp_path))


def _without_lengths(model: onnx.ModelProto) -> None:
    """Each tensor then takes the whole data file."""
    for tensor in model.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)


def _of_unknown_type(model: onnx.ModelProto) -> None:
    next(entry for entry in model.graph.initializer if entry.name == "zero").data_type = 99


@pytest.mark.parametrize("spoil", [_without_lengths, _of_unknown_type])
def test_weights_that_are_not_what_they_say(spoil: Callable[[onnx.ModelProto], None], tmp_path: Path) -> None:
    model = onnx.load(_with_data(tmp_path), load_external_data=False)
    spoil(model)
    with pytest.raises(ModelError, match=r"the weights '\w+' are not of the shape and type they say"):
        read_onnx_file(_saved(model, tmp_path))


def test_a_graph_without_nodes(tmp_path: Path) -> None:
    model = good("tensorrt")
    del model.graph.node[:]
    with pytest.raises(ModelError, match=r"m.onnx holds no ONNX graph \(\d+ bytes\)"):
        read_onnx_file(_saved(model, tmp_path))


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_only_model_errors_come_of_files_with_changed_bytes(tmp_path: Path) -> None:
    """600 files with up to four bytes changed, cut out or put in: some are still models, none is a traceback."""
    (tmp_path / "data").mkdir()
    sources = [
        good("tensorrt").SerializeToString(),
        _constants_as_nodes(good("tensorrt")).SerializeToString(),
        _with_data(tmp_path).read_bytes(),
    ]
    generator = random.Random(5)
    refused = 0
    for _ in range(600):
        content = bytearray(generator.choice(sources))
        for _ in range(generator.choice((1, 1, 2, 4))):
            place, many = generator.randrange(len(content)), generator.randrange(3)
            content[place : place + many] = generator.randbytes(generator.randrange(3))
        (tmp_path / "m.onnx").write_bytes(content)
        try:
            read_onnx_file(tmp_path / "m.onnx")
        except ModelError as error:
            refused += 1
            assert len(error.message.splitlines()) == 1
    assert 0 < refused < 600
