"""Where characters come from: the marks of a record's strings and of a template's literals."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.conversation import Conversation
from pipeline.provenance import UNKNOWN, Traced
from pipeline.spans import Span

OUTSIDE = "\1"  # the mark of a template's literal that was evaluated outside of any message
# Keys that templates ask for by name: the form of a record, not its data.
_ENVELOPE = frozenset(
    ("role", "content", "reasoning_content", "reasoning", "thinking", "name", "type", "text")
).union(("tool_calls", "tool_call_id", "id", "function", "arguments"))


class Origin(NamedTuple):
    """``field`` is the record's; "" for a literal of the template, "?" where nobody followed.

    ``message`` is -1 for what belongs to none: the preamble, tools, template kwargs.
    """

    message: int
    field: str


class Legend:
    """What marks mean: the mark ``chr(k)`` says that a character is of ``origins[k]``."""

    def __init__(self, count: int) -> None:
        self.origins = [Origin(i, said) for i in range(-1, count) for said in ("?", "")]
        self._known = {origin: chr(k) for k, origin in enumerate(self.origins)}
        # By owner; -1 is the last.
        self.unknown = [chr(2 * i + 2) for i in range(count)] + [UNKNOWN]
        self.literal = [chr(2 * i + 3) for i in range(count)] + [OUTSIDE]

    def mark(self, message: int, said: str) -> str:
        origin = Origin(message, said)
        mark = self._known.get(origin)
        if mark is None:
            mark = self._known[origin] = chr(len(self.origins))
            self.origins.append(origin)
        return mark


def trace_record(
    conversation: Conversation,
    *,
    legend: Legend,
    parts: Mapping[int, Sequence[tuple[int, int]]],
) -> Conversation:
    """A deep copy; the role, the type of a call or part and the envelope's keys stay as they are.

    ``parts[i]`` are sorted character ranges of message *i*'s content, which get fields of their
    own: ``content[0]``, ``content[1]``, ...
    """
    tools, kwargs = legend.mark(-1, "tools"), legend.mark(-1, "chat_template_kwargs")
    messages = enumerate(conversation.messages)
    return replace(
        conversation,
        messages=[_message(m, i, legend, parts.get(i, ())) for i, m in messages],
        tools=_deep(conversation.tools, tools),
        kwargs={key: _deep(value, kwargs) for key, value in conversation.kwargs.items()},
    )


def _message(
    message: Mapping[str, Any], index: int, legend: Legend, parts: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    traced: dict[str, Any] = {}
    form = legend.literal[index]  # one of few words, like a template's own
    for key, value in message.items():
        if key == "role":
            traced[key] = _deep(value, form)
            continue
        # A record may have keys that are called like the origins which are no fields.
        mark = legend.mark(index, key if key not in ("", "?") else repr(key))
        if key == "content" and isinstance(value, str):
            traced[key] = Traced(value, _marked(len(value), index, legend, parts))
        elif key == "content" and _is_text_part(value):  # as `with_text_parts` makes it
            text = value[0]["text"]
            marked = Traced(text, _marked(len(text), index, legend, parts))
            traced[key] = [{**_enveloped(value[0], mark), "text": marked}]
        elif key in ("content", "tool_calls"):
            traced[key] = _enveloped(value, mark)
        else:
            traced[_key(key, mark)] = _deep(value, mark)
    return traced


def _is_text_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and value[0].keys() == {"type", "text"}


def _marked(length: int, index: int, legend: Legend, parts: Sequence[tuple[int, int]]) -> str:
    content = legend.mark(index, "content")
    pieces, last = [], 0
    for k, (start, end) in enumerate(parts):
        pieces += [content * (start - last), legend.mark(index, f"content[{k}]") * (end - start)]
        last = end
    return "".join(pieces) + content * (length - last)


def _deep(value: Any, mark: str) -> Any:
    if isinstance(value, str):
        return Traced(value, mark * len(value))
    if isinstance(value, dict):
        return {_deep(key, mark): _deep(item, mark) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep(item, mark) for item in value]
    if isinstance(value, tuple):
        return tuple(_deep(item, mark) for item in value)
    return value


def _enveloped(value: Any, mark: str) -> Any:
    """Calls and content parts, whose keys are form."""
    if isinstance(value, list):
        return [_enveloped(item, mark) for item in value]
    if not isinstance(value, dict):
        return _deep(value, mark)
    traced = {}
    for key, item in value.items():
        copy = _enveloped if key == "function" else _deep
        traced[_key(key, mark)] = copy(item, mark)
    return traced


def _key(key: Any, mark: str) -> Any:
    return key if key in _ENVELOPE else _deep(key, mark)


def constants(variables: Mapping[str, Any]) -> dict[str, Any]:
    """A build's special tokens and template kwargs, as literals of the template."""
    return {key: _deep(value, OUTSIDE) for key, value in variables.items()}


def codes_of(marks: str) -> NDArray[np.uint32]:
    """The index of each character's origin."""
    return np.frombuffer(marks.encode("utf-32-le", "surrogatepass"), np.uint32)


def owned_by(marks: str, origins: Sequence[Origin], count: int) -> list[list[Span]]:
    """The ranges of each of *count* messages, sorted, disjoint and as long as can be."""
    owned: list[list[Span]] = [[] for _ in range(count)]
    if not marks:
        return owned
    owners = np.array([origin.message for origin in origins])[codes_of(marks)]
    edges = [0, *(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]
    for start, end in itertools.pairwise(edges):
        if owners[start] >= 0:
            owned[owners[start]].append(Span(start, end))
    return owned
