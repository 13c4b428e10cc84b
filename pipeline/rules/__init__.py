"""Rule files, and the spans that they claim. Rules never see tokens: ``weights`` does the rest."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RuleError
from pipeline.rules.document import Document
from pipeline.rules.entry import Rule, RuleFile
from pipeline.rules.example import check_examples
from pipeline.rules.grammar import read_rules
from pipeline.rules.matching import (
    Claim,
    Matcher,
    Talk,
    find_claims,
    make_matcher,
)
from pipeline.rules.swift import is_swift, read_swift

__all__ = ["Claim", "Rule", "RuleFile", "RuleSet", "Talk", "compose", "load_rules"]

_HEAVIEST = 1e12  # with 1e18 of the data's own, a row's sum is still far from float32's infinity


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of several files in one order that does not depend on the command line.

    Weights multiply, so the order matters only to what ``show`` lists first. ``base`` is what
    carries loss before any rule: what the ``assistant`` says, or ``all``; ``last_turn`` is the
    assistant's with a rule of weight 0 on what it said before.
    """

    files: tuple[RuleFile, ...]
    base: str
    rules: tuple[Rule, ...]
    matchers: tuple[Matcher, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The record's fields that conditions ask for."""
        return tuple(sorted({path for m in self.matchers for path in m.entry.fields}))

    @property
    def openings(self) -> tuple[str, ...]:
        """What something that the assistant says must begin with, for some of them to match it."""
        return tuple(sorted({m.opening for m in self.matchers if m.plain and m.opening}))

    @property
    def plain(self) -> bool:
        """Whether all of them are patterns for what the assistant says: see `find_said`."""
        return all(matcher.plain for matcher in self.matchers)

    def claims(self, talk: Talk) -> list[Claim]:
        """What each rule claims of a row, rule by rule, left to right, disjoint within a rule.

        A pattern sees one piece of a turn at a time as its whole text: ``^`` is where the assistant
        starts to speak. Raises RecordError(``match``, ...).
        """
        return find_claims(self.matchers, talk)


def compose(files: Iterable[RuleFile]) -> RuleSet:
    """One RuleSet, sorted by file name.

    Raises RuleError where two files share a name, disagree on the base, or speak of what carries no
    loss.
    """
    ordered = tuple(sorted(files, key=lambda f: f.name))
    for a, b in itertools.pairwise(ordered):
        if a.name == b.name:
            raise RuleError(f"{b.named}: name: {b.name} is given twice; give each rule file once")
    based = [f for f in ordered if f.base]
    for a, b in itertools.pairwise(based):
        if a.base != b.base:
            raise RuleError(
                f"{b.based}: base: is {b.base} here, and {a.base} in {a.based}; give one of the two"
            )
    base = based[0].base if based else "assistant"
    heaviest = math.prod(
        max(abs(rule.weight), 1) for file in ordered for e in file.entries for rule in e.rules
    )
    if heaviest > _HEAVIEST:
        raise RuleError(
            f"{ordered[-1].name}: its weights and those of the other files multiply to "
            f"{heaviest:.0e}, which float32 cannot hold beside others; use smaller ones"
        )
    matchers: list[Matcher] = []
    rules: list[Rule] = []
    for file in ordered:
        for entry in file.entries:
            roles = entry.where.roles
            weighs = entry.scope != "row"  # a row is weighed as well by what its user says
            if weighs and roles and base != "all" and "assistant" not in roles:
                raise RuleError(
                    f"{entry.where.place}: {roles[0]} carries no loss with base {base}; "
                    "add the rule file all, or name the assistant"
                )
            name = entry.rules[0].name.rpartition("[x")[0] if entry.sections else ""
            name = name or entry.rules[0].name
            first = matchers[-1].first if entry.shares else len(rules)
            matchers.append(make_matcher(entry, first, name, everyone=base == "all"))
            rules += [] if entry.shares else entry.rules
    counted = Counter(rule.name for rule in rules)
    for file, entry in ((f, e) for f in reversed(ordered) for e in f.entries):
        for rule in entry.rules:
            if counted[rule.name] > 1 and not entry.shares:
                place = entry.place or file.named
                raise RuleError(f"{place}: another file has a rule {rule.name} too; rename one")
    return RuleSet(ordered, base, tuple(rules), tuple(matchers))


def load_rules(words: Sequence[str | Path], *, profile: str = "") -> RuleSet:
    """Reads and composes rule files; a bare name is one of the bundled rules, ``a+b`` are both.

    With a *profile*, its own form of a bundled rule where it has one. Raises RuleError, also where
    an example of a file is not claimed as it is marked.
    """
    paths = [path for word in words for path in find_rule_files(word, profile=profile)]
    files = [read_rule_file(path) for path in paths]
    for file in files:
        for failure in check_examples(file):
            raise RuleError(failure.message)
    return compose(files)


def bundled_rules() -> Path:
    """The folder of the rules that come with the package."""
    return Path(__file__).parent.parent / "bundled" / "rules"


def find_rule_files(word: str | Path, *, profile: str = "") -> list[Path]:
    """The file of that path; else each name between ``+`` as a path or a bundled rule."""
    if _is_file(word):
        return [Path(word)]
    return [_find(name, word, profile=profile) for name in str(word).split("+")]


def _find(name: str, word: str | Path, *, profile: str) -> Path:
    if _is_file(name):
        return Path(name)
    if name and Path(name).name == name:
        for folder in (bundled_rules() / profile, bundled_rules()):
            for candidate in (folder / name, folder / f"{name}.yaml"):
                if _is_file(candidate):
                    return candidate
    known = ", ".join(sorted(p.stem for p in bundled_rules().glob("*.yaml")))
    told = f"{name or 'nothing'} in {word}" if name != str(word) else name or "''"
    raise RuleError(f"{told}: no such rule file; give a path or bundled rules ({known})")


def _is_file(word: str | Path) -> bool:
    try:
        return Path(word).is_file()
    except OSError:  # names joined by + may be longer than a path may be
        return False


def read_rule_file(path: Path) -> RuleFile:
    """Raises RuleError naming file, line, column and key of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RuleError(f"{path}: cannot be read: {error}; give a UTF-8 YAML file") from error
    return parse_rule_file(text, place=path.name, name=path.stem)


def parse_rule_file(text: str, *, place: str, name: str = "") -> RuleFile:
    """A rule file from its text, YAML or one of ms-swift's JSON configs.

    *place* is what errors call it, *name* that of a config, which has none of its own.
    """
    document = Document(place)
    if is_swift(text):
        return read_swift(document, text, name=name or "swift")
    return read_rules(document, text)
