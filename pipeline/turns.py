"""Which characters of a render the assistant generates, and how we know.

A model is given everything up to the end of the *header* (what the generation prompt supplies) and
generates the rest of the turn up to and including its *stop token*. The header is found without
knowing the template: render what precedes the turn once with the generation prompt, once without,
and see what the prompt adds (cf. the ``found`` methods below). Headers repeat, so they are looked
up by what they can depend on and matched against the text every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.spans import Span, intersect
from pipeline.template import Rendered, Template

FOUND = ("tags", "prompt", "common", "probe", "unprompted")
_OPEN_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>\s*\Z")
_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>")
_PROBE = "?"


class Turn(NamedTuple):
    """One message as rendered, in characters of the whole text.

    ``outputs`` are the trainable ranges (empty unless the assistant speaks); ``stop`` is where the
    stop token starts, -1 where the turn has none; ``found`` says how the first output's start was
    established, one of ``FOUND``; ``opened`` whether the header ends inside a think block.
    """

    message: int
    role: str
    ranges: list[Span]
    outputs: list[Span]
    stop: int
    found: str
    opened: bool


class Header(NamedTuple):
    """A text that may precede what the assistant generates, and the method that found it."""

    text: str
    found: str


@dataclass
class Headers:
    """What the generation prompt supplies, by what it can depend on.

    One instance serves one batch: a header is rendered from the first conversation that needs it,
    so a cache that outlived the batch could make the shards depend on the order of work.
    """

    template: Template
    known: dict[tuple[Any, ...], list[Header]] = field(default_factory=dict)

    def before(self, conversation: Conversation, index: int) -> list[Header]:
        """Candidates for the header of message *index*, best first; none: a prompt adds nothing."""
        key = _dependencies(conversation, index)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._look_up(conversation, index)
        return found

    def _look_up(self, conversation: Conversation, index: int) -> list[Header]:
        preceding = Conversation(
            conversation.messages[:index], conversation.tools, conversation.kwargs
        )
        try:
            return self._supplied(preceding, found="prompt")
        except RecordError:
            # Many templates refuse an empty conversation, or one that ends with the assistant.
            asked = Conversation(
                [{"role": "user", "content": _PROBE}], conversation.tools, conversation.kwargs
            )
        try:
            return self._supplied(asked, found="probe")
        except RecordError:
            return []

    def _supplied(self, preceding: Conversation, *, found: str) -> list[Header]:
        on = self.template.render(preceding, prompt=True)
        off = self.template.render(preceding, prompt=False)
        last = max((span.end for ranges in on.owned for span in ranges), default=0)
        texts = [on.text[last:], on.text[_common(on.text, off.text) :]]
        # A separator that a message writes itself when another follows comes with the prompt when
        # none does: the same header without its leading white space.
        texts += [text.lstrip() for text in texts]
        return [Header(text, found) for text in dict.fromkeys(texts) if text]


def _dependencies(conversation: Conversation, index: int) -> tuple[Any, ...]:
    """What a header can depend on: the message before, the system text, tools and kwargs."""
    messages = conversation.messages
    first = messages[0]
    system = first.get("content") if first["role"] in ("system", "developer") else None
    before = messages[index - 1] if index else {}
    return (
        before.get("role"),
        bool(before.get("tool_calls")),
        system if isinstance(system, str) else repr(system),
        repr(conversation.tools) if conversation.tools else None,
        msgspec.json.encode(conversation.kwargs) if conversation.kwargs else None,
    )


def _common(a: str, b: str) -> int:
    """Length of the longest common prefix."""
    if a.startswith(b):
        return len(b)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Markers:
    """The texts of a tokenizer's added tokens: *control* ones may stop a turn, none is ever cut."""

    def __init__(self, *, control: Iterable[str], added: Iterable[str], eos: str = "") -> None:
        self.eos = eos
        self._control, self._added = frozenset(control), tuple(added)
        self._lengths = sorted({len(token) for token in self._control}, reverse=True)
        self._begun: dict[str, list[tuple[int, str]]] = {}

    def ending(self, text: str) -> str:
        """The longest control token that *text* ends with, or nothing; DeepSeek-R1 has 802."""
        for length in self._lengths:
            if text[-length:] in self._control:
                return text[-length:]
        return ""

    def whole(self, text: str, end: int) -> int:
        """*end*, or the start of the added token of *text* that *end* would cut in half."""
        for length, rest in self._begin(text[:end]):
            if text.startswith(rest, end):
                return end - length
        return end

    def _begin(self, shared: str) -> list[tuple[int, str]]:
        """Ways in which *shared* may end inside an added token: characters inside, the rest of it.

        What turns share with a header is one of few texts, so this is looked up: comparing 800
        added tokens for each turn took 2 ms a conversation with DeepSeek's.
        """
        begun = self._begun.get(shared)
        if begun is None:
            if len(self._begun) > 1000:
                self._begun.clear()
            begun = self._begun[shared] = [
                (length, token[length:])
                for token in self._added
                for length in range(len(token) - 1, 0, -1)
                if shared.endswith(token[:length])
            ]
        return begun


def establish_turns(
    conversation: Conversation, rendered: Rendered, *, headers: Headers, markers: Markers
) -> list[Turn]:
    """One turn for each message that wrote text, in the messages' order.

    Raises RecordError(``render``, ``turn_unestablished``) where an assistant message's output
    cannot be told from the rest: a wrong range is worse than a reject.
    """
    turns: list[Turn] = []
    for index, message in enumerate(conversation.messages):
        role, ranges = message["role"], rendered.owned[index]
        if role != "assistant":
            if ranges:
                turns.append(Turn(index, role, ranges, [], -1, "", False))
            continue
        if not ranges:
            if message.get("content") or message.get("tool_calls"):
                raise _unestablished(index, "none of the rendered text is its own")
            continue
        if rendered.generated is not None:
            turn = _tagged(index, ranges, rendered.generated)
        else:
            turn = _prompted(index, ranges, rendered.text, conversation, headers, markers)
        turns.append(_stopped(turn, rendered.text, markers))
    return turns


def _unestablished(index: int, fact: str) -> RecordError:
    return RecordError(
        "render",
        "turn_unestablished",
        f"{fact}, so it cannot be supervised; drop the conversation or change the template",
        field=f"messages[{index}]",
    )


def _tagged(index: int, ranges: list[Span], generated: list[Span]) -> Turn:
    return Turn(index, "assistant", ranges, intersect(ranges, generated), -1, "tags", False)


def _prompted(
    index: int,
    ranges: list[Span],
    text: str,
    conversation: Conversation,
    headers: Headers,
    markers: Markers,
) -> Turn:
    """The output starts where the header ends; without any prompt, where the message starts."""
    start, end = ranges[0]
    candidates = headers.before(conversation, index)
    length, found, supplied = 0, "unprompted", ""
    for header in candidates:
        if text.startswith(header.text, start, end):
            length, found, supplied = len(header.text), header.found, header.text
            break
    else:
        if candidates:
            length, supplied = _shared(text[start:end], candidates, markers)
            found = "common"
            if not length:
                raise _unestablished(
                    index,
                    f"its text does not start as a generation prompt ({candidates[0].text!r})",
                )
    outputs = [Span(start + length, end), *ranges[1:]]
    opened = bool(_OPEN_THINK.search(supplied))
    return Turn(
        index, "assistant", ranges, [s for s in outputs if s.start < s.end], -1, found, opened
    )


def _shared(text: str, candidates: Sequence[Header], markers: Markers) -> tuple[int, str]:
    """The longest start that the turn shares with a header, cut back to whole added tokens.

    A prompt may open a think block that the turn does not have (DeepSeek-R1 prefills ``<think>``
    and strips it from history): the shared part ends before it, also where the turn's own text
    begins with the same ``<``.
    """
    best, supplied = 0, ""
    for header in candidates:
        opening = _THINK.search(header.text)
        length = _common(text, header.text[: opening.start()] if opening else header.text)
        length = min(markers.whole(text, length), markers.whole(header.text, length))
        if length > best and not text[:length].isspace():
            best, supplied = length, text[:length]
    return best, supplied


def _stopped(turn: Turn, text: str, markers: Markers) -> Turn:
    """The output ends with its stop token; white space that the template puts after is left out."""
    if not turn.outputs:
        return turn
    *before, (start, end) = turn.outputs
    length = len(text[start:end].rstrip())
    token = markers.ending(text[start : start + length])
    if token:
        stop = start + length - len(token)
        # Tags are the template author's own word on what is generated: kept to the character.
        end = end if turn.found == "tags" else start + length
        return turn._replace(outputs=[*before, Span(start, end)], stop=stop)
    if markers.eos and text.startswith(markers.eos, end):
        # A document's end that the template prints after its loop is what the model emits here.
        after = end + len(markers.eos)
        ranges = [*turn.ranges[:-1], Span(turn.ranges[-1].start, after)]
        return turn._replace(ranges=ranges, outputs=[*before, Span(start, after)], stop=end)
    return turn
