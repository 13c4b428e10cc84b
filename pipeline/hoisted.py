"""Fields of a loop's variable, asked once an iteration."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence

from pipeline.forms import NOTHING, is_call, is_name, text_of


def hoist(name: str, body: list[ast.stmt]) -> list[ast.stmt]:
    """``name.get('role', nothing)`` is asked once an iteration: nothing changes the record."""
    nodes = [n for s in body for n in ast.walk(s)]
    if any(is_name(n, name) and isinstance(n.ctx, ast.Store) for n in nodes):  # type: ignore[attr-defined] # a name
        return body
    keys = Counter(key for n in nodes if (key := _asked_of(n, name)) is not None)
    hoisted = [key for key, times in keys.items() if times > 1]
    begin = [
        s
        for key in hoisted
        for s in ast.parse(f"{_field(name, key)} = {name}.get({key!r}, {NOTHING})").body
    ]
    replace = _Fields(name, hoisted)
    return [*begin, *(replace.visit(s) for s in body)]


def _asked_of(node: ast.AST, name: str) -> str | None:
    if is_call(node, name, "get") and len(node.args) == 2 and is_name(node.args[1], NOTHING):  # type: ignore[attr-defined] # a call
        key = text_of(node.args[0])  # type: ignore[attr-defined] # a call
        return key if key is not None and key.isidentifier() else None
    return None


def _field(name: str, key: str) -> str:
    return f"field_{name}_{key}"  # no variable of a template: these begin with l_


class _Fields(ast.NodeTransformer):
    def __init__(self, name: str, keys: Sequence[str]) -> None:
        self.name, self.keys = name, frozenset(keys)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        key = _asked_of(node, self.name)
        if key is not None and key in self.keys:
            return ast.Name(_field(self.name, key), ast.Load())
        self.generic_visit(node)
        return node
