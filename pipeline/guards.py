"""Where a chat template can grow something: guards that are written into its compiled code.

A guard calls the environment (see `sandbox.py`), which counts and gives the value back unchanged.
What the tree proves harmless gets none: parts of the record are as large as the record, and half
of the cost of all guards was spent on printing tools and comparing messages.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import Frame
from jinja2.visitor import NodeTransformer

from pipeline.charges import PLAIN
from pipeline.environment import Generator
from pipeline.givens import Given, is_constant
from pipeline.limits import SMALL

_WIDE = 32  # operands of + that may meet in one expression before each sum is looked at
_BODY = 32  # nodes of a loop's body that one step pays for
_GROWING: tuple[type[nodes.Expr], ...] = (nodes.Add, nodes.Concat, nodes.Slice)
_MAKING: tuple[type[nodes.Expr], ...] = (nodes.Call, nodes.Filter, nodes.Mod, nodes.Mul)
_SCALAR = (nodes.Compare, nodes.Not, nodes.Sub, nodes.Test)  # truths and numbers, whatever is in
# Methods of strings that make no more than the string.
_MODEST = frozenset(
    {"capitalize", "count", "endswith", "find", "index", "isdigit", "lower", "lstrip", "partition"}
    | {"removeprefix", "removesuffix", "rfind", "rpartition", "rsplit", "rstrip", "split"}
    | {"splitlines", "startswith", "strip", "title", "upper"}
)
_PREFIX = "guard:"  # no name that a template or an extension could write
# Guards that let short strings pass: a call for each would cost more than all the rest.
_IN_LINE = {
    "limit_sized": f" is str and len(shown) <= {SMALL}",
    "limit_kept": f" is str and len(shown) <= {SMALL}",
    "limit_compared": " is str",
    "limit_searched": f" is not str or len(shown) <= {SMALL}",
}


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
            call = _guarded("limit_json", node.node)
            call.kwargs = list(node.kwargs)  # type: ignore[arg-type] # Jinja says pairs, and means these
            return call
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


def _makes(node: nodes.Expr) -> bool:
    """Whether a new text can come of it: in a macro even short ones are kept until its end."""
    return _grows(node) or any(isinstance(node, k) or node.find(k) is not None for k in _MAKING)


def _is_short(node: nodes.Call) -> bool:
    """A call of a method that makes no more than its string, whose arguments can stand twice."""
    if node.kwargs or node.dyn_args or node.dyn_kwargs or not isinstance(node.node, nodes.Getattr):
        return False
    return node.node.attr in _MODEST and all(isinstance(a, nodes.Const) for a in node.args)


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
        called: Any = node.node
        if isinstance(called, nodes.EnvironmentAttribute) and called.name.startswith(_PREFIX):
            self._write_guard(node, called.name[len(_PREFIX) :], frame)
        elif isinstance(called, nodes.ExtensionAttribute):  # our own: nothing to ask the sandbox
            self.visit(called, frame)
            self.write("(caller=caller)" if forward_caller else "()")
        elif _is_short(node):
            self._write_method(node, called.node, called.attr, frame)
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def _write_method(self, node: nodes.Call, owner: nodes.Expr, name: str, frame: Frame) -> None:
        """Of a short string in place: it pays for the guards of the whole template."""
        self.write(f"(shown.{name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(") if type(shown := ")
        self.visit(owner, frame)
        self.write(f") is str and len(shown) <= {SMALL} else ")
        # As Parser.free_identifier makes them: there is no other way.
        shown = object.__new__(nodes.InternalName)
        nodes.Node.__init__(shown, "shown", lineno=node.lineno)
        method = nodes.Getattr(shown, name, "load", lineno=node.lineno)
        super().visit_Call(nodes.Call(method, node.args, [], None, None, lineno=node.lineno), frame)
        self.write(")")

    def _write_guard(self, node: nodes.Call, name: str, frame: Frame) -> None:
        passing = _IN_LINE.get(name)
        self.write("(shown if type(shown := " if passing else f"environment.{name}(")
        self.visit(node.args[0], frame)
        if passing:
            self.write(f"){passing} else environment.{name}(shown")
        for argument in (*node.args[1:], *node.kwargs):
            self.write(", ")
            self.visit(argument, frame)
        self.write("))" if passing else ")")

    def visit_Mod(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        if not isinstance(node.right, nodes.Const):  # written twice: operands of operands of ...
            super().visit_Mod(node, frame)
            return
        self.write("(shown % ")
        self.visit(node.right, frame)
        self.write(" if type(shown := ")
        self.visit(node.left, frame)
        self.write(") is int else environment.limit_divided(shown, ")
        self.visit(node.right, frame)
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
        elif frame.buffer is not None and _makes(node):
            self.write("environment.limit_printed(")
        else:
            # As fast as the str() that it replaces.
            self.write("(shown if type(shown := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write(")")
            super()._output_child_post(node, frame, finalize)
        elif frame.buffer is not None and _makes(node):
            self.write(")")
        else:
            short = f" and len(shown) <= {SMALL}" if _grows(node) else ""
            self.write(f") is str{short} else environment.limit_shown(shown))")
