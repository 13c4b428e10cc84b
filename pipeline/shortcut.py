"""A second form of a compiled template, for ordinary conversations and several times as fast.

It knows what is fixed for a build and takes the record's values for JSON. Whatever else it meets
raises an error; then the template's own code renders the conversation from the start. What it
writes and reports is the same, character by character.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import jinja2
import jinja2.filters
import jinja2.tests
from jinja2.utils import Namespace

from pipeline.conversation import Conversation
from pipeline.environment import Recorder
from pipeline.forms import MISSING, NOTHING, Unfit, is_name, text_of
from pipeline.limits import Limits, Meter
from pipeline.lowered import Statements
from pipeline.lowering import TESTS, TRIM, Expressions
from pipeline.macros import name_macros, sign_macros
from pipeline.rendered import Recorded, Rendered, alias_reasoning, assemble
from pipeline.sandbox import UNDEFINED, LimitedEnvironment
from pipeline.uses import Uses

# A render that takes more is left to the template's own code, which counts what is printed too.
_STEPS = 20_000
_LONGEST = 32_768  # characters of a template: the longest real one has 19,572, more take seconds
_TRUST = 64  # renders that may fail before it counts whether most do
_REST = 1000  # renders that are not tried after that: what fails is rendered twice
_CONSTANTS = (bool, int, float, str, type(None))
_GIVEN = ("messages", "tools")  # parameters of the lowered code
_NEVER = "if 0:\n    yield None"
_SETUP = frozenset(("resolve", "undefined", "concat", "cond_expr_undefined"))

Render = Callable[[Sequence[Any], Any, Recorder], None]


class Shortcut:
    """Renders with *environment*, whose *source* is compiled and given *variables*.

    One lowered form for talks with tools, one for those without; a template of an unknown shape has
    none.
    """

    def __init__(
        self,
        environment: LimitedEnvironment,
        source: str,
        variables: Mapping[str, Any],
        limits: Limits,
    ) -> None:
        self._environment, self._source, self._variables = environment, source, variables
        self._meter = Meter(replace(limits, steps=min(limits.steps, _STEPS)))
        self._forms: dict[bool, Render | None] = {}
        self._tried = self._failed = self._rest = 0

    def render(self, conversation: Conversation, *, tagged: bool) -> Rendered | None:
        """As a template renders it without a prompt; None where its own code has to.

        That is so for whatever is wrong with the conversation: the template says it better.
        """
        recorded = self.record(conversation, tagged=tagged)
        if recorded is None:
            return None
        text, recorder = recorded
        return assemble(recorder, len(conversation.messages), tagged=tagged, text=text)

    def record(self, conversation: Conversation, *, tagged: bool) -> Recorded | None:
        """As `render`, before it is told which characters are whose."""
        if self._rest:
            self._rest -= 1
            return None
        tools = conversation.tools
        given = tools is not None
        if given not in self._forms:
            self._forms[given] = self._lower(given)
        form = self._forms[given]
        if form is None:
            return None
        messages: Sequence[Any] = conversation.messages
        if not conversation.plain:
            messages = [alias_reasoning(message) for message in messages]
        environment, meter, recorder = self._environment, self._environment.meter, Recorder()
        environment.meter, environment.recorder = self._meter, recorder
        self._meter.begin(None)
        self._tried += 1
        try:
            form(messages, tools, recorder)
            text = "".join(recorder.pieces)
            self._meter.allow(len(text))
            if recorder.generated:  # rare: it may refuse them
                assemble(recorder, len(messages), tagged=tagged, text=text)
            return Recorded(text, recorder)
        except Exception:  # noqa: BLE001 - a template can raise anything
            self._failed += 1
            if self._failed > _TRUST and self._failed * 2 > self._tried:
                self._tried, self._failed, self._rest = 0, 0, _REST
            return None
        finally:
            environment.meter = meter

    def _lower(self, tools: bool) -> Render | None:
        if len(self._source) > _LONGEST:
            return None
        try:
            return lower(self._environment, self._source, self._variables, tools=tools)
        except (Unfit, RecursionError, MemoryError, SyntaxError, ValueError):
            return None


def lower(
    environment: LimitedEnvironment, source: str, variables: Mapping[str, Any], *, tools: bool
) -> Render:
    """Raises Unfit for code of another shape than what Jinja 3.1 writes for one template alone."""
    tree = ast.parse(environment.compile(source, raw=True))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if [function.name for function in functions] != ["root"]:
        raise Unfit("blocks")
    (root,) = functions
    name_macros(root)
    given = {**environment.globals, **variables, "documents": None, "add_generation_prompt": False}
    given = {name: value for name, value in given.items() if name != "messages"}
    if tools:
        given.pop("tools", None)
    else:
        given["tools"] = None
    uses = Uses(root)
    resolved = {name: _resolve(name, given) for name in uses.resolved}
    fixed = {variable: resolved[name] for variable, name in uses.fixed().items()}
    expressions = Expressions(
        {v: e.value for v, e in fixed.items() if isinstance(e, ast.Constant)},
        {v: e.id for v, e in fixed.items() if isinstance(e, ast.Name)},
        _own_functions(root, environment),
        uses.spaces() if given.get("namespace") is Namespace else (),
        uses.namespaces(),
        sign_macros(uses.stores),
    )
    setup = [node for node in root.body if _finds_function(node)]
    body = Statements(expressions, resolved).lower(
        [node for node in root.body if not _is_setup(node)], printing=True
    )
    module = ast.parse(_FRAME)
    constants, function = module.body
    assert isinstance(function, ast.FunctionDef)
    function.body += body
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    module.body = [*imports, constants, *setup, function]
    render: Any = environment.load(ast.unparse(ast.fix_missing_locations(module)))
    scope = {
        **{f"given_{name}": value for name, value in given.items()},
        "undefined": environment.undefined,
        "concat": environment.concat,
        "cond_expr_undefined": environment.undefined,
        "context": environment.context_class(environment, environment.globals, None, {}),
        NOTHING: UNDEFINED,
    }
    render.__globals__.update(scope)
    return cast(Render, render)


_FRAME = """
name, blocks, debug_info = None, {}, ""
def root(messages, tools, recorder):
    pieces, events, enclosed = recorder.pieces, recorder.events, recorder.enclosed
    append = pieces.append
"""


def _resolve(name: str, given: Mapping[str, Any]) -> ast.expr:
    """What a name is that the template takes from its context."""
    if name not in given:
        return ast.Name(name if name in _GIVEN else MISSING, ast.Load())
    value = given[name]
    if type(value) in _CONSTANTS:
        return ast.Constant(value)
    return ast.Name(f"given_{name}", ast.Load())


def _own_functions(root: ast.FunctionDef, environment: jinja2.Environment) -> dict[str, str]:
    """Names of those tests that are Jinja's own, and of its filter `trim`."""
    found: dict[str, str] = {}
    for node in filter(_finds_function, root.body):
        assert isinstance(node, ast.Try)
        assert isinstance(node.body[0], ast.Assign)
        (target,), value = node.body[0].targets, node.body[0].value
        if isinstance(value, ast.Subscript) and isinstance(target, ast.Name):
            name = text_of(value.slice) or ""
            test = isinstance(value.value, ast.Attribute) and value.value.attr == "tests"
            ours, theirs = (
                (environment.tests, jinja2.tests.TESTS)
                if test
                else (environment.filters, jinja2.filters.FILTERS)
            )
            lowered = name in TESTS if test else name == TRIM
            if lowered and ours[name] is theirs[name]:
                found[target.id] = name
    return found


def _is_setup(node: ast.stmt) -> bool:
    if isinstance(node, ast.If):  # `if 0: yield None`, and no `{% if true %}` of the template
        return ast.unparse(node) == _NEVER
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id in _SETUP
    return isinstance(node, ast.Pass) or _finds_function(node)


def _finds_function(node: ast.stmt) -> bool:
    """``try: t_1 = environment.filters['trim'] except KeyError: ...``, no ``{% include %}``."""
    if not isinstance(node, ast.Try) or not isinstance(node.body[0], ast.Assign):
        return False
    (handler,), value = node.handlers, node.body[0].value
    return (
        handler.type is not None
        and is_name(handler.type, "KeyError")
        and isinstance(value, ast.Subscript)
        and ast.unparse(value.value) in ("environment.filters", "environment.tests")
    )
