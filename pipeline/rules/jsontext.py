"""JSON as the nodes of a YAML document: YAML is nearly JSON, and knows places.

It reads ``{a: 1,}`` and ``010``, which are no JSON, and neither ``1E5`` as a number, nor keys of
more than a thousand characters or with the separators of lines that JSON allows.
"""

from __future__ import annotations

import bisect
import json
import re

import yaml

_TAG = "tag:yaml.org,2002:"
_SPACE = re.compile(r"[ \t\r\n]*")


def compose_json(text: str) -> yaml.Node:
    """The root node, with line and column. JSONDecodeError for what is no JSON; RecursionError."""
    composer = _Composer(text)
    node, end = composer.value(composer.skip(0))
    end = composer.skip(end)
    if end < len(text):
        raise json.JSONDecodeError("extra text after the end", text, end)
    return node


class _Composer:
    def __init__(self, text: str) -> None:
        self.text, self.decoder = text, json.JSONDecoder()
        self.starts = [0, *(m.end() for m in re.finditer("\n", text))]

    def value(self, i: int) -> tuple[yaml.Node, int]:
        """The node at *i*, and where it ends."""
        opening = self.text[i : i + 1]
        if opening == "{":
            return self.object(i)
        if opening == "[":
            return self.array(i)
        value, end = self.decoder.raw_decode(self.text, i)
        kind = "null" if value is None else type(value).__name__
        written = value if isinstance(value, str) else self.text[i:end]
        if written in ("NaN", "Infinity", "-Infinity"):
            raise json.JSONDecodeError(f"{written} is no number", self.text, i)
        style = '"' if isinstance(value, str) else None
        node = yaml.ScalarNode(f"{_TAG}{kind}", written, self.mark(i), self.mark(end), style=style)
        return node, end

    def object(self, i: int) -> tuple[yaml.Node, int]:
        pairs: list[tuple[yaml.Node, yaml.Node]] = []
        end = self.skip(i + 1)
        while not self.ends(end, "}", "," if pairs else ""):
            end = self.skip(end + 1) if pairs else end
            if self.text[end : end + 1] != '"':
                raise json.JSONDecodeError("expected a name in double quotes", self.text, end)
            key, end = self.value(end)
            end = self.skip(end)
            if self.text[end : end + 1] != ":":
                raise json.JSONDecodeError("expected a colon", self.text, end)
            value, end = self.value(self.skip(end + 1))
            pairs.append((key, value))
            end = self.skip(end)
        return yaml.MappingNode(f"{_TAG}map", pairs, self.mark(i), self.mark(end)), end + 1

    def array(self, i: int) -> tuple[yaml.Node, int]:
        items: list[yaml.Node] = []
        end = self.skip(i + 1)
        while not self.ends(end, "]", "," if items else ""):
            end = self.skip(end + 1) if items else end
            item, end = self.value(end)
            items.append(item)
            end = self.skip(end)
        return yaml.SequenceNode(f"{_TAG}seq", items, self.mark(i), self.mark(end)), end + 1

    def ends(self, i: int, closing: str, between: str) -> bool:
        """Whether *closing* is at *i*; else there must be what goes *between* items."""
        if self.text[i : i + 1] == closing:
            return True
        if between and self.text[i : i + 1] != between:
            raise json.JSONDecodeError(f"expected {between} or {closing}", self.text, i)
        return False

    def skip(self, i: int) -> int:
        found = _SPACE.match(self.text, i)
        return found.end() if found else i

    def mark(self, i: int) -> yaml.error.Mark:
        line = bisect.bisect_right(self.starts, i) - 1
        return yaml.error.Mark("", i, line, i - self.starts[line], None, 0)
