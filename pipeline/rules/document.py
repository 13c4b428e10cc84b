"""A YAML file with the place of every node, so that each complaint names line, column and key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import RuleError
from pipeline.rules.jsontext import compose_json

_KINDS = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Document:
    """Reads the nodes of one file; ``place`` is what errors call it."""

    place: str

    def parse(self, text: str) -> yaml.Node:
        """The root node. Raises RuleError for what is no YAML, or nothing."""
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (ValueError, OverflowError) as error:  # "\U00110000", %YAML 1.999...
            raise RuleError(f"{self.place}: not YAML: {error}; mend it") from error
        except RecursionError as error:
            raise RuleError(f"{self.place}: is nested too deep; write it flat") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{self.place}:{mark.line + 1}:{mark.column + 1}" if mark else self.place
            problem = getattr(error, "problem", None) or getattr(error, "reason", "not readable")
            raise RuleError(f"{where}: not YAML: {problem}; quote patterns with '...'") from error
        if root is None:
            raise RuleError(f"{self.place}: empty; write version, name, summary and rules")
        return root

    def parse_json(self, text: str) -> yaml.Node:
        """The root node of a JSON text. Raises RuleError for what is none."""
        try:
            return compose_json(text)
        except RecursionError as error:
            raise RuleError(f"{self.place}: is nested too deep; write it flat") from error
        except json.JSONDecodeError as error:
            where = f"{self.place}:{error.lineno}:{error.colno}"
            raise RuleError(f"{where}: not JSON: {error.msg}; mend it") from error
        except ValueError as error:  # more digits than Python reads
            raise RuleError(f"{self.place}: not JSON: {error}; mend it") from error

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
            raise self.error(node, path, "has no keys", f"write some of {', '.join(known)}")
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
            fact = "is empty" if isinstance(node, yaml.MappingNode) else "has no keys"
            raise self.error(node, path, fact, "write name: value")
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
        """A value of one of the *kinds* ``str int float bool null``.

        What YAML 1.1 and 1.2 read as different things (``yes``, ``010``, ``1:30``) is an error.
        """
        kind, text = _kind(node), str(node.value)
        if kind not in kinds:
            raise self._kind_error(node, path, kinds)
        if kind == "str":
            return self._string(node, path)
        if kind == "null":
            return None
        if kind == "bool":
            if text.lower() not in ("true", "false"):
                fact = f"{text[:20]} is true or false to some readers of YAML, and text to others"
                raise self.error(node, path, fact, f"write true or false, or quote '{text[:20]}'")
            return text.lower() == "true"
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return float(text.replace(".", ""))
        if not (_INT if kind == "int" else _FLOAT).fullmatch(text):
            fact = f"{text[:20]} is not the same number to all readers of YAML"
            raise self.error(node, path, fact, "write it in decimals, or in quotes if it is text")
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError as error:
            raise self.error(node, path, "has too many digits", "write fewer") from error

    def number(self, node: yaml.Node, path: str) -> float:
        """A finite number."""
        value = self.scalar(node, path, "float", "int")
        try:
            number = float(value) + 0.0  # no -0.0
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(node, path, f"is {number}", "write a finite number")
        return number

    def _string(self, node: yaml.Node, path: str) -> str:
        """JSON writes characters beyond 16 bits as two escapes, which YAML leaves as two."""
        text = str(node.value)
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            fact = "holds half a surrogate pair, which no text has"
            raise self.error(node, path, fact, "write the character itself") from error

    def _kind_error(self, node: yaml.Node, path: str, kinds: Sequence[str]) -> RuleError:
        kind = _kind(node)
        found = _KINDS.get(kind, "a list" if kind == "seq" else f"a {kind or 'tagged value'}")
        names = [_KINDS[k] for k in kinds if not (k == "int" and "float" in kinds)]
        wanted = "a plain value" if len(names) > 2 else " or ".join(names)
        remedy = f"write {wanted}"
        if "str" in kinds and isinstance(node, yaml.ScalarNode):
            remedy = "quote it with '...'"
        elif kind == "str" and isinstance(node, yaml.ScalarNode) and node.style:
            remedy = "write it without quotes"
        return self.error(node, path, f"is {found}, not {wanted}", remedy)

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


def _kind(node: yaml.Node) -> str:
    """``1e-3``, which YAML 1.1 and so PyYAML reads as a string, is a number."""
    head, kind = str(node.tag)[: len(_TAG)], str(node.tag)[len(_TAG) :]
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if kind == "str" and plain and _FLOAT.fullmatch(node.value):
        return "float"
    known = {"map": yaml.MappingNode, "seq": yaml.SequenceNode}.get(kind, yaml.ScalarNode)
    kind = {"map": "mapping", "timestamp": "date"}.get(kind, kind)
    return kind if head == _TAG and isinstance(node, known) else ""
