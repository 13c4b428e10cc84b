"""The schema for editors: the shipped one is the grammar's, and refuses nothing that is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RuleError
from pipeline.policy import EDGES
from pipeline.rules import bundled_rules, compose, parse_rule_file
from pipeline.rules import editor as editor_module
from pipeline.rules.editor import build_schema, render_schema
from pipeline.rules.entry import BASES, FLAGS, REGIONS, ROLES
from pipeline.rules.grammar import (
    CONDITION_KEYS,
    ENTRY_KEYS,
    FILE_KEYS,
    SECTION_KEYS,
    TEST_KEYS,
    WHERE_KEYS,
)
from pipeline.rules.marks import EXAMPLE_KEYS, MESSAGE_KEYS
from tests.test_rules_grammar import FAULTS, RULES, WRONG

jsonschema: Any = pytest.importorskip("jsonschema")
VALIDATOR = jsonschema.Draft7Validator(build_schema())
BUNDLED = sorted(bundled_rules().rglob("*.yaml"))


def refused_by_grammar(text: str) -> str:
    """Why, empty where it is accepted."""
    try:
        compose([parse_rule_file(text, place="f.yaml")])
    except RuleError as error:
        return str(error)
    return ""


def test_the_schema_is_one_of_draft_7() -> None:
    jsonschema.Draft7Validator.check_schema(build_schema())


def test_the_shipped_schema_is_what_the_grammar_says_now() -> None:
    shipped = bundled_rules().parent / "rules.schema.json"
    assert shipped.read_text(encoding="utf-8") == render_schema()
    assert json.loads(render_schema()) == build_schema()


@pytest.mark.parametrize(
    "table",
    [
        *("FILE_KEYS", "ENTRY_KEYS", "SECTION_KEYS", "WHERE_KEYS", "CONDITION_KEYS", "TEST_KEYS"),
        *("EXAMPLE_KEYS", "MESSAGE_KEYS"),
    ],
)
def test_a_key_that_only_the_grammar_knows_breaks_the_schema(
    table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor_module, table, (*getattr(editor_module, table), "novel"))
    with pytest.raises(ValueError, match=r"differ in \['novel'\]"):
        build_schema()


def every_key(schema: Any) -> list[tuple[str, Any]]:
    """Each property that the schema lets a file have, with what is said of it."""
    found: list[tuple[str, Any]] = []
    if isinstance(schema, dict):
        if schema.get("additionalProperties") is False:
            found += schema["properties"].items()
        for value in schema.values():
            found += every_key(value)
    elif isinstance(schema, list):
        for value in schema:
            found += every_key(value)
    return found


def test_every_key_tells_an_editor_what_it_is_for() -> None:
    keys = every_key(build_schema())
    assert len(keys) > 40
    told = [key for key, value in keys if "description" in value or "$ref" in value]
    assert {key for key, _ in keys} - set(told) <= {"role"}


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_bundled_rules_are_valid(path: Path) -> None:
    VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


# What the schema cannot see, by what the grammar says of it.
UNSEEN = (
    *("matches the empty string", "is no pattern", "expands to", "the pattern has no group"),
    *("holds no turn", "no number is from", "is never reached", "weigh 1 throughout"),
    *(
        "refers to a group",
        "searches backwards",
        "two have a group",
        "carries no loss",
        "is a number in YAML",
    ),
    *("to all readers of YAML", "to some readers of YAML", "is nan", "is inf"),
    *("has an unpaired", " given for ", r"\n' is no name"),
)


@pytest.mark.parametrize(("rule", "message"), FAULTS)
def test_a_fault_of_shape_is_refused_by_schema_and_grammar(rule: str, message: str) -> None:
    text = f"{RULES}{rule}\n"
    assert refused_by_grammar(text).startswith(f"f.yaml:4:{message}")
    unseen = any(fact in refused_by_grammar(text) for fact in UNSEEN)
    valid = VALIDATOR.is_valid(yaml.safe_load(text))
    assert not valid or unseen


@pytest.mark.parametrize(("key", "text", "value", "kind"), WRONG)
def test_a_value_of_a_wrong_type_is_refused_by_schema_and_grammar(
    key: str, text: str, value: str, kind: str
) -> None:
    text = text.replace("@", value)
    assert refused_by_grammar(text), (key, kind)
    assert not VALIDATOR.is_valid(yaml.safe_load(text))


PATTERNS = st.sampled_from(["a", "(?P<g>a)", "x*", "(", ""])
WEIGHTS = st.sampled_from([0, 0.5, 1, 2, -1, 1_000_000, 1_000_001, -2_000_000])
SOME: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 1.5, "", "a", [], {}, ["a"], {"a": 1}, [[]]]
)


def words(known: tuple[str, ...]) -> st.SearchStrategy[Any]:
    one = st.sampled_from([*known, "other"])
    return one | st.lists(one, max_size=3)


def keys(known: tuple[str, ...], values: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with some of the *known* keys, now and then a wrong value or key."""
    fitting = {key: values[key] for key in known}
    odd = st.dictionaries(st.sampled_from([*known, "other"]), SOME, min_size=1, max_size=1)
    plain = st.lists(st.sampled_from(known), max_size=5, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({key: fitting[key] for key in chosen})
    )
    mixed = st.tuples(plain, odd).map(lambda pair: {**pair[0], **pair[1]})
    return st.integers(0, 9).flatmap(lambda n: plain if n else mixed)


TESTS = keys(TEST_KEYS, {"min": WEIGHTS, "max": WEIGHTS, "pattern": PATTERNS})
ROWS = st.dictionaries(st.sampled_from(["a", "b.c"]), SOME | TESTS, max_size=2)
CONDITIONS = keys(CONDITION_KEYS, {"user": PATTERNS, "turn": PATTERNS, "row": ROWS})
TURNS = st.integers(-3, 3) | st.sampled_from(["1:2", ":", "2:1", "-1:", ":3", "1", "9" * 10 + ":"])
WHERES = keys(
    WHERE_KEYS,
    {
        "role": words(ROLES),
        "turn": TURNS,
        "region": words(REGIONS),
        "first": st.booleans(),
        "anchored": st.booleans(),
    },
)
SECTIONS = st.builds(
    lambda told, more: {**told, **more},
    st.fixed_dictionaries({"weight": WEIGHTS, "body": WEIGHTS}),
    keys(
        SECTION_KEYS,
        {"marker": st.sampled_from(["a", "b", ""]), "pattern": PATTERNS, "weight": WEIGHTS}
        | {"body": WEIGHTS},
    ),
)
NAMES = st.sampled_from(["a", "b.c-d", "ä_1", "", "a b", "a[0]", "a\n"])
ENTRY_VALUES = {
    "name": NAMES,
    "pattern": PATTERNS | st.lists(PATTERNS, max_size=2),
    "sections": st.lists(SECTIONS, max_size=2),
    "flags": words(tuple(FLAGS)),
    "group": st.sampled_from(["g", "h", ""]),
    "where": WHERES,
    "when": CONDITIONS,
    "unless": CONDITIONS,
    "weight": WEIGHTS,
    "sample_weight": WEIGHTS,
    "negative": st.booleans(),
    "count": st.booleans(),
    "edge": st.sampled_from([*EDGES, "other"]),
}
ENTRIES = keys(ENTRY_KEYS, ENTRY_VALUES) | st.builds(
    lambda weight, more: {"weight": weight, **more}, WEIGHTS, keys(ENTRY_KEYS, ENTRY_VALUES)
)
TEXTS = st.sampled_from(["a", "⟦a⟧", "⟦a", ""])
MESSAGES = keys(
    MESSAGE_KEYS,
    {"role": st.sampled_from([*ROLES, "other"]), "content": TEXTS, "calls": TEXTS, "stop": TEXTS},
)
EXAMPLES = TEXTS | keys(
    EXAMPLE_KEYS,
    {"messages": st.lists(MESSAGES, max_size=2), "weights": st.lists(WEIGHTS, max_size=1)}
    | {"row": st.dictionaries(st.just("a"), SOME, max_size=1)}
    | dict.fromkeys(("text", "calls", "stop", "user"), TEXTS),
)
FILES = st.builds(
    lambda told, more: {**told, **more},
    st.fixed_dictionaries({"version": st.just(1), "name": st.just("f")}),
    keys(
        FILE_KEYS,
        {
            "version": st.sampled_from([1, 1, 1, 2]),
            "name": NAMES,
            "summary": st.just("Some."),
            "why": st.just("So."),
            "base": st.sampled_from([*BASES, "other"]),
            "rules": st.lists(ENTRIES, max_size=1),
            "examples": st.lists(EXAMPLES, max_size=1),
        },
    ),
)


@settings(max_examples=1500)
@given(
    file=FILES
    | ENTRIES.map(lambda entry: {"version": 1, "name": "f", "base": "all", "rules": [entry]})
    | EXAMPLES.map(
        lambda example: {"version": 1, "name": "f", "base": "all", "examples": [example]}
    )
)
def test_what_the_schema_refuses_the_grammar_refuses_too(file: dict[str, Any]) -> None:
    """And the other way round, but for what ``pipeline.rules.editor`` says that it cannot see."""
    text = yaml.safe_dump(file, allow_unicode=True, sort_keys=False)
    valid, refused = VALIDATOR.is_valid(file), refused_by_grammar(text)
    assert valid or refused, text
    assert not (valid and refused) or any(fact in refused for fact in UNSEEN)
