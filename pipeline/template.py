"""A chat template: renders that know which message wrote what, at the cost of one render."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from pipeline.callform import apply, choose_form
from pipeline.conversation import Conversation
from pipeline.environment import HookedEnvironment, Recorder, has_generation_tags
from pipeline.errors import RecordError, TemplateError
from pipeline.limits import Limits, Meter, stopped
from pipeline.sandbox import LimitedEnvironment
from pipeline.shortcut import Shortcut
from pipeline.spans import Span, join
from pipeline.tracer import TracingEnvironment
from pipeline.tracing import Legend, Origin, codes_of, constants, owned_by, trace_record

_LIMITS = Limits()
_SHOWN = 500  # characters of a template's own message: it may be as long as it likes
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Rendered:
    """``owned[i]`` are the character ranges that message *i* wrote, sorted and disjoint;
    ``generated`` are those inside ``{% generation %}`` tags, None where the template has no tags.
    ``called[i]`` reaches from the first to the last character that was printed while the template
    looped over message *i*'s tool calls; it has no entry where it printed none there.

    A traced render also has the origin of each character: ``origins[ord(marks[i])]``; the indices
    in ``own[i]`` are of what message *i* says itself.
    """

    text: str
    owned: list[list[Span]]
    generated: list[Span] | None
    called: Mapping[int, Span] = field(default_factory=dict)
    marks: str = ""
    origins: Sequence[Origin] = ()
    own: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def origin_at(self, index: int) -> Origin:
        """Of the character at *index* of a traced render."""
        return self.origins[ord(self.marks[index])]

    def codes(self) -> NDArray[np.uint32]:
        """The index into ``origins`` of each character: uint32, as long as the text."""
        return codes_of(self.marks)


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
        limits: Limits = _LIMITS,
    ) -> None:
        self.source, self.variables, self.today, self.place = source, variables or {}, today, place
        self.limits = limits
        self._hooked = LimitedEnvironment(today, limits)
        self._compiled = _compile(self._hooked, source, place)
        self._tagged = has_generation_tags(self._hooked.parse(source))
        self._shortcut = Shortcut(self._hooked, source, self.variables)
        self._twin: tuple[TracingEnvironment, jinja2.Template, dict[str, Any]] | None = None
        self.form = choose_form(lambda probe: self._render(probe, prompt=False).text, source)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.source, self.variables, self.today, self.place, self.limits))

    def render(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """The text and its owners; *prompt* asks for the generation prompt at the end.

        Raises RecordError(``render``) where the template refuses the conversation.
        """
        return self._render(apply(self.form, conversation), prompt=prompt)

    def trace(
        self,
        conversation: Conversation,
        *,
        prompt: bool = False,
        parts: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> Rendered:
        """The same text, some times slower, with the origin of each of its characters.

        ``owned`` follows from the origins: content belongs to its message wherever it is printed.
        *parts* are sorted character ranges of messages' contents, which get origins of their own,
        with the fields ``content[0]``, ``content[1]``, ...

        Raises what `render` raises, and RecordError(``render``, ``trace_differs``) should tracing
        change a character.
        """
        conversation = apply(self.form, conversation)
        plain = self._render(conversation, prompt=prompt)
        if self._twin is None:
            environment = TracingEnvironment(self.today)
            compiled = _compile(environment, self.source, self.place)
            self._twin = (environment, compiled, constants(self.variables))
        environment, compiled, variables = self._twin
        legend = environment.legend = Legend(len(conversation.messages))
        try:
            record = trace_record(conversation, legend=legend, parts=parts or {})
            messages = [_alias_reasoning(m) for m in record.messages]
            context = _context(variables, record, messages, prompt=prompt)
            recorder = _run(environment, compiled, messages, context)
        except (RecordError, ValueError) as error:  # ValueError: no mark is left
            raise _differs(f"tracing fails: {error}") from error
        traced = _rendered(recorder, len(messages), tagged=self._tagged)
        if traced.text != plain.text:
            raise _differs("the traced text is another")
        marks = environment.marks_printed()
        owned = owned_by(marks, legend.origins, len(messages))
        own: dict[int, list[int]] = {}
        for code, origin in enumerate(legend.origins):
            if origin.field not in ("", "?"):
                own.setdefault(origin.message, []).append(code)
        origins = tuple(legend.origins)
        return replace(traced, owned=owned, marks=marks, origins=origins, own=own)

    def _render(self, conversation: Conversation, *, prompt: bool) -> Rendered:
        messages = [_alias_reasoning(m) for m in conversation.messages]
        recorder = None
        if not prompt and not conversation.kwargs:
            recorder = self._shortcut.run(messages, conversation.tools)
        context = _context(self.variables, conversation, messages, prompt=prompt)
        self._hooked.meter.begin(context)
        if recorder is None:
            recorder = _run(self._hooked, self._compiled, messages, context)
        return _rendered(recorder, len(messages), tagged=self._tagged, meter=self._hooked.meter)


def _context(
    variables: Mapping[str, Any],
    conversation: Conversation,
    messages: Sequence[Any],
    *,
    prompt: bool,
) -> dict[str, Any]:
    return {
        **variables,
        **conversation.kwargs,
        "messages": messages,
        "tools": conversation.tools,
        "documents": None,
        "add_generation_prompt": prompt,
    }


def _run(
    environment: HookedEnvironment,
    compiled: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    context: dict[str, Any],
) -> Recorder:
    recorder = environment.recorder = Recorder()
    recorder.own(messages)
    try:
        pieces = compiled.root_render_func(compiled.new_context(context))
        # Appended one by one, so the hooks see how many pieces there are.
        if isinstance(environment, LimitedEnvironment):
            environment.meter.collect(pieces, recorder.pieces)
        else:
            recorder.pieces.extend(pieces)
    except Exception as error:  # a template is somebody's program and can raise anything
        raise _refusal(error) from error
    return recorder


def _rebuild(
    source: str, variables: Mapping[str, Any], today: datetime.date, place: str, limits: Limits
) -> Template:
    return Template(source, variables=variables, today=today, place=place, limits=limits)


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
    if len(message) <= 2:
        return dict(message)  # role and content
    for key in _REASONING:
        reasoning = message.get(key)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return dict(message)


def _refusal(error: Exception) -> RecordError:
    if isinstance(error, RecordError):
        return error
    if isinstance(error, (RecursionError, MemoryError)):
        return stopped("nests too deep")
    if isinstance(error, jinja2.TemplateError) and not isinstance(error, jinja2.UndefinedError):
        fact = f"the chat template refuses it: {_short(error.message)}"
    else:
        fact = f"the chat template fails on it: {type(error).__name__}: {_short(error)}"
    return RecordError("render", "template_error", f"{fact}; change the record or the template")


def _short(message: object) -> str:
    text = str(message)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _differs(fact: str) -> RecordError:
    return RecordError(
        "render",
        "trace_differs",
        f"{fact}, so the origin of its characters is not known; change the record or the template",
    )


def _rendered(
    recorder: Recorder, count: int, *, tagged: bool, meter: Meter | None = None
) -> Rendered:
    """Piece counts become character positions."""
    ends = [0, *itertools.accumulate(map(len, recorder.pieces))]
    if meter is not None:
        meter.allow(ends[-1])
    text = "".join(recorder.pieces)
    owned: list[list[Span]] = [[] for _ in range(count)]
    start, owner = 0, -1
    for piece, following in [*recorder.events, (len(recorder.pieces), -1)]:
        end = ends[piece]
        if owner >= 0 and start < end:
            join(owned[owner], start, end)
        start, owner = end, following
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
        for first, stop in recorder.enclosed:
            if ends[first] < ends[stop]:
                generated.append(Span(ends[first], ends[stop]))
        if recorder.generated:
            generated.sort()
    called: dict[int, Span] = {}
    for message, first, stop in recorder.called:
        if ends[first] < ends[stop]:
            before = called.get(message)
            called[message] = Span(before.start if before else ends[first], ends[stop])
    return Rendered(text, owned, generated, called)
