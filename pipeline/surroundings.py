"""What a template puts around a turn: the header that a prompt supplies, what closes the turn.

Neither needs to know the template: render what precedes the turn once with the generation prompt
and once without, and see what the prompt adds; render a turn as the last one and with another
after it, and see what differs. Both are asked in a talk that stands for the situation, looked up
by it, and matched against the text every time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from pipeline.callform import has_prose
from pipeline.conversation import Conversation
from pipeline.environment import HookedEnvironment
from pipeline.errors import RecordError
from pipeline.laid import CODES
from pipeline.markers import Markers
from pipeline.rendered import Rendered
from pipeline.situation import (
    CALL,
    Frame,
    Key,
    Learnt,
    Outline,
    Setting,
    Situation,
    Usual,
    draw,
    find_telling,
    frame_of,
    imagine,
    liken,
    outline,
    plain,
    reply,
)
from pipeline.template import Template

_MANY = 10_000  # situations that are kept
_MOST_SHARED = 1 << 18  # messages of the conversations whose likes share what is learnt
_OPEN_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>\s*\Z")
_CLOSED_THINK = re.compile(r"<((?:\w+:)?think(?:ing)?)>(\s*</\1>)")
_REPLY = Outline(speaks=True, block="", reasons=False, calls=False)
_START = 200  # characters of another message's text that tell how it starts


class Header(NamedTuple):
    """A text that may precede what the assistant generates, and the method that found it.

    ``opened``: it ends inside a think block.
    """

    text: str
    found: str
    opened: bool


class Prompt(NamedTuple):
    """``headers`` are candidates, best first; ``asked``: the prompt adds words of its own.

    ``others`` are how the texts of other roles start: what they have too names no speaker.
    ``enclosed``: prose follows the talk whoever spoke last, so that all of it is a question about
    it (Llama Guard), and none of its messages is generated.
    """

    headers: list[Header]
    asked: bool
    others: list[str]
    enclosed: bool = False


class Closing(NamedTuple):
    """``separator`` is what a turn's range ends with only because another message follows.

    ``stop`` is what the template writes right after a turn's range to end it, through the stop
    token; ``marker`` which of the stop tokens that somebody named the next message starts with. All
    may be empty.
    """

    separator: str
    stop: str
    marker: str = ""


Near: TypeAlias = tuple[Prompt | None, bool]


@dataclass(frozen=True, slots=True)
class _Told:
    """What renders have told of the situations of one frame, by `Setting.key` and more.

    ``alike`` are those of whole conversations, found by `liken`: no key has to be made for them;
    ``near`` the prompt (but for templates with tags) and the rewriting of a message of the
    assistant, by what is around it.
    """

    alike: dict[tuple[Any, ...], Learnt] = field(default_factory=dict)
    prompts: dict[Key, Prompt] = field(default_factory=dict)
    closings: dict[tuple[Key, bool, bool, str], Closing] = field(default_factory=dict)
    near: dict[tuple[Any, ...], Near] = field(default_factory=dict)
    rewriting: dict[tuple[Key, Outline, str, bool], bool] = field(default_factory=dict)


@dataclass
class Surroundings:
    """Headers and closings of one template, each a function of the situation alone."""

    template: Template
    frames: dict[Frame, _Told] = field(default_factory=dict)
    shared: int = 0  # messages of all conversations in ``alike``

    @cached_property
    def telling(self) -> tuple[str, ...]:
        """Words that change the prompt where a message holds them."""
        tree = HookedEnvironment(self.template.today).parse(self.template.source)
        return find_telling(tree, self._added)

    def _added(self, talk: Conversation) -> str:
        try:
            return self._supplied(talk, found="prompt").headers[0].text
        except (RecordError, IndexError):
            return ""

    def setting(self, conversation: Conversation, strings: str | None = None) -> Setting:
        """The conversation, ready to be asked about its messages.

        *strings*, if given, has every string that it holds: what is learnt of it is shared with
        others like it.
        """
        if strings is None:
            self._forget()
            return Setting(conversation, self.telling)
        frame, learnt, _ = self._learn(conversation, strings)
        return Setting(conversation, self.telling, learnt, frame)

    def usual(self, conversation: Conversation, strings: str) -> Learnt:
        """What is learnt of a conversation and others like it, with ``usual``."""
        frame, learnt, signs = self._learn(conversation, strings)
        if learnt.usual is None:
            setting = Setting(conversation, self.telling, learnt, frame)
            learnt.usual = self._look_around(setting, signs)
        return learnt

    def closings(
        self, conversation: Conversation, learnt: Learnt, markers: Markers
    ) -> Sequence[Closing]:
        """`after` of each message of the assistant; *learnt* is what is known of its likes."""
        if learnt.closings is None:
            setting = Setting(conversation, self.telling, learnt)
            spoken = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
            learnt.closings = [self.after(setting, i, markers) for i in spoken]
        return learnt.closings

    def _look_around(self, setting: Setting, signs: Sequence[Any]) -> Usual:
        """Long conversations are seldom alike, but what is near a message is: asked once."""
        roles, found = [message["role"] for message in setting.messages], list[Near]()
        # More signs than messages are of words that tell: where they stand matters.
        near = self._told(setting.frame).near if len(signs) == len(roles) else {}
        spoken = [i for i, role in enumerate(roles) if role == "assistant"]
        asked = max((i for i, role in enumerate(roles) if role == "user"), default=-1)
        for i in spoken:
            around = (*roles[max(i - 1, 0) : i], "", *roles[i + 1 : i + 2])
            place = (around, signs[i], spoken[0] < i - 1, asked > i)
            known = near.get(place) if len(signs) == len(roles) else None
            if known is None:
                # Tags tell by themselves where an output starts.
                prompt = None if self.template.tagged else self.before(setting, i)
                known = near[place] = (prompt, self.rewrites(setting, i))
            found.append(known)
        prompts = [prompt for prompt, _ in found if prompt is not None]
        rewritten = sum(rewritten for _, rewritten in found)
        return Usual(bytes(CODES.get(role, 0) for role in roles), prompts, rewritten)

    def _forget(self) -> None:
        # A record's own kwargs make a frame of their own.
        if len(self.frames) > _MANY or self.shared > _MOST_SHARED:
            self.frames.clear()
            self.shared = 0

    def _learn(
        self, conversation: Conversation, strings: str
    ) -> tuple[Frame, Learnt, tuple[Any, ...]]:
        self._forget()
        frame = frame_of(conversation)
        alike = self._told(frame).alike
        key = liken(conversation, self.telling, strings)
        learnt = alike.get(key)
        if learnt is None:
            # What is signed with a word is that role's message, with text and nothing else.
            count = len(conversation.messages)
            thoughts = [i for i, sign in enumerate(key[:count]) if not isinstance(sign, str)]
            learnt = alike[key] = Learnt({}, {}, thoughts)
            self.shared += count
        return frame, learnt, key

    def _told(self, frame: Frame) -> _Told:
        told = self.frames.get(frame)
        if told is None:
            told = self.frames[frame] = _Told()
        return told

    def before(self, setting: Setting, index: int) -> Prompt:
        """What the generation prompt supplies in the situation before message *index*."""
        found: Prompt | None = setting.learnt.prompts.get(index)
        if found is None:
            prompts, key = self._told(setting.frame).prompts, setting.key(index)
            found = prompts.get(key)
            if found is None:
                found = prompts[key] = self._look_up(setting.situation(index), setting.conversation)
            setting.learnt.prompts[index] = found
        return found

    def after_a_question(self, setting: Setting) -> Prompt:
        """What it supplies after a plain question: some templates prompt nowhere else."""
        asked = replace(setting.conversation, messages=[{"role": "user", "content": "?"}])
        return self.before(Setting(asked, self.telling), 1)

    def exactly_before(self, conversation: Conversation, index: int) -> Prompt:
        """The same in the conversation itself, at the price of two renders."""
        try:
            return self._supplied(_until(conversation, index), found="prompt")
        except RecordError:
            return Prompt([], asked=True, others=[])

    def _look_up(self, situation: Situation, conversation: Conversation) -> Prompt:
        try:
            return self._supplied(imagine(situation, conversation.kwargs), found="prompt")
        except RecordError:
            # Many templates refuse an empty conversation, or one that ends with the assistant.
            pass
        try:
            return self._supplied(imagine(plain(situation), conversation.kwargs), found="probe")
        except RecordError:
            # Not knowing the prompt is not the same as there being none.
            return Prompt([], asked=True, others=[])

    def _supplied(self, preceding: Conversation, *, found: str) -> Prompt:
        on = self.template.render(preceding, prompt=True)
        off = self.template.render(preceding, prompt=False)
        last = max((span.end for ranges in on.owned for span in ranges), default=0)
        added = on.text[common_length(on.text, off.text) :]
        texts = [on.text[last:], added]
        enclosed = False
        if not added.strip() and _last_role(preceding) not in ("", "assistant"):
            texts.append(self._always_added(preceding, on.text))
            enclosed = not texts[-1] and has_prose(texts[0])
        # A separator that a message writes itself when another follows comes with the prompt when
        # none does: the same header without its leading white space.
        texts += [text.lstrip() for text in texts]
        # A block that the prompt closes at once; history may keep its end alone (DeepSeek-V3.2).
        texts += [_CLOSED_THINK.sub(r"\2", text) for text in texts]
        headers = [
            Header(text, found, bool(_OPEN_THINK.search(text)))
            for text in dict.fromkeys(texts)
            if text.strip()
        ]
        others = [
            off.text[ranges[0].start : ranges[-1].end][:_START].lstrip()
            for message, ranges in zip(preceding.messages, off.owned, strict=True)
            if ranges and message["role"] != "assistant"
        ]
        return Prompt(headers, asked=bool(added.strip()), others=others, enclosed=enclosed)

    def _always_added(self, preceding: Conversation, text: str) -> str:
        """What a template prompts with unasked: what a reply does not leave of its *text*."""
        index = len(preceding.messages)
        talk = replace(preceding, messages=[*preceding.messages, draw(_REPLY)])
        try:
            more = self.template.render(talk)
        except RecordError:
            return ""
        if not more.owned[index]:
            return ""
        start, end = more.owned[index][0]
        added = text[start:] if text.startswith(more.text[:start]) else ""
        # In history the header, or a part of it, is the message's own.
        return added if common_length(more.text[start:end].lstrip(), added.lstrip()) else ""

    def after(
        self, setting: Setting, index: int, markers: Markers, *, following: str = ""
    ) -> Closing:
        """How the template closes message *index*, an assistant's, in its situation.

        *following* is a role that may speak next where nobody does.
        """
        messages, closings = setting.messages, self._told(setting.frame).closings
        message = messages[index]
        following = messages[index + 1]["role"] if index + 1 < len(messages) else following
        shape = bool(message.get("content")), bool(message.get("tool_calls")), following
        key = (setting.key(index), *shape)
        found = closings.get(key)
        if found is None:
            kwargs = setting.conversation.kwargs
            found = closings[key] = self._close(
                setting.situation(index), *shape, kwargs=kwargs, markers=markers
            )
        return found

    def _close(
        self,
        situation: Situation,
        speaks: bool,
        calls: bool,
        following: str,
        *,
        kwargs: dict[str, Any],
        markers: Markers,
    ) -> Closing:
        said: dict[str, Any] = {"role": "assistant", "content": "A" if speaks else ""}
        if calls:
            said["tool_calls"] = [CALL]
        for known in (situation, plain(situation)):
            preceding = imagine(known, kwargs)
            index = len(preceding.messages)
            talk = replace(preceding, messages=[*preceding.messages, said])
            try:
                off = self.template.render(talk, prompt=False)
                on = self.template.render(talk, prompt=True)
                follows = [reply(following)] if following else []
                further = replace(talk, messages=[*talk.messages, *follows])
                more = self.template.render(further, prompt=False)
            except RecordError:
                continue
            if not off.owned[index]:  # printed after the loop
                off, more = self.template.trace(talk), self.template.trace(further)
            if not off.owned[index] or not more.owned[index]:
                break
            start, end = off.owned[index][-1]
            alone, trailer = off.text[start:end], off.text[end:]
            # A template that always prompts writes its prompt here: that is no stop.
            stop = "" if on.text == off.text else markers.leading(trailer)
            start, end = more.owned[index][-1]
            stop = stop or _told_by_the_next(further, more, index, markers)
            next_text = more.text[end:].lstrip()
            marker = next((t for t in markers.told if next_text.startswith(t)), "")
            return Closing(_separator(more.text[start:end], alone), stop, marker)
        return Closing("", "")

    def rewrites(self, setting: Setting, index: int) -> bool:
        """Whether the template writes message *index* otherwise once others follow it.

        Thinking is often stripped from history, so what the model was given to generate is not
        what it is shown later. Asked of a message of the same shape in the same situation.
        """
        messages = setting.messages
        found = setting.learnt.rewrites.get(index)
        if found is None and index + 1 >= len(messages):
            found = False
        if found is None:
            asked = setting.asked_after(index)
            shape, following = outline(messages[index]), messages[index + 1]["role"]
            rewriting = self._told(setting.frame).rewriting
            key = (setting.key(index), shape, following, asked)
            found = rewriting.get(key)
            if found is None:
                known, kwargs = setting.situation(index), setting.conversation.kwargs
                found = self._rewrites(known, shape, following, asked, kwargs=kwargs)
                rewriting[key] = found
        setting.learnt.rewrites[index] = found
        return found

    def _rewrites(
        self,
        situation: Situation,
        shape: Outline,
        following: str,
        asked: bool,
        *,
        kwargs: dict[str, Any],
    ) -> bool:
        for known in (situation, plain(situation)):
            preceding = imagine(known, kwargs)
            index = len(preceding.messages)
            talk = [*preceding.messages, draw(shape)]
            more = [*talk, reply(following)]
            if asked and following != "user":
                if following != "assistant":
                    more.append({"role": "assistant", "content": "C"})
                more.append(reply("user"))
            try:
                alone = self._written(replace(preceding, messages=talk), index)
                history = self._written(replace(preceding, messages=more), index)
            except RecordError:
                continue
            return not history.startswith(alone.rstrip())
        return False

    def _written(self, talk: Conversation, index: int) -> str:
        rendered = self.template.render(talk)
        return "".join(rendered.text[a:b] for a, b in rendered.owned[index])


def _told_by_the_next(talk: Conversation, rendered: Rendered, index: int, markers: Markers) -> str:
    """A control token that the next message starts with after an assistant's, and not elsewhere.

    Apertus closes the assistant's turn when the next one begins. GLM's ``<|user|>`` is how a user
    begins everywhere: that one has to be told.
    """
    if index + 1 >= len(talk.messages) or not rendered.owned[index + 1]:
        return ""
    token = markers.leading(rendered.text[rendered.owned[index + 1][0].start :])
    role = talk.messages[index + 1]["role"]
    begins = [
        rendered.text.startswith(token, ranges[0].start)
        for message, ranges in zip(talk.messages[:index], rendered.owned, strict=False)
        if ranges and message["role"] == role
    ]
    return token if token and begins and not any(begins) else ""


def _last_role(talk: Conversation) -> str:
    return talk.messages[-1]["role"] if talk.messages else ""


def _separator(written: str, alone: str) -> str:
    """White space at the end of *written* that *alone*, the same turn as the last one, has not."""
    a, b = written.rstrip(), alone.rstrip()
    if a != b:
        return ""
    white, kept = written[len(a) :], alone[len(b) :]
    return white[len(kept) :] if white.startswith(kept) else ""


def _until(conversation: Conversation, count: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:count])


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
