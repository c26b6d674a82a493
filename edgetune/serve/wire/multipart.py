"""The files of a multipart form, by the library python-multipart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgetune.serve.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"
_MOST_NAME_CHARACTERS = 128


@dataclass
class Part:
    """A file of the form: `name` is its file name, or else its field's, cut and without control characters."""

    name: str = ""
    data: bytearray = field(default_factory=bytearray)


def read_parts(body: bytes | bytearray, content_type: str, most: int) -> list[Part]:
    """Raises `RequestError` 400 for what is no form, and 413 for more than `most` parts."""
    from python_multipart.exceptions import MultipartParseError
    from python_multipart.multipart import MultipartParser, parse_options_header

    boundary = parse_options_header(content_type.encode("latin-1"))[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise RequestError(400, "the form's Content-Type has no boundary of 1 to 70 characters")
    reader = _Reader(most)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(bytes(body))
        parser.finalize()
    except MultipartParseError as error:
        raise RequestError(400, "the form is damaged") from error
    if not reader.is_complete or not reader.parts:
        raise RequestError(400, "the form is not complete, or has no part")
    return reader.parts


class _Reader:
    """Collects what the parser finds."""

    def __init__(self, most: int) -> None:
        self.parts: list[Part] = []
        self.is_complete = False
        self._most = most
        self._key = b""
        self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._most:
            raise RequestError(413, f"the form has more than {self._most} parts", reason="too_large")
        self.parts.append(Part(str(len(self.parts))))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._key.lower() == b"content-disposition":
            self._take_name()
        self._key = self._value = b""

    def _take_name(self) -> None:
        from python_multipart.multipart import parse_options_header

        options = parse_options_header(self._value)[1]
        name = (options.get(b"filename") or options.get(b"name") or b"").decode("utf-8", "replace")
        printable = "".join(letter if letter.isprintable() else "?" for letter in name[:_MOST_NAME_CHARACTERS])
        self.parts[-1].name = printable or self.parts[-1].name

    def _end(self) -> None:
        self.is_complete = True
