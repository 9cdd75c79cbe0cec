"""Shared HTML of the report pages: one file each, loading nothing from elsewhere."""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #1f2328; background: #fff; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } }
svg { width: 100%; max-width: 520px; } figure { display: inline-block; width: 48%;
  min-width: min(340px, 100%); margin: 0 0 1rem; vertical-align: top; }
figure.alone { display: block; width: auto; } figure.alone svg { max-width: 640px; }
figcaption { font-size: .9rem; opacity: .8; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { border-bottom: 1px solid #8884;
  padding: .3rem .8rem; text-align: left; vertical-align: top; } td.number { text-align: right; }
details { margin: .5rem 0; } summary { cursor: pointer; }
code { background: #8882; padding: 0 .3em; overflow-wrap: anywhere; } a { color: inherit; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 1rem; }
.card { border: 1px solid #8884; border-radius: 6px; padding: .2rem 1rem; min-width: 0; }
.card h3 { font-size: 1rem; margin: .6rem 0; } .text { white-space: pre-wrap;
  overflow-wrap: anywhere; } .given { opacity: .65; }
.shares { width: 100%; } .shares td { padding: .15rem .3rem; border: 0; white-space: nowrap; }
.shares td:nth-child(2) { width: 99%; }
.commands td:first-child { width: 65%; }
@media (max-width: 50rem) {
  .commands td { display: block; } .commands td:first-child { width: auto; border: 0; }
}
.shares i { display: block; height: 1.1rem; background: #3b82f6; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page; its parts are HTML, its title is text."""
    head = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<main><h1>{escape(title)}</h1>",
    ]
    return "\n".join([*head, *parts, "</main>"]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table; numbers are right-aligned, and floats have three decimals."""
    out = ["<div class=wide><table><tr>", *(f"<th>{escape(h)}</th>" for h in head), "</tr>"]
    for row in rows:
        assert len(row) == len(head), row
        cells = [
            f"<td class=number>{value:.3f}</td>"
            if isinstance(value, float)
            else f"<td class=number>{value:,}</td>"
            if isinstance(value, int)
            else f"<td>{escape(str(value))}</td>"
            for value in row
        ]
        out += ["<tr>", *cells, "</tr>"]
    return "".join([*out, "</table></div>"])


def shares(rows: Sequence[tuple[str, float]]) -> str:
    """Names with a bar for each share of 1."""
    cells = (
        f"<tr><td><code>{escape(name)}</code></td><td><i style='width:{100 * share:.1f}%'></i></td>"
        f"<td class=number>{100 * share:.1f} %</td></tr>"
        for name, share in rows
    )
    return f"<table class=shares>{''.join(cells)}</table>"


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Shell commands, each with its explanation."""
    rows = (
        f"<tr><td><code>{escape(line)}</code></td><td>{escape(what)}</td></tr>"
        for line, what in lines
    )
    return f"<div class=wide><table class=commands>{''.join(rows)}</table></div>"
