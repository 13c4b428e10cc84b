"""Messages that are one turn: calls written apart, and the words of the assistant before them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pipeline.schema.field import fault
from pipeline.schema.message import REASONING_KEYS
from pipeline.schema.weight import WEIGHT_KEYS, Weight

Range = tuple[int, int, float]


def join_calls(
    messages: Sequence[dict[str, Any]],
    weights: Mapping[int, Weight],
    calling: Collection[int],
    key: str,
) -> tuple[list[dict[str, Any]], dict[int, Weight]]:
    """Each message in *calling* becomes part of the assistant's message directly before it.

    Calls weigh what the first of them does, as in ms-swift, and no other may ask for something
    else; what was said before them keeps its own weight as a range of the content. Of other keys
    the first message's stay. RecordError ``conflicting_weight``.
    """
    joined: list[dict[str, Any]] = []
    kept: dict[int, Weight] = {}
    first = 0
    while first < len(messages):
        stop = first + 1
        while messages[first]["role"] == "assistant" and stop in calling:
            stop += 1
        message, weight = messages[first], weights.get(first)
        if stop > first + 1:
            calls = range(first if first in calling else first + 1, stop)
            called = _agree(calls, weights, key)
            weighing = messages[calls[0]]
            if first not in calling:
                weight = _settle(message, weight, called, f"{key}[{calls[0]}]")
                if called is None and weight is not None and weight.whole is not None:
                    weighing = message
            message = _join(messages[first:stop], weighing)
        if weight is not None:
            kept[len(joined)] = weight
        joined.append(message)
        first = stop
    return joined, kept


def _join(run: Sequence[dict[str, Any]], weighing: Mapping[str, Any]) -> dict[str, Any]:
    """One message with all calls; *weighing* gives the keys of its weight."""
    message: dict[str, Any] = {}
    for part in run:
        for name, value in part.items():
            if name not in WEIGHT_KEYS:
                message.setdefault(name, value)
    message["tool_calls"] = [call for part in run for call in part.get("tool_calls", ())]
    return message | {name: weighing[name] for name in weighing if name in WEIGHT_KEYS}


def _agree(calls: Sequence[int], weights: Mapping[int, Weight], key: str) -> float | None:
    """What the first of consecutive calls weighs; the others say the same, or nothing."""
    whole = {k: w.whole for k, w in weights.items() if k in calls and w.whole is not None}
    agreed = whole.get(calls[0])
    for call, weight in whole.items():
        if weight != agreed:
            told = "has no weight" if agreed is None else f"weighs {agreed:g}"
            raise fault(
                "conflicting_weight",
                f"{key}[{call}]",
                f"weighs {weight:g}, and the first call of its turn {told}; they are one message: "
                "give all of them the first one's",
            )
    return agreed


def _settle(
    said: Mapping[str, Any], weight: Weight | None, called: float | None, place: str
) -> Weight | None:
    """The weight of calls joined to what was *said* before, which has a *weight* of its own."""
    own = None if weight is None else weight.whole
    ranges = [] if weight is None else weight.ranges
    content = said["content"] or ""
    reasons = any(said.get(name) for name in REASONING_KEYS)
    before, after = (1.0 if w is None else w for w in (own, called))
    whole = own if called is None else called
    if before != after and (content or reasons):
        if after != 1 or reasons or not isinstance(content, str):
            raise fault(
                "conflicting_weight",
                place,
                f"weighs {after:g}, and the message before it, with which it is one, {before:g}; "
                "give both the same weight, or weigh the parts of the content",
            )
        whole, ranges = called, list(_fill(ranges, len(content), before))
    elif before != after:
        whole = called
    return Weight(whole, ranges) if ranges or whole is not None else None


def _fill(ranges: Sequence[Range], length: int, weight: float) -> Iterator[Range]:
    """*weight* for all of a content, times that of its own *ranges*."""
    last = 0
    for start, end, own in ranges:
        if last < start:
            yield last, start, weight
        yield start, end, own * weight
        last = end
    if last < length:
        yield last, length, weight
