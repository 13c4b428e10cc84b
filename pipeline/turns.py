"""Which characters of a render the assistant generates, and how we know.

A model is given everything up to the end of the *header* (what the generation prompt supplies) and
generates the rest of the turn up to and including its *stop token*.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.markers import Markers
from pipeline.spans import Span, intersect
from pipeline.surroundings import Header, Surroundings, common_length
from pipeline.template import Rendered

FOUND = ("tags", "prompt", "common", "probe", "unprompted")
_SPOKEN = ("content", "tool_calls", "reasoning_content", "reasoning", "thinking")
_OPEN_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>\s*\Z")
_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>")


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


def establish_turns(
    conversation: Conversation,
    rendered: Rendered,
    *,
    surroundings: Surroundings,
    markers: Markers,
) -> list[Turn]:
    """One turn for each message that wrote text, in the messages' order.

    Raises RecordError(``render``, ``turn_unestablished``) where an assistant message's output
    cannot be told from the rest: a wrong range is worse than a reject.
    """
    turns: list[Turn] = []
    around = _Around(conversation, rendered.text, surroundings, markers)
    taken = 0  # a stop token that the template writes as the next message's first belongs before
    for index, message in enumerate(conversation.messages):
        role, ranges = message["role"], rendered.owned[index]
        if ranges and ranges[0].start < taken:
            ranges = [Span(max(s.start, taken), s.end) for s in ranges if s.end > taken]
        if role != "assistant":
            if ranges:
                turns.append(Turn(index, role, ranges, [], -1, "", False))
            continue
        if not ranges:
            if any(message.get(key) for key in _SPOKEN):
                raise _unestablished(index, "none of the rendered text is its own")
            continue
        if rendered.generated is not None:
            turn = around.tagged(index, ranges, rendered.generated)
        else:
            turn = around.stopped(around.prompted(index, ranges))
        taken = turn.ranges[-1].end
        turns.append(turn)
    return turns


def _unestablished(index: int, fact: str) -> RecordError:
    return RecordError(
        "render",
        "turn_unestablished",
        f"{fact}, so it cannot be supervised; drop the conversation or change the template",
        field=f"messages[{index}]",
    )


class _Around(NamedTuple):
    """A rendered conversation and all that tells where its outputs start and end."""

    conversation: Conversation
    text: str
    surroundings: Surroundings
    markers: Markers

    def tagged(self, index: int, ranges: list[Span], generated: list[Span]) -> Turn:
        """Tags are the author's own word on what is generated: kept to the character."""
        outputs = intersect(ranges, generated)
        stop = -1
        if outputs:
            spoken = self.text[outputs[-1].start : outputs[-1].end].rstrip()
            token = self.markers.ending(spoken)
            stop = outputs[-1].start + len(spoken) - len(token) if token else -1
        return Turn(index, "assistant", ranges, outputs, stop, "tags", False)

    def prompted(self, index: int, ranges: list[Span]) -> Turn:
        """The output starts where the header ends; without any prompt, where the message starts."""
        (start, end), text = ranges[0], self.text
        prompt = self.surroundings.before(self.conversation, index)
        length, found, supplied = 0, "unprompted", ""
        # A separator that the message writes before its header is the template's as well.
        inset = end - start - len(text[start:end].lstrip())
        for header in prompt.headers:
            at = start if text.startswith(header.text, start, end) else start + inset
            if text.startswith(header.text, at, end):
                length, found = at - start + len(header.text), header.found
                supplied = header.text
                break
        else:
            if prompt.asked:
                length, supplied = _shared(text[start:end], prompt.headers, self.markers)
                found = "common"
                if not length:
                    raise _unestablished(index, _unlike(prompt.headers))
        if supplied and any(text.startswith(supplied, s.start, s.end) for s in ranges[1:]):
            raise _unestablished(index, "the template prints it more than once")
        outputs = [Span(start + length, end), *ranges[1:]]
        opened = bool(_OPEN_THINK.search(supplied))
        return Turn(
            index, "assistant", ranges, [s for s in outputs if s.start < s.end], -1, found, opened
        )

    def stopped(self, turn: Turn) -> Turn:
        """The output ends with its stop token; white space that follows it is left out."""
        if not turn.outputs:
            return turn
        text, markers = self.text, self.markers
        *before, (start, end) = turn.outputs
        length = len(text[start:end].rstrip())
        token = markers.ending(text[start : start + length])
        if token:
            stop = start + length - len(token)
            return turn._replace(outputs=[*before, Span(start, start + length)], stop=stop)
        closing = self.surroundings.after(self.conversation, turn.message, text[start:end], markers)
        if closing.separator and text.endswith(closing.separator, start, end):
            end -= len(closing.separator)
        for follows in (closing.stop, markers.eos):
            if follows and text.startswith(follows, end):
                # A template may write it after its loop, or before the next message.
                after = end + len(follows)
                ranges = [*turn.ranges[:-1], Span(turn.ranges[-1].start, after)]
                stop = after - len(markers.ending(follows))
                return turn._replace(
                    ranges=ranges, outputs=[*before, Span(start, after)], stop=stop
                )
        return turn._replace(outputs=[*before, Span(start, end)])


def _unlike(headers: Sequence[Header]) -> str:
    if not headers:
        return "the template refuses to say how it prompts for it"
    return f"its text does not start as a generation prompt ({headers[0].text!r})"


def _shared(text: str, candidates: Sequence[Header], markers: Markers) -> tuple[int, str]:
    """The longest start that the turn shares with a header, cut back to whole added tokens.

    A prompt may open a think block that the turn does not have (DeepSeek-R1 prefills ``<think>``
    and strips it from history): the shared part ends before it, also where the turn's own text
    begins with the same ``<``. What is shared must name the speaker: all of the header before the
    block, or a whole word of it, or two control tokens. A turn that has only ``<|im_start|>`` in
    common with it may begin with another's text.
    """
    best, supplied = 0, ""
    for header in candidates:
        opening = _THINK.search(header.text)
        length = common_length(text, header.text[: opening.start()] if opening else header.text)
        length = min(markers.whole(text, length), markers.whole(header.text, length))
        stem = header.text[: opening.start()] if opening else header.text
        if length > best and _names_speaker(text[:length], stem, markers):
            best, supplied = length, text[:length]
    return best, supplied


def _names_speaker(shared: str, stem: str, markers: Markers) -> bool:
    if shared.rstrip() == stem.rstrip():
        return bool(stem.strip())
    tokens, rest = markers.strip(shared)
    return tokens > 1 or (not shared[-1:].isalnum() and any(map(str.isalpha, rest)))
