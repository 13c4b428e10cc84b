"""Which characters of a render the assistant generates, and how we know.

A model is given everything up to the end of the *header* (what the generation prompt supplies) and
generates the rest of the turn up to and including its *stop token*.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection
from typing import Any, NamedTuple

from pipeline.errors import RecordError
from pipeline.markers import Markers
from pipeline.regions import Turn
from pipeline.rendered import Rendered
from pipeline.situation import Setting
from pipeline.spans import Span, intersect, join
from pipeline.starts import find_start, guess_start, lacks
from pipeline.surroundings import Prompt, Surroundings

_REASONING = ("reasoning_content", "reasoning", "thinking")
_new = tuple.__new__  # a named tuple's own is Python: twice the time of a turn
_SPOKEN = ("content", "tool_calls", *_REASONING)


def establish_turns(
    setting: Setting,
    rendered: Rendered,
    *,
    surroundings: Surroundings,
    markers: Markers,
    quoted: Collection[int] = (),
    supervised: Collection[int] | None = None,
    sure: bool = True,
) -> list[Turn]:
    """One turn for each message that wrote text, in the messages' order.

    *quoted* are where control tokens start that the data spells out: they stop no turn. Only
    *supervised* messages (all, where None) get outputs. A traced render tells more than a hooked
    one. Raises RecordError(``render``, ``turn_unestablished``) where a supervised message's output
    cannot be told from the rest: a wrong range is worse than a reject; unless not *sure* will do.
    """
    turns: list[Turn] = []
    generated, called = rendered.generated, rendered.called
    around = _Around(
        rendered.text, setting, rendered, surroundings, markers, frozenset(quoted), sure
    )
    taken = 0  # a stop token that the template writes as the next message's first belongs before
    for index, (message, owned) in enumerate(zip(setting.messages, rendered.owned, strict=True)):
        role, ranges = message["role"], owned
        if ranges and ranges[0].start < taken:
            ranges = [Span(max(s.start, taken), s.end) for s in ranges if s.end > taken]
        if role != "assistant" or (supervised is not None and index not in supervised):
            if ranges:
                turns.append(_new(Turn, (index, role, ranges, [], -1, "", False, -1)))
            continue
        if not ranges:
            spoke = any(message.get(key) for key in _SPOKEN)
            if spoke and sure and not (rendered.marks and lacks(rendered, index)):
                raise _unestablished(index, "none of the rendered text is its own")
            continue
        if generated is not None:
            turn = around.tagged(index, ranges, generated)
        else:
            turn = around.plainly(index, ranges) or around.prompted(index, ranges)
        if index in called:
            turn = around.calling(turn, called[index])
        taken = turn.ranges[-1].end
        turns.append(turn)
    return turns


def _unestablished(index: int, fact: str) -> RecordError:
    return RecordError(
        "render",
        "turn_unestablished",
        f"{fact}, so it cannot be supervised; drop the conversation, change the template, or train "
        "it from its own first word with --unsure build",
        field=f"messages[{index}]",
    )


def _says(value: Any) -> bool:
    """White space alone is what an answer may be, and no template leaves out more than that."""
    return bool(value.strip() if isinstance(value, str) else value)


class _Around(NamedTuple):
    """A rendered conversation and all that tells where its outputs start and end."""

    text: str
    setting: Setting
    rendered: Rendered
    surroundings: Surroundings
    markers: Markers
    quoted: frozenset[int]
    sure: bool

    def plainly(self, index: int, ranges: list[Span]) -> Turn | None:
        """The common case, at half the price: one range, with a header and a stop token."""
        if len(ranges) > 1:
            return None
        text, markers, (start, end) = self.text, self.markers, ranges[0]
        prompt: Prompt | None = self.setting.learnt.prompts.get(index)
        if prompt is None:
            prompt = self.surroundings.before(self.setting, index)
        for header in prompt.headers:
            if text.startswith(header.text, start, end):
                start += len(header.text)
                break
        else:
            return None
        while end > start and text[end - 1].isspace():
            end -= 1
        token = markers.ending(text, start, end)
        if not token:
            return None
        stop = end - len(token)
        if self.quoted and stop in self.quoted:
            return None
        if token != markers.eos and text[stop - 1] in markers.lasts:
            end = self._through_eos(start, end)
            stop = self._stop(start, end)
        if (stop == start or text[start].isspace()) and self._mute(index, start, stop):
            return Turn(index, "assistant", ranges, [], -1, header.found, header.opened)
        outputs = [_new(Span, (start, end))]
        fields = (index, "assistant", ranges, outputs, stop, header.found, header.opened, -1)
        return _new(Turn, fields)

    def tagged(self, index: int, ranges: list[Span], generated: list[Span]) -> Turn:
        """Tags are the author's own word on what is generated: kept to the character."""
        text = self.text
        # Of those of a long talk only the ones that can lie inside.
        begin, end = ranges[0].start, ranges[-1].end
        first = bisect_right(generated, (begin,))
        first -= first > 0 and generated[first - 1].end > begin
        within = generated[first : bisect_left(generated, (end,), first)]
        outputs: list[Span] = []
        if len(ranges) == len(within) == 1 and begin <= within[0].start and within[0].end <= end:
            outputs = within
        else:
            for start, stop in intersect(ranges, within):
                join(outputs, start, stop)
        stop = -1
        if outputs:
            start, end = outputs[-1]
            while end > start and text[end - 1].isspace():
                end -= 1
            stop = self._stop(start, end)
        return _new(Turn, (index, "assistant", ranges, outputs, stop, "tags", False, -1))

    def _stop(self, start: int, end: int) -> int:
        """Where the control token that ends ``text[start:end]`` starts, -1 where none does."""
        token = self.markers.ending(self.text, start, end)
        at = end - len(token)
        return at if token and at not in self.quoted else -1

    def _through_eos(self, start: int, end: int) -> int:
        """*end*, or the end of an eos that only other control tokens follow (``</s><s>``)."""
        text, at, found, markers = self.text, end, end, self.markers
        while token := markers.ending(text, start, at):
            if at - len(token) in self.quoted:
                break
            if token == markers.eos:
                found = at
            at -= len(token)
            while at > start and text[at - 1].isspace():
                at -= 1
            if text[at - 1] not in markers.lasts:  # the common case: words
                break
        return found

    def _mute(self, index: int, start: int, end: int) -> bool:
        """Whether nothing is rendered of a message that does say something.

        A template that prints no tool calls makes a bare stop token of one: that teaches silence.
        """
        message = self.setting.messages[index]
        if self.text[start:end].strip():
            return False
        return any(_says(message.get(key)) for key in _SPOKEN)

    def calling(self, turn: Turn, called: Span) -> Turn:
        """Tool calls begin where the content that the message has before them ends."""
        if not turn.outputs:
            return turn
        message = self.setting.messages[turn.message]
        content = message.get("content")
        said = content.strip() if isinstance(content, str) else ""
        start = turn.outputs[0].start
        if said:
            at = self.text.rfind(said, start, called.start)
            start = at + len(said) if at >= 0 else called.start
        elif any(message.get(key) for key in _REASONING):
            start = called.start
        white = self.text[start : called.start]
        return turn._replace(called=start + len(white) - len(white.lstrip()))

    def prompted(self, index: int, ranges: list[Span]) -> Turn:
        """The output starts where the header ends, and ends with its stop token."""
        first = ranges[0]
        start = find_start(
            index,
            first,
            setting=self.setting,
            rendered=self.rendered,
            surroundings=self.surroundings,
            markers=self.markers,
        )
        if isinstance(start, str):
            if self.sure:
                raise _unestablished(index, start)
            start = guess_start(index, first, self.rendered)
        text, supplied = self.text, start.supplied.lstrip()
        if supplied and any(text.startswith(supplied, s.start, s.end) for s in ranges[1:]):
            raise _unestablished(index, "the template prints it more than once")
        outputs = [Span(start.at, first.end), *ranges[1:]] if start.at < first.end else ranges[1:]
        found, opened = start.found, start.opened
        if not outputs:
            return Turn(index, "assistant", ranges, [], -1, found, opened)
        last = outputs[-1].start
        end = outputs[-1].end
        while end > last and text[end - 1].isspace():
            end -= 1
        end = self._through_eos(last, end)
        stop = self._stop(last, end)
        if len(outputs) == 1 and self._mute(index, last, end if stop < 0 else stop):
            return Turn(index, "assistant", ranges, [], -1, found, opened)
        if stop < 0:
            return self._closed(Turn(index, "assistant", ranges, outputs, -1, found, opened))
        outputs[-1] = Span(last, end)
        return Turn(index, "assistant", ranges, outputs, stop, found, opened)

    def _closed(self, turn: Turn) -> Turn:
        """A turn without a stop token of its own: one may follow it, a separator is left out."""
        text, markers = self.text, self.markers
        *before, (start, end) = turn.outputs
        closing = self.surroundings.after(self.setting, turn.message, markers)
        if closing.separator and text.endswith(closing.separator, start, end):
            end -= len(closing.separator)
        for follows in (closing.stop, markers.eos, *markers.told):
            if follows and text.startswith(follows, end) and end not in self.quoted:
                # A template may write it after its loop, or before the next message.
                after = end + len(follows)
                ranges = [*turn.ranges[:-1], Span(turn.ranges[-1].start, after)]
                stop = after - len(markers.ending(follows, 0, len(follows)) or follows)
                outputs = [*before, Span(start, after)]
                return turn._replace(ranges=ranges, outputs=outputs, stop=stop)
        if not text[start:end].strip():  # only a separator, after nothing
            return turn._replace(outputs=before)
        return turn._replace(outputs=[*before, Span(start, end)])
