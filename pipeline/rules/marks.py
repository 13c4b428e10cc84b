"""Examples: talks in which ⟦ ⟧ mark what a rule file changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from pipeline.rules.document import Document
from pipeline.rules.entry import ROLES, Example

EXAMPLE_KEYS = ("text", "calls", "stop", "user", "messages", "row", "weights")
MESSAGE_KEYS = ("role", "content", "calls", "stop")
_OPEN, _CLOSE = "⟦⟧"


def unmark(example: str) -> tuple[str, list[tuple[int, int]]]:
    """An example's text without its marks, and the spans that they enclose.

    Raises ValueError where marks do not pair.
    """
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for character in example:
        if character == _OPEN and start is None:
            start = len(text)
        elif character == _CLOSE and start is not None:
            spans.append((start, len(text)))
            start = None
        elif character in (_OPEN, _CLOSE):
            raise ValueError(f"unpaired {character}")
        else:
            text.append(character)
    if start is not None:
        raise ValueError(f"unpaired {_OPEN}")
    return "".join(text), spans


def mark(text: str, spans: list[tuple[int, int]]) -> str:
    """*text* with marks around sorted disjoint spans: `unmark` backwards."""
    out, position = [], 0
    for start, end in spans:
        out += [text[position:start], _OPEN, text[start:end], _CLOSE]
        position = end
    return "".join([*out, text[position:]])


def read_example(document: Document, node: yaml.Node, path: str) -> Example:
    """A string is what the assistant says; a mapping may tell more of the talk."""
    if not isinstance(node, yaml.MappingNode):
        document.scalar(node, path, "str")
        return _example(
            document, node, path, [_Message("assistant", {"content": (node, path)})], {}
        )
    keys = document.mapping(node, path, EXAMPLE_KEYS)
    if ("text" in keys) == ("messages" in keys):
        raise document.error(node, path, "has not one talk", "write text, or messages")
    talk: list[_Message] = []
    if "text" in keys:
        if "user" in keys:
            talk.append(_Message("user", {"content": (keys["user"], f"{path}.user")}))
        told = {"content": (keys["text"], f"{path}.text")}
        told |= {key: (keys[key], f"{path}.{key}") for key in ("calls", "stop") if key in keys}
        talk.append(_Message("assistant", told))
    else:
        for key in ("user", "calls", "stop"):
            if key in keys:
                raise document.error(keys[key], f"{path}.{key}", "goes with text", "drop it")
        for i, message in enumerate(document.sequence(keys["messages"], f"{path}.messages")):
            inner = f"{path}.messages[{i}]"
            given = document.mapping(message, inner, MESSAGE_KEYS, required=("role", "content"))
            role = document.choice(given.pop("role"), f"{inner}.role", ROLES)
            told = {key: (value, f"{inner}.{key}") for key, value in given.items()}
            talk.append(_Message(role, told))
    return _example(document, node, path, talk, keys)


class _Message(NamedTuple):
    """``told``: ``content``, ``calls`` and ``stop``, each with its path."""

    role: str
    told: dict[str, tuple[yaml.Node, str]]


def _example(
    document: Document,
    node: yaml.Node,
    path: str,
    talk: list[_Message],
    keys: dict[str, yaml.Node],
) -> Example:
    messages: list[tuple[str, str, str]] = []
    called: list[int] = []
    marks: list[tuple[int, int, int, float | None]] = []
    for index, message in enumerate(talk):
        texts: dict[str, str] = {}
        for key in ("content", "calls", "stop"):
            if key in message.told:
                length = len("".join(texts.values()))
                texts[key], spans = _unmarked(document, *message.told[key])
                marks += [(index, length + a, length + b, None) for a, b in spans]
        content, calls = texts["content"], texts.get("calls", "")
        messages.append((message.role, content + calls, texts.get("stop", "")))
        called.append(len(content) if calls else -1)
    if "weights" in keys:
        nodes = document.sequence(keys["weights"], f"{path}.weights")
        weights = [document.number(n, f"{path}.weights[{i}]") for i, n in enumerate(nodes)]
        if len(weights) != len(marks):
            fact = f"{len(weights)} given for {len(marks)} marked"
            raise document.error(keys["weights"], f"{path}.weights", fact, "write one for each")
        marks = [(*m[:3], w) for m, w in zip(marks, weights, strict=True)]
    fields = _fields(document, keys["row"], f"{path}.row") if "row" in keys else {}
    place = f"{document.where(node)}: {path}"
    return Example(place, tuple(messages), tuple(marks), fields, tuple(called))


def _unmarked(document: Document, node: yaml.Node, path: str) -> tuple[str, list[tuple[int, int]]]:
    text = document.scalar(node, path, "str")
    try:
        return unmark(text)
    except ValueError as error:
        raise document.error(node, path, f"has an {error}", "close each ⟦ with a ⟧") from error


def _fields(document: Document, node: yaml.Node, path: str) -> dict[str, Any]:
    kinds = ("str", "int", "float", "bool", "null")
    return {
        name: document.scalar(value, f"{path}.{name}", *kinds)
        for name, value in document.entries(node, path).items()
    }
