"""An explanation as one HTML file that needs nothing else, and the text of tokens made visible."""

from __future__ import annotations

import html
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from string import Template
from typing import get_args

from pipeline.explanation import ExplainedToken, Explanation, Kind

_WRITTEN = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", "·": "\\u00b7", "◌": "\\u25cc"}
_LEGEND = {
    "untrained": "carry no loss",
    "trained": "weigh 1",
    "lowered": "weigh less",
    "raised": "weigh more by a rule",
    "silenced": "lost their weight to a rule",
}
_HEADS = (
    '<th class="number">#</th><th class="number">id</th><th>text</th><th>chars</th><th>message</th>'
    '<th>region</th><th class="number">weight</th><th>why</th>'
)

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --ground: #fcfcfb; --panel: #f3f3f0; --line: #dededa; --ink: #1c1d1f; --faint: #6d7076;
  --trained: #c9ebcd; --lowered: #fbe3a0; --raised: #bfdcf7; --silenced: #f8c6c1;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16171a; --panel: #1e2024; --line: #33363c; --ink: #e6e6e3; --faint: #8e9299;
    --trained: #1d4d2b; --lowered: #5c4a12; --raised: #1d4468; --silenced: #662a28;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .75rem; font-size: 1.15rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.25rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
ul { display: flex; flex-wrap: wrap; gap: .3rem 1.25rem; margin: 1.25rem 0 .75rem; padding: 0;
  list-style: none; color: var(--faint); font-size: .87rem; }
li span { color: var(--ink); font-weight: 500; padding: .1em .4em; border-radius: .25em; }
section, table, td { font: .87rem/1.75 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
section { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
article { display: grid; grid-template-columns: 7.5rem 1fr; }
article + article { border-top: 1px solid var(--line); }
h2 { margin: 0; padding: .5rem .75rem; background: var(--panel); color: var(--faint);
  font: .8rem/1.9 system-ui, sans-serif; }
p { margin: 0; padding: .5rem .75rem; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: plaintext; tab-size: 8; }
p a { color: inherit; text-decoration: none; border-radius: 2px;
  box-shadow: inset -1px 0 var(--ground); }
p a.untrained { box-shadow: inset -1px 0 var(--panel); }
p a:hover, p a:target { outline: 2px solid var(--ink); }
p i::before { content: attr(data-mark); opacity: .45; font-style: normal; }
p i.code { opacity: .6; font-style: normal; unicode-bidi: isolate; direction: ltr; }
.untrained { color: var(--faint); }
.trained { background: var(--trained); } .lowered { background: var(--lowered); }
.raised { background: var(--raised); } .silenced { background: var(--silenced); }
div { overflow-x: auto; margin-top: 1.25rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font: 500 .8rem/2 system-ui, sans-serif; color: var(--faint); }
th, td { padding: 0 .75rem; border-bottom: 1px solid var(--line); white-space: pre; }
td.number, th.number { text-align: right; }
td a { color: inherit; text-decoration: none; }
td a:hover { text-decoration: underline; }
tr:target { outline: 2px solid var(--ink); outline-offset: -2px; }
@media (max-width: 40rem) { body { padding: .75rem; } article { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
<dl>
$facts
</dl>
</header>
<main>
<ul>
$legend
</ul>
<section>
$text
</section>
<div><table>
<thead><tr>$heads</tr></thead>
<tbody>
$rows
</tbody>
</table></div>
</main>
</body>
</html>
""")


def make_page(explanation: Explanation) -> str:
    """The text, coloured by weight, over the table; a token and its line link to each other."""
    kinds = Counter(token.kind for token in explanation.tokens)
    return _PAGE.substitute(
        title=_quoted(explanation.place),
        facts="\n".join(
            f"<dt>{_quoted(name)}</dt><dd>{_quoted(fact)}</dd>"
            for name, fact in explanation.facts
            if name != "source"
        ),
        legend="\n".join(
            f'<li><span class="{kind}">{kinds[kind]:,} {kind}</span> {_LEGEND[kind]}</li>'
            for kind in get_args(Kind)
            if kinds[kind]
        ),
        text="\n".join(_articles(explanation.tokens)),
        heads=_HEADS,
        rows="\n".join(map(_row, explanation.tokens)),
    )


def _articles(tokens: Sequence[ExplainedToken]) -> Iterator[str]:
    """The text as it reads, a block for each stretch of one message."""
    for owner, units in itertools.groupby(_units(tokens), key=lambda unit: unit[0].owner):
        name = "template" if owner == "-" else owner
        yield f"<article><h2>{_quoted(name)}</h2><p>{''.join(map(_flowing, units))}</p></article>"


def _units(tokens: Sequence[ExplainedToken]) -> Iterator[list[ExplainedToken]]:
    """Tokens that share a character go together: only all of them are text."""
    unit: list[ExplainedToken] = []
    for token in tokens:
        unit.append(token)
        try:
            _piece(unit).decode()
        except UnicodeDecodeError:
            continue
        yield unit
        unit = []
    if unit:
        yield unit


def _piece(unit: Sequence[ExplainedToken]) -> bytes:
    return b"".join(token.piece for token in unit)


def _flowing(unit: Sequence[ExplainedToken]) -> str:
    number, kind = unit[0].number, unit[-1].kind
    targets = "".join(f'<span id="f{token.number}"></span>' for token in unit[1:])
    told = _quoted("\n\n".join(map(_told, unit))).replace("\n", "&#10;")
    text = "".join(map(_drawn, _piece(unit).decode("utf-8", "surrogateescape")))
    return (
        f'{targets}<a id="f{number}" class="{kind}" href="#t{number}" tabindex="-1" '
        f'title="{told}">{text}</a>'
    )


def _told(token: ExplainedToken) -> str:
    return (
        f"#{token.number}  id {token.id}  {visible(token.piece)}\n"
        f"characters {token.start}-{token.end}, message {token.owner}, {token.region}\n"
        f"weight {token.weight:g}: {token.why}"
    )


def _drawn(character: str) -> str:
    """A character of the flowing text; marks come from the style sheet, so copying leaves them."""
    if character in "\n\t":
        mark = "↵" if character == "\n" else "→"
        return f'<i data-mark="{mark}"></i>{character}'
    written = "\\r" if character == "\r" else escape(character)
    return f'<i class="code">{written}</i>' if written else html.escape(character)


def _row(token: ExplainedToken) -> str:
    cells = (
        ("number", f'<a href="#f{token.number}">{token.number}</a>'),
        ("number", str(token.id)),
        ("", f"<bdi>{_quoted(visible(token.piece))}</bdi>"),
        ("", f"{token.start}-{token.end}"),
        ("", _quoted(token.owner)),
        ("", _quoted(token.region)),
        ("number", f"{token.weight:g}"),
        ("", _quoted(token.why)),
    )
    inner = "".join(
        f'<td class="{name}">{c}</td>' if name else f"<td>{c}</td>" for name, c in cells
    )
    return f'<tr id="t{token.number}" class="{token.kind}">{inner}</tr>'


def _quoted(text: str) -> str:
    return html.escape(text)


def escape(character: str) -> str:
    """How an invisible character is written, or nothing for one that shows; U+DCxx is a byte."""
    category = unicodedata.category(character)
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:  # what surrogateescape makes of a byte that is no character
        return f"\\x{point - 0xDC00:02X}"
    if character == " " or (category[0] not in "CZ" and not 0xFE00 <= point <= 0xFE0F):
        return ""
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def visible(piece: bytes) -> str:
    """One line that shows every byte of a token: a space at its ends as ``·``, ``\\n``, ``\\xF0``.

    Whatever would be invisible, or move what stands beside it, is written as its code point. A mark
    that would combine with nothing gets a dotted circle to stand on.
    """
    text = piece.decode("utf-8", "surrogateescape")
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    shown = ["·" * before]
    bare = True
    for character in inner:
        written = _WRITTEN.get(character) or escape(character)
        if written:
            shown.append(written)
        else:
            marks = unicodedata.category(character).startswith("M")
            shown.append("◌" + character if marks and bare else character)
        bare = bool(written)
    shown.append("·" * (len(text) - before - len(inner)))
    return "".join(shown)


def width(text: str) -> int:
    """Columns of a terminal that *text* takes: 2 for wide East Asian, 0 for what combines."""
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
