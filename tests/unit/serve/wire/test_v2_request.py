from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edgetune.core.tensors import TensorSpec
from edgetune.serve.wire.v2_request import WantedOutput, WireContract
from tests.unit.serve.wire.v2_requests import IMAGES, PIXELS, binary_body, json_body, parse, refuses

PNG = b"\x89PNG\r\n\x1a\n"


def _wanted(**outputs: bool) -> tuple[WantedOutput, ...]:
    return tuple(WantedOutput(name, binary) for name, binary in outputs.items())


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (PIXELS, [1, 2, 2, 3]),
        ([[[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]], [1, 2, 2, 3]),
        ([PIXELS, PIXELS[::-1]], [2, 2, 2, 3]),
        ([*PIXELS, *PIXELS], [2, 2, 2, 3]),
        ([0] * 47 + [255], [4, 2, 2, 3]),
    ],
    ids=["flat", "nested", "a list for each image", "two images", "as many as allowed"],
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_json_data_becomes_an_array(data: Any, shape: list[int], kind: type[bytes]) -> None:
    request = parse(kind(json_body(image={"data": data, "shape": shape})))
    array = request.feed["image"]
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, np.array(data, dtype=np.uint8).reshape(shape))
    assert request.count == shape[0]
    assert request.files == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, _wanted(logits=False, features=False)),
        ({"outputs": []}, _wanted(logits=False, features=False)),
        ({"outputs": None, "parameters": None}, _wanted(logits=False, features=False)),
        ({"outputs": [{"name": "features"}]}, _wanted(features=False)),
        ({"outputs": [{"name": "features"}, {"name": "logits"}]}, _wanted(features=False, logits=False)),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, _wanted(logits=True)),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, _wanted(logits=False)),
        (
            {"outputs": [{"name": "logits", "parameters": {"classification": 3, "binary_data": True}}]},
            (WantedOutput("logits", True, 3),),
        ),
        (
            {"outputs": [{"name": "logits", "parameters": {"classification": 10**6}}]},
            (WantedOutput("logits", False, 10**6),),
        ),
        ({"parameters": {"binary_data_output": True}}, _wanted(logits=True, features=True)),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "features"}],
            },
            _wanted(logits=False, features=True),
        ),
        (
            {"parameters": {"priority": 0, "sequence_id": "", "sequence_end": False, "own": [1]}},
            _wanted(logits=False, features=False),
        ),
    ],
    ids=["absent", "none named", "null", "one", "order kept", "one binary", "no classes", "three classes",
         "all classes", "all binary", "mixed", "other parameters"],
)  # fmt: skip
def test_the_client_chooses_outputs_and_their_form(changes: dict[str, Any], expected: tuple[WantedOutput, ...]) -> None:
    assert parse(json_body(**changes)).outputs == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, None), ({"id": None}, None), ({"id": ""}, ""), ({"id": "é-\u4e2d\U0001f600"}, "é-\u4e2d\U0001f600"),
     ({"id": "é" * 256}, "é" * 256)],
    ids=["absent", "null", "empty", "not ASCII", "longest"],
)  # fmt: skip
def test_the_id_is_kept(changes: dict[str, Any], expected: str | None) -> None:
    assert parse(json_body(**changes)).id == expected


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [({}, None), ({"timeout": 0}, None), ({"timeout": 1}, 1), ({"timeout": 2_500_000}, 2_500_000)],
)
def test_the_timeout_is_in_microseconds(parameters: dict[str, Any], expected: int | None) -> None:
    assert parse(json_body(parameters=parameters)).timeout_us == expected


def test_binary_data_follows_the_json_and_is_not_copied() -> None:
    body, header = binary_body(bytes(range(244, 256)))
    array = parse(body, header).feed["image"]
    np.testing.assert_array_equal(array, np.arange(244, 256, dtype=np.uint8).reshape(1, 2, 2, 3))
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


TWO = WireContract(
    (TensorSpec("a", "uint8", (None, 2)), TensorSpec("b", "float32", (None, 1))), IMAGES.outputs, None, ()
)


def _two_inputs(batch_of_b: int = 1) -> tuple[bytes, str]:
    entries = [
        {"name": "b", "datatype": "FP32", "shape": [batch_of_b, 1], "parameters": {"binary_data_size": 4 * batch_of_b}},
        {"name": "a", "datatype": "UINT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}},
    ]
    head = json.dumps({"inputs": entries}).encode()
    return head + np.full(batch_of_b, 1.5, "<f4").tobytes() + bytes([7, 9]), str(len(head))


def test_binary_data_of_several_inputs_is_cut_in_their_order() -> None:
    feed = parse(*_two_inputs(), TWO).feed
    np.testing.assert_array_equal(feed["b"], np.array([[1.5]], np.float32))
    np.testing.assert_array_equal(feed["a"], np.array([[7, 9]], np.uint8))
    refuses(*_two_inputs(2), r"the inputs hold \[1, 2\] items, expected one number for all", contract=TWO)


def test_floats_at_any_address_are_the_same_and_aligned() -> None:
    values = np.array([0.1, -2.5, 3e38], "<f4")
    contract = WireContract((TensorSpec("x", "float32", (None, 3)),), IMAGES.outputs, None, ())
    for shift in range(4):
        entry = {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
        head = json.dumps({"inputs": [entry]}).encode() + b" " * shift
        array = parse(head + values.tobytes(), str(len(head)), contract).feed["x"]
        assert array.flags.aligned
        np.testing.assert_array_equal(array, values.reshape(1, 3))


def test_a_header_that_covers_the_whole_body_is_plain_json() -> None:
    body = json_body()
    np.testing.assert_array_equal(parse(body, str(len(body))).feed["image"].ravel(), PIXELS)


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "application/json"])
@pytest.mark.parametrize("images", [1, 3, 4])
def test_a_raw_body_is_the_input_and_all_outputs_come_binary(images: int, content_type: str) -> None:
    body = bytes(range(12)) * images
    request = parse(body, "0", content_type=content_type)
    assert request.id is None
    assert request.outputs == _wanted(logits=True, features=True)
    expected = np.tile(np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3), (images, 1, 1, 1))
    np.testing.assert_array_equal(request.feed["image"], expected)
    assert request.count == images


JPEG_PIXELS = b"\xff\xd8\xff" + bytes(7) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("body", "content_type", "is_file"),
    [
        (bytes(12), "", False),
        (bytes(12), "IMAGE/png; q=1", True),
        (bytes(12), " image/jpeg", True),
        (bytes(12), "text/image/", False),
        (bytes(13), "", True),
        (bytes(11), "application/json", True),
        (PNG + bytes(4), "", True),
        (PNG[:7] + bytes(5), "", False),
        (JPEG_PIXELS, "", True),
        (JPEG_PIXELS[:-1] + b"\xd8", "", False),
        (b"\xff\xd8\xfe" + JPEG_PIXELS[3:], "", False),
    ],
    ids=["pixels", "image type", "spaces", "other type", "one more", "one less", "PNG", "nearly PNG", "JPEG",
         "no end of JPEG", "no start of JPEG"],
)  # fmt: skip
def test_a_raw_body_is_pixels_or_one_image_file(body: bytes, content_type: str, is_file: bool) -> None:
    request = parse(body, "0", content_type=content_type)
    assert request.count == 1
    assert request.outputs == _wanted(logits=True, features=True)
    if is_file:
        assert request.feed == {}
        assert [bytes(file) for file in request.files] == [body]
    else:
        assert request.files == ()
        assert request.feed["image"].tobytes() == body


def test_a_raw_body_of_other_models_is_never_a_file() -> None:
    contract = dataclasses.replace(IMAGES, image_input=None)
    assert parse(JPEG_PIXELS, "0", contract, "image/jpeg").feed["image"].tobytes() == JPEG_PIXELS
    refuses(bytes(13), "0", "the raw body has 13 bytes, expected a multiple of 12", contract=contract)
    refuses(bytes(13), "0", "for models with one input, this one has 2", contract=TWO)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((None, 3), 24, [2, 3]),
        ((2, 3), 24, [2, 3]),
        ((None, None, 3), 24, [1, 2, 3]),
        ((2, None), 24, [2, 3]),
        ((2, 3), 48, "the raw body has 48 bytes, expected 24"),
        ((None, 3), 0, "the raw body has 0 bytes, expected a multiple of 12"),
        ((None, None, None), 24, "several open sizes"),
        ((None, 3), 60, "holds 5 items, at most 4 are served at once"),
    ],
)
def test_one_open_size_of_a_raw_body_follows_from_its_bytes(
    shape: tuple[int | None, ...], size: int, expected: list[int] | str
) -> None:
    contract = WireContract((TensorSpec("x", "float32", shape),), IMAGES.outputs, None, (), max_batch=4)
    if isinstance(expected, str):
        refuses(bytes(size), "0", expected, contract=contract)
    else:
        assert list(parse(bytes(size), "0", contract).feed["x"].shape) == expected


def _elements(*files: bytes) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def _files_body(tail: bytes, shape: Any, **entry: Any) -> tuple[bytes, str]:
    return binary_body(tail, size=len(tail), image={"datatype": "BYTES", "shape": shape, **entry})


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_image_files_come_as_bytes_with_their_lengths(shape: list[int]) -> None:
    files = [b"a", b"jpeg" * 100, bytes(12)]
    request = parse(*_files_body(_elements(*files), shape))
    assert request.feed == {}
    assert request.count == 3
    assert [bytes(file) for file in request.files] == files


@pytest.mark.parametrize(
    ("tail", "shape", "words"),
    [
        (_elements(b"a"), [2], "element 1 announces 0 bytes, 0 are left"),
        (_elements(b"a", b"b"), [1], "input 'image': 5 bytes follow its 1 elements"),
        (_elements(b"ab")[:-1], [1], "element 0 announces 2 bytes, 1 are left"),
        (b"\xff\xff\xff\xffabc", [1], "element 0 announces 4294967295 bytes, 3 are left"),
        (_elements(b""), [1], "element 0 announces 0 bytes"),
        (b"\x01\x00", [1], "element 0 announces 1 bytes, 0 are left"),
        (b"", [1], "element 0 announces 0 bytes, 0 are left"),
        (_elements(b"a"), [], r"BYTES has shape \[\], expected \[n\] or \[n, 1\]"),
        (_elements(b"a"), [1, 2], r"BYTES has shape \[1, 2\]"),
        (_elements(b"a"), [1, 2, 2, 3], r"BYTES has shape \[1, 2, 2, 3\]"),
        (_elements(b"a"), [0], r"BYTES has shape \[0\]"),
        (_elements(b"a"), [-1], r"BYTES has shape \[-1\]"),
        (_elements(b"a"), [5], "holds 5 items, at most 4 are served at once"),
        (_elements(b"a"), [2**63], "items, at most 4 are served at once"),
        (_elements(b"a"), [True], "'shape' must be a list of integers"),
    ],
    ids=["too few", "too many", "cut off", "huge length", "empty file", "half a length", "nothing", "no shape", "wide",
         "pixels' shape", "no file", "negative", "over the batch", "huge batch", "shape true"],
)  # fmt: skip
def test_bytes_that_do_not_fit_are_refused(tail: bytes, shape: Any, words: str) -> None:
    refuses(*_files_body(tail, shape), words)


def test_image_files_are_for_models_with_one_input() -> None:
    contract = dataclasses.replace(IMAGES, inputs=(*IMAGES.inputs, TensorSpec("b", "uint8", (None, 1))))
    other = {"name": "b", "datatype": "UINT8", "shape": [1, 1], "data": [0]}
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}
    head = json.dumps({"inputs": [image, other]}).encode()
    refuses(head + _elements(b"a"), str(len(head)), "is 'BYTES', expected UINT8$", contract=contract)


def test_image_files_cannot_come_as_json_nor_to_other_models() -> None:
    body = json_body(image={"datatype": "BYTES", "shape": [1], "data": ["x"]})
    refuses(body, None, "JSON cannot carry image files; send BYTES as binary data")
    body, header = _files_body(_elements(b"a"), [1])
    refuses(body, header, "is 'BYTES', expected UINT8$", contract=dataclasses.replace(IMAGES, image_input=None))
    refuses(json_body(image={"datatype": "FP32"}), None, "is 'FP32', expected UINT8, or BYTES for image files")


def test_too_much_json_is_refused_before_it_is_parsed() -> None:
    body = b"[" * (IMAGES.max_json_bytes + 1)
    refused = refuses(body, None, "has 100001 bytes, over the limit of 100000; send tensors as binary data", 413)
    assert refused.reason == "too_large"
    refuses(body + b"x", str(len(body)), "over the limit of 100000", 413)
    refuses(body[:-1], None, "not valid JSON")


def test_what_is_binary_does_not_count_as_json() -> None:
    spec = TensorSpec("image", "uint8", (None, 250, 250, 3))
    contract = dataclasses.replace(IMAGES, inputs=(spec,))
    body, header = binary_body(bytes(187_500), size=187_500, image={"shape": [1, 250, 250, 3]})
    assert parse(body, header, contract).feed["image"].shape == (1, 250, 250, 3)
