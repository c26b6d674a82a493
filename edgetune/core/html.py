"""Self-contained HTML pages for reports: no scripts, no outside files."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"-|exact|[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?( ?%)?")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.lead { color: #56657a; margin-top: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #dde3ea; vertical-align: top }
th { color: #56657a; font-weight: 600 } td.number, th.number { text-align: right }
.PASS { color: #0a7a3d; font-weight: 700 } .FAIL { color: #b3261e; font-weight: 700 }
.NOT-RUN { color: #8a5a00; font-weight: 700 }
figure { margin: 0 } img { max-width: 100% }
@media (prefers-color-scheme: dark) {
  body { background: #12181f; color: #dbe3ec } th, td { border-color: #2b3642 } th, p.lead { color: #93a3b5 }
  img { background: white }
  .PASS { color: #4cc38a } .FAIL { color: #ff8a80 } .NOT-RUN { color: #e0b050 } }
"""


def page(title: str, lead: str, body: Iterable[str]) -> bytes:
    """`body` holds HTML fragments made by the functions below; `title` and `lead` are plain text."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    top = f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>"
    return f"{head}{view}<style>{_STYLE}</style><body>{top}{''.join(body)}</body></html>\n".encode()


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers are set right; verdicts are coloured; everything is escaped."""
    body = [list(row) for row in rows]
    numeric = [bool(body) and all(_is_number(row[index]) for row in body) for index in range(len(columns))]
    cells = "".join(_cell("th", column, number) for column, number in zip(columns, numeric, strict=True))
    lines = [
        "<tr>" + "".join(_cell("td", value, number) for value, number in zip(row, numeric, strict=True)) + "</tr>"
        for row in body
    ]
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def picture(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<figure><img src='data:image/png;base64,{data}' alt='{html.escape(description, quote=True)}'></figure>"


def _is_number(value: object) -> bool:
    return _NUMBER.fullmatch(str(value)) is not None


def _cell(tag: str, value: object, number: bool) -> str:
    text = str(value)
    classes = [name for name, wanted in (("number", number), (text, text in {"PASS", "FAIL", "NOT-RUN"})) if wanted]
    attribute = f" class='{' '.join(classes)}'" if classes else ""
    return f"<{tag}{attribute}>{html.escape(text)}</{tag}>"
