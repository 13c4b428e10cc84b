"""Rule files: what they may say, and the spans that their patterns claim.

A file is read with the position of every node, so that an error can name its line and column.
Rules never see tokens: a pattern claims characters of a turn's output, ``weights`` does the rest.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import regex
import yaml

from pipeline.errors import RecordError, RuleError
from pipeline.turns import Turn

VERSION = 1
TIME_LIMIT = 5.0  # seconds for one pattern on one turn; a sane pattern takes microseconds
_HEAVIEST = 1_000_000  # more would drown other tokens in float32 sums
_MARKS = "⟦⟧"


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the weight of the characters that it claims; ``name`` is unique in a build."""

    name: str
    pattern: regex.Pattern[str]
    weight: float


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One rule file as read; ``examples`` are texts in which ⟦ ⟧ mark what must be claimed."""

    name: str
    summary: str
    rules: tuple[Rule, ...]
    examples: tuple[str, ...]
    text: str

    @property
    def digest(self) -> str:
        """sha256 of the file's text: what the fingerprint says of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Claim(NamedTuple):
    """Characters of the whole text that the rule of index ``rule`` weights."""

    rule: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of several files in one order that does not depend on the command line.

    Weights multiply, so the order matters only to what ``show`` lists first.
    """

    files: tuple[RuleFile, ...]
    rules: tuple[Rule, ...]

    def claims(self, turn: Turn, text: str) -> Iterator[Claim]:
        """What each rule claims of *turn*, rule by rule, left to right, disjoint within a rule.

        A pattern sees one output range at a time as its whole text: ``^`` is where the assistant
        starts to speak. Raises RecordError(``match``, ``pattern_timeout``).
        """
        for span in turn.outputs:
            output = text[span.start : span.end]
            for index, rule in enumerate(self.rules):
                try:
                    for match in rule.pattern.finditer(output, timeout=TIME_LIMIT):
                        start, end = match.span()
                        if start < end:
                            yield Claim(index, span.start + start, span.start + end)
                except TimeoutError:
                    raise RecordError(
                        "match",
                        "pattern_timeout",
                        f"rule {rule.name} took over {TIME_LIMIT:g} s on a turn of {len(output)} "
                        "characters; make its pattern cheaper or drop the record",
                        field=f"messages[{turn.message}]",
                    ) from None


def compose(files: Iterable[RuleFile]) -> RuleSet:
    """One RuleSet, sorted by file name. Raises RuleError where two files share a name."""
    ordered = sorted(files, key=lambda f: f.name)
    for a, b in itertools.pairwise(ordered):
        if a.name == b.name:
            raise RuleError(f"{a.name}: given twice; give each rule file once")
    return RuleSet(tuple(ordered), tuple(rule for f in ordered for rule in f.rules))


def load_rules(paths: Sequence[str | Path]) -> RuleSet:
    """Reads and composes rule files; a bare name that is no path is one of the bundled rules."""
    return compose(read_rule_file(find_rule_file(path)) for path in paths)


def bundled_rules() -> Path:
    """The folder of the rules that come with the package."""
    return Path(__file__).parent / "bundled" / "rules"


def find_rule_file(name: str | Path) -> Path:
    """*name* as a path, else as a bundled rule, with or without ``.yaml``."""
    path = Path(name)
    if path.is_file():
        return path
    if path.name == str(name):
        for candidate in (bundled_rules() / path.name, bundled_rules() / f"{path.name}.yaml"):
            if candidate.is_file():
                return candidate
    known = ", ".join(sorted(p.stem for p in bundled_rules().glob("*.yaml")))
    raise RuleError(f"{name}: no such rule file; give a path or a bundled rule ({known})")


def read_rule_file(path: Path) -> RuleFile:
    """Raises RuleError naming file, line, column and key of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path}: cannot be read: {error}; give a UTF-8 YAML file") from error
    return parse_rule_file(text, place=path.name)


def parse_rule_file(text: str, *, place: str) -> RuleFile:
    """A rule file from its text; *place* is what errors call it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise RuleError(f"{place}: is nested too deep; write it flat") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        problem = getattr(error, "problem", None) or "not readable"
        raise RuleError(f"{where}: not YAML: {problem}; quote patterns with '...'") from error
    if root is None:
        raise RuleError(f"{place}: empty; write version, name, summary and rules")
    return _File(place).read(root, text)


class _File:
    """Walks the nodes of one file; every complaint carries the node's line and column."""

    def __init__(self, place: str) -> None:
        self.place = place

    def read(self, root: yaml.Node, text: str) -> RuleFile:
        top = self._mapping(
            root, "", required=("version", "name", "rules"), optional=("summary", "why", "examples")
        )
        version = top["version"]
        if self._scalar(version, "version", "int") != str(VERSION):
            raise self._error(version, "version", f"is not {VERSION}", f"write {VERSION}")
        name = self._scalar(top["name"], "name", "str")
        rules = [
            self._rule(node, f"rules[{i}]", f"{name}[{i}]")
            for i, node in enumerate(self._sequence(top["rules"], "rules"))
        ]
        if not rules:
            raise self._error(top["rules"], "rules", "is empty", "write at least one rule")
        if len(rules) == 1:
            rules = [Rule(name, rules[0].pattern, rules[0].weight)]
        summary = self._scalar(top["summary"], "summary", "str") if "summary" in top else ""
        if "why" in top:
            self._scalar(top["why"], "why", "str")
        nodes = self._sequence(top["examples"], "examples") if "examples" in top else []
        examples = tuple(
            self._example(node, f"examples[{i}]", rules) for i, node in enumerate(nodes)
        )
        return RuleFile(name, summary, tuple(rules), examples, text)

    def _example(self, node: yaml.Node, path: str, rules: Sequence[Rule]) -> str:
        """An example must be claimed exactly as it is marked."""
        example = self._scalar(node, path, "str")
        try:
            text, expected = marked(example)
        except ValueError as error:
            raise self._error(node, path, f"has an {error}", "close each ⟦ with a ⟧") from error
        matches = (m.span() for rule in rules for m in rule.pattern.finditer(text))
        found = sorted(span for span in matches if span[0] < span[1])
        missing = [text[a:b] for a, b in expected if (a, b) not in found]
        noisy = [text[a:b] for a, b in found if (a, b) not in expected]
        for word, parts in (("missing", missing), ("noisy", noisy)):
            if parts:
                fact = f"{word}: the rules {'do not claim' if word == 'missing' else 'claim'}"
                raise self._error(
                    node, path, f"{fact} {parts[0]!r}", "mend the pattern or the marks"
                )
        return example

    def _rule(self, node: yaml.Node, path: str, name: str) -> Rule:
        keys = self._mapping(node, path, required=("pattern", "weight"), optional=("where",))
        if "where" in keys:
            where = self._mapping(keys["where"], f"{path}.where", required=("role",), optional=())
            role = self._scalar(where["role"], f"{path}.where.role", "str")
            if role != "assistant":
                raise self._error(
                    where["role"],
                    f"{path}.where.role",
                    f"{role!r} is not a role that carries loss",
                    "write assistant",
                )
        return Rule(
            name,
            self._pattern(keys["pattern"], f"{path}.pattern"),
            self._weight(keys["weight"], f"{path}.weight"),
        )

    def _pattern(self, node: yaml.Node, path: str) -> regex.Pattern[str]:
        source = self._scalar(node, path, "str")
        try:
            pattern = regex.compile(source, regex.VERSION1)
        except (regex.error, RecursionError, OverflowError) as error:
            raise self._error(node, path, f"is no pattern: {error}", "mend it") from error
        if pattern.search("") is not None:
            raise self._error(
                node, path, "matches the empty string", "use + instead of *, or anchor it with text"
            )
        return pattern

    def _weight(self, node: yaml.Node, path: str) -> float:
        # Through YAML, whose numbers are not Python's: .inf, 1_000, 0x10.
        source = self._scalar(node, path, "float", "int")
        try:
            value = float(yaml.safe_load(source))
        except (ValueError, OverflowError) as error:
            raise self._error(node, path, f"is no number: {source[:20]}", "mend it") from error
        if not math.isfinite(value) or not 0 <= value <= _HEAVIEST:
            raise self._error(
                node, path, f"is {value}", f"write a finite number from 0 to {_HEAVIEST:,}"
            )
        return value

    def _mapping(
        self, node: yaml.Node, path: str, *, required: Sequence[str], optional: Sequence[str]
    ) -> dict[str, yaml.Node]:
        known = [*required, *optional]
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, path, "is not a mapping", f"write {', '.join(known)}")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key not in known:
                raise self._error(key_node, inner, "unknown key", f"use one of {', '.join(known)}")
            if key in found:
                raise self._error(key_node, inner, "given twice", "keep one")
            found[key] = value
        for key in required:
            if key not in found:
                inner = f"{path}.{key}" if path else key
                raise self._error(node, inner, "missing", "add it")
        return found

    def _sequence(self, node: yaml.Node, path: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._error(node, path, "is not a list", "start each item with '- '")
        return list(node.value)

    def _scalar(self, node: yaml.Node, path: str, *kinds: str) -> str:
        tags = [f"tag:yaml.org,2002:{kind}" for kind in kinds]
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            kind = {"str": "a string", "int": "a whole number", "float": "a number"}[kinds[0]]
            raise self._error(node, path, f"is not {kind}", f"write {kind}")
        return str(node.value)

    def _error(self, node: yaml.Node, path: str, fact: str, remedy: str) -> RuleError:
        mark = node.start_mark
        inner = f"{path}: " if path else ""
        return RuleError(f"{self.place}:{mark.line + 1}:{mark.column + 1}: {inner}{fact}; {remedy}")


def marked(example: str) -> tuple[str, list[tuple[int, int]]]:
    """An example's text without its ⟦ ⟧ marks, and the spans that they enclose.

    Raises ValueError where marks do not pair.
    """
    text: list[str] = []
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for character in example:
        if character == _MARKS[0] and start is None:
            start = len(text)
        elif character == _MARKS[1] and start is not None:
            spans.append((start, len(text)))
            start = None
        elif character in _MARKS:
            raise ValueError(f"unpaired {character}")
        else:
            text.append(character)
    if start is not None:
        raise ValueError(f"unpaired {_MARKS[0]}")
    return "".join(text), spans
