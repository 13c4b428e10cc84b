"""A chat template: renders that know which message wrote what, at the cost of one render."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from pipeline.callform import apply, choose_form
from pipeline.conversation import Conversation
from pipeline.environment import HookedEnvironment, Recorder, has_generation_tags
from pipeline.errors import RecordError, TemplateError
from pipeline.spans import Span

_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Rendered:
    """``owned[i]`` are the character ranges that message *i* wrote, sorted and disjoint;
    ``generated`` are those inside ``{% generation %}`` tags, None where the template has no tags.
    """

    text: str
    owned: list[list[Span]]
    generated: list[Span] | None


class Template:
    """A compiled chat template with its constant variables; renders are pure, one at a time.

    *variables* are what every render sees besides messages and tools: the tokenizer's special
    tokens and the build's template kwargs. *today* is the date ``strftime_now`` tells.
    """

    def __init__(
        self,
        source: str,
        *,
        variables: Mapping[str, Any] | None = None,
        today: datetime.date,
        place: str = "chat template",
    ) -> None:
        self.source, self.variables, self.today, self.place = source, variables or {}, today, place
        self._hooked = HookedEnvironment(today)
        self._compiled = _compile(self._hooked, source, place)
        self._tagged = has_generation_tags(self._hooked.parse(source))
        self.form = choose_form(lambda probe: self._render(probe, prompt=False).text, source)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.source, self.variables, self.today, self.place))

    def render(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """The text and its owners; *prompt* asks for the generation prompt at the end.

        Raises RecordError(``render``) where the template refuses the conversation.
        """
        return self._render(apply(self.form, conversation), prompt=prompt)

    def _render(self, conversation: Conversation, *, prompt: bool) -> Rendered:
        messages = [_alias_reasoning(m) for m in conversation.messages]
        recorder = Recorder(owners={id(m): i for i, m in enumerate(messages)})
        self._hooked.recorder = recorder
        pieces = recorder.pieces
        try:
            context = self._compiled.new_context(
                self._context(conversation, messages, prompt=prompt)
            )
            for piece in self._compiled.root_render_func(context):
                pieces.append(piece)  # one by one: the hooks read how many there are
        except Exception as error:  # a template is somebody's program and can raise anything
            raise _refusal(error) from error
        return _rendered(recorder, len(messages), tagged=self._tagged)

    def _context(
        self, conversation: Conversation, messages: Sequence[Any], *, prompt: bool
    ) -> dict[str, Any]:
        return {
            **self.variables,
            **conversation.kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": prompt,
        }


def _rebuild(
    source: str, variables: Mapping[str, Any], today: datetime.date, place: str
) -> Template:
    return Template(source, variables=variables, today=today, place=place)


def _compile(environment: jinja2.Environment, source: str, place: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(
            f"{place}:{error.lineno}: {error.message}; the template must be one that "
            "Hugging Face's chat templates' Jinja accepts"
        ) from error


def _alias_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy, with reasoning under every name that templates read it by."""
    for key in _REASONING:
        reasoning = message.get(key)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return dict(message)


def _refusal(error: Exception) -> RecordError:
    if isinstance(error, jinja2.TemplateError) and not isinstance(error, jinja2.UndefinedError):
        fact = f"the chat template refuses it: {error.message}"
    else:
        fact = f"the chat template fails on it: {type(error).__name__}: {error}"
    return RecordError("render", "template_error", f"{fact}; change the record or the template")


def _rendered(recorder: Recorder, count: int, *, tagged: bool) -> Rendered:
    """Piece counts become character positions."""
    text = "".join(recorder.pieces)
    ends = [0, *itertools.accumulate(map(len, recorder.pieces))]
    owned: list[list[Span]] = [[] for _ in range(count)]
    events = [*recorder.events, (len(recorder.pieces), -1)]
    for (piece, owner), (after, _) in itertools.pairwise(events):
        start, end = ends[piece], ends[after]
        if owner < 0 or start == end:
            continue
        mine = owned[owner]
        if mine and mine[-1].end == start:
            mine[-1] = Span(mine[-1].start, end)
        else:
            mine.append(Span(start, end))
    generated = None
    if tagged:
        if not all(text.startswith(said, ends[p]) for p, said in recorder.generated):
            raise RecordError(
                "render",
                "turn_unestablished",
                "the template's generation tags stand inside a macro, set or filter block, where "
                "their place in the text is not known; move them out of it",
            )
        generated = [Span(ends[p], ends[p] + len(said)) for p, said in recorder.generated if said]
    return Rendered(text, owned, generated)
