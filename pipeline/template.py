"""A chat template: its Jinja environment, and renders that know which message wrote what.

Provenance costs no second render. Every ``for`` body reports its loop variable before anything
else, so the recorder knows which message the text that follows belongs to; statements that print
nothing change no character (the tests hold instrumented and plain renders equal on every template
of the corpus).
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from pipeline.conversation import Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.spans import Span

_ENTER = "weighted_shards_enter"
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Rendered:
    """``owned[i]`` are the character ranges that message *i* wrote, sorted and disjoint;
    ``generated`` are those inside ``{% generation %}`` tags, None where the template has no tags.
    """

    text: str
    owned: list[list[Span]]
    generated: list[Span] | None


@dataclass
class Recorder:
    """What a render reports while it runs: pieces of text, and who owns what comes after each."""

    pieces: list[str] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)  # (pieces so far, owner or -1)
    generated: list[tuple[int, int]] = field(default_factory=list)  # (pieces so far, characters)
    owners: dict[int, int] = field(default_factory=dict)  # id(message) -> its index
    owner: int = -1
    stack: list[int] = field(default_factory=list)

    def push(self) -> None:
        self.stack.append(self.owner)

    def enter(self, value: object) -> None:
        owner = self.owners.get(id(value), -1)
        if owner >= 0 and owner != self.owner:
            self.owner = owner
            self.events.append((len(self.pieces), owner))

    def enter_at(self, values: object, index: object) -> None:
        if (
            type(values) is list
            and type(index) is int
            and -len(values) <= index < len(values)
            and (not self.stack or self.stack[-1] < 0)
        ):
            self.enter(values[index])

    def pop(self) -> None:
        owner = self.stack.pop()
        if owner != self.owner:
            self.owner = owner
            self.events.append((len(self.pieces), owner))


class _Generator(CodeGenerator):
    """Writes the hooks as plain calls: the sandbox's check of each call would double their cost."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.writeline("environment.recorder.push()")
        super().visit_For(node, frame)
        self.writeline("environment.recorder.pop()")

    def visit_Call(  # noqa: N802 - Jinja's visitor names
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        called = node.node
        if not (isinstance(called, nodes.EnvironmentAttribute) and called.name == _ENTER):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        hook = "enter" if len(node.args) == 1 else "enter_at"
        self.write(f"environment.recorder.{hook}(")
        for i, argument in enumerate(node.args):
            self.write(", " if i else "")
            self.visit(argument, frame)
        self.write(")")


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``: its body, recorded as generated text."""

    tags = {"generation"}  # noqa: RUF012 - the attribute Jinja reads

    def parse(self, parser: jinja2.parser.Parser) -> nodes.CallBlock:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_record"), [], [], body)
        block.set_lineno(line)
        return block

    def _record(self, caller: Any) -> str:
        text: str = caller()
        environment = self.environment
        if isinstance(environment, _HookedEnvironment):
            recorder = environment.recorder
            recorder.generated.append((len(recorder.pieces), len(text)))
        return text


class _TemplateDict:
    """``dict`` for templates, without the attributes by which a class can be walked."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _prepare(environment: jinja2.Environment, today: datetime.date) -> None:
    """Filters and globals that Hugging Face's chat templates expect; the clock tells *today*."""
    clock = datetime.datetime(today.year, today.month, today.day)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = clock.strftime
    environment.globals["dict"] = _TemplateDict()


class _HookedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Generator

    def __init__(self, today: datetime.date) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols],
        )
        _prepare(self, today)
        self.recorder = Recorder()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.body[:0] = _hooks(loop)
        return tree


def _hooks(loop: nodes.For) -> list[nodes.Node]:
    """Statements that report a loop's variables, and ``L[i]`` where the body reads it by index."""
    names = [
        node.name
        for node in (
            [loop.target]
            if isinstance(loop.target, nodes.Name)
            else loop.target.find_all(nodes.Name)
        )
        if isinstance(node, nodes.Name)
    ]
    calls = [[name] for name in names]
    stored = {n.name for b in loop.body for n in _names(b) if n.ctx == "store"}
    indexed = {
        (item.node.name, item.arg.name)
        for statement in loop.body
        for item in statement.find_all(nodes.Getitem)
        if isinstance(item.node, nodes.Name) and isinstance(item.arg, nodes.Name)
    }
    # A list that the body itself assigns is not read early: a load before the store would change
    # what Jinja resolves the name to.
    calls += [[values, i] for values, i in sorted(indexed) if i in names and values not in stored]
    return [
        nodes.ExprStmt(
            nodes.Call(
                nodes.EnvironmentAttribute(_ENTER),
                [nodes.Name(name, "load") for name in call],
                [],
                None,
                None,
            )
        ).set_lineno(loop.lineno)
        for call in calls
    ]


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


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
        self._hooked = _HookedEnvironment(today)
        self._compiled = _compile(self._hooked, source, place)
        self._tagged = _has_generation_tags(self._hooked.parse(source))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.source, self.variables, self.today, self.place))

    def render(self, conversation: Conversation, *, prompt: bool = False) -> Rendered:
        """The text and its owners; *prompt* asks for the generation prompt at the end.

        Raises RecordError(``render``) where the template refuses the conversation.
        """
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


def _has_generation_tags(tree: nodes.Template) -> bool:
    return any(
        isinstance(block.call.node, nodes.ExtensionAttribute) and block.call.node.name == "_record"
        for block in tree.find_all(nodes.CallBlock)
    )


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
        generated = [Span(ends[p], ends[p] + n) for p, n in recorder.generated if n]
    return Rendered(text, owned, generated)
