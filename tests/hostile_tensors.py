"""Infer requests whose JSON, shapes or tensors are wrong: cases for `test_server_hostile.py`.

The server they are for serves `mean_bundle` and takes JSON of 512 KiB at most.
"""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

from tests.raw_http import MEAN_COLOUR, Case, binary_infer, case, infer

_PIXELS = list(MEAN_COLOUR)


def _message(**changes: Any) -> dict[str, Any]:
    """A good request with keys of its input changed."""
    return {"inputs": [{"name": "image", "shape": [1, 4, 4, 3], "datatype": "UINT8", "data": _PIXELS, **changes}]}


def _json(message: object) -> bytes:
    return infer(json.dumps(message).encode())


def _text(text: str) -> bytes:
    return infer(text.encode("utf-8", "surrogatepass"))


def _data(values: str) -> bytes:
    return _text(json.dumps(_message(data=[])).replace('"data": []', f'"data": {values}'))


_GOOD = json.dumps(_message())

TEXTS = (
    case("good", _json(_message()), 200),
    case("good, with what nobody knows", _json({**_message(), "unknown": [{"a": [1]}]}), 200),
    *(case(f"text {name}", _text(text), 400)
      for name, text in {
          "empty": "", "spaces": "   ", "half": _GOOD[:-20], "more": _GOOD + "{}", "NUL": "\x00",
          "BOM": "\ufeff" + _GOOD,
          "list": "[]", "string": '"x"', "number": "1", "null": "null", "true": "true", "comment": _GOOD + "// x",
          "single quotes": "{'inputs': []}", "deep lists": "[" * 100_000, "deep objects": '{"a":' * 100_000,
          "deep and closed": '{"inputs": ' + "[" * 900 + "]" * 900 + "}", "deep parameters":
          '{"parameters": ' + '{"a":' * 200 + "1" + "}" * 200 + ', "inputs": []}',
          "lone surrogate": '{"id": "\\ud800"}',
          "raw surrogate": '{"id": "\ud800"}', "many values": '{"inputs": [], "x": [' + "[]," * 20_000 + "[]]}",
          "no inputs": "{}", "empty inputs": '{"inputs": []}', "constructor": '{"__class__": "x", "inputs": [{}]}',
      }.items()),
    case("JSON over its limit", _text(_GOOD + " " * 600_000), 413),
    case("duplicate keys", _text(_GOOD[:-1] + ', "inputs": []}'), 400),
    case("NUL in a name", _json(_message(name="image\x00")), 400),
    case("id of all letters", _text(_GOOD[:-1] + ', "id": "\\u0000\\u202e\U0001f600"}'), 200),
    case("id too long", _json({**_message(), "id": "x" * 300}), 400),
)  # fmt: skip

_ODD: dict[str, Any] = {
    "null": None, "true": True, "0": 0, "-1": -1, "1.5": 1.5, "2**63": 2**63, "10**30": 10**30, "text": "x",
    "empty": "",
    "list": [], "lists": [[]], "object": {}, "numbers": [1, 2],
}  # fmt: skip

# Of each key, which odd values mean the same as leaving it out.
_KEYS: dict[tuple[Any, ...], frozenset[str]] = {
    ("id",): frozenset({"null", "text", "empty"}),
    ("parameters",): frozenset({"null", "object"}),
    ("inputs",): frozenset(),
    ("outputs",): frozenset({"null", "list"}),
    ("inputs", 0): frozenset(),
    ("inputs", 0, "name"): frozenset(),
    ("inputs", 0, "shape"): frozenset(),
    ("inputs", 0, "datatype"): frozenset(),
    ("inputs", 0, "data"): frozenset(),
    ("inputs", 0, "parameters"): frozenset({"null", "object"}),
    ("inputs", 0, "parameters", "binary_data_size"): frozenset({"null"}),
    ("outputs", 0): frozenset(),
    ("outputs", 0, "name"): frozenset(),
    ("outputs", 0, "parameters"): frozenset({"null", "object"}),
    ("outputs", 0, "parameters", "binary_data"): frozenset({"true"}),
    ("outputs", 0, "parameters", "classification"): frozenset({"0"}),
    ("parameters", "binary_data_output"): frozenset({"true"}),
    ("parameters", "timeout"): frozenset({"0", "2**63"}),
    ("parameters", "headers"): frozenset(),
    ("parameters", "triton_x"): frozenset(),
}


def _odd_values(path: tuple[Any, ...], harmless: frozenset[str]) -> Case:
    """All odd values of one key, one after the other on one connection."""
    data, answers = b"", []
    for name, value in _ODD.items():
        message = {**_message(parameters={}), "outputs": [{"name": "logits", "parameters": {}}], "parameters": {}}
        place: Any = message
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = copy.deepcopy(value)
        data += _json(message)
        answers.append((200,) if name in harmless else (400,))
    return Case(f"odd values of {'.'.join(map(str, path))}", data, tuple(answers))


TYPES = tuple(_odd_values(path, harmless) for path, harmless in _KEYS.items())

VALUES = (
    *(case(f"data {name}", _data(values), 400)
      for name, values in {
          "NaN": "[" + "NaN," * 47 + "1]", "infinity": "[" + "Infinity," * 47 + "1]",
          "1e999": "[" + "1e999," * 47 + "1]",
          "minus": str([-1] * 48), "256": str([256] * 48), "floats": str([1.0] * 48), "strings": json.dumps(["1"] * 48),
          "nulls": json.dumps([None] * 48), "bools": json.dumps([True] * 48), "one bool": json.dumps([1] * 47 + [True]),
          "47 values": str([1] * 47), "49 values": str([1] * 49), "a digit of 5000": "[" + "9" * 5000 + "]",
          "ragged": "[[[[1,2,3],[1,2]]]]", "deeper than its shape": "[" * 6 + "1" + "]" * 6, "lists of nothing":
          "[" + "[]," * 47 + "[]]", "an object": "{}", "mixed": json.dumps([[1]] + [2] * 47), "100,000 lists":
          "[" + "[]," * 100_000 + "[]]",
      }.items()),
    case("nested as its shape", _data(json.dumps([[[[10, 20, 30]] * 4] * 4])), 200),
)  # fmt: skip

SHAPES = tuple(
    case(f"shape {name}", _json(_message(shape=shape)), 400)
    for name, shape in {
        "negative": [-1, 4, 4, 3], "two negatives": [-1, -4, 4, 3], "zero": [0, 4, 4, 3], "huge": [2**62, 4, 4, 3],
        "product over 2**64": [2**40, 2**40, 4, 3], "product wraps to 48": [2**60 + 1, 4, 4, 3], "float": [1.0, 4, 4,
        3],
        "bools": [True, 4, 4, 3], "strings": ["1", 4, 4, 3], "null": [None, 4, 4, 3], "empty": [], "flat": [48],
        "rank 100": [1] * 97 + [4, 4, 3], "100,000 sizes": [1] * 100_000, "lists": [[1, 4, 4, 3]],
        "over the batch": [257, 4, 4, 3],
        "another order": [1, 3, 4, 4], "a number": 48, "an object": {"0": 1},
    }.items()
)  # fmt: skip

NAMES = (
    case("input unknown", _json(_message(name="images")), 400),
    case("input twice", _json({"inputs": _message()["inputs"] * 2}), 400),
    case("thousands of inputs", _json({"inputs": [{"name": f"i{n}"} for n in range(9000)]}), 400),
    case("output unknown", _json({**_message(), "outputs": [{"name": "x" * 500}]}), 400),
    case("output twice", _json({**_message(), "outputs": [{"name": "logits"}] * 2}), 400),
    case("thousands of outputs", _json({**_message(), "outputs": [{"name": "logits"}] * 9000}), 400),
    case("shared memory in", _json(_message(parameters={"shared_memory_region": "x"}, data=None)), 501),
    case("shared memory out", _json({**_message(), "outputs": [
        {"name": "logits", "parameters": {"shared_memory_region": "x"}}]}), 501),
    case("classes of all numbers", _json({**_message(), "outputs": [
        {"name": "logits", "parameters": {"classification": 1_000_000}}]}), 200),
    case("classes over the limit", _json({**_message(), "outputs": [
        {"name": "logits", "parameters": {"classification": 1_000_001}}]}), 400),
    case("sequence", _json({**_message(), "parameters": {"sequence_id": 1}}), 400),
    case("timeout of a microsecond", _json({**_message(), "parameters": {"timeout": 1}}), 200, 504),
    *(case(f"datatype {datatype}", _json(_message(datatype=datatype)), 400)
      for datatype in ("FP32", "INT8", "uint8", "BF16", "FP16", "UINT8 ", "x" * 300, "BYTES")),
)  # fmt: skip


def _binary(size: object, blob: bytes, **changes: Any) -> bytes:
    message = _message(parameters={"binary_data_size": size}, **changes)
    del message["inputs"][0]["data"]
    return binary_infer(message, blob)


def _bytes(count: int, blob: bytes, shape: object = None) -> bytes:
    """A BYTES tensor of image files."""
    return _binary(len(blob), blob, datatype="BYTES", shape=[count] if shape is None else shape)


def _element(data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<I", len(data) if length is None else length) + data


BINARY = (
    case("binary", _binary(48, MEAN_COLOUR), 200),
    *(case(f"binary size {name}", _binary(size, MEAN_COLOUR), 400)
      for name, size in {"short": 47, "long": 49, "negative": -48, "huge": 2**31, "over int64": 2**64, "float": 48.0,
      "text": "48",
                         "true": True, "zero": 0, "list": [48]}.items()),
    case("binary and bytes after it", _binary(48, MEAN_COLOUR + b"x"), 400),
    case("binary of two images for one", _binary(96, MEAN_COLOUR * 2), 400),
    case("binary without its bytes", _binary(48, b""), 400),
    case("binary and data", binary_infer(_message(parameters={"binary_data_size": 48}), MEAN_COLOUR), 400),
    case("binary without header length", infer(json.dumps(
        {"inputs": [{**_message()["inputs"][0], "data": None, "parameters": {"binary_data_size": 48}}]}).encode()),
        400),
    case("overlapping sizes", binary_infer({"inputs": [
        {"name": "image", "shape": [1, 4, 4, 3], "datatype": "UINT8", "parameters": {"binary_data_size": 48}}] * 2},
        MEAN_COLOUR), 400),
    case("header length cuts the JSON", infer(_GOOD.encode(), "Inference-Header-Content-Length: 20"), 400),
    case("raw body empty", infer(b"", "Inference-Header-Content-Length: 0"), 400),
    case("raw body not whole", infer(b"x" * 47, "Inference-Header-Content-Length: 0"), 400),
    case("raw body over the batch", infer(b"x" * 48 * 257, "Inference-Header-Content-Length: 0"), 400),
    case("raw body of the whole batch", infer(b"x" * 48 * 256, "Inference-Header-Content-Length: 0"), 200),
    *(case(f"bytes {name}", data, 400)
      for name, data in {
          "no image": _bytes(1, _element(b"abc")), "length over the rest": _bytes(1, _element(b"abc", 4)),
          "length 0xFFFFFFFF": _bytes(1, _element(b"abc", 0xFFFFFFFF)), "length 0": _bytes(1, _element(b"")),
          "length short": _bytes(1, _element(b"abc", 2)), "half a length": _bytes(1, b"\x01\x00"), "nothing": _bytes(1,
          b""),
          "two for one": _bytes(1, _element(b"a") * 2), "one for two": _bytes(2, _element(b"a")),
          "count of 2**31": _bytes(2**31, _element(b"a")), "count of 2**64": _bytes(2**64, _element(b"a")),
          "count 0": _bytes(0, b""), "count negative": _bytes(-1, _element(b"a")), "257 elements": _bytes(257,
          _element(b"a") * 257),
          "lengths that wrap": _bytes(2, _element(b"a", 0xFFFFFFFD) + _element(b"b")), "shape [1, 2]":
          _bytes(1, _element(b"a") * 2, [1, 2]), "shape []": _bytes(1, _element(b"a"), []), "rank 100": _bytes(1,
          _element(b"a"), [1] * 100),
      }.items()),
)  # fmt: skip
