"""A chat template: renders that know which message wrote what, at the cost of one render."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pipeline.callform import apply, choose_form
from pipeline.conversation import Conversation
from pipeline.environment import HookedEnvironment, Recorder, has_generation_tags
from pipeline.errors import RecordError, TemplateError
from pipeline.limits import Limits, stopped
from pipeline.rendered import Recorded, Rendered, alias_reasoning, assemble
from pipeline.sandbox import LimitedEnvironment
from pipeline.shortcut import Shortcut
from pipeline.tracer import TracingEnvironment
from pipeline.tracing import Legend, constants, owned_by, trace_record

_LIMITS = Limits()
_SHOWN = 500  # characters of a template's own message: it may be as long as it likes


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
        self.tagged = has_generation_tags(self._hooked.parse(source))
        self.shortcut = Shortcut(self._hooked, source, self.variables, limits)
        self._twin: tuple[TracingEnvironment, jinja2.Template, dict[str, Any]] | None = None
        self.form = choose_form(lambda probe: self._render(probe, prompt=False).text, source)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.source, self.variables, self.today, self.place, self.limits))

    def render(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """The text and its owners; *prompt* asks for the generation prompt at the end.

        Raises RecordError(``render``) where the template refuses the conversation.
        """
        return self._render(apply(self.form, conversation), prompt=prompt)

    def record(self, conversation: Conversation) -> Recorded | None:
        """The first half of `render`, for those who tell owners by themselves.

        None where the template's own code has to render; `assemble` does either's second half.
        """
        if conversation.kwargs:
            return None
        return self.shortcut.record(apply(self.form, conversation), tagged=self.tagged)

    def assemble(self, conversation: Conversation, recorded: Recorded | None) -> Rendered:
        """What `render` gives for a conversation that was recorded, or could not be."""
        if recorded is None:
            return self.render_fully(apply(self.form, conversation))
        text, recorder = recorded
        return assemble(recorder, len(conversation.messages), tagged=self.tagged, text=text)

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
            messages = [alias_reasoning(m) for m in record.messages]
            context = _context(variables, record, messages, prompt=prompt)
            recorder = _run(environment, compiled, messages, context)
        except (RecordError, ValueError) as error:  # ValueError: no mark is left
            raise _differs(f"tracing fails: {error}") from error
        traced = assemble(recorder, len(messages), tagged=self.tagged)
        if traced.text != plain.text:
            raise _differs("the traced text is another")
        marks = environment.marks_printed()
        owned = owned_by(marks, legend.origins, len(messages))
        own: dict[int, list[int]] = {}
        for code, origin in enumerate(legend.origins):
            if origin.field not in ("", "?"):
                own.setdefault(origin.message, []).append(code)
        origins = tuple(legend.origins)
        return traced._replace(owned=owned, marks=marks, origins=origins, own=own)

    def _render(self, conversation: Conversation, *, prompt: bool) -> Rendered:
        if not prompt and not conversation.kwargs:
            rendered = self.shortcut.render(conversation, tagged=self.tagged)
            if rendered is not None:
                return rendered
        return self.render_fully(conversation, prompt=prompt)

    def render_fully(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """By the template's own code: what its shortcut has to give as well, if it gives anything.

        The conversation is rendered as it is, not in the form that suits the template.
        """
        messages = [alias_reasoning(m) for m in conversation.messages]
        context = _context(self.variables, conversation, messages, prompt=prompt)
        self._hooked.meter.begin(context)
        recorder = _run(self._hooked, self._compiled, messages, context)
        return assemble(recorder, len(messages), tagged=self.tagged, meter=self._hooked.meter)


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
