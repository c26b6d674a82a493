"""Forms as browsers, curl and httpx send them, and as nobody should."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune.serve.errors import RequestError
from edgetune.serve.wire.multipart import read_parts

KIND = "multipart/form-data; boundary=xyz"


def _form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(b"--xyz\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n" for head, data in parts) + end


def _file(name: str) -> str:
    return f'Content-Disposition: form-data; name="image"; filename="{name}"'


def test_files_come_in_order_with_their_names_and_bytes() -> None:
    form = _form((_file("a.png"), b"\x00\r\n--xy\xff"), (_file("b.jpg") + "\r\nContent-Type: image/jpeg", b""))
    parts = read_parts(form, KIND, 2)
    assert [(part.name, bytes(part.data)) for part in parts] == [("a.png", b"\x00\r\n--xy\xff"), ("b.jpg", b"")]


def test_a_real_client_s_form() -> None:
    files = [("image", (f"{number}.png", bytes([number]) * 5000, "image/png")) for number in range(3)]
    request = httpx.Request("POST", "http://localhost", files=files)
    parts = read_parts(bytearray(request.read()), request.headers["content-type"], 3)
    assert [(part.name, bytes(part.data)) for part in parts] == [(name, data) for _, (name, data, _) in files]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ('Content-Disposition: form-data; name="field"', "field"),
        ("content-disposition: form-data; name=field; filename=f.png", "f.png"),
        ('Content-Disposition: form-data; name="field"; filename=""', "field"),
        ("Content-Disposition: form-data", "0"),
        ("X-Other: 1", "0"),
        (_file("a\tb\u202e"), "a?b?"),
        (_file("é" * 200), "é" * 128),
        (_file("../../etc/passwd"), "../../etc/passwd"),
    ],
    ids=["field", "bare", "empty file name", "no name", "no disposition", "control", "long", "path"],
)
def test_the_name_of_a_part(head: str, name: str) -> None:
    (part,) = read_parts(_form((head, b"x")), KIND, 1)
    assert part.name == name


def test_a_name_in_no_utf_8_is_replaced() -> None:
    body = b'--xyz\r\nContent-Disposition: form-data; name="a\xff"\r\n\r\nx\r\n--xyz--\r\n'
    (part,) = read_parts(body, KIND, 1)
    assert part.name in ("a\ufffd", "a?")


GOOD = _form((_file("a.png"), b"data"))


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (GOOD, "multipart/form-data", "no boundary"),
        (GOOD, "multipart/form-data; boundary=", "no boundary"),
        (GOOD, "multipart/form-data; boundary=" + "x" * 71, "no boundary"),
        (b"", KIND, "not complete"),
        (b"--xyz--\r\n", KIND, "no part"),
        (GOOD[:-9], KIND, "not complete"),
        (GOOD[:40], KIND, "not complete"),
        (b"data", KIND, "damaged"),
        (GOOD, "multipart/form-data; boundary=other", "damaged"),
        (b"--xyz\r\nno header\r\n\r\nx\r\n--xyz--\r\n", KIND, "damaged"),
        (b"--xyz\r\nA\x00: b\r\n\r\nx\r\n--xyz--\r\n", KIND, "damaged"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        read_parts(body, kind, 8)
    assert caught.value.status == 400


def test_a_part_too_many_is_refused_before_it_is_read() -> None:
    form = _form(*[(_file(str(number)), b"x") for number in range(4)])
    assert len(read_parts(form, KIND, 4)) == 4
    with pytest.raises(RequestError, match="more than 3 parts") as caught:
        read_parts(form, KIND, 3)
    assert (caught.value.status, caught.value.reason) == (413, "too_large")


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=5))
def test_any_bytes_come_back_as_they_were(contents: list[bytes]) -> None:
    kept = [data for data in contents if b"--xyz" not in data]
    if kept:
        parts = read_parts(_form(*[(_file("f"), data) for data in kept]), KIND, len(kept))
        assert [bytes(part.data) for part in parts] == kept


FRAGMENTS = (b"--xyz", b"--", b"\r\n", b"\r", b"\n", b":", b"Content-Disposition", b"; filename*=u''%ff", b'"')
HOSTILE = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=6)), max_size=40).map(b"".join)
KINDS = st.one_of(st.just(KIND), st.text(max_size=40).filter(str.isascii).map("multipart/form-data; boundary{}".format))


@given(HOSTILE, KINDS, st.booleans())
def test_no_bytes_raise_anything_but_a_refusal(body: bytes, kind: str, whole: bool) -> None:
    body = b"--xyz\r\n" + body + (b"\r\n--xyz--\r\n" if whole else b"")
    try:
        parts = read_parts(body, kind, 4)
    except RequestError as error:
        assert error.status in (400, 413)
    else:
        assert 1 <= len(parts) <= 4
