"""The report's HTML: a page, and its sections, tables and embedded pictures."""

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

CSS = """
:root { color-scheme: light dark; --ink: #1a202c; --quiet: #5f6b7c; --paper: #f5f7fa; --card: #ffffff; --line: #e2e8f0;
  --blue: #2b6cb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8edf3; --quiet: #9aa7b8; --paper: #11151c; --card: #1b212b;
  --line: #2d3644; --blue: #7fb2ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; } .quiet { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(235px, 45%), 1fr)); gap: .75rem;
  margin: 1.25rem 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; } .tile.first b { color: var(--blue); }
.tile span { font-size: .82rem; color: var(--quiet); display: block; line-height: 1.35; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: .75rem;
  align-items: start; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .6rem; }
figure img { display: block; width: var(--width); max-width: 100%; height: auto; margin: 0 auto; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); gap: .75rem; }
.images div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  font-size: .8rem; line-height: 1.4; }
.images img { width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; display: block;
  background: #808080; } .images p { margin: 0; padding: .45rem .6rem .55rem; overflow-wrap: anywhere; }
.scroll { overflow: auto; padding: 0; } .scroll:not(:has(.words)) { max-height: 30rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .32rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, th.text, td.text, .words td, .words th { text-align: left; overflow-wrap: break-word; }
.words td:first-child { width: 11rem; color: var(--quiet); } .words td { overflow-wrap: anywhere; }
@media (max-width: 600px) { table { font-size: .82rem; } th, td { padding: .32rem .45rem; }
  .words td:first-child { width: 35%; } }
tr:last-child td { border-bottom: 0; } thead th { position: sticky; top: 0; background: var(--card); }
.numbers td { white-space: nowrap; }
ul { margin: 0; padding-left: 1.1rem; } li { margin: .15rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.lead { font-size: 1.15rem; font-weight: 600; max-width: 60rem; }
pre { overflow-x: auto; margin: 0; font-size: .85rem; }
"""

Picture = tuple[bytes, str]  # a PNG file and its alternative text


def page(title: str, subtitle: str, body: Sequence[str]) -> str:
    """Returns the whole, self-contained document. `body` is markup; the rest is plain text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f'<body><main>\n<h1>{escape(title)}</h1><p class="quiet">{escape(subtitle)}</p>\n'
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def section(title: str, said: str, *parts: str) -> str:
    """Returns a heading, an explanation and the parts; "" if all parts are empty."""
    if not any(parts):
        return ""
    return f'<h2>{escape(title)}</h2><p class="quiet">{escape(said)}</p>\n' + "\n".join(part for part in parts if part)


def tiles(figures: Sequence[tuple[str, str, str]]) -> str:
    """Returns a card for each (value, name, remark); the first one stands out."""
    cards = [
        f'<div class="tile{"" if i else " first"}"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(remark)}</span></div>"
        for i, (value, name, remark) in enumerate(figures)
    ]
    return f'<div class="tiles">{"".join(cards)}</div>'


def code(text: str) -> str:
    """Returns a card with preformatted text."""
    return f'<div class="card"><pre>{escape(text)}</pre></div>'


def columns(*parts: str) -> str:
    """Returns the parts side by side if the screen is wide enough."""
    return f'<div class="columns">{"".join(parts)}</div>' if any(parts) else ""


def figure(picture: Picture, dots_per_pixel: float) -> str:
    """Returns a framed picture on white, at its natural size or smaller."""
    width = int.from_bytes(picture[0][16:20], "big")  # from the PNG header
    return f'<figure style="--width: {width / dots_per_pixel:.0f}px">{_image(picture)}</figure>'


def gallery(images: Sequence[tuple[Picture, Sequence[str]]]) -> str:
    """Returns small images, each above its lines of text."""
    cells = [f"<div>{_image(image)}<p>{'<br>'.join(map(escape, lines))}</p></div>" for image, lines in images]
    return f'<div class="images">{"".join(cells)}</div>' if cells else ""


def lead(sentence: str) -> str:
    """Returns the sentence that says what the page shows."""
    return f'<p class="lead">{escape(sentence)}</p>'


def bullets(sentences: Sequence[str]) -> str:
    """Returns a card with a list of sentences."""
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<div class="card"><ul>{lines}</ul></div>' if lines else ""


def fold(title: str, *parts: str) -> str:
    """Returns the parts under a title that shows and hides them; hidden at first."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>" if any(parts) else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False, left: Sequence[str] = ()) -> str:
    """Returns a table, which scrolls if it is long; columns after the first hold numbers, or text with `words`.

    Args:
        head: the names of the columns; () for none.
        rows: the cells.
        words: whether all columns hold text.
        left: the names of columns that hold text.
    """
    if not rows:
        return ""
    text = {i for i, name in enumerate(head) if name in left}
    headings = f"<thead>{_line('th', head, text)}</thead>" if head else ""
    lines = "\n".join(_line("td", row, text) for row in rows)
    kind = ' class="words"' if words else ' class="numbers"' if left else ""
    return f'<div class="card scroll"><table{kind}>{headings}<tbody>\n{lines}\n</tbody></table></div>'


def _line(tag: str, cells: Sequence[str], text: Collection[int]) -> str:
    kinds = (' class="text"' if i in text else "" for i in range(len(cells)))
    return (
        f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"
    )


def facts(record: Mapping[str, Any]) -> str:
    """Returns a two-column table of names and values."""
    return table((), [(name, _value(value)) for name, value in record.items()], words=True)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)


def _image(picture: Picture) -> str:
    data, alternative = picture
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
