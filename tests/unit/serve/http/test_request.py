"""One request on the bare interface: its id, its headers, its query, its body."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.serve.errors import ClientGone, RequestError
from edgetune.serve.http.request import Answer, Request, json_answer, write_answer
from tests.unit.serve.stand_ins import Client, in_loop


@pytest.mark.parametrize("given_id", ["a", "A-1_b.c:d", "x" * 64])
def test_a_fit_id_of_the_client_is_kept(given_id: str) -> None:
    assert Client(headers={"x-request-id": given_id}).request.id == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 65, "a b", "a\r\nset-cookie: 1", "é", "a/b", "a\n"])
def test_any_other_id_is_replaced_by_one_of_ours(given_id: str) -> None:
    ours = Client(headers={"x-request-id": given_id}).request.id
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", ours)
    assert Client().request.id != ours


def test_headers_are_read_without_loss_and_the_last_of_equal_ones_counts() -> None:
    client = Client(headers={"a": "1", "b": "\xff"})
    client.scope["headers"].append((b"a", b"2"))
    request = client.request
    assert request.headers == {"a": "2", "b": "\xff"}
    assert request.single("b") == "\xff"
    assert request.single("c") is None
    with pytest.raises(RequestError, match="the header a comes more than once") as caught:
        request.single("a")
    assert caught.value.status == 400


def _query(text: str) -> Request:
    return Client(query=text).request


def test_the_query_is_read() -> None:
    assert _query("").query() == {}
    assert _query("top=3&logits=1&empty=&name=a%20b%C3%A9").query() == {
        "top": "3", "logits": "1", "empty": "", "name": "a bé",
    }  # fmt: skip
    assert len(_query("&".join(f"k{number}=1" for number in range(16))).query()) == 16


@pytest.mark.parametrize("text", ["&".join(["k=1"] * 17), "a=%ff", "%c3=1"])
def test_a_query_too_long_or_in_no_utf_8_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="the query is not a short list") as caught:
        _query(text).query()
    assert caught.value.status == 400


def test_a_number_of_the_query() -> None:
    assert _query("").integer("top", 3, 1, 9) == 3
    assert [_query(f"top={text}").integer("top", 3, 1, 9) for text in ("1", "9", "007")] == [1, 9, 7]


@pytest.mark.parametrize(
    "text", ["0", "10", "-1", "+1", "1.0", "", "%20", "x", "1e0", "%D9%A3", "1" * 5000, "%F0%9D%9F%8F"]
)
def test_another_number_is_refused_and_cut(text: str) -> None:
    with pytest.raises(RequestError, match=r"the query parameter 'top' is .*, expected a number in 1\.\.9") as caught:
        _query(f"top={text}").integer("top", 3, 1, 9)
    assert len(caught.value.message) < 100


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("12", 12), ("007", 7), ("", 0), ("-1", 0), ("x", 0), ("٣", 0)])
def test_the_announced_length(text: str, size: int) -> None:
    client = Client()
    client.scope["headers"] = [(b"content-length", text.encode("utf-8"))]
    assert client.request.announced_bytes() == size


@pytest.mark.parametrize("digits", [18, 19, 20, 40, 5000])
def test_a_length_of_any_size_is_never_taken_for_nothing(digits: int) -> None:
    assert Client(headers={"content-length": "9" * digits}).request.announced_bytes() >= 10**18 - 1


def test_chunked_or_not() -> None:
    assert not Client().request.is_chunked
    assert Client(headers={"transfer-encoding": "chunked"}).request.is_chunked


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6), st.integers(0, 60))
def test_a_body_comes_whole_or_is_refused(pieces: list[bytes], limit: int) -> None:
    whole = b"".join(pieces)

    async def work() -> None:
        if len(whole) <= limit:
            assert bytes(await Client(pieces).request.read_body(limit)) == whole
            return
        with pytest.raises(RequestError, match=f"over the limit of {limit} bytes") as caught:
            await Client(pieces).request.read_body(limit)
        assert (caught.value.status, caught.value.reason) == (413, "too_large")

    in_loop(work)


def test_an_announced_length_over_the_limit_is_refused_before_a_byte_is_read() -> None:
    async def work() -> None:
        client = Client([b"x"], {"content-length": "11"})
        with pytest.raises(RequestError):
            await client.request.read_body(10)
        assert client._pieces == [b"x"]

    in_loop(work)


def test_a_client_that_leaves_in_the_middle() -> None:
    async def work() -> None:
        client = Client([b"a", b"b", b"c"])
        client._pieces = [b"a", b"b"]
        request = client.request

        async def cut() -> dict[str, object]:
            if not client._pieces:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": client._pieces.pop(0), "more_body": True}

        request._receive = cut
        with pytest.raises(ClientGone):
            await request.read_body(10)

    in_loop(work)


def test_leaving_is_told_where_the_protocol_can_tell() -> None:
    client, left = Client(), list[int]()
    client.request.when_gone(lambda: left.append(1))
    client.leave()
    assert left == [1]
    del client.scope["edgetune.when_gone"]
    client.request.when_gone(lambda: left.append(2))


def test_an_answer_is_written_with_its_length() -> None:
    async def work() -> None:
        client = Client()
        await write_answer(json_answer({"é": [1, None]}, 404, {"allow": "GET"}), {}, client.send)
        assert client.status == 404
        assert client.headers == {"content-type": "application/json", "allow": "GET", "content-length": "15"}
        assert client.answer == '{"é":[1,null]}'.encode()
        empty = Client()
        await write_answer(Answer(200), {}, empty.send)
        assert (empty.headers, empty.answer) == ({"content-length": "0"}, b"")

    in_loop(work)
