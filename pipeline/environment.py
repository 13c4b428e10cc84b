"""The Jinja environment of chat templates, with hooks that tell who writes what.

Options, filters, globals and tags are those that Hugging Face's chat templates expect. Every
``for`` body reports its loop variables before anything else, so the recorder knows which message
the text that follows belongs to; statements that print nothing change no character.
"""

from __future__ import annotations

import datetime
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.runtime
import jinja2.sandbox
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.utils import Namespace

_MISSING = object()
_NOTHING: frozenset[str] = frozenset()
_OF_DICTS = frozenset(dir(dict))
# Attributes that the sandbox lets through of any value of the type; `format` it wraps.
_SAFE: Mapping[type, frozenset[str]] = {
    kind: frozenset(name for name in dir(kind) if not name.startswith("_"))
    - {"format", "format_map"}
    for kind in (str, jinja2.runtime.LoopContext)
}
_PLAIN = frozenset((str, int, float, bool, type(None), list, dict))
_ENTER = "weighted_shards_enter"


class Recorder:
    """What a render reports while it runs: pieces of text, and who owns what comes after each.

    ``events``: (pieces so far, owner or -1). ``generated``: (pieces so far, text) of tags in
    macros; ``enclosed``: first and stop piece of all others. ``owners``: the id of a message to
    its index. ``called``: (message, first, stop piece) of loops over calls; ``calling`` is the
    message whose calls are being looped over, since so many pieces and loops.
    """

    __slots__ = (
        "called",
        "calling",
        "calling_depth",
        "calling_since",
        "enclosed",
        "events",
        "generated",
        "opened",
        "owner",
        "owners",
        "pieces",
        "stack",
    )

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.events: list[tuple[int, int]] = []
        self.generated: list[tuple[int, str]] = []
        self.enclosed: list[tuple[int, int]] = []
        self.opened: list[int] = []
        self.owners: dict[int, int] = {}
        self.owner = -1
        self.stack: list[int] = []
        self.called: list[tuple[int, int, int]] = []
        self.calling, self.calling_since, self.calling_depth = -1, 0, 0

    def own(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Makes messages and their tool calls known; a call of message *i* has the code -2 - *i*.

        Only dicts are: an equal int or str may be one object in two places.
        """
        self.owners = owners = {id(message): i for i, message in enumerate(messages)}
        for i, message in enumerate(messages):
            calls = message.get("tool_calls") if len(message) > 2 else None
            if type(calls) is list:
                owners |= {id(call): -2 - i for call in calls if isinstance(call, dict)}

    def ready(self, messages: Sequence[Mapping[str, Any]]) -> Recorder:
        """Itself, once it knows the messages: only rare hooks ask for them."""
        if not self.owners:
            self.own(messages)
        return self

    def open(self) -> None:
        """What follows is generated."""
        self.opened.append(len(self.pieces))

    def close(self) -> None:
        self.enclosed.append((self.opened.pop(), len(self.pieces)))

    def push(self) -> None:
        self.stack.append(self.owner)

    def enter(self, value: object) -> None:
        owner = self.owners.get(id(value), -1)
        if owner >= 0:
            if owner != self.owner:
                self.owner = owner
                self.events.append((len(self.pieces), owner))
        elif owner < -1 and self.calling < 0 and self.owner in (-1, -2 - owner):
            # Another message may look its own call up in this loop: that says nothing.
            self.calling = -2 - owner
            self.calling_since, self.calling_depth = len(self.pieces), len(self.stack)

    def enter_at(self, values: object, index: object) -> None:
        if type(values) is list and type(index) is int and -len(values) <= index < len(values):
            self.enter(values[index])

    def pop(self) -> None:
        owner = self.stack.pop()
        if self.calling >= 0 and len(self.stack) < self.calling_depth:
            self.called.append((self.calling, self.calling_since, len(self.pieces)))
            self.calling = -1
        if owner != self.owner:
            self.owner = owner
            self.events.append((len(self.pieces), owner))


class Generator(CodeGenerator):
    """Writes the hooks as plain calls: the sandbox's check of each call would double their cost."""

    _recorders: list[str]  # names of the recorder in the loops around, innermost last
    _loops = 0

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:  # noqa: N802 - Jinja's visitor names
        self._recorders = []
        super().visit_Template(node, frame)

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        # A name of its own for each loop: recursive loops and macros are functions of their own,
        # in which a name that is assigned further down would not be the outer one.
        self._loops += 1
        name = f"weighted_shards_{self._loops}"
        self.writeline(f"{name} = environment.recorder")
        self.writeline(f"{name}.push()")
        self._recorders.append(name)
        super().visit_For(node, frame)
        self._recorders.pop()
        self.writeline(f"{name}.pop()")

    def visit_Call(  # noqa: N802 - Jinja's visitor names
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        called = node.node
        if not (isinstance(called, nodes.EnvironmentAttribute) and called.name == _ENTER):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        hook = "enter" if len(node.args) == 1 else "enter_at"
        self.write(f"{self._recorders[-1]}.{hook}(")
        for i, argument in enumerate(node.args):
            self.write(", " if i else "")
            self.visit(argument, frame)
        self.write(")")

    def visit_CallBlock(self, node: nodes.CallBlock, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        """A generation tag's body is printed in place: as a macro's its pieces would be one."""
        leaves = node.find(nodes.Break) or node.find(nodes.Continue)
        if frame.buffer is not None or leaves or not _is_generation(node):
            super().visit_CallBlock(node, frame)
            return
        self.writeline("environment.recorder.open()")
        inner = frame.inner()
        inner.symbols.analyze_node(node)
        self.enter_frame(inner)
        self.blockvisit(node.body, inner)
        self.leave_frame(inner)
        self.writeline("environment.recorder.close()")


class GenerationTag(jinja2.ext.Extension):
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
        if isinstance(environment, HookedEnvironment):
            recorder = environment.recorder
            recorder.generated.append((len(recorder.pieces), text))
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


def prepare_environment(environment: jinja2.Environment, today: datetime.date) -> None:
    """Filters and globals that Hugging Face's chat templates expect; the clock tells *today*."""
    clock = datetime.datetime(today.year, today.month, today.day)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = clock.strftime
    environment.globals["dict"] = _TemplateDict()


class HookedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """One template at a time: ``recorder`` is what the render that runs reports to."""

    code_generator_class = Generator

    def __init__(self, today: datetime.date) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, jinja2.ext.loopcontrols],
        )
        prepare_environment(self, today)
        self.recorder = Recorder()

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox's, which first asks a dict for an attribute that it has not.

        What no check could refuse is given at once: half of a render went into asking.
        """
        kind = type(obj)
        if kind is dict:
            if attribute not in _OF_DICTS:
                value = obj.get(attribute, _MISSING)
                return self.undefined(obj=obj, name=attribute) if value is _MISSING else value
        elif attribute in _SAFE.get(kind, _NOTHING):
            return getattr(obj, attribute)
        elif kind is Namespace and attribute[:1] != "_":
            value = getattr(obj, attribute, _MISSING)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """As the sandbox's: a dict's attribute only where it has no such key."""
        if type(obj) is dict and type(argument) is str and argument not in _OF_DICTS:
            value = obj.get(argument, _MISSING)
            return self.undefined(obj=obj, name=argument) if value is _MISSING else value
        return super().getitem(obj, argument)

    def call(
        self, context: jinja2.runtime.Context, called: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        """As the sandbox's; a string's own method takes no context and is safe."""
        if type(called) is types.BuiltinMethodType and type(called.__self__) is str:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return called(*args, **kwargs)
        return super().call(context, called, *args, **kwargs)

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


def has_generation_tags(tree: nodes.Template) -> bool:
    """Whether the template says itself what the assistant generates."""
    return any(map(_is_generation, tree.find_all(nodes.CallBlock)))


def _is_generation(block: nodes.CallBlock) -> bool:
    called = block.call.node
    return isinstance(called, nodes.ExtensionAttribute) and called.name == "_record"
