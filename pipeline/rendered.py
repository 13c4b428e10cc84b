"""What a render gave: the text, and who wrote which of its characters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.environment import Recorder
from pipeline.errors import RecordError
from pipeline.limits import Meter
from pipeline.spans import Span, join
from pipeline.tracing import Origin, codes_of

_NOTHING: Mapping[int, Any] = MappingProxyType({})
_REASONING = ("reasoning_content", "thinking", "reasoning")
_new = tuple.__new__  # a named tuple's own is Python, and takes twice the time


class Rendered(NamedTuple):
    """``owned[i]`` are the character ranges that message *i* wrote, sorted and disjoint;
    ``generated`` are those inside ``{% generation %}`` tags, None where the template has no tags.
    ``called[i]`` reaches from the first to the last character that was printed while the template
    looped over message *i*'s tool calls; it has no entry where it printed none there.

    A traced render also has the origin of each character: ``origins[ord(marks[i])]``; the indices
    in ``own[i]`` are of what message *i* says itself.
    """

    text: str
    owned: list[list[Span]]
    generated: list[Span] | None
    called: Mapping[int, Span] = _NOTHING
    marks: str = ""
    origins: Sequence[Origin] = ()
    own: Mapping[int, Sequence[int]] = _NOTHING

    def origin_at(self, index: int) -> Origin:
        """Of the character at *index* of a traced render."""
        return self.origins[ord(self.marks[index])]

    def codes(self) -> NDArray[np.uint32]:
        """The index into ``origins`` of each character: uint32, as long as the text."""
        return codes_of(self.marks)


class Recorded(NamedTuple):
    """A render whose owners are still to be told: the text, and what the hooks reported."""

    text: str
    recorder: Recorder


def alias_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy, with reasoning under every name that templates read it by."""
    if len(message) <= 2:
        return dict(message)  # role and content
    for key in _REASONING:
        reasoning = message.get(key)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return dict(message)


def assemble(
    recorder: Recorder,
    count: int,
    *,
    tagged: bool,
    meter: Meter | None = None,
    text: str | None = None,
) -> Rendered:
    """Piece counts become character positions; *text* are the pieces joined, if at hand.

    Raises RecordError where *meter* finds the text too long, or a tag's place is not known.
    """
    ends = [0, *itertools.accumulate(map(len, recorder.pieces))]
    if meter is not None:
        meter.allow(ends[-1])
    if text is None:
        text = "".join(recorder.pieces)
    owned: list[list[Span]] = [[] for _ in range(count)]
    start, owner = 0, -1
    for piece, following in [*recorder.events, (len(recorder.pieces), -1)]:
        end = ends[piece]
        if owner >= 0 and start < end:
            spans = owned[owner]
            if spans:
                join(spans, start, end)
            else:
                spans.append(_new(Span, (start, end)))
        start, owner = end, following
    generated = None
    if tagged:
        if recorder.generated and not _stands(recorder.generated, text, ends):
            raise RecordError(
                "render",
                "turn_unestablished",
                "the template's generation tags stand inside a macro, set or filter block, where "
                "their place in the text is not known; move them out of it",
            )
        generated = [
            _new(Span, (ends[first], ends[stop]))
            for first, stop in recorder.enclosed
            if ends[first] < ends[stop]
        ]
        if recorder.generated:
            more = [Span(ends[p], ends[p] + len(said)) for p, said in recorder.generated if said]
            generated = sorted(generated + more)
    called: dict[int, Span] = {}
    for message, first, stop in recorder.called:
        if ends[first] < ends[stop]:
            before = called.get(message)
            called[message] = Span(before.start if before else ends[first], ends[stop])
    return _new(Rendered, (text, owned, generated, called or _NOTHING, "", (), _NOTHING))


def _stands(generated: Sequence[tuple[int, str]], text: str, ends: Sequence[int]) -> bool:
    return all(text.startswith(said, ends[piece]) for piece, said in generated)
