"""The statements of a compiled template, lowered: loops, hooks and printing.

See `lowering.py` for what each form must keep. Only what runs in the order of the text is changed:
bodies of macros keep their own printing and their hooks.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping, Sequence

from pipeline.forms import (
    Unfit,
    appends,
    asks_for_namespace,
    first_hook,
    hook_of,
    is_book,
    is_bookkeeping,
    is_call,
    is_hook_call,
    is_name,
    is_space,
    names_of,
    prints,
    reads_only_known,
    text_of,
)
from pipeline.hoisted import hoist
from pipeline.lowering import Expressions

_DEEPEST = 8  # loops in loops: each looks at all that is inside it
MOST_PIECES = 4096  # of text: what prints more is left to the template's own code, which counts


class Statements:
    """Lowers the body of a template's root function; *resolved* is what names of it begin as."""

    def __init__(self, expressions: Expressions, resolved: Mapping[str, ast.expr]) -> None:
        self.expressions, self.resolved = expressions, resolved
        self._numbers = itertools.count()
        self._begun: list[str] = []

    def lower(self, body: Sequence[ast.stmt], *, printing: bool, depth: int = 0) -> list[ast.stmt]:
        """*printing*: the statements print, *depth* loops deep; else they are of a function."""
        lowered: list[ast.stmt] = []
        rest = list(body)
        while rest:
            statement = rest.pop(0)
            hook = hook_of(statement)
            if hook and printing:
                stop = next(i for i, s in enumerate(rest) if is_hook_call(s, hook, "pop"))
                lowered += self._lower_hooked(rest[:stop], hook, depth)
                rest = rest[stop + 1 :]
            else:
                lowered += self._lower_one(statement, printing=printing, depth=depth)
        return _merge_constants(lowered) or [ast.Pass()]

    def _lower_hooked(self, body: Sequence[ast.stmt], hook: str, depth: int) -> list[ast.stmt]:
        """A loop that reports its variables to the recorder named *hook*."""
        loops = [s for s in body if isinstance(s, ast.For)]
        if len(loops) != 1:
            raise Unfit("a hook without its loop")
        (loop,) = loops
        calls = [s for s in ast.walk(loop) if isinstance(s, ast.stmt) and is_hook_call(s, hook)]
        push = [s for s in body if is_hook_call(s, hook)]
        if not any(map(prints, loop.body)):
            kept = [s for s in body if s not in push]
            return [x for s in kept for x in self._without(s, calls, depth)]
        iterated = self._iterated(loop)
        names = names_of(loop)
        own = len(calls) == 1 and calls[0] is loop.body[first_hook(loop.body)]
        if not (
            own
            and depth == 0
            and len(names) == 1
            and is_name(iterated, "messages")
            and (not is_call(loop.iter, "LoopContext") or reads_only_known(loop))
            and is_hook_call(calls[0], hook, "enter")
        ):
            plain = ast.parse(f"{hook} = recorder.ready(messages)").body
            inner = [x for s in body for x in self._lower_one(s, printing=True, depth=depth)]
            return [*plain, *inner, *ast.parse(f"{hook}.pop()").body]
        lowered = []
        for s in body:
            if s in push:
                continue
            lowered += (
                self._lower_loop(loop, depth, owning=calls)
                if s is loop
                else self._lower_one(s, printing=True, depth=depth)
            )
        return [*lowered, *ast.parse("events.append((len(pieces), -1))\nrecorder.owner = -1").body]

    def _without(
        self, statement: ast.stmt, calls: Sequence[ast.stmt], depth: int
    ) -> list[ast.stmt]:
        if isinstance(statement, ast.For):
            statement.body = [s for s in statement.body if s not in calls]
            return self._lower_loop(statement, depth)
        return self._lower_one(statement, printing=True, depth=depth)

    def _iterated(self, loop: ast.For) -> ast.expr:
        """What a loop goes over, without Jinja's and our own wrappings."""
        found = loop.iter
        if is_call(found, "LoopContext"):
            found = found.args[0]  # type: ignore[attr-defined] # a call
        if is_call(found, "environment", "limit_loop") or is_call(
            found, "environment", "limit_search"
        ):
            found = found.args[0]  # type: ignore[attr-defined] # a call
        return self._expression(found)

    def _expression(self, node: ast.expr) -> ast.expr:
        found: ast.expr = self.expressions.visit(_copy(node))
        return found

    def _lower_one(self, statement: ast.stmt, *, printing: bool, depth: int) -> list[ast.stmt]:
        if is_bookkeeping(statement) or isinstance(statement, ast.Pass):
            return []
        if isinstance(statement, ast.For):
            return self._lower_loop(statement, depth, printing=printing)
        if isinstance(statement, ast.If):
            return self._lower_if(statement, printing=printing, depth=depth)
        if isinstance(statement, ast.FunctionDef):
            statement.body = self.lower(statement.body, printing=False)
            return [statement]
        if isinstance(statement, ast.Expr) and printing:
            if isinstance(statement.value, ast.Yield) and statement.value.value is not None:
                value = self._expression(statement.value.value)
                append = ast.Call(ast.Name("append", ast.Load()), [value], [])
                return [ast.Expr(append)]
            marked = self._mark_generated(statement.value)
            if marked:
                return marked
        if hook := hook_of(statement):
            return ast.parse(f"{hook} = recorder.ready(messages)").body
        if isinstance(statement, ast.Assign):
            return self._lower_assignment(statement)
        if isinstance(statement, (ast.Expr, ast.Return, ast.Raise, ast.Break, ast.Continue)):
            return [self.expressions.visit(statement)]
        raise Unfit(type(statement).__name__)

    def _mark_generated(self, value: ast.expr) -> list[ast.stmt]:
        """Of ``environment.recorder.open()`` and ``close()``."""
        if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            return []
        owner, name = value.func.value, value.func.attr
        if not (isinstance(owner, ast.Attribute) and owner.attr == "recorder"):
            return []
        if name == "open":
            self._begun.append(f"begun_{next(self._numbers)}")
            return ast.parse(f"{self._begun[-1]} = len(pieces)").body
        return ast.parse(f"enclosed.append(({self._begun.pop()}, len(pieces)))").body

    def _lower_if(self, statement: ast.If, *, printing: bool, depth: int) -> list[ast.stmt]:
        if asks_for_namespace(statement, self.expressions.spaces):
            return []
        test = self._expression(statement.test)
        if isinstance(test, ast.Constant):
            chosen = statement.body if test.value else statement.orelse
            return self.lower(chosen, printing=printing, depth=depth) if chosen else []
        body = self.lower(statement.body, printing=printing, depth=depth)
        other = self.lower(statement.orelse, printing=printing, depth=depth)
        if all(isinstance(s, ast.Pass) for s in other):
            other = []
        return [ast.If(test, body, other)]

    def _lower_assignment(self, statement: ast.Assign) -> list[ast.stmt]:
        fixed = {*self.expressions.known, *self.expressions.named, *self.expressions.loops}
        targets = [
            target
            for target in statement.targets
            if not (isinstance(target, ast.Name) and target.id in fixed) and not is_book(target)
        ]
        if not targets:
            return []
        value = statement.value
        if is_call(value, "resolve"):
            value = self.resolved[text_of(value.args[0]) or ""]  # type: ignore[attr-defined] # a call
        elif is_call(value, "environment", "call") and is_space(targets, self.expressions.spaces):
            value = self.expressions.make_space(value)  # type: ignore[arg-type] # a call
        else:
            value = self._expression(value)
        return [ast.Assign(targets, value)]

    def _lower_loop(
        self,
        loop: ast.For,
        depth: int,
        *,
        printing: bool = True,
        owning: Sequence[ast.stmt] = (),
    ) -> list[ast.stmt]:
        """*owning* is the call that tells the recorder of a message, if this is to be in place."""
        if depth >= _DEEPEST:
            raise Unfit("loops nest too deep")
        number = next(self._numbers)
        at, count, items = f"at_{number}", f"count_{number}", f"items_{number}"
        extended = is_call(loop.iter, "LoopContext")
        target, iterated = loop.target, loop.iter
        name = ""
        if extended:
            if not reads_only_known(loop):
                return self._keep_loop(loop, depth, printing=printing)
            assert isinstance(loop.iter, ast.Call)
            iterated = loop.iter.args[0]
            assert isinstance(loop.target, ast.Tuple)
            target, own = loop.target.elts
            assert isinstance(own, ast.Name)
            name = own.id
            self.expressions.loops[name] = {"at": at, "count": count, "items": items}
        before = [s for s in loop.body if s not in owning]
        body = self.lower(before, printing=printing, depth=depth + 1)
        if extended:
            del self.expressions.loops[name]
        if owning:
            said = f"events.append((len(pieces), {at}))\nrecorder.owner = {at}"
            body = [*ast.parse(said).body, *body]
        if printing and any(map(appends, body)):
            check = f"if len(pieces) > {MOST_PIECES}: raise OverflowError"
            body = [*ast.parse(check).body, *body]
        if len(names_of(loop)) == 1:
            body = hoist(names_of(loop)[0], body)
        orelse = self.lower(loop.orelse, printing=printing, depth=depth) if loop.orelse else []
        values = self._expression(iterated)
        if not (extended or owning):
            return [ast.For(target, values, body, orelse)]
        begin = [
            ast.Assign([ast.Name(items, ast.Store())], values),
            *ast.parse(f"if type({items}) is not list: {items} = list({items})").body,
            *ast.parse(f"{count} = len({items})").body,
        ]
        pair = ast.Tuple([ast.Name(at, ast.Store()), target], ast.Store())
        over = ast.parse(f"enumerate({items})", mode="eval").body
        return [*begin, ast.For(pair, over, body, orelse)]

    def _keep_loop(self, loop: ast.For, depth: int, *, printing: bool) -> list[ast.stmt]:
        """A loop whose own variable is passed on: Jinja's object serves it."""
        loop.body = self.lower(loop.body, printing=printing, depth=depth + 1)
        loop.orelse = self.lower(loop.orelse, printing=printing, depth=depth) if loop.orelse else []
        loop.iter = self._expression(loop.iter)
        return [loop]


def _merge_constants(body: list[ast.stmt]) -> list[ast.stmt]:
    """``append('a'); append('b')`` is one piece: nobody is told in between."""
    merged: list[ast.stmt] = []
    for statement in body:
        text = _constant_piece(statement)
        before = _constant_piece(merged[-1]) if merged else None
        if text is not None and before is not None:
            merged[-1] = ast.parse(f"append({before + text!r})").body[0]
        else:
            merged.append(statement)
    return merged


def _constant_piece(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Expr) and is_call(statement.value, "append"):
        return text_of(statement.value.args[0])  # type: ignore[attr-defined] # a call
    return None


def _copy(node: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(node), mode="eval").body
