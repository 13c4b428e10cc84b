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
from jinja2 import nodes

from pipeline.conversation import Arguments, Conversation
from pipeline.environment import HookedEnvironment
from pipeline.errors import RecordError
from pipeline.rendered import Rendered
from pipeline.spans import Span
from pipeline.template import Template

# What an assistant may write itself where its reasoning stands in its content.
_MARKUP = re.compile(r"</?(?:\w+:)?think(?:ing)?>|\[/?THINK\]")
_BARS = "|｜"
_SPLITS = frozenset(("split", "rsplit", "splitlines", "partition", "rpartition"))
_CHANGES: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "casefold": str.casefold,
    "upper": str.upper,
    "title": str.title,
    "capitalize": str.capitalize,
    "swapcase": str.swapcase,
}
_LEAST = 3  # characters of half a token that are worth looking for
_KNOWN = frozenset(("role", "content", "reasoning_content", "reasoning", "thinking", "tool_calls"))


@dataclass(frozen=True, slots=True)
class Quotation:
    """``hints`` are texts; without one of them a conversation can spell no control token.

    Each stands under a character of it that text seldom has: to look for one character takes a
    tenth of the time.
    """

    hints: Mapping[str, tuple[str, ...]]

    def hinted(self, strings: str) -> bool:
        """Whether one of a conversation's strings may hold, or make up, a control token."""
        for mark, hints in self.hints.items():
            if mark in strings:
                for hint in hints:
                    if hint in strings:
                        return True
        return False


def make_quotation(control: Collection[str], template: Template) -> Quotation:
    """For a tokenizer's *control* tokens.

    A token may get its ends from the template (``'<' ~ name ~ '>'``), so only what is left of it
    must be the data's; that may stand in two fields which are printed side by side, so one half of
    it must be in one of them. Where the template puts pieces together, its most telling character
    is all there is to look for.
    """
    tree = HookedEnvironment(template.today).parse(template.source)
    literals = {*_literals(tree), *map(str, template.variables.values())}
    borders = {text for literal in literals for text in (literal, literal.strip())}
    joins, cases = _joins(tree, control), _cases(tree)
    hints: set[str] = set()
    for token in control:
        core = _core(token, borders)
        half = len(core) // 2
        if joins or any(change(token) == token != token.swapcase() for change in cases):
            hints.add(_telling(core))
        elif half >= _LEAST:
            hints |= {_begin(core[:half]), _begin(core[half:][::-1])[::-1]}
        else:
            hints.add(core)
    shortest = sorted(hints, key=len)
    marked: dict[str, tuple[str, ...]] = {}
    for i, hint in enumerate(shortest):
        if not any(other in hint for other in shortest[:i]):
            mark = _telling(hint)
            marked[mark] = (*marked.get(mark, ()), hint)
    return Quotation(marked)


def _literals(tree: nodes.Template) -> Iterator[str]:
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value


def _applied(tree: nodes.Template) -> Iterator[tuple[str, list[nodes.Expr]]]:
    """Names of filters and methods, with their arguments."""
    for node in tree.find_all((nodes.Filter, nodes.Call)):
        if isinstance(node, nodes.Filter):
            yield node.name, node.args
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            yield node.node.attr, node.args


def _joins(tree: nodes.Template, control: Collection[str]) -> bool:
    """Whether pieces of one text can meet: around what is taken out, or by a join or a format.

    Not where a constant that no token has comes between them.
    """
    sliced = {id(node.node) for node in tree.find_all(nodes.Getitem)}
    for node in tree.find_all(nodes.Call):
        # Of what is split one piece is as good as the whole; several may be printed in a row.
        split = isinstance(node.node, nodes.Getattr) and node.node.attr in _SPLITS
        if split and id(node) not in sliced:
            return True
    for name, args in _applied(tree):
        between = args[-1] if name == "replace" and args else args[0] if args else None
        text = between.value if isinstance(between, nodes.Const) else ""
        text = text if isinstance(text, str) else ""  # `tojson(2)`
        apart = text and not any(text in token for token in control)
        if name in ("replace", "join") and not apart:
            return True
        if name in ("format", "format_map", "translate"):
            return True
    # `loop.index0 % 2` is no format.
    return not all(isinstance(node.right, nodes.Const) for node in tree.find_all(nodes.Mod))


def _cases(tree: nodes.Template) -> list[Callable[[str], str]]:
    """Changes of case that the template makes: a token that they leave alone may come of them."""
    names = {name for name, _ in _applied(tree)}
    return [change for name, change in _CHANGES.items() if name in names]


def _core(token: str, borders: Collection[str]) -> str:
    """What no literal gives of it: a literal may end as the token begins, or begin as it ends."""
    first, last = 0, len(token)
    for border in borders:
        for length in range(len(token) - 1, first, -1):
            if border.endswith(token[:length]):
                first = length
        for length in range(len(token) - 1, len(token) - last, -1):
            if border.startswith(token[-length:]):
                last = len(token) - length
    return token[first:last]


def _begin(half: str) -> str:
    """As much of it as is rare: through a bar and no shorter than two characters, or all."""
    bars = [i for i, c in enumerate(half) if c in _BARS]
    if not bars:
        return half
    return half[: max(bars[0] + 1, 2 if bars[0] else _LEAST)]


def _telling(core: str) -> str:
    """A character that text seldom has, in either case the same."""
    marks = sorted((c for c in core if not c.isalnum()), key=lambda c: (c not in _BARS, c))
    return marks[0] if marks else core[:1] and ""


def join_strings(conversation: Conversation) -> str:
    """Every string of it but roles, for a look at all of them at once.

    What is sought may be found across two of them: then it is not there, and nothing is lost.
    """
    if conversation.plain:
        return "\0".join([message["content"] for message in conversation.messages])
    strings: list[str] = []
    for message in conversation.messages:
        content = message.get("content")
        if type(content) is str and len(message) == 2:
            strings.append(content)
        else:
            strings += _strings(message)
    if conversation.tools:
        strings += _nested(conversation.tools)
    if conversation.kwargs:
        strings += _nested(conversation.kwargs)
    return "\0".join(strings)


def _strings(message: Mapping[str, Any]) -> Iterator[str]:
    for key, value in message.items():
        if type(value) is str:
            if key != "role":
                yield value
        elif value:
            yield from _nested(value)
        if key not in _KNOWN:
            yield key


def _nested(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if isinstance(value, Arguments):
            yield value.written  # a key that it repeats is not in the mapping
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
