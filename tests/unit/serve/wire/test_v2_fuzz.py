"""Any bytes at all give a request or a `RequestError`."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.serve.errors import RequestError
from tests.unit.serve.wire.v2_requests import FLAT, IMAGES, binary_body, json_body, parse

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_HEADERS = st.none() | st.integers(0, 400).map(str) | st.text(max_size=6)
_TYPES = st.sampled_from(["", "image/png", "application/json"])
_KEYS = ["name", "datatype", "shape", "data", "parameters", "inputs", "outputs", "id"]


def _only_request_errors(body: bytes, header: str | None, content_type: str = "") -> None:
    for contract in (IMAGES, FLAT):
        try:
            request = parse(body, header, contract, content_type)
        except RequestError as error:
            assert error.status in {400, 501}
            assert len(error.message) < 1000
            continue
        assert 1 <= request.count <= contract.max_batch
        assert bool(request.feed) != bool(request.files)
        for spec in contract.inputs if request.feed else ():
            array = request.feed[spec.name]
            assert array.dtype == np.dtype(spec.dtype)
            assert all(want in (None, have) for have, want in zip(array.shape, spec.shape, strict=True))


@settings(max_examples=150, deadline=None, database=None)
@given(body=st.binary(max_size=200), header=_HEADERS, content_type=_TYPES)
def test_random_bytes_raise_nothing_but_request_errors(body: bytes, header: str | None, content_type: str) -> None:
    _only_request_errors(body, header, content_type)


@settings(max_examples=300, deadline=None, database=None)
@given(key=st.sampled_from(_KEYS), value=_JSON)
def test_random_values_in_a_good_request_raise_nothing_but_request_errors(key: str, value: Any) -> None:
    changes = {key: value} if key in {"inputs", "outputs", "id"} else {"image": {key: value}}
    _only_request_errors(json_body(**changes), None)


_PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "binary_data_output", "sequence_id", "headers", "triton_x"]),
    _JSON,
    max_size=3,
)
_OUTPUTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["logits", "features", "p", "q", "r"])},
        optional={
            "parameters": st.dictionaries(
                st.sampled_from(["classification", "binary_data", "shared_memory_region"]), _JSON, max_size=2
            )
        },
    ),
    max_size=3,
)


@settings(max_examples=200, deadline=None, database=None)
@given(parameters=_PARAMETERS, outputs=_OUTPUTS)
def test_random_parameters_raise_nothing_but_request_errors(parameters: dict[str, Any], outputs: list[Any]) -> None:
    _only_request_errors(json_body(parameters=parameters, outputs=outputs), None)


@settings(max_examples=150, deadline=None, database=None)
@given(tail=st.binary(max_size=30), header=_HEADERS, size=st.integers(-1, 60) | _JSON)
def test_random_binary_requests_raise_nothing_but_request_errors(tail: bytes, header: str | None, size: Any) -> None:
    body, right_length = binary_body(tail, size=size)
    _only_request_errors(body, header)
    _only_request_errors(body, right_length)


@settings(max_examples=150, deadline=None, database=None)
@given(tail=st.binary(max_size=40), count=st.integers(-1, 5), is_column=st.booleans())
def test_random_bytes_elements_are_all_of_the_data_or_refused(tail: bytes, count: int, is_column: bool) -> None:
    image = {"datatype": "BYTES", "shape": [count, 1] if is_column else [count]}
    body, header = binary_body(tail, size=len(tail), image=image)
    try:
        files = parse(body, header).files
    except RequestError as error:
        assert error.status == 400
    else:
        assert b"".join(len(file).to_bytes(4, "little") + bytes(file) for file in files) == tail
