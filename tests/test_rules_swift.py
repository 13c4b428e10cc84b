"""ms-swift's configs, held to a splitter that was written from their description alone."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import RuleError
from pipeline.regions import Turn
from pipeline.rules import RuleFile, Talk, compose, parse_rule_file
from pipeline.spans import Span

STOP = "<end>"


def read(text: str) -> RuleFile:
    return parse_rule_file(text, place="f.json", name="f")


def weights_of(file: RuleFile, query: str, answer: str) -> list[float]:
    """What each character of an answer and its stop token weighs, after a user's message."""
    text = query + answer + STOP
    asked, said = Span(0, len(query)), Span(len(query), len(text))
    stop = len(query) + len(answer)
    turns = [
        Turn(0, "user", [asked], [], -1, "", False),
        Turn(1, "assistant", [said], [said], stop, "prompt", False),
    ]
    rules = compose([file])
    weights = [1.0] * len(text)
    for rule, start, end in rules.claims(Talk(text, turns, {})):
        for i in range(start, end):
            weights[i] *= rules.rules[rule].weight
    return weights[len(query) :]


def split(config: dict[str, Any], query: str, answer: str) -> list[float]:
    """The same by the description: pieces and their weights, one after another.

    Lists of two are plain markers with a weight of their own and one for the text up to the next;
    lists of one are patterns in which a point matches a newline. Where a key of ``query`` is in the
    user's message its weight is the whole answer's. Text before the first marker, and between
    matches of patterns, weighs 1, as the stop token does.
    """
    asked = config.get("query", {}) if "response" in config else {}
    for key, weight in asked.items():
        if key in query:
            whole = weight[0] if isinstance(weight, list) else weight
            return [whole] * len(answer) + [1.0] * len(STOP)
    pairs = config.get("response", config)
    plain = all(len(pair) == 2 for pair in pairs.values())
    weights: list[float] = []
    body, at = 1.0, 0
    while at < len(answer):
        for key, pair in pairs.items():
            found = re.compile(re.escape(key) if plain else key, re.DOTALL).match(answer, at)
            if found and found.end() > at:
                weights += [pair[0]] * (found.end() - at)
                at, body = found.end(), pair[1] if plain else 1.0
                break
        else:
            weights.append(body)
            at += 1
    return weights + [1.0] * len(STOP)


NUMBERS = st.sampled_from([0, 0.0, 0.5, 1, 1.0, 2, 3.5, 1e-3, 9.25])
KEYS = st.text('ab:\n\t"\\/é🙂✿. *(', min_size=1, max_size=4)
REGEXES = st.sampled_from(
    ["a", "a.b", "b+", "<a>.+?</a>", r"\s+", "(a)(b)", "a|b", "[^a]b", r"\.", "(?:ab)+", "^a", "b$"]
)
PLAIN = st.dictionaries(KEYS, st.tuples(NUMBERS, NUMBERS).map(list), min_size=1, max_size=4)
REGULAR = st.dictionaries(REGEXES, NUMBERS.map(lambda n: [n]), min_size=1, max_size=3)
QUERY = st.dictionaries(
    st.text("ab. ", min_size=1, max_size=3), NUMBERS | NUMBERS.map(lambda n: [n]), max_size=3
)
CONFIGS = (
    PLAIN
    | REGULAR
    | st.fixed_dictionaries({"response": PLAIN | REGULAR})
    | st.fixed_dictionaries({"response": PLAIN | REGULAR, "query": QUERY.filter(bool)})
)


@settings(max_examples=800)
@given(
    config=CONFIGS,
    query=st.text("ab. ", min_size=1, max_size=6),
    answer=st.text('ab:\n\t"\\/é🙂✿. *(<>', max_size=20),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 2, "\t"]),
)
def test_an_answer_weighs_what_the_description_says(
    config: dict[str, Any], query: str, answer: str, escaped: bool, indent: int | str | None
) -> None:
    assume(not {"response", "query"} & set(config) or "response" in config)
    text = json.dumps(config, ensure_ascii=escaped, indent=indent)
    assert weights_of(read(text), query, answer) == split(config, query, answer)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ('{"A:": [2, 3]}', "xA:b", [1, 2, 2, 3]),
        ('{"A:": [2.0, 0.0], "B": [1, 1]}', "A:xBy", [2, 2, 0, 1, 1]),
        ('{"a.b": [0]}', "a\nbc", [0, 0, 0, 1]),
        ('{"a": [1E1]}', "ab", [10, 1]),
        ('{"a": [1e-3]}', "ab", [0.001, 1]),
        ('{"\\ud83d\\ude42": [2, 3]}', "🙂x", [2, 3]),
        ('{"a\\/b": [2, 3]}', "a/bx", [2, 2, 2, 3]),
        ('{"a\\tb": [2, 3]}', "a\tbx", [2, 2, 2, 3]),
        ('{"a\u2028b": [2, 3]}', "a\u2028bx", [2, 2, 2, 3]),
        ('{"a": [2, 3], "ab": [4, 5]}', "abx", [2, 3, 3]),
        ('{"ab": [4, 5], "a": [2, 3]}', "abx", [4, 4, 5]),
        ('{"version: 1": [2, 3]}', "version: 1x", [2] * 10 + [3]),
        ('{"version": [2, 3]}', "version", [2] * 7),
        ('{"a": [1, 1]}', "ab", [1, 1]),
    ],
)
def test_a_config_is_json_and_nothing_else(text: str, answer: str, expected: list[float]) -> None:
    assert weights_of(read(text), "?", answer) == [*expected, 1, 1, 1, 1, 1]


def test_a_key_may_be_longer_than_yaml_allows() -> None:
    text = json.dumps({"a" * 2000: [2, 3]})
    assert weights_of(read(text), "?", "a" * 2000 + "b")[1999:2001] == [2, 3]


def test_the_first_key_of_query_in_a_message_counts_and_then_no_response() -> None:
    config = {"response": {"a": [0, 0]}, "query": {"one": [2], "two": 3}}
    file = read(json.dumps(config))
    assert weights_of(file, "two and one", "ab")[:2] == [2, 2]
    assert weights_of(file, "only two", "ab")[:2] == [3, 3]
    assert weights_of(file, "neither", "ab")[:2] == [0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "1:1: has no keys; write some of version, name"),
        ("{}", "1:1: is empty; write name: value"),
        ('{"a": 1}', "1:7: a: is no list of weights; write [weight], or [marker, text after it]"),
        ('{"a": []}', "1:7: a: is no list of weights; write [weight], or"),
        ('{"a": [1, 2, 3]}', "1:7: a: holds 3 numbers; write [weight], or"),
        ('{"a": {"b": [1]}}', "1:7: a: is no list of weights; write [weight], or"),
        ('{\n "b": [2, 1],\n "a+": [0]}', "3:8: a+: is a pattern among markers, which ms-swift pa"),
        ('{"a": ["2"]}', "1:8: a[0]: is a string, not a number; write it without quotes"),
        ('{"a": [true]}', "1:8: a[0]: is true or false, not a number; write a number"),
        ('{"a": [null]}', "1:8: a[0]: is null, not a number; write a number"),
        ('{"a": [[2]]}', "1:8: a[0]: is a list, not a number; write a number"),
        ('{"a": [-1]}', "1:8: a[0]: is -1; write a number from 0 to 1,000,000"),
        ('{"a": [1e9]}', "1:8: a[0]: is 1e+09; write a number from 0 to 1,000,000"),
        ('{"a": [1e999]}', "1:8: a[0]: is inf; write a finite number"),
        ('{"a": [NaN]}', "1:8: not JSON: NaN is no number; mend it"),
        ('{"a": [-Infinity]}', "1:8: not JSON: -Infinity is no number; mend it"),
        ('{"a": [010]}', "1:9: not JSON: expected , or ]; mend it"),
        ('{"a": [.5]}', "1:8: not JSON: Expecting value; mend it"),
        ('{"a": [2],}', "1:11: not JSON: expected a name in double quotes; mend it"),
        ('{"a": [2]', "1:10: not JSON: expected , or }; mend it"),
        ('{"a": [2]} x', "1:12: not JSON: extra text after the end; mend it"),
        ('{"a" [2]}', "1:6: not JSON: expected a colon; mend it"),
        ("{'a': [2]}", "1:2: not JSON: expected a name in double quotes; mend it"),
        ('{"a\tb": [2]}', "1:4: not JSON: Invalid control character at; mend it"),
        ('{"a": [2], "a": [3]}', "1:12: a: given twice; keep one"),
        ('{"": [2, 2]}', "1:6: matches the empty string; "),
        ('{"a*": [2]}', "1:8: a*: matches the empty string; use + instead of *"),
        ('{"(": [2]}', "1:7: (: is no pattern: missing ) at position 1; mend it"),
        ('{"(a)\\\\1": [2]}', "1:1: all keys together: refers to a group by number; "),
        ('{"query": {"x": 3}}', "1:1: response: missing; add it"),
        ('{"response": {"a": [2]}, "x": {}}', "1:26: x: unknown key; use one of response, query"),
        ('{"response": {"a": [2]}, "query": 3}', "1:35: query: has no keys; write name: value"),
        ('{"response": {"a": [2]}, "query": {"x": [2, 3]}}', "1:41: query.x: holds 2 numbers; wr"),
        ('{"response": {"a": [2]}, "query": {"": 2}}', "1:40: query: has an empty key; write"),
        ('{"response": {"a": [2]}, "query": {"x": -2}}', "1:41: query.x: is -2; write a number"),
    ],
)
def test_a_config_that_is_none_names_line_and_column(text: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        read(text)
    assert str(caught.value).startswith(f"f.json:{message}")


def test_a_rule_file_in_braces_is_no_config() -> None:
    assert read("{version: 1, name: g, base: all}").name == "g"
    assert read('{"version": 1, "name": "g", "base": "all"}').base == "all"


def test_a_config_has_the_name_that_its_file_has() -> None:
    file = read('{"A:": [2, 2]}')
    assert (file.name, [rule.name for e in file.entries for rule in e.rules]) == ("f", ["f[x2]"])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=6,
    )
)
def test_no_json_is_anything_but_a_config_or_a_rule_error(value: Any) -> None:
    said = "f.json: read; as a config"
    try:
        compose([read(json.dumps(value))])
    except RuleError as error:
        said = str(error)
    assert re.match(r"f\.json:.*; ", said, re.DOTALL)
