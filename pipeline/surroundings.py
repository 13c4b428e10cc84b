"""What a template puts around a turn: the header that a prompt supplies, what closes the turn.

Neither needs to know the template: render what precedes the turn once with the generation prompt
and once without, and see what the prompt adds; render the talk up to the turn's end, and see what
the template adds where the turn is last. Both repeat from turn to turn, so they are looked up by
what they can depend on, and matched against the text every time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.markers import Markers
from pipeline.template import Template

_PROBE = "?"
_TAIL = 32  # characters: enough to see that two renders end a message alike


class Header(NamedTuple):
    """A text that may precede what the assistant generates, and the method that found it."""

    text: str
    found: str


class Prompt(NamedTuple):
    """``headers`` are candidates, best first; ``asked``: the prompt adds text of its own."""

    headers: list[Header]
    asked: bool


class Closing(NamedTuple):
    """``separator`` is what a turn's range ends with only because another message follows.

    ``stop`` is what the template writes right after a turn's range to end it, through the stop
    token; both may be empty.
    """

    separator: str
    stop: str


@dataclass
class Surroundings:
    """Headers and closings, by what they can depend on.

    One instance serves one batch: they are rendered from the first conversation that needs them,
    so a cache that outlived the batch could make the shards depend on the order of work.
    """

    template: Template
    prompts: dict[tuple[Any, ...], Prompt] = field(default_factory=dict)
    closings: dict[tuple[Any, ...], Closing] = field(default_factory=dict)

    def before(self, conversation: Conversation, index: int) -> Prompt:
        """What the generation prompt supplies before message *index*."""
        key = _dependencies(conversation, index)
        found = self.prompts.get(key)
        if found is None:
            found = self.prompts[key] = self._look_up(conversation, index)
        return found

    def after(
        self, conversation: Conversation, index: int, written: str, markers: Markers
    ) -> Closing:
        """How the template closes message *index*, whose last range is *written*."""
        messages = conversation.messages
        following = messages[index + 1]["role"] if index + 1 < len(messages) else None
        key = (*_dependencies(conversation, index + 1), following)
        found = self.closings.get(key)
        if found is None:
            found = self.closings[key] = self._close(conversation, index, written, markers)
        return found

    def _look_up(self, conversation: Conversation, index: int) -> Prompt:
        try:
            return self._supplied(_until(conversation, index), found="prompt")
        except RecordError:
            # Many templates refuse an empty conversation, or one that ends with the assistant.
            asked = Conversation(
                [{"role": "user", "content": _PROBE}], conversation.tools, conversation.kwargs
            )
        try:
            return self._supplied(asked, found="probe")
        except RecordError:
            # Not knowing the prompt is not the same as there being none.
            return Prompt([], asked=True)

    def _supplied(self, preceding: Conversation, *, found: str) -> Prompt:
        on = self.template.render(preceding, prompt=True)
        off = self.template.render(preceding, prompt=False)
        last = max((span.end for ranges in on.owned for span in ranges), default=0)
        added = on.text[common_length(on.text, off.text) :]
        texts = [on.text[last:], added]
        # A separator that a message writes itself when another follows comes with the prompt when
        # none does: the same header without its leading white space.
        texts += [text.lstrip() for text in texts]
        headers = [Header(text, found) for text in dict.fromkeys(texts) if text]
        return Prompt(headers, asked=bool(added))

    def _close(
        self, conversation: Conversation, index: int, written: str, markers: Markers
    ) -> Closing:
        last = _until(conversation, index + 1)
        try:
            off = self.template.render(last, prompt=False)
            on = self.template.render(last, prompt=True)
        except RecordError:
            return Closing("", "")
        if not off.owned[index]:
            return Closing("", "")
        start, end = off.owned[index][-1]
        alone, trailer = off.text[start:end], off.text[end:]
        # A template that always prompts writes its prompt here: that is no stop.
        prompts = on.text[on.owned[index][-1].end :].startswith(trailer) and on.text == off.text
        stop = "" if prompts else markers.leading(trailer)
        return Closing(_separator(written, alone), stop)


def _separator(written: str, alone: str) -> str:
    """White space at the end of *written* that *alone*, the same turn as the last one, has not."""
    a, b = written.rstrip(), alone.rstrip()
    alike = min(len(a), len(b), _TAIL)
    if a[len(a) - alike :] != b[len(b) - alike :]:
        return ""
    white, kept = written[len(a) :], alone[len(b) :]
    return white[len(kept) :] if white.startswith(kept) else ""


def _until(conversation: Conversation, count: int) -> Conversation:
    return Conversation(conversation.messages[:count], conversation.tools, conversation.kwargs)


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
        repr(conversation.kwargs) if conversation.kwargs else None,
    )


def common_length(a: str, b: str) -> int:
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
