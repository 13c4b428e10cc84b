"""Where the output of a message of the assistant starts, and how that is known."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from pipeline.markers import Markers
from pipeline.rendered import Rendered
from pipeline.situation import Setting
from pipeline.spans import Span
from pipeline.surroundings import Header, Prompt, Surroundings, common_length
from pipeline.tracing import codes_of

_SHOWN = 40  # characters
_MOST_MISSES = 4  # prefixes asked in vain: they cost a conversation of n turns n * n
_UNCLOSED = re.compile(r"[<\[][^<>\[\]\s]*\Z")
_THINK = re.compile(r"<(?:\w+:)?think(?:ing)?>")


class Start(NamedTuple):
    """``found`` is the method; ``supplied`` the header before it, empty where it is not known so.

    ``opened``: the header ends inside a think block.
    """

    at: int
    found: str
    supplied: str
    opened: bool


def find_start(
    index: int,
    first: Span,
    *,
    setting: Setting,
    rendered: Rendered,
    surroundings: Surroundings,
    markers: Markers,
) -> Start | str:
    """The start of the output that begins in the range *first*, or why it cannot be told."""
    text, prompt = rendered.text, surroundings.before(setting, index)
    for header in prompt.headers:
        if text.startswith(header.text, first.start, first.end):
            return _after(first.start, header)
    if prompt.enclosed:
        return "the template makes the whole talk part of a question"
    search = _Search(index, first, setting, rendered, surroundings, markers)
    found = search.prompted(prompt)
    if found is None and setting.misses < _MOST_MISSES:
        # The made-up talk may not have what this conversation's prompt depends on.
        prompt = surroundings.exactly_before(setting.conversation, index)
        found = search.prompted(prompt)
        setting.misses += found is None
    if found is None and rendered.marks:
        found = search.own(prompt)
    if found is not None:
        return found
    if not prompt.headers:
        return "the template refuses to say how it prompts for it"
    begins = text[first.start : first.end][:_SHOWN]
    return f"its text starts with {begins!r}, not with a prompt ({prompt.headers[0].text!r})"


def guess_start(index: int, first: Span, rendered: Rendered) -> Start:
    """For a build that asked for it: the first word of the message's own, or all of its range."""
    at = first_of(rendered, index, first) if rendered.marks else None
    return Start(first.start if at is None else at, "unsure", "", False)


def _after(start: int, header: Header) -> Start:
    return Start(start + len(header.text), header.found, header.text, header.opened)


class _Search(NamedTuple):
    """One message of one render; each method gives a start, or None where it cannot tell."""

    message: int
    first: Span
    setting: Setting
    rendered: Rendered
    surroundings: Surroundings
    markers: Markers

    def prompted(self, prompt: Prompt) -> Start | None:
        """The end of a header of *prompt*, or of what the message shares with one."""
        (start, end), text = self.first, self.rendered.text
        # A separator that the message writes before its header is the template's as well.
        inset = end - len(text[start:end].lstrip())
        for header in prompt.headers:
            for at in (start, inset):
                if text.startswith(header.text, at, end):
                    return _after(at, header)
        said = str(self.setting.messages[self.message].get("content") or "").lstrip()
        length = _shared(text[inset:end], said, prompt, self.markers)
        if length:
            return Start(inset + length, "common", text[inset : inset + length], False)
        return self._before(prompt, inset) if prompt.asked else self._unprompted(inset)

    def _before(self, prompt: Prompt, inset: int) -> Start | None:
        """The message before may have written the header already (DeepSeek-R1-0528)."""
        start, text = self.first.start, self.rendered.text
        for header in prompt.headers:
            if text.endswith(header.text.lstrip(), 0, start):
                elsewhere = self.surroundings.after_a_question(self.setting)
                if any(text.startswith(h.text.lstrip(), inset) for h in elsewhere.headers):
                    return None
                return Start(start, header.found, "", header.opened)
        return None

    def _unprompted(self, inset: int) -> Start | None:
        """Without a prompt all that the message wrote is generated.

        In a template that does prompt after a question, the separator that the assistant's message
        before this one wrote only because another follows would have to be generated too.
        """
        index, messages, around = self.message, self.setting.messages, self.surroundings
        after_assistant = index and messages[index - 1]["role"] == "assistant"
        if after_assistant and around.after_a_question(self.setting).asked:
            separator = around.after(self.setting, index - 1, self.markers).separator
            if separator or inset > self.first.start:
                return None
        return Start(self.first.start, "unprompted", "", False)

    def own(self, prompt: Prompt) -> Start | None:
        """The first character of the message's own, if all before it is white space or prompt."""
        start, end = self.first
        at = first_of(self.rendered, self.message, self.first)
        if at is None:
            # Nothing of it is rendered but white space: it generates nothing.
            empty = not self.rendered.text[start:end].strip() and lacks(self.rendered, self.message)
            return Start(end, "content", "", False) if empty else None
        lead = self.rendered.text[start:at].strip()
        if not any(header.text.lstrip().startswith(lead) for header in prompt.headers):
            return None
        supplied = any(self.rendered.text.endswith(h.text, 0, at) for h in prompt.headers)
        return Start(at, "prompt" if supplied else "content", "", False)


def _shared(text: str, said: str, prompt: Prompt, markers: Markers) -> int:
    """Length of the longest start that the turn shares with a header, in whole added tokens.

    A prompt may open a think block that the turn does not have (DeepSeek-R1 prefills ``<think>``
    and strips it from history): the shared part ends before it, also where the turn's own text
    begins with the same ``<``. What is shared must name the speaker: all of the header before the
    block, or an added token, or a whole word. A turn that has only ``<|im_start|>`` in common with
    the header may begin with another's text, so no other role's message may start with it, nor
    what the message itself *said*.
    """
    best = 0
    for header in prompt.headers:
        stem = header.text.lstrip()
        opening = _THINK.search(stem)
        stem = stem[: opening.start()] if opening else stem
        length = common_length(text, stem)
        if text[: len(stem)].casefold() == stem.casefold():  # `Assistant:` in the prompt only
            length = len(stem)
        length = min(markers.whole(text, length), markers.whole(stem, length))
        unclosed = _UNCLOSED.search(text, 0, length)
        if unclosed and length < len(stem):
            length = unclosed.start()  # `<` of the prompt's tag, and of the turn's
        shared = text[:length].strip()
        if length <= best or not shared:
            continue
        if said.startswith(shared) or any(o.startswith(shared) for o in prompt.others):
            continue
        word = not text[length - 1].isalnum() and any(map(str.isalpha, shared))
        if word or shared == stem.strip() or markers.holds(shared):
            best = length
    return best


def shared_stem(prompt: Prompt, markers: Markers) -> str:
    """What `_shared` finds in each text that begins with it, whatever follows; empty if unsure.

    It does so where all headers are one before their think block, and no added token begins at its
    end. The message itself must not say it.
    """
    stems = {_THINK.split(header.text.lstrip(), maxsplit=1)[0] for header in prompt.headers}
    stem = stems.pop() if len(stems) == 1 else ""
    shared = stem.strip()
    if prompt.enclosed or not shared or any(o.startswith(shared) for o in prompt.others):
        return ""
    return "" if markers.begins_at(stem) else stem


def first_of(rendered: Rendered, index: int, span: Span) -> int | None:
    """In a traced render, the first character in *span* that message *index* said itself."""
    inside = codes_of(rendered.marks[span.start : span.end])
    own = np.flatnonzero(np.isin(inside, rendered.own.get(index, ())))
    return span.start + int(own[0]) if len(own) else None


def lacks(rendered: Rendered, index: int) -> bool:
    """Whether a traced render is known to have no character of message *index*'s own."""
    unknown = [code for code, origin in enumerate(rendered.origins) if origin.field == "?"]
    marked = np.isin(codes_of(rendered.marks), [*unknown, *rendered.own.get(index, ())])
    return not marked.any()
