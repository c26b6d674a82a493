"""Self-contained HTML pages for reports: no scripts, no outside files."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"-|exact|[-+]?[\d,]+(\.\d+)?(e[-+]?\d+)?( ?%)?")

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem } h1, h2, h3, p, li, summary { overflow-wrap: anywhere }
p.lead { color: #56657a; margin-top: 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #dde3ea; vertical-align: top }
th { color: #56657a; font-weight: 600 } td.number, th.number { text-align: right }
td { overflow-wrap: anywhere; min-width: 5rem } td:first-child { min-width: 12.5rem }
td.number, td.PASS, td.FAIL, td.NOT-RUN { white-space: nowrap; min-width: 0 }
h2 span { white-space: nowrap }
.PASS { color: #0a7a3d; font-weight: 700 } .FAIL { color: #b3261e; font-weight: 700 }
.NOT-RUN { color: #8a5a00; font-weight: 700 }
a { color: inherit }
figure { margin: 0 } img { max-width: 100% }
.beside { display: flex; flex-wrap: wrap; gap: 1rem } .beside > * { flex: 1 1 20rem; min-width: 0 }
.box { border-left: .35rem solid #93a3b5; background: #f3f6f9; padding: .6rem 1rem; margin: .8rem 0 }
.box.good { border-color: #0a7a3d } .box.bad { border-color: #b3261e } .box.unknown { border-color: #b98200 }
.box > :first-child { margin-top: 0 } .box > :last-child { margin-bottom: 0 }
pre { background: #e8edf2; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .87rem }
ul { padding-left: 1.2rem } summary { cursor: pointer; padding: .3rem 0 }
.scale { min-width: 8rem } .bar { height: .8rem; margin-top: .3rem; background: #c4473f; min-width: 1px }
.bar.gain { background: #2f8f5b }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem }
.card { font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; border: 1px solid #dde3ea; padding: .5rem }
.card img { display: block; max-width: 128px; max-height: 128px; margin: 0 auto .4rem }
@media (max-width: 44rem) {
  body { margin: 1rem auto; padding: 0 .8rem } table { display: block; overflow-x: auto }
  td { min-width: 8rem } td:first-child { min-width: 9rem } td.number { min-width: 0 }
  figure { overflow-x: auto } figure img { min-width: 32rem; max-width: none }
  .beside figure img { min-width: 24rem }
}
@media (prefers-color-scheme: dark) {
  body { background: #12181f; color: #dbe3ec } th, td, .card { border-color: #2b3642 }
  th, p.lead { color: #93a3b5 }
  figure img { filter: invert(.92) hue-rotate(180deg) }
  .box { background: #1a232d } pre { background: #243040 }
  .PASS { color: #4cc38a } .FAIL { color: #ff8a80 } .NOT-RUN { color: #e0b050 }
}
"""
_KINDS = {"PASS": "good", "FAIL": "bad", "NOT-RUN": "unknown"}


class Fragment(str):
    """HTML that a function below has made; a table takes such a cell as it is."""

    __slots__ = ()


def page(title: str, lead: str, body: Iterable[str]) -> bytes:
    """`body` holds HTML fragments made by the functions below; `title` and `lead` are plain text."""
    head = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
    view = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    top = f"<h1>{html.escape(title)}</h1><p class='lead'>{html.escape(lead)}</p>"
    return f"{head}{view}<style>{_STYLE}</style><body>{top}{''.join(body)}</body></html>\n".encode()


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def verdict_heading(text: str, verdict: str, anchor: str) -> str:
    """`anchor` is a plain word that links of the page lead to."""
    return f"<h2 id='{anchor}'>{html.escape(text)} <span class='{verdict}'>{verdict}</span></h2>"


def subheading(text: str) -> str:
    return f"<h3>{html.escape(text)}</h3>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def link(text: str, anchor: str) -> Fragment:
    return Fragment(f"<a href='#{anchor}'>{html.escape(text)}</a>")


def items(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def box(body: Iterable[str], verdict: str = "") -> str:
    """Fragments set apart, with an edge in the verdict's colour."""
    classes = f"box {_KINDS.get(verdict, '')}".strip()
    return f"<div class='{classes}'>{''.join(body)}</div>"


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{body}</details>"


def beside(parts: Iterable[str]) -> str:
    """Side by side where there is room, else one below the other."""
    return f"<div class='beside'>{''.join(parts)}</div>"


def bar(share: float, *, is_gain: bool = False) -> Fragment:
    """A table's cell, filled to a share from 0 to 1."""
    kind = "bar gain" if is_gain else "bar"
    return Fragment(f"<div class='scale'><div class='{kind}' style='width:{100 * share:.0f}%'></div></div>")


def cards(contents: Iterable[tuple[bytes | None, Sequence[str]]]) -> str:
    """A grid of pictures (JPEG, None where there is none), each with lines of text below."""
    made = []
    for jpeg, lines in contents:
        image = "" if jpeg is None else f"<img src='data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}' alt=''>"
        text = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
        made.append(f"<div class='card'>{image}{text}</div>")
    return f"<div class='cards'>{''.join(made)}</div>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Numbers are set right; verdicts are coloured; everything but a `Fragment` is escaped."""
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
    return f"<{tag}{attribute}>{text if isinstance(value, Fragment) else html.escape(text)}</{tag}>"
