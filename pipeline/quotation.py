"""Control tokens that the data spells out: found by the origin of their characters.

A message that says ``<|im_end|>`` would end its own turn. Tracing a render tells such text from
the template's own control tokens; since it costs a few renders, a look at the strings of a
conversation decides first whether it can have any.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.spans import Span
from pipeline.template import Rendered

# What an assistant may write itself where its reasoning stands in its content.
_MARKUP = re.compile(r"</?(?:\w+:)?think(?:ing)?>|\[/?THINK\]")
_BARRED = frozenset("|｜")
# Pieces of a token can meet where a template takes out what stood between them.
_EDITS = re.compile(r"replace|join")


@dataclass(frozen=True, slots=True)
class Quotation:
    """``hints`` are the texts one of which a conversation must hold to spell a control token."""

    hints: tuple[str, ...]

    def hinted(self, conversation: Conversation) -> bool:
        """Whether a string of the conversation may hold, or make up, a control token."""
        hints = self.hints
        for text in _strings(conversation):
            for hint in hints:
                if hint in text:
                    return True
        return False


def make_quotation(control: Collection[str], source: str) -> Quotation:
    """For a tokenizer's *control* tokens in the template *source*.

    A token such as ``<|im_end|>`` is hinted at by two characters from either end, as part of it may
    be the template's or be put together by an edit; one such as ``</s>`` by all of it (by two
    characters where the template edits), which HTML would else set off each time.
    """
    edits = bool(_EDITS.search(source))
    hints: set[str] = set()
    for token in control:
        if len(token) > 3 and not _BARRED.isdisjoint(token):
            hints |= {token[:2], token[-2:]}
        elif len(token) > 3 and edits:
            hints.add(token[:2])
        else:
            hints.add(token)
    return Quotation(tuple(sorted(hints - {""})))


def _strings(conversation: Conversation) -> Iterator[str]:
    for message in conversation.messages:
        for key, value in message.items():
            if type(value) is str:
                if key != "role":
                    yield value
            elif value:
                yield from _nested(value)
    if conversation.tools:
        yield from _nested(conversation.tools)
    if conversation.kwargs:
        yield from _nested(conversation.kwargs)


def _nested(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(key, str):
                yield key
            yield from _nested(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _nested(item)


def find_quoted(
    conversation: Conversation,
    traced: Rendered,
    matches: Callable[[str], Sequence[Span]],
) -> list[Span]:
    """The control tokens of the text that are, in any character, the data's and not the template's.

    *matches* finds all of them. Think tags in what the assistant says stay tokens: data with
    inline reasoning means them. Raises RecordError(``render``, ``control_token_untraced``) where a
    character of one came about in a way that tracing does not follow.
    """
    codes = traced.codes()
    said = np.array([o.field not in ("", "?") for o in traced.origins], np.bool_)
    unknown = np.array([o.field == "?" for o in traced.origins], np.bool_)
    quoted = []
    for span in matches(traced.text):
        inside = codes[span.start : span.end]
        if not (said[inside].any() or unknown[inside].any()):
            continue
        message = traced.origins[int(inside[0])].message
        if unknown[inside].any():
            raise RecordError(
                "render",
                "control_token_untraced",
                f"{traced.text[span.start : span.end]!r} may be the data's or the template's; "
                "take it out of the record, or allow control tokens",
                field=f"messages[{message}]" if message >= 0 else "",
            )
        speaks = message >= 0 and conversation.messages[message]["role"] == "assistant"
        if not (speaks and _MARKUP.fullmatch(traced.text, span.start, span.end)):
            quoted.append(span)
    return quoted
