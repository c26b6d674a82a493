from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from edgetune.core.tensors import TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_request import WireContract
from tests.unit.serve.wire.v2_requests import FLAT, IMAGES, PIXELS, binary_body, json_body, parse, refuses


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"inputs": NaN}', "not valid JSON"),
        (b'{"id": "\\ud800"}', "not valid JSON"),
        (b'{"id": 1e999}', "not valid JSON"),
        (b"[" * 50_000, "not valid JSON"),
        (b'{"inputs":' * 9_000, "not valid JSON"),
        (b"[]", "the request is a list, expected a JSON object"),
        (b"null", "the request is null, expected a JSON object"),
        (b'"text"', "the request is 'text', expected a JSON object"),
        (b"-1.5", "the request is -1.5, expected a JSON object"),
        (b"{}", "'inputs' must be a list of objects"),
        (b'{"inputs": {}}', "'inputs' must be a list of objects"),
        (b'{"inputs": [3]}', "'inputs' must be a list of objects"),
        (b'{"inputs": []}', r"the inputs are \[\], expected \['image'\]"),
        (b'{"inputs": [{}]}', "an input: 'name' is null, expected a string"),
        (b'{"inputs": [{"name": 3}]}', "an input: 'name' is 3, expected a string"),
        (b'{"inputs": [{"name": "img"}]}', r"the inputs are \['img'\], expected \['image'\]"),
        (b'{"inputs": [{"name": "image"}, {"name": "image"}]}', r"the inputs are \['image', 'image'\]"),
        (b'{"inputs": [{"name": "image"}, {"name": "x"}]}', r"the inputs are \['image', 'x'\]"),
        (b'{"inputs": [{"name": "' + b"x" * 90_000 + b'"}]}', r"the inputs are \['x{64}'\]"),
        (b'{"inputs": [' + b'{"name":"x"},' * 5000 + b"{}]}", r"the inputs are \['x', 'x'\]"),
        (b'{"inputs": [' + b"{}," * 12_000 + b"{}]}", "holds over 10000 values beside tensor data"),
        (b'{"a": [' + b"0," * 10_000 + b"0]}", "holds over 10000 values beside tensor data"),
    ],
    ids=["cut off", "not UTF-8", "NaN", "half a character", "huge number", "deep lists", "deep objects", "list", "null",
         "text", "number", "no inputs", "inputs an object", "inputs of numbers", "no input", "nameless",
         "name a number", "other name", "twice", "one too many", "endless name", "endless inputs", "endless objects",
         "endless parameter"],
)  # fmt: skip
def test_what_is_no_request_is_refused(body: bytes, words: str) -> None:
    refuses(body, None, words)
    refuses(body, str(len(body)), words)


def test_an_empty_body_is_refused() -> None:
    refuses(b"", None, "not valid JSON")
    for content_type in ("", "image/png"):
        with pytest.raises(RequestError, match="the raw body has 0 bytes, expected a multiple of 12"):
            parse(b"", "0", content_type=content_type)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_may_be_a_hundred_deep(opening: str, closing: str) -> None:
    """`parameters` is at depth 2, what it holds at 3."""

    def body(depth: int) -> bytes:
        deep = opening * (depth - 2) + "0" + closing * (depth - 2)
        return json_body(parameters={"own": "HERE"}).replace(b'"HERE"', deep.encode())

    assert parse(body(100)).count == 1
    refuses(body(101), None, "nested deeper than 100")
    refuses(body(900), None, "nested deeper than 100")
    refuses(body(1100), None, "not valid JSON")


BAD_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"datatype": ...}, "input 'image': 'datatype' is null, expected a string"),
    ({"datatype": 8}, "input 'image': 'datatype' is 8, expected a string"),
    ({"datatype": "FP32"}, "input 'image' is 'FP32', expected UINT8"),
    ({"datatype": "uint8"}, "input 'image' is 'uint8', expected UINT8"),
    ({"datatype": "BF16"}, "input 'image' is 'BF16', expected UINT8"),
    ({"datatype": "X" * 5000}, "input 'image' is 'X{64}', expected UINT8"),
    ({"shape": ...}, "'shape' must be a list of integers"),
    ({"shape": None}, "'shape' must be a list of integers"),
    ({"shape": 12}, "'shape' must be a list of integers"),
    ({"shape": "1223"}, "'shape' must be a list of integers"),
    ({"shape": [True, 2, 2, 3]}, "'shape' must be a list of integers"),
    ({"shape": [1.0, 2, 2, 3]}, "'shape' must be a list of integers"),
    ({"shape": [None, 2, 2, 3]}, "'shape' must be a list of integers"),
    ({"shape": ["1", 2, 2, 3]}, "'shape' must be a list of integers"),
    ({"shape": [10**30, 2, 2, 3]}, "'shape' must be a list of integers"),
    ({"shape": []}, r"has shape \[\], expected \[-1, 2, 2, 3\]"),
    ({"shape": [2, 2, 3]}, r"has shape \[2, 2, 3\], expected"),
    ({"shape": [1, 1, 2, 2, 3]}, r"has shape \[1, 1, 2, 2, 3\]"),
    ({"shape": [1] * 9_000}, r"has shape \[1, 1, 1, 1, 1, 1, 1, 1\]"),
    ({"shape": [1, 2, 3, 2]}, r"has shape \[1, 2, 3, 2\]"),
    ({"shape": [0, 2, 2, 3], "data": []}, r"has shape \[0, 2, 2, 3\]"),
    ({"shape": [-1, 2, 2, 3]}, r"has shape \[-1, 2, 2, 3\]"),
    ({"shape": [1, -2, -2, 3]}, r"has shape \[1, -2, -2, 3\]"),
    ({"shape": [5, 2, 2, 3], "data": PIXELS * 5}, "holds 5 items, at most 4 are served at once"),
    ({"shape": [2**62, 2, 2, 3]}, "items, at most 4 are served at once"),
    ({"data": ...}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": None}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": 7}, "'data' is 7, expected a list"),
    ({"data": {"0": 1}}, "'data' is an object, expected a list"),
    ({"data": "abcdefghijkl"}, "'data' is 'abcdefghijkl', expected a list"),
    ({"data": []}, "'data' holds 0 values, expected 12"),
    ({"data": PIXELS[:-1]}, "'data' holds 11 values, expected 12"),
    ({"data": [*PIXELS, 1]}, "'data' holds 13 values"),
    ({"data": [[1, 2, 3], [4, 5]]}, "'data' has 2 lists at depth 1, expected 1"),
    *[
        ({"data": [[1, 2, 3], bad], "shape": [2, 2, 2, 3]}, "the lists in 'data' are not all of one length")
        for bad in ([4, 5], [1, 2, 3, 4], {"a": 1, "b": 2, "c": 3}, "abc", 1)
    ],
    ({"data": [[1, 2, 3], [4, 5, 6]], "shape": [2, 2, 2, 3]}, "'data' holds 6 values, expected 24"),
    ({"data": [PIXELS[:6], PIXELS[6:]]}, "'data' has 2 lists at depth 1, expected 1"),
    ({"data": [[[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [1, 1]]]]}, "'data' has 6 lists at depth 3, expected 4"),
    ({"data": [[PIXELS[:3], PIXELS[3:6], PIXELS[6:9]]]}, "'data' has 3 lists at depth 2, expected 2"),
    ({"data": [[]]}, "'data' holds 0 values"),
    ({"data": [*PIXELS[:-1], [1]]}, r"'data' holds a list, expected integers in 0\.\.255"),
    ({"data": [[[[[value] for value in PIXELS[:3]]] * 2] * 2]}, "'data' holds|'data' has"),
    ({"data": [*PIXELS[:-1], -1]}, r"'data' holds -1, expected integers in 0\.\.255"),
    ({"data": [*PIXELS[:-1], 256]}, r"'data' holds 256, expected integers in 0\.\.255"),
    ({"data": [*PIXELS[:-1], 2**63 - 1]}, "'data' holds 9223372036854775807, expected"),
    ({"data": [2**64 - 1] * 12}, "'data' holds 18446744073709551615, expected"),
    ({"data": [*PIXELS[:-1], 10**30]}, r"'data' holds 1e[+]?30, expected integers"),
    ({"data": [*PIXELS[:-1], 1.0]}, "'data' holds 1.0, expected integers"),
    ({"data": [0.5] * 12}, "'data' holds 0.5, expected integers"),
    ({"data": [True] * 12}, "'data' holds true, expected integers"),
    ({"data": [*[9] * 11, True]}, "'data' holds true, expected integers"),
    ({"data": [*[9] * 11, False]}, "'data' holds false, expected integers"),
    ({"data": ["1"] * 12}, "'data' holds '1', expected integers"),
    ({"data": [*PIXELS[:-1], "1"]}, "'data' holds '1', expected integers"),
    ({"data": [*PIXELS[:-1], "\n\0" * 9000]}, r"'data' holds '(\\n\\x00)+.*\.\.\., expected integers"),
    ({"data": [*PIXELS[:-1], None]}, "'data' holds null, expected integers"),
    ({"data": [{}] * 12}, "'data' holds an object, expected integers"),
    ({"parameters": [1]}, "'parameters' is a list, expected an object"),
    ({"parameters": "text"}, "'parameters' is 'text', expected an object"),
    ({"parameters": 0}, "'parameters' is 0, expected an object"),
    ({"parameters": []}, "'parameters' is a list, expected an object"),
]


@pytest.mark.parametrize(("image", "words"), BAD_INPUTS, ids=[str(image)[:50] for image, _ in BAD_INPUTS])
def test_an_input_that_does_not_fit_is_refused(image: dict[str, Any], words: str) -> None:
    refuses(json_body(image=image), None, words)


def test_lists_nested_deeper_than_their_shape_are_refused() -> None:
    for depth in (4, 200):
        deep = "[" * depth + json.dumps(PIXELS) + "]" * depth
        body = json_body().replace(json.dumps(PIXELS).encode(), deep.encode())
        refuses(body, None, "'data' holds 1 values|'data' has 1 lists at depth 2, expected 2")


def test_hostile_data_costs_neither_memory_nor_much_time() -> None:
    """An array of the longest text times the number of texts would take 10 GB."""
    code = """
import json, resource, time
from edgetune.core.tensors import TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_request import WireContract, parse_infer_request
contract = WireContract((TensorSpec("x", "uint8", (None, 2)),), (), None, (), 4_000_000, 4 << 20)
entry = {"name": "x", "datatype": "UINT8", "shape": [5_000, 2]}
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for data in (["x" * 1_000_000] + [""] * 9_999, [[]] * 1_000_000, [{}] * 1_000_000, [0] * 9_999 + [2**63]):
    body = json.dumps({"inputs": [{**entry, "data": data}]}, separators=(",", ":")).encode()
    started = time.process_time()
    try:
        parse_infer_request(body, None, "", contract)
    except RequestError as error:
        print(error.status, time.process_time() - started < 2)
"""
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout == "400 True\n" * 4, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("changes", "words", "status"),
    [
        ({"id": 5}, "'id' is 5, expected a string", 400),
        ({"id": ["a"]}, "'id' is a list, expected a string", 400),
        ({"id": "x" * 257}, "'id' has 257 characters, at most 256 are echoed", 400),
        ({"parameters": [1]}, "'parameters' is a list, expected an object", 400),
        ({"parameters": {"timeout": True}}, "'timeout' is true, expected microseconds", 400),
        ({"parameters": {"timeout": -1}}, "'timeout' is -1, expected microseconds", 400),
        ({"parameters": {"timeout": 1.0}}, "'timeout' is 1.0, expected microseconds", 400),
        ({"parameters": {"timeout": "1"}}, "'timeout' is '1', expected microseconds", 400),
        ({"parameters": {"timeout": None}}, "'timeout' is null, expected microseconds", 400),
        ({"parameters": {"binary_data_output": 1}}, "'binary_data_output' is 1, expected true or false", 400),
        ({"parameters": {"priority": 1}}, "'priority' is 1, it is not supported; leave it out", 400),
        ({"parameters": {"sequence_id": 7}}, "'sequence_id' is 7, it is not supported", 400),
        ({"parameters": {"sequence_id": "a"}}, "'sequence_id' is 'a', it is not supported", 400),
        ({"parameters": {"sequence_start": True}}, "'sequence_start' is true, it is not supported", 400),
        ({"parameters": {"sequence_end": []}}, "'sequence_end' is a list, it is not supported", 400),
        ({"parameters": {"triton_enable_empty_final_response": False}}, "'triton_enable_.*' is reserved", 400),
        ({"parameters": {"headers": 0}}, "the parameter 'headers' is reserved", 400),
        ({"outputs": "logits"}, "'outputs' must be a list of objects", 400),
        ({"outputs": ["logits"]}, "'outputs' must be a list of objects", 400),
        ({"outputs": [{}]}, "an output: 'name' is null, expected a string", 400),
        ({"outputs": [{"name": ["logits"]}]}, "an output: 'name' is a list, expected a string", 400),
        ({"outputs": [{"name": "x"}]}, r"output 'x' is unknown; the model has \['logits', 'features'\]", 400),
        ({"outputs": [{"name": "x" * 5000}]}, "output 'x{64}' is unknown", 400),
        ({"outputs": [{"name": "logits"}, {"name": "logits"}]}, "output 'logits' is asked for twice", 400),
        ({"outputs": [{"name": "logits"}] * 3}, "3 outputs are asked for, the model has 2", 400),
        ({"outputs": [{"name": "logits", "parameters": 3}]}, "'parameters' is 3, expected an object", 400),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": 0}}]}, "'binary_data' is 0, expected true", 400),
        ({"outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "'classification' is -1", 400),
        ({"outputs": [{"name": "logits", "parameters": {"classification": True}}]}, "'classification' is true", 400),
        ({"outputs": [{"name": "logits", "parameters": {"classification": "3"}}]}, "'classification' is '3'", 400),
        (
            {"outputs": [{"name": "logits", "parameters": {"classification": 1_000_001}}]},
            r"'classification' is 1000001, expected a number of classes in 1\.\.1000000",
            400,
        ),
        ({"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}]}, "shared memory is not", 501),
        ({"image": {"parameters": {"shared_memory_byte_size": 12}}}, "shared memory is not supported", 501),
    ],
)
def test_a_message_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, status: int) -> None:
    refuses(json_body(**changes), None, words, status)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"name": "p"}, "output 'p' is FP16, which JSON cannot carry; ask for binary_data"),
        ({"name": "p", "parameters": {"classification": 1}}, ""),
        ({"name": "p", "parameters": {"binary_data": True}}, ""),
        (
            {"name": "q", "parameters": {"classification": 1}},
            r"output 'q' is BOOL \(None, 2\), which has no best classes",
        ),
        ({"name": "r", "parameters": {"classification": 1}}, r"output 'r' is INT64 \(\), which has no best classes"),
    ],
)
def test_outputs_that_cannot_be_written_so_are_refused_before_they_are_computed(
    output: dict[str, Any], words: str
) -> None:
    body = json_body(outputs=[output])
    contract = WireContract(IMAGES.inputs, FLAT.outputs, None, ())
    if words:
        refuses(body, None, words, contract=contract)
    else:
        assert [wanted.name for wanted in parse(body, None, contract).outputs] == ["p"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: binary_body(bytes(12), header_shift=1), "not valid JSON"),
        (lambda: binary_body(bytes(12), header_shift=-1), "not valid JSON"),
        (lambda: binary_body(bytes(12), header_shift=13), "header size should be in range"),
        (lambda: binary_body(bytes(11)), "'binary_data_size' is 12, 11 bytes are left"),
        (lambda: binary_body(b""), "'binary_data_size' is 12, 0 bytes are left"),
        (lambda: binary_body(bytes(13)), "unexpected additional input data: 1 bytes"),
        (lambda: binary_body(bytes(12), size=11), "unexpected size for input 'image': 11 bytes, expected 12"),
        (lambda: binary_body(bytes(13), size=13), "unexpected size for input 'image': 13 bytes, expected 12"),
        (lambda: binary_body(bytes(12), size=0), "unexpected size for input 'image': 0 bytes"),
        (lambda: binary_body(bytes(12), size=-12), "'binary_data_size' is -12"),
        (lambda: binary_body(bytes(12), size=12.0), "'binary_data_size' is 12.0"),
        (lambda: binary_body(bytes(12), size="12"), "'binary_data_size' is '12'"),
        (lambda: binary_body(bytes(12), size=True), "'binary_data_size' is true"),
        (lambda: binary_body(bytes(12), size=[12]), "'binary_data_size' is a list"),
        (lambda: binary_body(bytes(12), size=10**30), "'binary_data_size' is 1e[+]30"),
        (lambda: binary_body(bytes(12), size=None), "has neither 'data' nor 'binary_data_size'"),
        (lambda: binary_body(bytes(12), image={"data": PIXELS}), "has both 'data' and 'binary_data_size'"),
        (lambda: binary_body(bytes(60), size=60, image={"shape": [5, 2, 2, 3]}), "at most 4 are served at once"),
        (lambda: (json_body() + b"\0", str(len(json_body()))), "unexpected additional input data: 1 bytes"),
        (lambda: (binary_body(b"")[0], None), "'binary_data_size' is 12, 0 bytes are left"),
    ],
    ids=["header one long", "header one short", "header beyond the body", "data one short", "no data", "data one long",
         "size one short", "size one long", "size zero", "size negative", "size a float", "size text", "size true",
         "size a list", "size huge", "size null", "data twice", "batch too large", "tail after JSON data",
         "size without header"],
)  # fmt: skip
def test_binary_data_that_does_not_fit_is_refused(make: Callable[[], tuple[bytes, str | None]], words: str) -> None:
    refuses(*make(), words)


@pytest.mark.parametrize(
    "header", ["", "-1", "+5", " 5", "5 ", "1e1", "0x5", "5.0", "five", "\u0665", "\u00b2", "99999999", "9" * 5000]
)
def test_a_header_length_that_is_no_length_is_refused(header: str) -> None:
    refuses(json_body(), header, r"inference header size should be in range \(0, \d+\), got: ")


def test_a_full_request_of_json_pixels_is_read_quickly() -> None:
    """Far above what it takes, and far below what a look at each value in Python would."""
    contract = WireContract((TensorSpec("image", "uint8", (None, 224, 224, 3)),), IMAGES.outputs, "image", ())
    body = json_body(image={"shape": [1, 224, 224, 3], "data": [7] * 150_528})
    started = time.process_time()
    for _ in range(10):
        parse(body, None, contract)
    assert (time.process_time() - started) / 10 < 0.03
