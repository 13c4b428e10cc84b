"""Where a chat template can grow something: guards that are written into its compiled code.

A guard calls the environment (see `sandbox.py`), which counts and gives the value back unchanged.
What the tree proves harmless gets none: parts of the record are as large as the record, and half
of the cost of all guards was spent on printing tools and comparing messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.visitor import NodeTransformer

from pipeline.charges import PLAIN
from pipeline.environment import Generator
from pipeline.limits import SMALL

_WIDE = 32  # operands of + that may meet in one expression before each sum is looked at
_BODY = 32  # nodes of a loop's body that one step pays for
_GROWING: tuple[type[nodes.Expr], ...] = (nodes.Add, nodes.Concat, nodes.Slice)
_SCALAR = (nodes.Compare, nodes.Not, nodes.Sub, nodes.Test)  # truths and numbers, whatever is in
_RECORD = frozenset({"messages", "tools", "documents"})
_SPECIAL = frozenset({"caller", "kwargs", "loop", "self", "super", "varargs"})  # bound by Jinja
_PREFIX = "guard:"  # no name that a template or an extension could write
UNCHARGED = "tojson:uncharged"  # the filter for parts of the record
# Guards that let short strings pass: a call for each would cost more than all the rest.
_IN_LINE = {
    "limit_sized": f" is str and len(shown) <= {SMALL}",
    "limit_kept": f" is str and len(shown) <= {SMALL}",
    "limit_made": f" is str and len(shown) <= {SMALL}",
    "limit_compared": " is str",
    "limit_searched": f" is not str or len(shown) <= {SMALL}",
}


class Given:
    """What an expression takes from the record alone: each such value is a part of a JSON tree.

    A name counts where every assignment in the template gives it such a value.
    """

    def __init__(self, tree: nodes.Template) -> None:
        bound: dict[str, list[nodes.Expr | None]] = {}
        for name, value in _bindings(tree):
            bound.setdefault(name, []).append(value)
        self._names: set[str] = {*_RECORD, *bound} - _SPECIAL
        before = -1
        while before != len(self._names):
            before = len(self._names)
            for name, values in bound.items():
                if not all(value is not None and self.covers(value) for value in values):
                    self._names.discard(name)

    def covers(self, node: Any) -> bool:
        """Whether *node* is constant, or a part of the record."""
        if isinstance(node, nodes.Name):
            return node.name in self._names
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            return self.covers(node.node)
        if isinstance(node, nodes.Call):  # x.items(), x.get('y')
            method = node.node
            return (
                isinstance(method, nodes.Getattr)
                and method.attr in ("get", "items", "keys", "values")
                and all(map(self.covers, [method.node, *node.args]))
            )
        if isinstance(node, nodes.Filter):  # a choice of items, or one of them
            return node.name in ("first", "items", "last", "selectattr") and self.covers(node.node)
        if isinstance(node, nodes.CondExpr):
            return self.covers(node.expr1) and (node.expr2 is None or self.covers(node.expr2))
        if isinstance(node, nodes.Or):
            return self.covers(node.left) and self.covers(node.right)
        return is_constant(node)


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Expr | None]]:
    """Each name that the template assigns, and its value; None where that can be anything."""
    known: set[int] = set()
    pairs: list[tuple[nodes.Node, Any]] = []
    for loop in tree.find_all(nodes.For):
        iterated = None if loop.recursive else loop.iter
        targets = loop.target.items if isinstance(loop.target, nodes.Tuple) else [loop.target]
        pairs += [(target, iterated) for target in targets]
    pairs += [(statement.target, statement.node) for statement in tree.find_all(nodes.Assign)]
    for target, value in pairs:
        if isinstance(target, nodes.Name):
            known.add(id(target))
            yield target.name, value
    for name in tree.find_all(nodes.Name):
        if name.ctx != "load" and id(name) not in known:
            yield name.name, None


def is_constant(node: nodes.Node) -> bool:
    """Whether the template's text says all of the value."""
    if isinstance(node, nodes.Pair):
        return is_constant(node.key) and is_constant(node.value)
    if isinstance(node, (nodes.List, nodes.Tuple, nodes.Dict)):
        return all(map(is_constant, node.items))
    return isinstance(node, nodes.Const)


class Guards(NodeTransformer):
    """Wraps what can grow in calls of the environment's guards; see `GuardedGenerator`."""

    def __init__(self, tree: nodes.Template) -> None:
        self._given = Given(tree)
        self.heaviest = 1  # steps of one iteration of a recursive loop
        self._site = 0
        self._operands = 0  # of the + seen so far

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        inside = [n for part in node.body for n in (part, *part.find_all(nodes.Node))]
        name = "limit_search" if any(isinstance(n, nodes.Break) for n in inside) else "limit_loop"
        weight = 1 + len(inside) // _BODY
        if node.recursive:
            self.heaviest = max(self.heaviest, weight)
        self.generic_visit(node)
        node.iter = _guarded(name, node.iter, nodes.Const(weight))
        return node

    def _keep(self, value: Any) -> Any:
        """Of any value that is assigned, given before its operands are visited."""
        grows = _grows(value)
        value = self.visit(value)
        if not grows:
            return value
        self._site += 1
        return _guarded("limit_kept", value, nodes.Const(self._site))

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        node.node = self._keep(node.node)
        return node

    def visit_With(self, node: nodes.With) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        node.values = [self._keep(value) for value in node.values]
        node.body = [self.visit(statement) for statement in node.body]
        return node

    def _build(self, node: Any) -> nodes.Node:
        loads = getattr(node, "ctx", "load") == "load"
        items = [
            part
            for item in node.items
            for part in ((item.key, item.value) if isinstance(item, nodes.Pair) else (item,))
        ]
        harmless = all(map(self._given.covers, items))
        self.generic_visit(node)
        return _guarded("limit_built", node) if loads and not harmless else node

    visit_List = visit_Tuple = visit_Dict = _build  # noqa: N815 - Jinja's visitor names

    def visit_Name(self, node: nodes.Name) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        special = node.name in ("varargs", "kwargs") and node.ctx == "load"
        return _guarded("limit_built", node) if special else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        # One small side is enough: no comparison reads more of the other.
        sides = (node.expr, *(operand.expr for operand in node.ops))
        bounded = any(self._given.covers(side) or isinstance(side, _SCALAR) for side in sides)
        self.generic_visit(node)
        for operand in node.ops:
            searched = operand.op in ("in", "notin")
            if not bounded and (searched or len(node.ops) > 1):
                operand.expr = _guarded("limit_compared", operand.expr)
            if searched and not is_constant(operand.expr):
                operand.expr = _guarded("limit_searched", operand.expr)
        if not bounded and node.ops[0].op not in ("in", "notin"):
            node.expr = _guarded("limit_compared", node.expr)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        harmless = node.name == "tojson" and node.node is not None and self._is_plain_json(node)
        self.generic_visit(node)
        if harmless:
            node.name = UNCHARGED
            return _guarded("limit_made", node)
        if node.name in PLAIN and node.node is not None:
            node.node = _guarded("limit_sized", node.node)
        return node

    def _is_plain_json(self, node: nodes.Filter) -> bool:
        """A part of the record, with options that make it at most some times longer."""
        options = [keyword.value for keyword in node.kwargs]
        small = all(
            isinstance(o, nodes.Const) and (not isinstance(o.value, (int, str)) or _short(o.value))
            for o in options
        )
        return not node.args and small and self._given.covers(node.node)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802 - Jinja's visitor names
        before = self._operands
        self.generic_visit(node)
        self._operands += 1
        return _guarded("limit_sum", node) if self._operands - before > _WIDE else node


def _grows(node: nodes.Expr) -> bool:
    """Whether the value can be longer than its longest operand; constants are folded."""
    grows = isinstance(node, _GROWING) or any(node.find(kind) is not None for kind in _GROWING)
    return grows and node.find(nodes.Name) is not None


def _short(value: Any) -> bool:
    return value <= 16 if isinstance(value, int) else len(value) <= 16


def _guarded(name: str, *args: Any) -> nodes.Call:
    called = nodes.EnvironmentAttribute(_PREFIX + name)
    call = nodes.Call(called, list(args), [], None, None)
    return call.set_lineno(args[0].lineno)  # type: ignore[return-value] # returns itself


class GuardedGenerator(Generator):
    """Writes guards as plain calls: the sandbox's check of each call would double their cost."""

    def visit_Call(  # noqa: N802 - Jinja's visitor names
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        called = node.node
        if not (isinstance(called, nodes.EnvironmentAttribute) and called.name.startswith(_PREFIX)):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        name = called.name[len(_PREFIX) :]
        passing = _IN_LINE.get(name)
        self.write("(shown if type(shown := " if passing else f"environment.{name}(")
        self.visit(node.args[0], frame)
        if passing:
            self.write(f"){passing} else environment.{name}(shown")
        for argument in node.args[1:]:
            self.write(", ")
            self.visit(argument, frame)
        self.write("))" if passing else ")")

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        for form in (
            "(shown % ",
            " if type(shown := ",
            ") is int else environment.limit_divided(shown, ",
        ):
            self.write(form)
            self.visit(node.left if form.startswith(" if") else node.right, frame)
        self.write("))")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.limit_joined((")
        for argument in node.nodes:
            self.visit(argument, frame)
            self.write(", ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
            self.write("environment.limit_sized(")
        else:
            # As fast as the str() that it replaces.
            self.write("(shown if type(shown := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write(")")
            super()._output_child_post(node, frame, finalize)
        else:
            short = f" and len(shown) <= {SMALL}" if _grows(node) else ""
            self.write(f") is str{short} else environment.limit_shown(shown))")
