"""What a rule file may say: its keys, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import regex
import yaml

from pipeline.errors import RuleError
from pipeline.policy import EDGES
from pipeline.rules.document import Document
from pipeline.rules.entry import (
    BASES,
    FLAGS,
    REGIONS,
    ROLES,
    Condition,
    Entry,
    FieldTest,
    Pattern,
    Rule,
    RuleFile,
    Where,
)
from pipeline.rules.marks import read_example
from pipeline.rules.pattern import compile_pattern, is_anchored, required_texts

VERSION = 1
LIGHTEST = 1e-6  # products of less would be 0 in float32
HEAVIEST = 1_000_000  # more would drown other tokens in float32 sums
FILE_KEYS = ("version", "name", "summary", "why", "base", "rules", "examples")
ENTRY_KEYS = (
    *("name", "pattern", "sections", "flags", "group", "where", "when", "unless"),
    *("weight", "sample_weight", "negative", "count", "edge"),
)
# What does not go with sections.
UNSECTIONED_KEYS = ("pattern", "flags", "group", "weight", "sample_weight", "count")
SECTION_KEYS = ("marker", "pattern", "weight", "body")
WHERE_KEYS = ("role", "turn", "region", "first", "anchored")
CONDITION_KEYS = ("user", "turn", "row")
TEST_KEYS = ("min", "max", "pattern")
VALUE_KINDS = ("str", "int", "float", "bool", "null")
NAME = r"[\w.-]+"
# References by number, which shift where patterns are joined: \1, \g<1>, (?P=1), (?(1)a), (?1).
_NUMBERED = regex.compile(
    r"(?<!\\)(?:\\\\)*(?:\\[1-9]|\\g<\d|\(\?P[=>]\d|\(\?\(\d|\(\?(?:R|[+-]?\d+)\))"
)
_SLICE = regex.compile(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?")


def read_rules(document: Document, text: str) -> RuleFile:
    """A rule file from its text. Raises RuleError naming file, line, column and key."""
    return _Grammar(document).file(document.parse(text), text)


@dataclass(frozen=True, slots=True)
class _Grammar:
    """Reads the nodes of one file."""

    document: Document

    def file(self, root: yaml.Node, text: str) -> RuleFile:
        doc = self.document
        top = doc.mapping(root, "", FILE_KEYS, required=("version", "name"))
        if doc.scalar(top["version"], "version", "int") != VERSION:
            raise doc.error(top["version"], "version", f"is not {VERSION}", f"write {VERSION}")
        name = doc.scalar(top["name"], "name", "str")
        self._require_name(top["name"], "name", name)
        told = {key: doc.scalar(top[key], key, "str") for key in ("summary", "why") if key in top}
        base = doc.choice(top["base"], "base", BASES) if "base" in top else ""
        nodes = doc.sequence(top["rules"], "rules") if "rules" in top else []
        if not nodes and not base:
            fact = "is empty" if "rules" in top else "missing"
            raise doc.error(top.get("rules", root), "rules", fact, "write a rule, or a base")
        entries = [
            entry
            for i, node in enumerate(nodes)
            for entry in self.entry(
                node, f"rules[{i}]", name if len(nodes) == 1 else f"{name}[{i}]"
            )
        ]
        if base == "last_turn":
            layer = Rule(f"{name}.base" if entries else name, 0.0)
            entries.insert(0, Entry((layer,), scope="history"))
        nodes = doc.sequence(top["examples"], "examples") if "examples" in top else []
        examples = [read_example(doc, node, f"examples[{i}]") for i, node in enumerate(nodes)]
        self._require_unique(entries)
        return RuleFile(
            name,
            told.get("summary", ""),
            base,
            tuple(entries),
            tuple(examples),
            text,
            doc.where(top["name"]),
            doc.where(top["base"]) if base else "",
        )

    def _require_name(self, node: yaml.Node, path: str, name: str) -> None:
        if not regex.fullmatch(NAME, name):
            remedy = "use letters, digits, _ - and ."
            raise self.document.error(node, path, f"{name!r} is no name", remedy)

    def _require_unique(self, entries: Sequence[Entry]) -> None:
        seen: set[str] = set()
        for entry in entries:
            for rule in () if entry.shares else entry.rules:
                if rule.name in seen:
                    fact = f"another rule is called {rule.name} too"
                    raise RuleError(f"{entry.place}: {fact}; give this one a name of its own")
                seen.add(rule.name)

    def entry(self, node: yaml.Node, path: str, name: str) -> list[Entry]:
        """An item of ``rules``: of several patterns, an entry each."""
        doc = self.document
        keys = doc.mapping(node, path, ENTRY_KEYS)
        if "name" in keys:
            own = doc.scalar(keys["name"], f"{path}.name", "str")
            self._require_name(keys["name"], f"{path}.name", own)
            name = f"{name.partition('[')[0]}.{own}"
        where = self.where(keys["where"], f"{path}.where") if "where" in keys else Where()
        when, unless = (self.condition(keys, key, path) for key in ("when", "unless"))
        place = f"{doc.where(node)}: {path}"
        entries = [
            replace(entry, where=_anchored(entry, where), when=when, unless=unless, place=place)
            for entry in self._claiming(node, keys, path, name)
        ]
        if (where.first or where.anchored) and "pattern" not in keys:
            fact = "first and anchored say which match counts"
            raise doc.error(keys["where"], f"{path}.where", fact, "use them with pattern")
        return entries

    def _claiming(
        self, node: yaml.Node, keys: dict[str, yaml.Node], path: str, name: str
    ) -> list[Entry]:
        """The entry's patterns and rules, by what it has of pattern and sections."""
        doc = self.document
        if "sections" in keys:
            for key in UNSECTIONED_KEYS:
                if key in keys:
                    remedy = "give each section its own, or make this another rule"
                    raise doc.error(keys[key], f"{path}.{key}", "does not go with sections", remedy)
            return [self.sections(keys, f"{path}.sections", name)]
        scope, rule = self._rule(node, keys, path, name)
        if "pattern" not in keys:
            for key in ("flags", "group"):
                if key in keys:
                    raise doc.error(keys[key], f"{path}.{key}", "has no pattern", "add pattern")
            return [Entry((rule,), scope=scope)]
        flags = regex.VERSION1
        if "flags" in keys:
            for flag in doc.choices(keys["flags"], f"{path}.flags", tuple(FLAGS)):
                flags |= FLAGS[flag]
        group = doc.scalar(keys["group"], f"{path}.group", "str") if "group" in keys else ""
        several = isinstance(keys["pattern"], yaml.SequenceNode)
        nodes = doc.sequence(keys["pattern"], f"{path}.pattern") if several else [keys["pattern"]]
        if not nodes:
            raise doc.error(keys["pattern"], f"{path}.pattern", "is empty", "write a pattern")
        entries: list[Entry] = []
        for i, item in enumerate(nodes):
            inner = f"{path}.pattern[{i}]" if several else f"{path}.pattern"
            pattern = self.pattern(item, inner, flags)
            if group and group not in pattern.groupindex:
                known = ", ".join(pattern.groupindex) or "(?P<name>...)"
                fact = f"the pattern has no group {group!r}"
                raise doc.error(keys["group"], f"{path}.group", fact, f"use {known}")
            plain = not flags & (regex.IGNORECASE | regex.VERBOSE)
            needed = required_texts(pattern.pattern) if plain else ()
            entries.append(Entry((rule,), pattern, group, needed=needed, scope=scope, shares=i > 0))
        return entries

    def _rule(
        self, node: yaml.Node, keys: dict[str, yaml.Node], path: str, name: str
    ) -> tuple[Any, Rule]:
        doc = self.document
        given = [key for key in ("weight", "sample_weight") if key in keys]
        if len(given) != 1:
            fact = "has both weight and sample_weight" if given else "has no weight"
            raise doc.error(node, path, fact, "write one of weight and sample_weight")
        key = given[0]
        negative = self.flag(keys, "negative", path)
        weight = self.weight(keys[key], f"{path}.{key}", negative=negative)
        count = self.flag(keys, "count", path)
        if count and (weight or key != "weight"):
            fact = "keeps the label of a weight of 0"
            raise doc.error(keys["count"], f"{path}.count", fact, "write weight: 0, or drop count")
        if "edge" in keys and key != "weight":
            fact = "decides over tokens across an edge, and a whole row has none"
            raise doc.error(keys["edge"], f"{path}.edge", fact, "drop it")
        edge = doc.choice(keys["edge"], f"{path}.edge", EDGES) if "edge" in keys else ""
        return ("row" if key == "sample_weight" else "piece"), Rule(name, weight, edge, count)

    def sections(self, keys: dict[str, yaml.Node], path: str, name: str) -> Entry:
        """Markers as one pattern; of two that match at one place the one listed first counts."""
        doc = self.document
        entry = path.removesuffix(".sections")
        edge = doc.choice(keys["edge"], f"{entry}.edge", EDGES) if "edge" in keys else ""
        negative = self.flag(keys, "negative", entry)
        sources: list[str] = []
        needed: list[str] = []
        rules: list[Rule] = []
        markers: list[tuple[int, int]] = []
        for i, node in enumerate(doc.sequence(keys["sections"], path)):
            inner = f"{path}[{i}]"
            section = doc.mapping(node, inner, SECTION_KEYS, required=("weight", "body"))
            source, text = self._marker(node, section, inner)
            hidden = next((t for t in needed if t and text.startswith(t)), "")
            if hidden:
                fact = f"is never reached: {hidden!r} matches before it"
                raise doc.error(node, inner, fact, "list the longer one first")
            sources.append(source)
            needed.append(text)
            marker, body = (
                rule_at(self.weight(section[key], f"{inner}.{key}", negative=negative), name, rules)
                for key in ("weight", "body")
            )
            markers.append((marker, body))
        if not sources:
            raise doc.error(keys["sections"], path, "is empty", "write a marker")
        if not rules:
            raise doc.error(
                keys["sections"],
                path,
                "weigh 1 throughout",
                "give one another weight, or drop them",
            )
        edged = [replace(rule, edge=edge) for rule in rules]
        try:
            return join_markers(sources, markers, edged, needed=needed, sections=True)
        except ValueError as error:
            fact, _, remedy = str(error).rpartition("; ")
            raise doc.error(keys["sections"], path, fact, remedy) from error

    def _marker(self, node: yaml.Node, section: dict[str, yaml.Node], path: str) -> tuple[str, str]:
        """A marker as a regular expression and, where it is one, as plain text."""
        doc = self.document
        if ("marker" in section) == ("pattern" in section):
            raise doc.error(node, path, "has not one marker", "write marker, or pattern")
        if "pattern" in section:
            found = self.pattern(section["pattern"], f"{path}.pattern", regex.VERSION1)
            return found.pattern, ""
        text: str = doc.scalar(section["marker"], f"{path}.marker", "str")
        if not text:
            raise doc.error(section["marker"], f"{path}.marker", "is empty", "write some text")
        return regex.escape(text, special_only=True), text

    def where(self, node: yaml.Node, path: str) -> Where:
        doc = self.document
        keys = doc.mapping(node, path, WHERE_KEYS)
        first, stop = self._turns(keys["turn"], f"{path}.turn") if "turn" in keys else (None, None)
        place = f"{doc.where(keys['role'])}: {path}.role" if "role" in keys else ""
        return Where(
            doc.choices(keys["role"], f"{path}.role", ROLES) if "role" in keys else (),
            first,
            stop,
            doc.choices(keys["region"], f"{path}.region", REGIONS) if "region" in keys else (),
            self.flag(keys, "first", path),
            self.flag(keys, "anchored", path),
            place,
        )

    def _turns(self, node: yaml.Node, path: str) -> tuple[int | None, int | None]:
        """``2``, ``-1``, or a slice as Python has it: ``'1:-1'``."""
        doc = self.document
        remedy = "write a number, or a range such as '1:-1' in quotes"
        if node.tag.endswith(":int") and ":" in node.value:  # 1:30 is 90 in YAML 1.1
            raise doc.error(node, path, f"{node.value} is a number in YAML", remedy)
        value = doc.scalar(node, path, "int", "str")
        if isinstance(value, int):
            if abs(value) > HEAVIEST:
                raise doc.error(node, path, "is beyond any talk", remedy)
            return value, value + 1 if value != -1 else None
        match = _SLICE.fullmatch(value)
        if match is None or value == ":":
            raise doc.error(node, path, f"{value!r} is no range of turns", remedy)
        first, stop = (int(part) if part else None for part in match.groups())
        begin = first or 0
        if stop is not None and (stop == 0 or ((begin < 0) == (stop < 0) and begin >= stop)):
            fact = f"{value!r} holds no turn, as its end is not in it"
            raise doc.error(node, path, fact, remedy)
        return first, stop

    def condition(self, keys: dict[str, yaml.Node], key: str, path: str) -> Condition | None:
        if key not in keys:
            return None
        doc, inner = self.document, f"{path}.{key}"
        found = doc.mapping(keys[key], inner, CONDITION_KEYS)
        if not found:
            remedy = f"use one of {', '.join(CONDITION_KEYS)}"
            raise doc.error(keys[key], inner, "asks for nothing", remedy)
        patterns = {
            name: self.pattern(found[name], f"{inner}.{name}", regex.VERSION1)
            for name in ("user", "turn")
            if name in found
        }
        needed = required_texts(patterns["user"].pattern) if "user" in patterns else ()
        fields: list[FieldTest] = []
        if "row" in found:
            for name, node in doc.entries(found["row"], f"{inner}.row").items():
                fields.append(self.test(node, f"{inner}.row.{name}", name))
        return Condition(patterns.get("user"), patterns.get("turn"), tuple(fields), needed)

    def test(self, node: yaml.Node, path: str, name: str) -> FieldTest:
        """A value, some values, or bounds and a pattern."""
        doc = self.document
        if isinstance(node, yaml.MappingNode):
            keys = doc.mapping(node, path, TEST_KEYS)
            low, high = (
                doc.number(keys[key], f"{path}.{key}") if key in keys else None
                for key in ("min", "max")
            )
            if "pattern" in keys:
                if len(keys) > 1:
                    raise doc.error(node, path, "has a pattern and bounds", "write one")
                found = self.pattern(keys["pattern"], f"{path}.pattern", regex.VERSION1)
                return FieldTest(name, pattern=found)
            if not keys:
                raise doc.error(node, path, "asks for nothing", "write min, max or pattern")
            if low is not None and high is not None and low > high:
                raise doc.error(node, path, f"no number is from {low:g} to {high:g}", "swap them")
            return FieldTest(name, low=low, high=high)
        if not isinstance(node, yaml.SequenceNode):
            return FieldTest(name, values=(self._value(node, path),))
        values = tuple(self._value(item, f"{path}[{i}]") for i, item in enumerate(node.value))
        if not values:
            raise doc.error(node, path, "is empty", "write a value")
        return FieldTest(name, values=values)

    def _value(self, node: yaml.Node, path: str) -> Any:
        value = self.document.scalar(node, path, *VALUE_KINDS)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.document.error(node, path, f"is {value}", "write a finite number, or min")
        return value

    def pattern(self, node: yaml.Node, path: str, flags: int) -> Pattern:
        source = self.document.scalar(node, path, "str")
        try:
            return compile_pattern(source, flags)
        except ValueError as error:
            fact, _, remedy = str(error).rpartition("; ")
            raise self.document.error(node, path, fact or remedy, remedy) from error

    def weight(self, node: yaml.Node, path: str, *, negative: bool) -> float:
        value = self.document.number(node, path)
        if value < 0 and not negative:
            remedy = f"write 0 to {HEAVIEST:,}, or add negative: true to push the model away"
            raise self.document.error(node, path, f"is {value:g}", remedy)
        if value and abs(value) < LIGHTEST:
            remedy = f"write 0, or at least {LIGHTEST:g}"
            raise self.document.error(node, path, f"is {value:g}", remedy)
        if abs(value) > HEAVIEST:
            remedy = f"write a number up to {HEAVIEST:,}"
            raise self.document.error(node, path, f"is {value:g}", remedy)
        return value

    def flag(self, keys: dict[str, yaml.Node], key: str, path: str) -> bool:
        if key not in keys:
            return False
        return bool(self.document.scalar(keys[key], f"{path}.{key}", "bool"))


def _anchored(entry: Entry, where: Where) -> Where:
    if entry.pattern is None or entry.sections or not is_anchored(entry.pattern):
        return where
    return replace(where, anchored=True)


def rule_at(weight: float, name: str, rules: list[Rule]) -> int:
    """The index of the rule of that weight, which is added where there is none; -1 for a 1.

    One rule for each weight: what touches and weighs alike is one span, and a token across a
    marker's end is weighed once.
    """
    if weight == 1:
        return -1
    for index, rule in enumerate(rules):
        if rule.weight == weight:
            return index
    told = f"{weight:g}" if float(f"{weight:g}") == weight else repr(weight)
    rules.append(Rule(f"{name}[x{told}]", weight))
    return len(rules) - 1


def join_markers(
    sources: Sequence[str],
    markers: Sequence[tuple[int, int]],
    rules: Sequence[Rule],
    *,
    needed: Sequence[str],
    sections: bool,
    flags: int = regex.VERSION1,
) -> Entry:
    """One entry of alternatives, each in a group of its own.

    Raises ValueError for what is no pattern, and for references that would mean another group.
    """
    group, groups = 1, list[int]()
    named: set[str] = set()
    for source in sources:
        if _NUMBERED.search(source):
            raise ValueError("refers to a group by number; name it, (?P<x>...), and use (?P=x)")
        alternative = compile_pattern(source, flags)
        if alternative.flags & regex.REVERSE:
            raise ValueError("searches backwards, and sections go forwards; take (?r) out")
        twice = named & set(alternative.groupindex)
        if twice:
            raise ValueError(f"two have a group {min(twice)}; give them names of their own")
        named |= set(alternative.groupindex)
        groups.append(group)
        group += 1 + alternative.groups
    return Entry(
        tuple(rules),
        compile_pattern("|".join(f"({source})" for source in sources), flags),
        markers=tuple((g, *pair) for g, pair in zip(groups, markers, strict=True)),
        sections=sections,
        needed=tuple(needed) if all(needed) else (),
    )
