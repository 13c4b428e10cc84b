"""Which expressions of a chat template are parts of the record, and so no larger than it.

The tree alone tells, before any render. A template's own lists and dicts are never among them: one
that holds another twice is small in memory and endless in print.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import nodes

_ROUNDS = 8  # in which names lose their innocence; a long chain of names would take as many
_CHOOSING = frozenset({"first", "items", "last", "rejectattr", "selectattr"})
_COUNTED = frozenset({"lower", "string", "tojson", "trim", "upper"})
_SPECIAL = frozenset({"caller", "kwargs", "loop", "self", "super", "varargs"})  # bound by Jinja


class Given:
    """What an expression takes from the record alone: each such value is a part of a JSON tree.

    A name counts that the template never assigns, or to which it assigns nothing else. Functions
    and macros can be among them: they are no JSON, and equal only to themselves.
    """

    def __init__(self, tree: nodes.Template) -> None:
        bound = list(_bindings(tree))
        self._others: set[str] = set(_SPECIAL)
        for _ in range(_ROUNDS):
            more = {name for name, value in bound if value is None or not self.covers(value)}
            if more <= self._others:
                return
            self._others |= more
        self._others |= {name for name, _ in bound}

    def covers(self, node: Any) -> bool:
        """Whether *node* is constant, a text that was counted when it was made, or the record's."""
        if isinstance(node, nodes.Name):
            return node.name not in self._others
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            return self.covers(node.node)
        if isinstance(node, nodes.Call):
            method = node.node
            return (
                isinstance(method, nodes.Getattr)
                and method.attr in ("get", "items", "keys", "values")
                and all(map(self.covers, [method.node, *node.args]))
            )
        if isinstance(node, nodes.Filter):
            return node.name in _COUNTED or (node.name in _CHOOSING and self.covers(node.node))
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
