"""How the variables of a compiled template's Python are assigned and read."""

from __future__ import annotations

import ast
from collections.abc import Collection

from pipeline.forms import MISSING, Unfit, is_bookkeeping, is_call, is_name, text_of
from pipeline.lowering import ATTRIBUTES
from pipeline.macros import TOLD


class Uses:
    """Of the function *root*, as Jinja wrote it; raises Unfit where something could deceive."""

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
