"""A second form of a compiled template, for ordinary conversations and several times as fast.

It knows what is fixed for a build and takes the record's values for JSON. Whatever else it meets
raises an error; then the template's own code renders the conversation from the start. What it
writes and reports is the same, character by character.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import jinja2
import jinja2.filters
import jinja2.tests
from jinja2.utils import Namespace

from pipeline.conversation import Conversation
from pipeline.environment import Recorder
from pipeline.limits import Limits, Meter
from pipeline.lowered import Statements, is_bookkeeping
from pipeline.lowering import (
    ATTRIBUTES,
    MISSING,
    NOTHING,
    TESTS,
    TRIM,
    Expressions,
    Unfit,
    is_call,
    is_name,
    text_of,
)
from pipeline.macros import TOLD, name_macros, sign_macros
from pipeline.rendered import Rendered, alias_reasoning, assemble
from pipeline.sandbox import UNDEFINED, LimitedEnvironment

# A render that takes more is left to the template's own code, which counts what is printed too.
_STEPS = 20_000
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

    def render(self, conversation: Conversation, *, tagged: bool) -> Rendered | None:
        """As a template renders it without a prompt; None where its own code has to.

        That is so for whatever is wrong with the conversation: the template says it better.
        """
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
        try:
            form(messages, tools, recorder)
            return assemble(recorder, len(messages), tagged=tagged, meter=self._meter)
        except Exception:  # noqa: BLE001 - a template can raise anything
            return None
        finally:
            environment.meter = meter

    def _lower(self, tools: bool) -> Render | None:
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


class Uses:
    """How the variables of a root function are assigned and read."""

    def __init__(self, root: ast.FunctionDef) -> None:
        self.parents = {
            child: node for node in ast.walk(root) for child in ast.iter_child_nodes(node)
        }
        self.resolved: set[str] = set()
        self._resolves: dict[str, str] = {}  # a variable to the name that it resolves
        self.stores: dict[str, list[ast.AST]] = {}
        self._loads: dict[str, list[ast.Name]] = {}
        for node in ast.walk(root):
            if isinstance(node, ast.arg):
                self.stores.setdefault(node.arg, []).append(node)
            elif isinstance(node, ast.FunctionDef):
                self.stores.setdefault(node.name, []).append(node)
            elif isinstance(node, ast.Name):
                self._use(node)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                raise Unfit("a switch of autoescape, which would outlive a render that fails")
            elif (isinstance(node, ast.keyword) and node.arg == "get") or (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Store)
                and text_of(node.slice) == "get"
            ):
                raise Unfit("an attribute called get")
        self._hold_namespaces()

    def _use(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._loads.setdefault(node.id, []).append(node)
            return
        parent = self.parents[node]
        value = parent.value if isinstance(parent, ast.Assign) else None
        if value is not None and is_call(value, "resolve"):
            name = text_of(value.args[0]) or ""  # type: ignore[attr-defined] # a call
            self.resolved.add(name)
            if self._resolves.setdefault(node.id, name) != name:
                raise Unfit("a variable of two names")
        elif value is None or not is_name(value, MISSING):
            self.stores.setdefault(node.id, []).append(parent)

    def _hold_namespaces(self) -> None:
        """A namespace is the one object that could have a `get` of its own, by other ways too."""
        for variable, name in self._resolves.items():
            loads = self._loads.get(variable, ()) if name == "namespace" else ()
            for load in loads:
                parent = self.parents[load]
                if isinstance(parent, ast.Compare):
                    continue  # `l_0_namespace is missing`
                call = self.parents[parent] if isinstance(parent, ast.IfExp) else parent
                if not (isinstance(call, ast.Call) and is_call(call, "environment", "call")):
                    raise Unfit("a namespace that is not just made")
                if len(call.args) != 2 or any(k.arg is None for k in call.keywords):
                    raise Unfit("a namespace of unknown attributes")

    def fixed(self) -> dict[str, str]:
        """Variables that are what the context gives, to the name that it has there."""
        return {v: name for v, name in self._resolves.items() if v not in self.stores}

    def spaces(self) -> set[str]:
        """Variables that hold a namespace, of which nothing but attributes is asked."""
        found = set(self.stores)
        before = None
        while before != found:  # a macro has a name of its own for what it takes from outside
            before = found
            found = {v for v in before if self._is_space(v, before)}
        return found

    def _is_space(self, variable: str, others: Collection[str]) -> bool:
        return all(
            self._makes_space(store) or self._is_alias(store, others)
            for store in self.stores[variable]
        ) and all(
            self._asks_attribute(load) or self._is_alias(self.parents[load], others)
            for load in self._loads.get(variable, ())
        )

    def _is_alias(self, node: ast.AST, variables: Collection[str]) -> bool:
        """``l_1_ns = l_0_ns``."""
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1):
            return False
        names = [node.targets[0], node.value]
        return all(isinstance(name, ast.Name) and name.id in variables for name in names)

    def namespaces(self) -> set[str]:
        """Variables that may hold one."""
        found = {v for v, stores in self.stores.items() if any(map(self._makes_space, stores))}
        aliases = {v for v, stores in self.stores.items() for s in stores if self._of(s) & found}
        return found | aliases

    @staticmethod
    def _of(store: ast.AST) -> set[str]:
        value = store.value if isinstance(store, ast.Assign) else None
        return {value.id} if isinstance(value, ast.Name) else set()

    def _makes_space(self, store: ast.AST) -> bool:
        value = store.value if isinstance(store, ast.Assign) and len(store.targets) == 1 else None
        if value is None or not is_call(value, "environment", "call"):
            return False
        assert isinstance(value, ast.Call)
        if len(value.args) != 2 or not all(_is_free(k.arg) for k in value.keywords):
            return False
        names = {n.id for n in ast.walk(value.args[1]) if isinstance(n, ast.Name)}
        names -= {"undefined", MISSING}
        return [self.fixed().get(name) for name in names] == ["namespace"]

    def _asks_attribute(self, load: ast.Name) -> bool:
        parent = self.parents[load]
        if isinstance(parent, ast.Compare):
            return isinstance(self.parents[parent], ast.IfExp)  # `x is missing`
        if isinstance(parent, ast.IfExp):
            asked = self.parents[parent]
            if not is_call(asked, "environment", "getattr"):
                return False
            assert isinstance(asked, ast.Call)
            return asked.args[0] is parent and _is_free(text_of(asked.args[1]))
        if isinstance(parent, ast.Subscript):
            return isinstance(parent.ctx, ast.Store) and _is_free(text_of(parent.slice))
        if isinstance(parent, ast.Dict):
            parent = self.parents[self.parents[parent]]
        return is_call(parent, "isinstance") or is_bookkeeping(parent)


def _is_free(name: str | None) -> bool:
    """Whether a namespace's attribute of this *name* is what was put there, and nothing else."""
    return name in TOLD or (name is not None and name[:1] != "_" and name not in ATTRIBUTES)
