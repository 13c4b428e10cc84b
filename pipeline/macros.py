"""The macros of a compiled template's Python: which variable is which function, and how called.

Jinja calls each Python function that it writes for a macro `macro`, and calls it by an object that
sorts its arguments. Where a variable holds one macro and nothing else, that is known beforehand.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOLD = ("_loop_vars", "_block_vars")  # keywords that Jinja's compiler adds to each call
_NAME = "macro"


@dataclass(frozen=True, slots=True)
class Signature:
    """The Python function of a macro, and the names of its parameters in their order."""

    function: str
    parameters: tuple[str, ...]

    def sort(self, call: ast.Call, missing: str) -> list[ast.expr] | None:
        """Arguments of ``environment.call(context, macro, ...)``, one for each parameter.

        Where they are sorted in another way, or are an error, None: Jinja does that.
        """
        given = list(call.args[2:])
        if any(isinstance(argument, ast.Starred) for argument in given):
            return None
        for keyword in (k for k in call.keywords if k.arg not in TOLD):
            place = len(given)
            while place < len(self.parameters) and self.parameters[place] != keyword.arg:
                given.append(ast.Name(missing, ast.Load()))
                place += 1
            given.append(keyword.value)
            if place >= len(self.parameters):
                return None
        if len(given) > len(self.parameters):
            return None
        absent = range(len(self.parameters) - len(given))
        return [*given, *(ast.Name(missing, ast.Load()) for _ in absent)]


def name_macros(root: ast.FunctionDef) -> None:
    """Gives each function of a macro a name of its own."""
    count = 0
    for node in ast.walk(root):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if not isinstance(body, list):
                continue
            for i, statement in enumerate(body):
                if isinstance(statement, ast.FunctionDef) and statement.name == _NAME:
                    statement.name = f"{_NAME}_{count}"
                    count += 1
                    _rename(body[i + 1 :], statement.name)


def _rename(following: Sequence[ast.stmt], name: str) -> None:
    """In the `Macro` that is made of the function, right after it."""
    for statement in following:
        made = _made(statement)
        if made is not None:
            made.args[1] = ast.Name(name, ast.Load())
            return


def _made(statement: ast.AST) -> ast.Call | None:
    value = statement.value if isinstance(statement, ast.Assign) else None
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        return value if value.func.id == "Macro" else None
    return None


def sign_macros(stores: Mapping[str, Sequence[ast.AST]]) -> dict[str, Signature]:
    """Of variables whose only one of *stores* is that of a macro without special arguments."""
    signed: dict[str, Signature] = {}
    for variable, (store, *others) in stores.items():
        made = None if others else _made(store)
        if made is None:
            continue
        _, function, _, parameters, *catches = made.args
        plain = all(isinstance(c, ast.Constant) and c.value is False for c in catches[:3])
        names = ast.literal_eval(parameters)
        if plain and isinstance(function, ast.Name) and "caller" not in names:
            signed[variable] = Signature(function.id, names)
    return signed
