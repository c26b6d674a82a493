"""Good requests to change a part of, for the tests of the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgetune.core.tensors import TensorSpec
from edgetune.serve.errors import RequestError
from edgetune.serve.wire.v2_request import InferRequest, WireContract, parse_infer_request

IMAGES = WireContract(
    inputs=(TensorSpec("image", "uint8", (None, 2, 2, 3)),),
    outputs=(TensorSpec("logits", "float32", (None, 2)), TensorSpec("features", "float32", (None, 3))),
    image_input="image",
    classes=("ant", "bee"),
    max_batch=4,
    max_json_bytes=100_000,
)
# Of datatypes that JSON or the classification extension cannot carry.
FLAT = WireContract(
    (TensorSpec("x", "bool", (None, 2)), TensorSpec("y", "float16", (1, None))),
    (TensorSpec("p", "float16", (None, 2)), TensorSpec("q", "bool", (None, 2)), TensorSpec("r", "int64", ())),
    None,
    (),
    max_batch=4,
)
PIXELS = list(range(12))


def parse(
    body: bytes | bytearray, header: str | None = None, contract: WireContract = IMAGES, content_type: str = ""
) -> InferRequest:
    return parse_infer_request(body, header, content_type, contract)


def json_body(*, image: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A good request; keys of `image` and of the message are replaced, or dropped where the value is `...`."""
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": PIXELS, **(image or {})}
    message = {"inputs": [{key: value for key, value in entry.items() if value is not ...}], **changes}
    return json.dumps({key: value for key, value in message.items() if value is not ...}).encode()


def binary_body(tail: bytes, *, size: Any = 12, header_shift: int = 0, **arguments: Any) -> tuple[bytes, str]:
    """A request whose pixels follow the JSON; returns the body and the header's value."""
    image = {"data": ..., "parameters": {"binary_data_size": size}, **arguments.pop("image", {})}
    head = json_body(image=image, **arguments)
    return head + tail, str(len(head) + header_shift)


def refuses(
    body: bytes, header: str | None, words: str, status: int = 400, contract: WireContract = IMAGES
) -> RequestError:
    with pytest.raises(RequestError, match=words) as caught:
        parse(body, header, contract)
    assert caught.value.status == status
    assert len(caught.value.message) < 1000
    return caught.value
