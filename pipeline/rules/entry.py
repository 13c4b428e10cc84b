"""What a rule file says, as values: entries, the rules that they claim for, and their conditions.

An *entry* is an item of a file's ``rules``. It claims characters for one *rule* or, with sections,
for several: a rule is a name and a weight, and all that ``weights`` needs to know.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import regex

BASES = ("assistant", "last_turn", "all")
ROLES = ("assistant", "user", "system", "developer", "tool")
REGIONS = ("input", "header", "reasoning", "content", "tool_call", "stop", "trailing")
FLAGS = {
    "ignorecase": regex.IGNORECASE,
    "dotall": regex.DOTALL,
    "multiline": regex.MULTILINE,
    "verbose": regex.VERBOSE,
    "ascii": regex.ASCII,
}

Pattern: TypeAlias = "regex.Pattern[str]"
Scope: TypeAlias = Literal["piece", "row", "history"]


@dataclass(frozen=True, slots=True)
class Rule:
    """What the characters that are claimed for it weigh; ``name`` is unique in a build.

    ``edge`` decides over tokens across an edge, empty for the build's own. ``count``: what weighs 0
    by it keeps its label.
    """

    name: str
    weight: float
    edge: str = ""
    count: bool = False


@dataclass(frozen=True, slots=True)
class Where:
    """Which turns and which parts of them an entry sees; ``roles`` and ``regions`` empty: all.

    ``first_turn`` and ``stop_turn`` count the turns of these roles. ``first``: only the first match
    in a piece; ``anchored``: only at its start. ``place`` is where the file names the roles.
    """

    roles: tuple[str, ...] = ()
    first_turn: int | None = None
    stop_turn: int | None = None
    regions: tuple[str, ...] = ()
    first: bool = False
    anchored: bool = False
    place: str = ""


@dataclass(frozen=True, slots=True)
class FieldTest:
    """What a field of the record must be: one of ``values``, or within bounds, or matching."""

    path: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    pattern: Pattern | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """All that must hold: a search in the user's message before, in the turn, and record fields.

    ``needed`` are texts of which the user's message must have one for its pattern to match.
    """

    user: Pattern | None = None
    turn: Pattern | None = None
    fields: tuple[FieldTest, ...] = ()
    needed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One item of ``rules``.

    ``pattern`` None claims whole pieces. ``markers[k]`` is what alternative *k* of a pattern with
    several is: its group's number, the index in ``rules`` of the marker's rule and of the body's
    after it, -1 for what claims nothing. ``needed`` is text without which the pattern cannot match.
    ``shares``: it claims for the rules of the entry before it, as another of its patterns.
    ``scope``: a ``row`` entry weighs the whole row once, a ``history`` one is the base
    ``last_turn``. ``place`` is where the file has it.
    """

    rules: tuple[Rule, ...]
    pattern: Pattern | None = None
    group: str = ""
    markers: tuple[tuple[int, int, int], ...] = ()
    sections: bool = False
    needed: tuple[str, ...] = ()
    where: Where = field(default_factory=Where)
    when: Condition | None = None
    unless: Condition | None = None
    shares: bool = False
    scope: Scope = "piece"
    place: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The record's fields that its conditions ask for."""
        conditions = [c for c in (self.when, self.unless) if c is not None]
        return tuple(test.path for c in conditions for test in c.fields)


@dataclass(frozen=True, slots=True)
class Example:
    """A talk in which marks show what the file's rules change, and by how much.

    ``place`` is where the file has it. ``messages`` are (role, text, stop token) without marks;
    ``marks`` are (message, start, end, weight) in characters of text and stop token together, the
    weight None where the example does not say. ``called`` is where tool calls begin in the text of
    each message, -1 where it has none.
    """

    place: str
    messages: tuple[tuple[str, str, str], ...]
    marks: tuple[tuple[int, int, int, float | None], ...]
    fields: dict[str, Any] = field(default_factory=dict)
    called: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One rule file as read; ``base`` is empty where it leaves that to others.

    ``named`` and ``based`` are the places where it says its name and its base.
    """

    name: str
    summary: str
    base: str
    entries: tuple[Entry, ...]
    examples: tuple[Example, ...]
    text: str
    named: str = ""
    based: str = ""

    @property
    def digest(self) -> str:
        """sha256 of the file's text: what the fingerprint says of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()
