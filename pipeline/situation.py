"""What a generation prompt may depend on, and a small talk that stands for all that share it.

A header is asked for in a made-up talk, not in the conversation at hand: it is then a function of
the situation alone, the same whatever else is in the batch, and one render serves a whole build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from jinja2 import nodes

from pipeline.conversation import Conversation

_REASONING = ("reasoning_content", "reasoning", "thinking")
_BLOCKS = ("", "<think>\n\n</think>\n\n", "<think>\nR\n</think>\n\n")
_OPEN, _CLOSE = "<think>", "</think>"
_LONGEST = 64  # characters of a constant that a template may look for in a message
CALL = {
    "type": "function",
    "id": "123456789",
    "function": {"name": "look", "arguments": {"at": "?"}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "?",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    },
}


class Heard(NamedTuple):
    """The telling words that a message holds; ``all`` where it is nothing but one of them."""

    words: tuple[str, ...] = ()
    all: bool = False


_NOTHING = Heard()
_SILENCE = (_NOTHING, _NOTHING, _NOTHING)


class Situation(NamedTuple):
    """What precedes a message, as far as templates look at it.

    ``before`` is the role of the message right before (empty at the start), ``called`` whether it
    calls tools; ``opening`` the role of a system message at the front; ``spoken`` whether the
    assistant spoke before that; the words are those of the template's own constants that change
    its prompt (``/no_think``) where a message holds them.
    """

    before: str
    called: bool
    opening: str
    spoken: bool
    tools: bool
    kwargs: str
    opening_words: Heard = _NOTHING
    earlier_words: Heard = _NOTHING
    words: Heard = _NOTHING


Frame: TypeAlias = tuple[str, bool, str]
Key: TypeAlias = tuple[Any, ...]


class Usual(NamedTuple):
    """Of all that the assistant says: the `Prompt` of each, and how many are written otherwise.

    ``roles`` are the codes of all messages' roles, a byte each, 0 for a role that has none.
    """

    roles: bytes
    prompts: Sequence[Any]
    rewritten: int


@dataclass(slots=True)
class Learnt:
    """What is known of conversations that are `alike`, by the index of a message.

    ``prompts`` is what precedes it (a `Prompt`), ``rewrites`` whether it is written otherwise once
    others follow; ``thoughts`` are the messages that hold a think block, or more than their text;
    ``usual`` is all that the usual row is asked for, ``closings`` what follows each answer (a
    `Closing`) where that is asked.
    """

    prompts: dict[int, Any]
    rewrites: dict[int, bool]
    thoughts: Sequence[int]
    usual: Usual | None = None
    closings: Sequence[Any] | None = None


class Setting:
    """A conversation, for the situations of its messages; *telling* are the words to look for.

    ``frame`` is what all its situations share; ``learnt`` may be shared with other conversations.
    """

    __slots__ = (
        "asked",
        "conversation",
        "earlier",
        "frame",
        "heard",
        "learnt",
        "messages",
        "misses",
        "speaks",
        "telling",
    )

    def __init__(
        self,
        conversation: Conversation,
        telling: Sequence[str],
        learnt: Learnt | None = None,
        frame: Frame | None = None,
    ) -> None:
        self.conversation, self.telling = conversation, telling
        everything = range(len(conversation.messages))
        self.learnt = Learnt({}, {}, everything) if learnt is None else learnt
        self.messages = conversation.messages
        self.frame = frame or frame_of(conversation)
        self.speaks: int | None = None  # the first message of the assistant, once somebody asks
        self.asked: int | None = None  # the last message of a user, once somebody asks
        self.heard: list[Heard] = []
        # Words of all messages before each, but for the system's.
        self.earlier: list[tuple[str, ...]] = [()]
        self.misses = 0  # how often asking about a real prefix told nothing

    def key(self, index: int) -> Key:
        """The situation before message *index*, but for the frame, as something to look up by."""
        if not index:
            return "", False, False
        message = self.messages[index - 1]
        if self.speaks is None:
            roles = [message["role"] for message in self.messages]
            self.speaks = roles.index("assistant") if "assistant" in roles else len(roles)
        calls, spoken = bool(message.get("tool_calls")), self.speaks < index - 1
        if self.telling:
            return (message["role"], calls, spoken, *_overhear(self, index))
        return message["role"], calls, spoken

    def asked_after(self, index: int) -> bool:
        """Whether a user speaks after message *index*."""
        if self.asked is None:
            users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
            self.asked = users[-1] if users else -1
        return self.asked > index

    def situation(self, index: int) -> Situation:
        """The situation before message *index*."""
        opening, tools, kwargs = self.frame
        role, called, spoken = self.key(index)[:3]
        if not index:
            opening = ""
        heard = _overhear(self, index) if self.telling and index else _SILENCE
        return Situation(role, called, opening, spoken, tools, kwargs, *heard)


def frame_of(conversation: Conversation) -> Frame:
    """What all situations of a conversation share."""
    first = conversation.messages[0]["role"]
    return (
        first if first in ("system", "developer") else "",
        bool(conversation.tools),
        repr(conversation.kwargs) if conversation.kwargs else "",
    )


def liken(conversation: Conversation, telling: Sequence[str], strings: str) -> tuple[Any, ...]:
    """Equal for conversations alike in all that a `Setting` can tell of their messages.

    *strings* has every string that they hold: without a word in it, no message need be asked.
    """
    messages, signs = conversation.messages, list[Any]()
    thinks = _CLOSE in strings
    if conversation.plain:
        contents = [message["content"] for message in messages]
        if "" not in contents and not any(map(str.isspace, contents)):
            signs = [message["role"] for message in messages]
            for i, role in enumerate(signs) if thinks else ():
                if role == "assistant" and _CLOSE in contents[i]:
                    signs[i] = _sign_thought(contents[i])
    for message in () if signs else messages:
        role, content = message["role"], message.get("content")
        if len(message) > 2 or type(content) is not str or not content or content.isspace():
            signs.append(_sign(message))
        elif thinks and role == "assistant" and _CLOSE in content:
            signs.append(_sign_thought(content))
        else:
            signs.append(role)
    heard = [word for word in telling if word in strings]
    if heard:
        signs += [_hear(heard, str(message.get("content") or "")) for message in messages]
    return tuple(signs)


def _sign(message: Mapping[str, Any]) -> tuple[Any, ...]:
    role, content = message["role"], message.get("content")
    shape = outline(message) if role == "assistant" else _REPLY
    return role, bool(content), bool(message.get("tool_calls")), shape


def _sign_thought(content: str) -> int:
    """Of an answer with a think block: is that empty, and is it all."""
    thought, after = find_thought(content)
    return 2 * (not thought) + (after == len(content) or content[after:].isspace())


def _overhear(setting: Setting, index: int) -> tuple[Heard, Heard, Heard]:
    heard, earlier = setting.heard, setting.earlier
    opening = bool(setting.frame[0])
    while len(heard) < index:  # each message once, whatever is asked of it later
        content = str(setting.messages[len(heard)].get("content") or "")
        words = () if opening and not heard else _hear(setting.telling, content).words
        earlier.append(tuple(sorted({*earlier[-1], *words})))
        heard.append(_hear(setting.telling, content))
    return heard[0] if opening else _NOTHING, Heard(earlier[index - 1]), heard[index - 1]


def _hear(telling: Sequence[str], text: str) -> Heard:
    if text in telling:
        return Heard((text,), True)
    return Heard(tuple(word for word in telling if word in text))


def imagine(situation: Situation, kwargs: dict[str, Any]) -> Conversation:
    """A talk in that *situation*; *kwargs* are what its ``kwargs`` stands for."""
    messages: list[dict[str, Any]] = []
    before = situation.before
    if situation.opening and (before != situation.opening or situation.spoken):
        messages.append(_say(situation.opening, situation.opening_words))
    if situation.spoken or before == "assistant":
        messages.append(_say("user", situation.earlier_words))
    if situation.spoken and before != "tool":
        messages.append({"role": "assistant", "content": "A"})
    if before == "tool":
        if not situation.spoken:
            messages.append(_say("user", situation.earlier_words))
        messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
    if before == "assistant":
        if situation.spoken:
            messages.append(_say("user", _NOTHING))
        called = {"tool_calls": [CALL]} if situation.called else {}
        messages.append({**_say("assistant", situation.words), **called})
    elif before == "tool":
        named = {"name": "look", "tool_call_id": CALL["id"]}
        messages.append({**_say("tool", situation.words), **named})
    elif before:
        messages.append(_say(before, situation.words))
    return Conversation(messages, [_TOOL] if situation.tools else None, kwargs)


class Outline(NamedTuple):
    """What an assistant's message has, whatever it says.

    ``block`` is the think block in its content: none, an empty one or a full one; ``speaks``: there
    are words after it.
    """

    speaks: bool
    block: str
    reasons: bool
    calls: bool


_REPLY = Outline(speaks=True, block="", reasons=False, calls=False)


def outline(message: Mapping[str, Any]) -> Outline:
    """The shape of a message, for `draw`."""
    content = message.get("content") or ""
    thought, after = find_thought(content)
    return Outline(
        after < len(content) and not content[after:].isspace(),
        _BLOCKS[(after > 0) + bool(thought)],
        len(message) > 2 and any(message.get(key) for key in _REASONING),
        bool(message.get("tool_calls")),
    )


def find_thought(content: str) -> tuple[str, int]:
    """What stands in the last think block of a content, and where that ends; 0 without any."""
    close = content.rfind(_CLOSE)
    if close < 0:
        return "", 0
    start = content.rfind(_OPEN, 0, close) + len(_OPEN)
    return content[0 if start < len(_OPEN) else start : close].strip(), close + len(_CLOSE)


def draw(shape: Outline) -> dict[str, Any]:
    """A small message of that *shape*."""
    said = shape.block + ("A" if shape.speaks else "")
    message: dict[str, Any] = {"role": "assistant", "content": said}
    if shape.reasons:
        message["reasoning_content"] = "R"
    if shape.calls:
        message["tool_calls"] = [CALL]
    return message


def plain(situation: Situation) -> Situation:
    """After a question and nothing else: what every template can answer."""
    return situation._replace(before="user", called=False, opening="", spoken=False)


def reply(role: str) -> dict[str, Any]:
    """What may follow an assistant's message."""
    named = {"name": "look", "tool_call_id": CALL["id"]} if role == "tool" else {}
    return {"role": role, "content": "B", **named}


def _say(role: str, heard: Heard) -> dict[str, Any]:
    said = " ".join(heard.words)
    # First and last as well: a template may ask what a message starts or ends with.
    content = said if heard.all else f"{said} ? {said}" if said else "?"
    return {"role": role, "content": content}


def find_telling(tree: nodes.Template, prompt: Callable[[Conversation], str]) -> tuple[str, ...]:
    """The template's own words that change its prompt where a message has them.

    A prompt that depends on what people say (SmolLM3's on ``/no_think``) must look for something,
    and what it looks for stands in its source. *prompt* tells what a talk is prompted with.
    """
    bare = [Situation("user", False, opening, False, False, "") for opening in ("", "system")]
    expected = [_prompted(prompt, s) for s in bare]
    telling = []
    for word in _constants(tree):
        for heard in (Heard((word,)), Heard((word,), True)):
            said = [(s._replace(words=heard), e) for s, e in zip(bare, expected, strict=True)]
            said.append((bare[1]._replace(opening_words=heard), expected[1]))
            if any(_differs(_prompted(prompt, s), e) for s, e in said):
                telling.append(word)
                break
    return tuple(telling)


def _prompted(prompt: Callable[[Conversation], str], situation: Situation) -> tuple[str, str]:
    """The prompt, and without what the talk itself says: a template may print that after it."""
    talk = imagine(situation, {})
    whole = text = prompt(talk)
    for content in sorted((m["content"] for m in talk.messages), key=len, reverse=True):
        text = text.replace(content, "")
    return whole, text


def _differs(found: tuple[str, str], expected: tuple[str, str]) -> bool:
    """In both forms: a talk that says `assistant` takes that word out of the same prompt."""
    return found[0] != expected[0] and found[1] != expected[1]


def _constants(tree: nodes.Template) -> list[str]:
    """Strings that are compared, or given to a method, a test or a filter."""
    kinds = (nodes.Compare, nodes.Call, nodes.Test, nodes.Filter)
    found = {
        constant.value
        for node in tree.find_all(kinds)
        for constant in node.find_all(nodes.Const)
        if isinstance(constant.value, str) and 1 < len(constant.value.strip()) <= _LONGEST
    }
    return sorted(found)
