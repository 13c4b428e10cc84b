"""A YAML file with the place of every node, so that each complaint names line, column and key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import RuleError

_KINDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Document:
    """Reads the nodes of one file; ``place`` is what errors call it."""

    place: str

    def parse(self, text: str) -> yaml.Node:
        """The root node. Raises RuleError for what is no YAML, or nothing."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except RecursionError as error:
            raise RuleError(f"{self.place}: is nested too deep; write it flat") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self.place}:{mark.line + 1}:{mark.column + 1}" if mark else self.place
            problem = getattr(error, "problem", None) or "not readable"
            raise RuleError(f"{where}: not YAML: {problem}; quote patterns with '...'") from error
        if root is None:
            raise RuleError(f"{self.place}: empty; write version, name, summary and rules")
        return root

    def mapping(
        self,
        node: yaml.Node,
        path: str,
        known: Sequence[str],
        *,
        required: Sequence[str] = (),
    ) -> dict[str, yaml.Node]:
        """Values by key; an unknown, doubled, or missing key is an error."""
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, path, "is not a mapping", f"write {', '.join(known)}")
        found: dict[str, yaml.Node] = {}
        for key, value in self._pairs(node, path):
            inner = f"{path}.{key.value}" if path else str(key.value)
            if known and key.value not in known:
                raise self.error(key, inner, "unknown key", f"use one of {', '.join(known)}")
            found[key.value] = value
        for name in required:
            if name not in found:
                raise self.error(node, f"{path}.{name}" if path else name, "missing", "add it")
        return found

    def entries(self, node: yaml.Node, path: str) -> dict[str, yaml.Node]:
        """A mapping whose keys are the user's own."""
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise self.error(node, path, "is not a mapping of names", "write name: value")
        return {key.value: value for key, value in self._pairs(node, path)}

    def _pairs(self, node: yaml.MappingNode, path: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, path, "has a key that is no name", "write a plain name")
            if key.value in seen:
                raise self.error(key, f"{path}.{key.value}".lstrip("."), "given twice", "keep one")
            seen.add(key.value)
        return list(node.value)

    def sequence(self, node: yaml.Node, path: str) -> list[yaml.Node]:
        """The items of a list."""
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, path, "is not a list", "start each item with '- '")
        return list(node.value)

    def scalar(self, node: yaml.Node, path: str, *kinds: str) -> Any:
        """A value of one of the *kinds* ``str int float bool null``, as YAML reads it."""
        kind = node.tag.rpartition(":")[2]
        if not isinstance(node, yaml.ScalarNode) or kind not in kinds:
            wanted = " or ".join(_KINDS[k] for k in kinds if (k, "float") != ("int", kinds[0]))
            remedy = "write one" if isinstance(node, yaml.ScalarNode) else "write it plainly"
            if kinds[0] == "str":
                remedy = "quote it with '...'"
            raise self.error(node, path, f"is not {wanted}", remedy)
        if kind == "str":
            return str(node.value)
        try:
            return yaml.safe_load(node.value)
        except (ValueError, OverflowError) as error:  # 1__0, or more digits than Python reads
            raise self.error(node, path, f"is no number: {node.value[:20]}", "mend it") from error

    def number(self, node: yaml.Node, path: str) -> float:
        """A finite number; ``.inf``, ``.nan`` and sexagesimals (``1:30`` is 90 in YAML) are not."""
        value = self.scalar(node, path, "float", "int")
        if ":" in node.value:
            raise self.error(
                node, path, f"{node.value} is {value} in YAML", "write it with a point"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(node, path, f"is {number}", "write a finite number")
        return number

    def choice(self, node: yaml.Node, path: str, known: Sequence[str]) -> str:
        """One of some words."""
        word: str = self.scalar(node, path, "str")
        if word not in known:
            raise self.error(node, path, f"{word!r} is unknown", f"use one of {', '.join(known)}")
        return word

    def choices(self, node: yaml.Node, path: str, known: Sequence[str]) -> tuple[str, ...]:
        """One word, or a list of different ones."""
        if not isinstance(node, yaml.SequenceNode):
            return (self.choice(node, path, known),)
        words = [self.choice(item, f"{path}[{i}]", known) for i, item in enumerate(node.value)]
        if not words or len(set(words)) < len(words):
            fact = "names one twice" if words else "is empty"
            raise self.error(node, path, fact, f"use each of {', '.join(known)} once at most")
        return tuple(words)

    def where(self, node: yaml.Node) -> str:
        """File, line and column of a node."""
        mark = node.start_mark
        return f"{self.place}:{mark.line + 1}:{mark.column + 1}"

    def error(self, node: yaml.Node, path: str, fact: str, remedy: str) -> RuleError:
        """*place: key: fact; remedy*."""
        return RuleError(f"{self.where(node)}: {f'{path}: ' if path else ''}{fact}; {remedy}")
