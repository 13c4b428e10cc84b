"""ms-swift's loss-scale configs, read as they are.

A config maps markers and regular expressions to weights: a list of two numbers weighs a plain
marker and the text after it up to the next, a list of one the matches of a regular expression, in
which a point also matches a newline. ``response`` and ``query`` hold two such maps: where the
user's message contains a key of ``query``, the whole answer gets its weight, and ``response`` is
not looked at. See ``docs/ms-swift.md`` for what is read otherwise than there.
"""

from __future__ import annotations

import re
from dataclasses import replace

import regex
import yaml

from pipeline.rules.document import Document
from pipeline.rules.entry import Condition, Entry, Rule, RuleFile
from pipeline.rules.grammar import HEAVIEST, join_markers, rule_at
from pipeline.rules.pattern import compile_pattern

# The dialect of Python's `re`, which ms-swift uses.
_FLAGS = regex.VERSION0 | regex.DOTALL
# A key called version that holds a plain value, not a list of weights.
_VERSION = re.compile(r"""[{,]\s*(["']?)version\1\s*:\s*["'\d]""")


def is_swift(text: str) -> bool:
    """Whether it is a JSON object and no rule file of ours, which has a version."""
    return text.lstrip().startswith("{") and not _VERSION.search(text)


def read_swift(document: Document, text: str, *, name: str) -> RuleFile:
    """A config as a rule file of that *name*. Raises RuleError with line and column."""
    root = document.parse_json(text)
    keys = document.entries(root, "")
    entries: list[Entry] = []
    asked: Condition | None = None
    if "response" in keys or "query" in keys:
        keys = document.mapping(root, "", ("response", "query"), required=("response",))
        if "query" in keys:
            entries += _queries(document, keys["query"], name)
            asked = Condition(
                user=_any_of([_escaped(key) for key in document.entries(keys["query"], "query")])
            )
        entries += [replace(e, unless=asked) for e in _map(document, keys["response"], name)]
    else:
        entries = _map(document, root, name)
    summary = "A loss-scale config of ms-swift."
    return RuleFile(name, summary, "", tuple(entries), (), text, named=document.where(root))


def _any_of(sources: list[str]) -> regex.Pattern[str]:
    return compile_pattern("|".join(sources), regex.VERSION0)


def _escaped(text: str) -> str:
    return str(regex.escape(text, special_only=True))


def _queries(document: Document, node: yaml.Node, name: str) -> list[Entry]:
    """Of several keys in one message the first listed counts."""
    entries: list[Entry] = []
    before: list[str] = []
    for i, (key, value) in enumerate(document.entries(node, "query").items()):
        inner = f"query.{key}"
        items = document.sequence(value, inner) if isinstance(value, yaml.SequenceNode) else [value]
        if len(items) != 1:
            raise document.error(value, inner, f"holds {len(items)} numbers", "write one weight")
        if not key:
            raise document.error(value, "query", "has an empty key", "write what the user says")
        source = _escaped(key)
        entry = Entry(
            (Rule(f"{name}.query[{i}]", _weight(document, items[0], inner)),),
            compile_pattern(".+", _FLAGS),
            when=Condition(user=compile_pattern(source, regex.VERSION0)),
            unless=Condition(user=_any_of(before)) if before else None,
        )
        entries.append(entry)
        before.append(source)
    return entries


def _map(document: Document, node: yaml.Node, name: str) -> list[Entry]:
    weights: dict[str, list[float]] = {}
    nodes = document.entries(node, "")
    for key, value in nodes.items():
        items = value.value if isinstance(value, yaml.SequenceNode) else []
        if len(items) not in (1, 2):
            fact = f"holds {len(items)} numbers" if items else "is no list of weights"
            raise document.error(value, key, fact, "write [weight], or [marker, text after it]")
        weights[key] = [_weight(document, item, f"{key}[{i}]") for i, item in enumerate(items)]
    lengths = {len(pair) for pair in weights.values()}
    if len(lengths) > 1:
        key = next(key for key, pair in weights.items() if len(pair) == 1)
        remedy = "put them into another file and join the two with +"
        fact = "is a pattern among markers, which ms-swift passes over"
        raise document.error(nodes[key], key, fact, remedy)
    sections = lengths == {2}
    sources = [_escaped(key) if sections else key for key in weights]
    for key, source in zip(weights, sources, strict=True):
        try:
            compile_pattern(source, _FLAGS)
        except ValueError as error:
            fact, _, remedy = str(error).rpartition("; ")
            raise document.error(nodes[key], key, fact or remedy, remedy) from error
    rules: list[Rule] = []
    markers = []
    for pair in weights.values():
        kinds = [rule_at(weight, name, rules) for weight in pair]
        markers.append((kinds[0], kinds[1] if sections else -1))
    if not rules:
        rules.append(Rule(name, 1.0))
    needed = tuple(weights) if sections else ()
    try:
        entry = join_markers(
            sources, markers, rules, needed=needed, sections=sections, flags=_FLAGS
        )
    except ValueError as error:
        fact, _, remedy = str(error).rpartition("; ")
        raise document.error(node, "", f"all keys together: {fact}", remedy) from error
    return [entry]


def _weight(document: Document, node: yaml.Node, path: str) -> float:
    value = document.number(node, path)
    if not 0 <= value <= HEAVIEST:
        raise document.error(node, path, f"is {value:g}", f"write a number from 0 to {HEAVIEST:,}")
    return value
