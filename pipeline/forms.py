"""What the Python that Jinja writes looks like: the forms that are known where it is lowered."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence

MISSING, NOTHING = "missing", "nothing"  # names: of Jinja's marker, and of an undefined value
LOOP_NAME = re.compile(r"l_\d+_loop")
_HOOK = re.compile(r"weighted_shards_\d+")
_BOOKKEEPING = frozenset(("context", "_loop_vars", "_block_vars"))  # nothing here reads them
LOOP = {
    "first": "{at} == 0",
    "last": "{at} == {count} - 1",
    "index0": "{at}",
    "index": "{at} + 1",
    "revindex": "{count} - {at}",
    "revindex0": "{count} - {at} - 1",
    "length": "{count}",
    "previtem": "{items}[{at} - 1] if {at} else nothing",
    "nextitem": "{items}[{at} + 1] if {at} + 1 < {count} else nothing",
}


class Unfit(Exception):  # noqa: N818 - no error: the template keeps its own code
    """The code has a shape that is not known here."""


def parse_expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def is_name(node: ast.AST, name: str = "") -> bool:
    return isinstance(node, ast.Name) and (not name or node.id == name)


def is_call(node: ast.AST | None, owner: str, method: str = "") -> bool:
    """Of ``owner(...)``, or of ``owner.method(...)``."""
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if not method:
        return is_name(called, owner)
    return (
        isinstance(called, ast.Attribute) and called.attr == method and is_name(called.value, owner)
    )


def text_of(node: ast.AST) -> str | None:
    """The string that a constant is."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def names_of(loop: ast.For) -> list[str]:
    target = loop.target
    if is_call(loop.iter, "LoopContext") and isinstance(target, ast.Tuple):
        target = target.elts[0]
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def hook_of(statement: ast.stmt) -> str:
    """``weighted_shards_1 = environment.recorder`` names the hook of the loop that follows."""
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        return name if _HOOK.fullmatch(name) else ""
    return ""


def is_hook_call(statement: ast.AST, hook: str, method: str = "") -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    called = statement.value.func
    return (
        isinstance(called, ast.Attribute)
        and is_name(called.value, hook)
        and (not method or called.attr == method)
    )


def first_hook(body: Sequence[ast.stmt]) -> int:
    found = (
        i
        for i, s in enumerate(body)
        if isinstance(s, ast.Expr)
        and isinstance(s.value, ast.Call)
        and isinstance(s.value.func, ast.Attribute)
        and isinstance(s.value.func.value, ast.Name)
        and _HOOK.fullmatch(s.value.func.value.id)
    )
    return next(found, 0)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def prints(statement: ast.AST) -> bool:
    return any(
        isinstance(node, (ast.Yield, ast.YieldFrom)) for node in _outside_functions(statement)
    )


def appends(statement: ast.AST) -> bool:
    return any(is_call(node, "append") for node in _outside_functions(statement))


def is_bookkeeping(statement: ast.AST) -> bool:
    """What keeps a context up to date: ``context.vars['x'] = ...``, ``_loop_vars['x'] = ...``."""
    if isinstance(statement, ast.Assign):
        return all(map(is_book, statement.targets))
    called = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(called, ast.Call) and is_book(called.func)


def is_book(node: ast.expr) -> bool:
    """``_loop_vars``, ``context.vars['x']``, ``context.vars.update``."""
    if isinstance(node, ast.Name):
        return node.id in _BOOKKEEPING
    inner = node.value if isinstance(node, (ast.Subscript, ast.Attribute)) else None
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    return isinstance(inner, ast.Name) and inner.id in _BOOKKEEPING


def is_space(targets: Sequence[ast.expr], spaces: Collection[str]) -> bool:
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id in spaces


def asks_for_namespace(statement: ast.If, spaces: Collection[str]) -> bool:
    """``if not isinstance(l_0_ns, Namespace): raise ...``, of one that is a dict here."""
    test = statement.test
    if not (isinstance(test, ast.UnaryOp) and is_call(test.operand, "isinstance")):
        return False
    value, kind = test.operand.args  # type: ignore[attr-defined] # a call
    return isinstance(value, ast.Name) and value.id in spaces and is_name(kind, "Namespace")


def reads_only_known(loop: ast.For) -> bool:
    """Whether all that is asked of ``loop`` are numbers and neighbours."""
    assert isinstance(loop.iter, ast.Call)
    if len(loop.iter.args) != 2 or not isinstance(loop.target, ast.Tuple):
        return False  # a recursive loop
    own = loop.target.elts[1]
    if not isinstance(own, ast.Name) or not LOOP_NAME.fullmatch(own.id):
        return False
    asked = [n for s in (*loop.body, *loop.orelse) for n in ast.walk(s)]
    loads = sum(is_name(n, own.id) for n in asked)
    known = sum(
        is_call(n, "environment", "getattr")
        and is_name(n.args[0], own.id)  # type: ignore[attr-defined] # a call
        and (text_of(n.args[1]) or "") in LOOP  # type: ignore[attr-defined] # a call
        for n in asked
    )
    return loads == known
