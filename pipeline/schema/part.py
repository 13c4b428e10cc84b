"""Content written as a list of parts: text, reasoning, tool calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Piece, SampledContent
from pipeline.schema.field import NOTHING, TEXT_SHOWN, fault, misfit
from pipeline.schema.tokenids import holds_ids, read_ids
from pipeline.schema.toolcall import read_call
from pipeline.schema.weight import read_weight

KINDS = {
    "text": "text",
    "reasoning": "reasoning",
    "thinking": "reasoning",
    "tool_call": "tool_call",
}
ORDER = ("reasoning", "text", "tool_call")  # as every template prints them
VALUE_KEYS = {
    "text": ("text", "value"),
    "reasoning": ("value", "text", "reasoning", "thinking"),
    "tool_call": ("value", "tool_call"),
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a part list says: ``content`` is None without text, ``ranges`` are its weighted parts.

    Each is ``(start, end, weight)`` in characters of ``content``, in order; empty parts have none.
    Beside token ids the weights stay with the pieces.
    """

    content: str | SampledContent | None
    reasoning: str | None
    calls: list[dict[str, Any]]
    ranges: list[tuple[int, int, float]]


def read_parts(parts: list[Any], place: str) -> Parts:
    """Text joined without a separator, reasoning and calls apart.

    Of 238 real templates 100 fail on part lists, 54 print them as Python and 9 lose them; of those
    that read them 54 join with nothing, 2 with a newline. RecordError for other kinds of parts, for
    an order that no template can print, and for a weight on what is not text: where in the rendered
    text reasoning and calls lie is the template's business, so no range of content says it.
    """
    pieces: list[Piece] = []
    reasonings: list[str] = []
    calls: list[dict[str, Any]] = []
    latest = 0
    sampled = any(map(holds_ids, parts))
    for i, written in enumerate(parts):
        at = f"{place}[{i}]"
        bare = sampled and isinstance(written, str)
        part = {"type": "text", "text": written} if bare else written
        kind = "text" if sampled and holds_ids(part) else _read_kind(part, at)
        if ORDER.index(kind) < latest:
            fact = f"{kind} after {ORDER[latest]}; templates print {', '.join(ORDER)}: split it"
            raise fault("part_order", at, fact)
        latest = ORDER.index(kind)
        if sampled and holds_ids(part):
            pieces.append(read_ids(part, at))
            continue
        weight = read_weight(part, at)
        if weight is not None and kind != "text":
            fact = f"a weight on a {kind} part is not supported; weigh the message, or use a rule"
            raise fault("unsupported_weight", at, fact)
        key, value = _read_value(part, kind, at)
        if kind == "tool_call":
            calls.append(read_call(value, f"{at}.{key}"))
        elif kind == "reasoning":
            reasonings.append(value)
        else:
            pieces.append(Piece(value, weights=() if weight is None else (weight,)))
    reasoning = "".join(reasonings) if reasonings else None
    if sampled:
        return Parts(SampledContent(tuple(pieces)), reasoning, calls, [])
    content = "".join(piece.text for piece in pieces) if pieces else None
    return Parts(content, reasoning, calls, list(_ranges(pieces)))


def _ranges(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, float]]:
    end = 0
    for piece in pieces:
        start, end = end, end + len(piece.text)
        if piece.weights and piece.text:
            yield start, end, piece.weights[0]


def _read_kind(part: Any, at: str) -> str:
    remedy = f"known types: {', '.join(KINDS)}"
    if not isinstance(part, dict):
        raise misfit("bad_content", at, "a part", part, remedy=remedy)
    written = part.get("type")
    if written is None and part.get("text") is not None:
        return "text"
    if not isinstance(written, str):
        raise misfit("unsupported_part", f"{at}.type", "a string", written, remedy=remedy)
    if written not in KINDS:
        raise fault("unsupported_part", f"{at}.type", f"{written[:TEXT_SHOWN]!r}; {remedy}")
    return KINDS[written]


def _read_value(part: dict[str, Any], kind: str, at: str) -> tuple[str, Any]:
    keys = VALUE_KEYS[kind]
    key = next((key for key in keys if part.get(key) is not None), None)
    if key is None:
        key = next((key for key in keys if key in part), keys[0])
        value = part.get(key, NOTHING)
    else:
        value = part[key]
    if kind != "tool_call" and not isinstance(value, str):
        raise misfit("bad_content", f"{at}.{key}", "a string", value, remedy='use "" or drop it')
    return key, value
