"""The turns of a row: by hooks where that is enough, else by tracing, else as good as can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pipeline.errors import RecordError
from pipeline.markers import Markers
from pipeline.regions import Turn
from pipeline.rendered import Rendered
from pipeline.situation import Setting
from pipeline.spans import Span, subtract
from pipeline.surroundings import Surroundings
from pipeline.turns import establish_turns


def establish(
    setting: Setting,
    rendered: Rendered,
    traced: Rendered | None,
    *,
    surroundings: Surroundings,
    markers: Markers,
    quoted: Sequence[Span] = (),
    supervised: Sequence[int] | None = None,
    sure: bool = True,
) -> list[Turn]:
    """As `establish_turns`; *traced* is the same render traced, where it was needed before."""
    starts = [span.start for span in quoted]
    find = partial(
        establish_turns,
        setting,
        surroundings=surroundings,
        markers=markers,
        quoted=starts,
        supervised=supervised,
    )
    try:
        return find(rendered)
    except RecordError as error:
        if error.reason != "turn_unestablished":
            raise
    traced = traced or surroundings.template.trace(setting.conversation)
    return find(_combined(rendered, traced), sure=sure)


def find_told(
    messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn], text: str
) -> list[Turn]:
    """The turns, and those of messages that a template prints outside of its loop.

    Most do so with a system text. What stands once in the text that nobody owns is the message's;
    what it says twice, or somebody else too, stays nobody's.
    """
    owners = {turn.message for turn in turns}
    lost = [
        (index, message["role"], message["content"].strip())
        for index, message in enumerate(messages)
        if index not in owners
        and message["role"] != "assistant"
        and isinstance(message.get("content"), str)
    ]
    if not any(said for _, _, said in lost):
        return list(turns)
    gaps = subtract([Span(0, len(text))], sorted(s for turn in turns for s in turn.ranges))
    found: list[Turn] = []
    for index, role, said in lost:
        at = [(gap, text.find(said, gap.start, gap.end)) for gap in gaps] if said else []
        at = [(gap, start) for gap, start in at if start >= 0]
        if len(at) == 1 and text.find(said, at[0][1] + 1, at[0][0].end) < 0:
            span = Span(at[0][1], at[0][1] + len(said))
            found.append(Turn(index, role, [span], [], -1, "", False))
    return sorted([*turns, *found], key=lambda turn: turn.message)


def _combined(rendered: Rendered, traced: Rendered) -> Rendered:
    """What the hooks saw, and where they saw nothing of a message, what tracing found.

    Hooks first: what a template prints around a tool result inside the assistant's turn (Gemma 4)
    is the result's by its loop, and the assistant's by where its literals were evaluated.
    """
    taken = sorted(span for ranges in rendered.owned for span in ranges)
    owned = [
        hooked or subtract(found, taken)
        for hooked, found in zip(rendered.owned, traced.owned, strict=True)
    ]
    return rendered._replace(
        owned=owned, marks=traced.marks, origins=traced.origins, own=traced.own
    )
