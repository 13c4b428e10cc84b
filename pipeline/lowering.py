"""A compiled template's Python, lowered to what ordinary conversations need.

Jinja's code asks the environment at each step, for any value could be anything. Of a conversation
each value is JSON. The lowered code takes that for granted, without a check: where it does not hold
Python raises an error, and the template is rendered by its own code (see `shortcut.py`). So each
form written here must raise, or give what the environment's own answer would be, for *any* value.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from pipeline.conversation import Arguments
from pipeline.forms import (
    LOOP,
    LOOP_NAME,
    MISSING,
    NOTHING,
    is_call,
    is_name,
    parse_expression,
    text_of,
)
from pipeline.macros import TOLD, Signature

ATTRIBUTES = frozenset(dir(Arguments))  # of dict too: for these names Jinja asks the object first
_COUNT = re.compile(r"(at|count)_\d+")  # variables of the lowered code, none of a template's
TRIM = "trim"
TESTS = {
    "string": "isinstance({x}, str)",
    "defined": "not isinstance({x}, Undefined)",
    "undefined": "isinstance({x}, Undefined)",
    "none": "{x} is None",
    "true": "{x} is True",
    "false": "{x} is False",
}


class Expressions(ast.NodeTransformer):
    """Lowers expressions.

    *known* are names whose value is fixed, as constants; *named* maps other names that never change
    to theirs in the lowered code; *tests* maps names to the test that they are; *spaces* are
    namespaces that nothing but their own attributes is asked of: dicts here; other *namespaces*
    stay Jinja's; *macros* are variables that hold one or nothing. ``loops`` are those around that
    are lowered: ``loop.first`` is a comparison there.
    """

    def __init__(
        self,
        known: Mapping[str, Any],
        named: Mapping[str, str],
        tests: Mapping[str, str],
        spaces: Collection[str],
        namespaces: Collection[str] = (),
        macros: Mapping[str, Signature] = MappingProxyType({}),
    ) -> None:
        self.known, self.named, self.tests, self.spaces = known, named, tests, spaces
        self.kept = {name for name in namespaces if name not in spaces}
        self.macros = macros
        self.loops: dict[str, Mapping[str, str]] = {}
        # In the lowered code, of what is never missing.
        self._present = {name for name in named.values() if name != MISSING}

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load):
            if node.id in self.known:
                return ast.Constant(self.known[node.id])
            if node.id in self.named:
                return ast.Name(self.named[node.id], ast.Load())
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``undefined(name='x') if x is missing else x`` too."""
        node.test = self.visit(node.test)
        if isinstance(node.test, ast.Constant):
            chosen: ast.expr = self.visit(node.body if node.test.value else node.orelse)
            return chosen
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        compared = node.test.left if isinstance(node.test, ast.Compare) else None
        if is_call(node.orelse, "environment", "limit_compared") and is_call(compared, "type"):
            (named,) = compared.args  # type: ignore[union-attr] # a call
            if isinstance(named, ast.NamedExpr) and _is_count(named.value):
                return named.value  # costs no step
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) > 1:
            return node
        left, operator, right = node.left, node.ops[0], node.comparators[0]
        if isinstance(operator, ast.Is) and is_name(right, MISSING):
            if isinstance(left, ast.Constant) or self._is_present(left):
                return ast.Constant(False)
            if is_name(left, MISSING):
                return ast.Constant(True)
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            if isinstance(operator, ast.Eq):
                return ast.Constant(left.value == right.value)
            if isinstance(operator, ast.NotEq):
                return ast.Constant(left.value != right.value)
        return node

    def _is_present(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self._present

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.Constant(not node.operand.value)
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """``a and b``: constants at its start decide it or are left out."""
        decides = isinstance(node.op, ast.Or)
        rest: list[ast.expr] = [self.visit(value) for value in node.values]
        while len(rest) > 1 and isinstance(rest[0], ast.Constant):
            if bool(rest[0].value) is decides:
                return rest[0]
            rest = rest[1:]
        if len(rest) == 1:
            return rest[0]
        node.values = rest
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if is_call(node, "environment", "getattr"):
            return self._attribute(node)
        if is_call(node, "environment", "call") and is_call(node.args[1], "environment", "getattr"):
            # A method: no value of the record can be called.
            method = node.args[1]
            assert isinstance(method, ast.Call)
            method.args[0] = self.visit(method.args[0])
            node.args[2:] = map(self.visit, node.args[2:])
            node.keywords = self._keywords(node)
            return node
        if is_call(node, "environment", "call") and (called := self._macro(node)):
            return called
        node.keywords = self._keywords(node)
        self.generic_visit(node)
        if is_call(node, "undefined"):
            return ast.Name(NOTHING, ast.Load())
        if is_call(node, "environment", "getitem"):
            return _item(*node.args)
        if isinstance(node.func, ast.Name) and node.func.id in self.tests:
            name = self.tests[node.func.id]
            return _trim(node) if name == TRIM else self._test(node, name)
        return node

    def _macro(self, node: ast.Call) -> ast.expr | None:
        """A call of what is known to be one macro, or nothing."""
        called = node.args[1]
        asked = called.orelse if isinstance(called, ast.IfExp) else called
        signature = self.macros.get(asked.id) if isinstance(asked, ast.Name) else None
        given = signature.sort(node, MISSING) if signature else None
        if signature is None or given is None:
            return None
        function: ast.expr = ast.Name(signature.function, ast.Load())
        if isinstance(called, ast.IfExp):
            function = ast.IfExp(called.test, ast.Name(NOTHING, ast.Load()), function)
        counts = ast.Attribute(ast.Name("environment", ast.Load()), "limit_macro", ast.Load())
        return ast.Call(counts, [function, *map(self.visit, given)], [])

    def _attribute(self, node: ast.Call) -> ast.expr:
        owner, name = node.args[0], text_of(node.args[1])
        if isinstance(owner, ast.Name) and owner.id in self.loops:
            return parse_expression(LOOP[name or ""].format_map(self.loops[owner.id]))
        asked = owner.orelse if isinstance(owner, ast.IfExp) else owner  # `x`, if not missing
        asked_name = asked.id if isinstance(asked, ast.Name) else ""
        self.generic_visit(node)
        if name is None or name in ATTRIBUTES or asked_name in self.kept:
            return node
        if asked_name == "shown" or LOOP_NAME.fullmatch(asked_name):
            return node  # `shown` is a long string whose method is called
        return _get(node.args[0], name)

    def make_space(self, node: ast.Call) -> ast.expr:
        """``namespace(a=1)`` as a dict."""
        keywords = self._keywords(node)
        made = ast.Dict([ast.Constant(k.arg) for k in keywords], [k.value for k in keywords])
        counts = ast.Attribute(ast.Name("environment", ast.Load()), "limit_space", ast.Load())
        return ast.Call(counts, [made], [])

    def _keywords(self, node: ast.Call) -> list[ast.keyword]:
        """Without what tells a function of the context, which all that are known here ignore."""
        return [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords if k.arg not in TOLD]

    def _test(self, node: ast.Call, name: str) -> ast.expr:
        if len(node.args) != 1 or node.keywords:
            return node
        value = node.args[0]
        if name in ("defined", "undefined"):
            if is_name(value, NOTHING):
                return ast.Constant(name == "undefined")
            if isinstance(value, ast.Constant) or self._is_present(value):
                return ast.Constant(name == "defined")
        if name in ("none", "true", "false") and isinstance(value, ast.Constant):
            return ast.Constant(value.value is {"none": None, "true": True, "false": False}[name])
        return parse_expression(TESTS[name].format(x=f"({ast.unparse(value)})"))


def _trim(node: ast.Call) -> ast.expr:
    """Of a short string, by its own method; the guard around it has just asked whether it is."""
    shown = node.args[0]
    if len(node.args) > 1 or node.keywords or not isinstance(shown, ast.IfExp):
        return node
    if not (is_name(shown.body, "shown") and is_call(shown.orelse, "environment", "limit_sized")):
        return node
    node.args = [shown.orelse]
    return ast.IfExp(shown.test, parse_expression("shown.strip()"), node)


def _is_count(node: ast.expr) -> bool:
    """Whether it is made of a loop's own numbers."""
    if isinstance(node, ast.Name):
        return _COUNT.fullmatch(node.id) is not None
    if isinstance(node, ast.BinOp):
        return _is_count(node.left) and _is_count(node.right)
    return isinstance(node, ast.Constant) and type(node.value) is int


def _get(owner: ast.expr, name: str) -> ast.expr:
    """``owner.get(name, nothing)``: a dict alone has that method, of all that templates meet."""
    method = ast.Attribute(owner, "get", ast.Load())
    return ast.Call(method, [ast.Constant(name), ast.Name(NOTHING, ast.Load())], [])


def _item(owner: ast.expr, key: ast.expr) -> ast.expr:
    """As Python has it: where Jinja would go on to an attribute, or to undefined, it raises."""
    name = text_of(key)
    if name is not None and name not in ATTRIBUTES:
        return _get(owner, name)
    return ast.Subscript(owner, key, ast.Load())
