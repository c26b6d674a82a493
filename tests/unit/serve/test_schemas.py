from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.tensors import TensorSpec
from edgetune.serve.schemas import (
    InferRequest,
    RequestError,
    parse_infer_request,
)

INPUTS = (TensorSpec("image", "uint8", (None, 2, 2, 3)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, 2)), TensorSpec("features", "float32", (None, 3)))
MAX_BATCH = 4
PIXELS = list(range(12))


def _parse(body: bytes, header_length: str | None = None) -> InferRequest:
    return parse_infer_request(body, header_length, INPUTS, OUTPUTS, MAX_BATCH)


def _message(*, image: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A good request; keys of `image` and of the message are replaced, or dropped where the value is `...`."""
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": PIXELS, **(image or {})}
    message = {"inputs": [{key: value for key, value in entry.items() if value is not ...}], **changes}
    return {key: value for key, value in message.items() if value is not ...}


def _json(**arguments: Any) -> bytes:
    return json.dumps(_message(**arguments)).encode()


def _binary(tail: bytes, *, size: Any = 12, header_shift: int = 0, **arguments: Any) -> tuple[bytes, str]:
    """A request whose pixels follow the JSON; returns the body and the header's value."""
    image = {"data": ..., "parameters": {"binary_data_size": size}, **arguments.pop("image", {})}
    head = _json(image=image, **arguments)
    return head + tail, str(len(head) + header_shift)


def _refuses(body: bytes, header_length: str | None, words: str, status: int = 400) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        _parse(body, header_length)
    assert caught.value.status == status
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (PIXELS, [1, 2, 2, 3]),
        ([[[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]], [1, 2, 2, 3]),
        ([*PIXELS, *PIXELS], [2, 2, 2, 3]),
        ([0] * 47 + [255], [4, 2, 2, 3]),
    ],
    ids=["flat", "nested", "two images", "as many as allowed"],
)
def test_json_data_becomes_an_array(data: Any, shape: list[int]) -> None:
    request = _parse(_json(image={"data": data, "shape": shape}))
    array = request.feed["image"]
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.array(data, dtype=np.uint8).reshape(shape))


def test_outputs_default_to_all_in_json() -> None:
    assert _parse(_json()).outputs == {"logits": False, "features": False}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"outputs": []}, {"logits": False, "features": False}),
        ({"outputs": [{"name": "features"}]}, {"features": False}),
        ({"outputs": [{"name": "features"}, {"name": "logits"}]}, {"features": False, "logits": False}),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, {"logits": True}),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, {"logits": False}),
        ({"parameters": {"binary_data_output": True}}, {"logits": True, "features": True}),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "features"}],
            },
            {"logits": False, "features": True},
        ),
        ({"parameters": {"priority": 3, "sequence_id": "a"}}, {"logits": False, "features": False}),
    ],
    ids=[
        "none named",
        "one",
        "order kept",
        "one binary",
        "no classification",
        "all binary",
        "mixed",
        "other parameters",
    ],
)
def test_the_client_chooses_outputs_and_their_form(changes: dict[str, Any], expected: dict[str, bool]) -> None:
    outputs = _parse(_json(**changes)).outputs
    assert outputs == expected
    assert list(outputs) == list(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, None), ({"id": None}, None), ({"id": ""}, ""), ({"id": "é-42"}, "é-42")],
    ids=["absent", "null", "empty", "text"],
)
def test_the_id_is_kept(changes: dict[str, Any], expected: str | None) -> None:
    assert _parse(_json(**changes)).id == expected


def test_binary_data_follows_the_json() -> None:
    request = _parse(*_binary(bytes(range(244, 256))))
    np.testing.assert_array_equal(request.feed["image"], np.arange(244, 256, dtype=np.uint8).reshape(1, 2, 2, 3))


def test_binary_data_of_several_inputs_is_cut_in_their_order() -> None:
    inputs = (TensorSpec("a", "uint8", (None, 2)), TensorSpec("b", "float32", (None, 1)))
    entries = [
        {"name": "b", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
        {"name": "a", "datatype": "UINT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}},
    ]
    head = json.dumps({"inputs": entries}).encode()
    body = head + np.array([1.5], "<f4").tobytes() + bytes([7, 9])
    feed = parse_infer_request(body, str(len(head)), inputs, OUTPUTS, MAX_BATCH).feed
    np.testing.assert_array_equal(feed["b"], np.array([[1.5]], np.float32))
    np.testing.assert_array_equal(feed["a"], np.array([[7, 9]], np.uint8))


def test_a_header_that_covers_the_whole_body_is_plain_json() -> None:
    body = _json()
    np.testing.assert_array_equal(_parse(body, str(len(body))).feed["image"].ravel(), PIXELS)


@pytest.mark.parametrize("images", [1, 3, 4])
def test_a_raw_body_is_the_input_and_all_outputs_come_binary(images: int) -> None:
    body = bytes(range(12)) * images
    request = _parse(body, "0")
    assert request.id is None
    assert request.outputs == {"logits": True, "features": True}
    expected = np.tile(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), (images, 1, 1, 1))
    np.testing.assert_array_equal(request.feed["image"], expected)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"inputs": NaN}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs":' * 50_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"{}", "'inputs' must be a list of objects"),
        (b'{"inputs": {}}', "'inputs' must be a list of objects"),
        (b'{"inputs": [3]}', "'inputs' must be a list of objects"),
        (b'{"inputs": []}', r"the inputs are \[\], expected \['image'\]"),
        (b'{"inputs": [{}]}', "input: 'name' must be a string"),
        (b'{"inputs": [{"name": 3}]}', "input: 'name' must be a string"),
        (b'{"inputs": [{"name": "img"}]}', r"the inputs are \['img'\], expected \['image'\]"),
        (b'{"inputs": [{"name": "image"}, {"name": "image"}]}', r"the inputs are \['image', 'image'\]"),
        (b'{"inputs": [{"name": "image"}, {"name": "x"}]}', r"the inputs are \['image', 'x'\]"),
        (b'{"inputs": [{"name": "' + b"x" * 100_000 + b'"}]}', "the inputs are"),
    ],
    ids=[
        "empty",
        "cut off",
        "not UTF-8",
        "NaN",
        "deep lists",
        "deep objects",
        "list",
        "null",
        "text",
        "no inputs",
        "inputs an object",
        "inputs of numbers",
        "no input",
        "nameless",
        "name a number",
        "other name",
        "twice",
        "one too many",
        "endless name",
    ],
)
def test_what_is_no_request_is_refused(body: bytes, words: str) -> None:
    _refuses(body, None, words)
    _refuses(body, str(len(body)), "raw body has 0 bytes" if body == b"" else words)


BAD_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"datatype": ...}, "input 'image': 'datatype' must be a string"),
    ({"datatype": 8}, "input 'image': 'datatype' must be a string"),
    ({"datatype": "FP32"}, "input 'image' is FP32, expected UINT8"),
    ({"datatype": "uint8"}, "input 'image' is uint8, expected UINT8"),
    ({"datatype": "X" * 5000}, "input 'image' is XXXXXXXXXXXXXXXX, expected UINT8"),
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
    ({"shape": [1] * 10_000}, r"has shape \[1, 1, 1, 1, 1, 1, 1, 1\]"),
    ({"shape": [1, 2, 3, 2]}, r"has shape \[1, 2, 3, 2\]"),
    ({"shape": [0, 2, 2, 3], "data": []}, r"has shape \[0, 2, 2, 3\]"),
    ({"shape": [-1, 2, 2, 3]}, r"has shape \[-1, 2, 2, 3\]"),
    ({"shape": [1, -2, -2, 3]}, r"has shape \[1, -2, -2, 3\]"),
    ({"shape": [5, 2, 2, 3], "data": PIXELS * 5}, "holds 5 items, at most 4 are served at once"),
    ({"shape": [2**62, 2, 2, 3]}, "items, at most 4 are served at once"),
    ({"data": ...}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": None}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": 7}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": {"0": 1}}, "has neither 'data' nor 'binary_data_size'"),
    ({"data": []}, "'data' holds 0 values"),
    ({"data": PIXELS[:-1]}, "'data' holds 11 values, expected 12 integers"),
    ({"data": [*PIXELS, 1]}, "'data' holds 13 values"),
    ({"data": [[1, 2, 3], [4, 5]]}, "'data' holds 5 values"),
    ({"data": [*PIXELS[:-1], [1]]}, "'data' is not a regular array of numbers"),
    ({"data": [*PIXELS[:-1], -1]}, r"'data' must lie in 0\.\.255"),
    ({"data": [*PIXELS[:-1], 256]}, r"'data' must lie in 0\.\.255"),
    ({"data": [*PIXELS[:-1], 2**63 - 1]}, r"'data' must lie in 0\.\.255"),
    ({"data": [2**64 - 1] * 12}, r"'data' must lie in 0\.\.255"),
    ({"data": [*PIXELS[:-1], 2**64 - 1]}, "must lie in"),
    ({"data": [*PIXELS[:-1], 10**30]}, "holds a float, expected integers"),
    ({"data": [*PIXELS[:-1], 1.0]}, "holds a float, expected integers"),
    ({"data": [0.5] * 12}, "holds a float, expected integers"),
    ({"data": [True] * 12}, "holds a bool, expected integers"),
    ({"data": [*PIXELS[:-1], True]}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"data": ["1"] * 12}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"data": [*PIXELS[:-1], "1"]}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"data": [None] * 12}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"data": [*PIXELS[:-1], None]}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"data": [{}] * 12}, "holds a (bool|str|NoneType|dict), expected integers"),
    ({"parameters": [1]}, "'parameters' must be an object"),
    ({"parameters": "text"}, "'parameters' must be an object"),
]


@pytest.mark.parametrize(("image", "words"), BAD_INPUTS, ids=[str(image)[:50] for image, _ in BAD_INPUTS])
def test_an_input_that_does_not_fit_is_refused(image: dict[str, Any], words: str) -> None:
    _refuses(_json(image=image), None, words)


def test_lists_nested_deeper_than_arrays_go_are_refused() -> None:
    deep = "[" * 200 + json.dumps(PIXELS) + "]" * 200
    _refuses(_json().replace(json.dumps(PIXELS).encode(), deep.encode()), None, "'data' is not a regular array")


def test_text_as_data_costs_no_memory() -> None:
    """An array of the longest text times the number of texts would take 40 GB."""
    code = """
import json, resource
from edgetune.core.tensors import TensorSpec
from edgetune.serve.schemas import RequestError, parse_infer_request
entry = {"name": "image", "datatype": "UINT8", "shape": [1, 2], "data": ["x" * 1_000_000] + [""] * 9_999}
body = json.dumps({"inputs": [entry]}).encode()
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
try:
    parse_infer_request(body, None, (TensorSpec("image", "uint8", (None, 2)),), (), 4)
except RequestError as error:
    print(error.status)
"""
    environment = {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.stdout == "400\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "words", "status"),
    [
        ({"id": 5}, "'id' must be a string", 400),
        ({"id": ["a"]}, "'id' must be a string", 400),
        ({"parameters": [1]}, "'parameters' must be an object", 400),
        ({"outputs": None}, "'outputs' must be a list of objects", 400),
        ({"outputs": "logits"}, "'outputs' must be a list of objects", 400),
        ({"outputs": ["logits"]}, "'outputs' must be a list of objects", 400),
        ({"outputs": [{}]}, "output: 'name' must be a string", 400),
        ({"outputs": [{"name": ["logits"]}]}, "output: 'name' must be a string", 400),
        (
            {"outputs": [{"name": "x"}]},
            r"output 'x' is unknown or asked for twice; the model has \['logits', 'features'\]",
            400,
        ),
        ({"outputs": [{"name": "x" * 5000}]}, "output 'xxx", 400),
        ({"outputs": [{"name": "logits"}, {"name": "logits"}]}, "output 'logits' is unknown or asked for twice", 400),
        ({"outputs": [{"name": "logits", "parameters": 3}]}, "'parameters' must be an object", 400),
        (
            {"outputs": [{"name": "logits", "parameters": {"classification": 3}}]},
            "classification extension is not supported; POST images to /v1/classify",
            501,
        ),
    ],
    ids=[
        "id a number",
        "id a list",
        "parameters a list",
        "outputs null",
        "outputs text",
        "outputs of text",
        "nameless output",
        "name a list",
        "unknown output",
        "endless output",
        "output twice",
        "parameters a number",
        "classification",
    ],
)
def test_a_message_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, status: int) -> None:
    _refuses(_json(**changes), None, words, status)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _binary(bytes(12), header_shift=1), "not valid JSON"),
        (lambda: _binary(bytes(12), header_shift=-1), "not valid JSON"),
        (lambda: _binary(bytes(12), header_shift=13), "header size should be in range"),
        (lambda: _binary(bytes(11)), "unexpected size for input 'image'"),
        (lambda: _binary(b""), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(13)), "unexpected additional input data: 1 bytes"),
        (lambda: _binary(bytes(12), size=11), "unexpected size for input 'image'.*expected 12"),
        (lambda: _binary(bytes(13), size=13), "unexpected size for input 'image'.*expected 12"),
        (lambda: _binary(bytes(12), size=0), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=-12), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=12.0), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size="12"), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=True), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=[12]), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=10**30), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(12), size=None), "has neither 'data' nor 'binary_data_size'"),
        (lambda: _binary(bytes(12), image={"data": PIXELS}), "unexpected size for input 'image'"),
        (lambda: _binary(bytes(60), size=60, image={"shape": [5, 2, 2, 3]}), "at most 4 are served at once"),
        (lambda: (_json() + b"\0", str(len(_json()))), "unexpected additional input data: 1 bytes"),
        (lambda: (_json(image={"data": ..., "parameters": {"binary_data_size": 12}}), None), "unexpected size"),
    ],
    ids=[
        "header one long",
        "header one short",
        "header beyond the body",
        "data one short",
        "no data",
        "data one long",
        "size one short",
        "size one long",
        "size zero",
        "size negative",
        "size a float",
        "size text",
        "size true",
        "size a list",
        "size huge",
        "size null",
        "data twice",
        "batch too large",
        "tail after JSON data",
        "size without header",
    ],
)
def test_binary_data_that_does_not_fit_is_refused(make: Callable[[], tuple[bytes, str | None]], words: str) -> None:
    _refuses(*make(), words)


@pytest.mark.parametrize(
    "header", ["", "-1", "+5", " 5", "5 ", "1e1", "0x5", "5.0", "five", "\u0665", "\u00b2", "99999999", "9" * 5000]
)
def test_a_header_length_that_is_no_length_is_refused(header: str) -> None:
    _refuses(_json(), header, r"inference header size should be in range \(0, \d+\), got: ")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "raw body has 0 bytes, expected a multiple of 12"),
        (11, "raw body has 11 bytes, expected a multiple of 12"),
        (13, "raw body has 13 bytes"),
        (60, "holds 5 items, at most 4 are served at once"),
    ],
    ids=["empty", "one short", "one long", "batch too large"],
)
def test_a_raw_body_of_the_wrong_size_is_refused(size: int, words: str) -> None:
    _refuses(bytes(size), "0", words)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_HEADERS = st.none() | st.integers(0, 400).map(str) | st.text(max_size=6)


def _only_request_errors(body: bytes, header_length: str | None) -> None:
    try:
        request = _parse(body, header_length)
    except RequestError as error:
        assert error.status in {400, 501}
    else:
        array = request.feed["image"]
        assert array.dtype == np.uint8
        assert 1 <= len(array) <= MAX_BATCH
        assert array.shape[1:] == (2, 2, 3)


@settings(max_examples=150, deadline=None, database=None)
@given(body=st.binary(max_size=200), header_length=_HEADERS)
def test_random_bytes_raise_nothing_but_request_errors(body: bytes, header_length: str | None) -> None:
    _only_request_errors(body, header_length)


@settings(max_examples=150, deadline=None, database=None)
@given(key=st.sampled_from(["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id"]), value=_JSON)
def test_random_values_in_a_good_request_raise_nothing_but_request_errors(key: str, value: Any) -> None:
    changes = {key: value} if key in {"inputs", "outputs", "id"} else {"image": {key: value}}
    _only_request_errors(_json(**changes), None)


@settings(max_examples=150, deadline=None, database=None)
@given(tail=st.binary(max_size=30), header_length=_HEADERS, size=st.integers(-1, 60) | _JSON)
def test_random_binary_requests_raise_nothing_but_request_errors(
    tail: bytes, header_length: str | None, size: Any
) -> None:
    body, right_length = _binary(tail, size=size)
    _only_request_errors(body, header_length)
    _only_request_errors(body, right_length)
