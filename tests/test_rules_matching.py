"""What entries claim of talks, held to a slow reference; what their patterns may cost."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import RecordError, WeightedShardsError
from pipeline.regions import Turn
from pipeline.rules import RuleSet, Talk, compose, parse_rule_file
from pipeline.rules.matching import find_said
from pipeline.rules.pattern import (
    compile_pattern,
    is_anchored,
    is_local,
    opening_of,
    quick_length,
    required_texts,
)
from pipeline.spans import Span
from tests.reference import SlowMessage, claim_characters


def rule_set(rules: list[dict[str, Any]], *, base: str = "") -> RuleSet:
    """One file ``f`` with these items."""
    told = {"version": 1, "name": "f", **({"base": base} if base else {}), "rules": rules}
    return compose([parse_rule_file(yaml.safe_dump(told, allow_unicode=True), place="f.yaml")])


class Said(NamedTuple):
    """A talk before it is one text: of each message its role and its regions with their text."""

    messages: list[tuple[str, list[tuple[str, str]], bool]]

    def build(self) -> tuple[str, list[Turn], list[SlowMessage]]:
        """The text, the turns as ``turns`` establishes them, and the reference's own form."""
        text, turns, slow = "", [], []
        for number, (role, parts, spoken) in enumerate(self.messages):
            regions: list[tuple[str, int, int]] = []
            for name, part in parts:
                regions.append((name, len(text), len(text) + len(part)))
                text += part
            where = {name: start for name, start, end in regions}
            outputs = [Span(where["reasoning"], where["trailing"])] if spoken else []
            whole = Span(regions[0][1], regions[-1][2])
            stop, called = (where["stop"], where["tool_call"]) if spoken else (-1, -1)
            slow.append(SlowMessage(role, regions, spoken))
            turns.append(Turn(number, role, [whole], outputs, stop, "prompt", False, called))
        return text, turns, slow


WORDS = st.text("abx :\n", max_size=8)
CALLS = st.sampled_from(["", "", "<c>ab</c>", "ax: b"])
THOUGHTS = st.sampled_from(["", "", "<think>ab\n</think>\n", "<think></think>"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, list[tuple[str, str]], bool]:
    content = draw(WORDS)
    parts = [
        ("header", "[assistant]"),
        ("reasoning", draw(THOUGHTS)),
        ("content", content.lstrip() if content.strip() else "c"),
        ("tool_call", draw(CALLS)),
        ("stop", "<end>"),
        ("trailing", "\n"),
    ]
    spoken = draw(st.integers(0, 5)) > 0
    if not spoken:
        parts = [("input", "".join(text for _, text in parts))]
    return "assistant", parts, spoken


OTHERS = st.tuples(
    st.sampled_from(["user", "user", "tool", "system"]),
    WORDS.map(lambda text: [("input", f"[{text}]\n")]),
    st.just(False),
)
TALKS = st.lists(answers() | OTHERS, max_size=6).map(Said)
ROWS = st.fixed_dictionaries(
    {},
    optional={"kind": st.sampled_from(["a", "b", True, 1, None]), "score": st.integers(0, 3)},
)

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "x",
        ":",
        "ab",
        r"\s",
        r"\n",
        ".",
        "[ab]",
        "[^a]",
        "(?<=a)",
        r"\b",
        "^",
        "$",
        "(?=b)",
    ]
)
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format)
        | st.tuples(inner, st.sampled_from(["+", "?", "*", "{2}", "{1,2}", "+?"])).map(
            "(?:{0[0]}){0[1]}".format
        )
    ),
    max_leaves=5,
)


def is_allowed(pattern: str) -> bool:
    """Whether nothing of it matches the empty string, wherever it stands."""
    return not any(m[0] == "" for text in ("", "ab", "b a:\nx") for m in re.finditer(pattern, text))


# Not with `regex`, whose cache draws random numbers, which hypothesis refuses in strategies.
SEARCHED = PATTERNS.filter(lambda pattern: re.search(pattern, "") is None)
MARKERS = st.fixed_dictionaries({"marker": st.sampled_from(["a", "x:", "b", ": "])}) | (
    st.fixed_dictionaries({"pattern": PATTERNS.filter(is_allowed)})
)
WEIGHTS = st.sampled_from([0, 0.5, 1, 2])
SECTIONS = st.lists(
    st.tuples(MARKERS, WEIGHTS, WEIGHTS).map(lambda t: {**t[0], "weight": t[1], "body": t[2]}),
    min_size=1,
    max_size=3,
)
SLICES = st.tuples(st.sampled_from(["", 0, 1, -2]), st.sampled_from(["", 2, -1])).filter(
    lambda pair: pair not in [("", ""), (-2, -3)]
)
WHERE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["assistant", ["assistant", "user"]]),
        "turn": st.integers(-2, 2) | SLICES.map("{0[0]}:{0[1]}".format),
        "region": st.sampled_from(
            ["content", "stop", "header", "input", ["reasoning", "content"], ["content", "stop"]]
        ),
    },
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["a", True, 1, None, ["a", "b"], [None, "a"]]),
        "score": st.sampled_from([{"min": 1}, {"max": 2}, {"min": 1, "max": 2}]),
    },
).filter(bool)
CONDITIONS = st.fixed_dictionaries(
    {}, optional={"user": SEARCHED, "turn": SEARCHED, "row": FIELDS}
).filter(bool)


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    """An item of ``rules``, but for its name."""
    rule: dict[str, Any] = {}
    where = draw(WHERE)
    kind = draw(st.sampled_from(["pattern", "pattern", "group", "several", "sections", "whole"]))
    if kind in ("pattern", "several"):
        several = draw(st.lists(SEARCHED, min_size=1, max_size=2))
        rule["pattern"] = several if kind == "several" else several[0]
        flags = draw(st.lists(st.sampled_from(["ignorecase", "dotall", "multiline"]), max_size=2))
        rule |= {"flags": sorted(set(flags))} if flags else {}
        for key in ("first", "anchored"):
            where |= {key: True} if draw(st.integers(0, 4)) == 0 else {}
    elif kind == "group":
        rule["pattern"] = draw(PATTERNS) + f"(?P<g>{draw(PATTERNS)})" + draw(PATTERNS)
        assume(re.search(rule["pattern"], "") is None)
        rule["group"] = "g"
    elif kind == "sections":
        rule["sections"] = draw(SECTIONS)
        assume(any(s["weight"] != 1 or s["body"] != 1 for s in rule["sections"]))
        markers = [s.get("marker") for s in rule["sections"]]
        assume(len([m for m in markers if m]) == len({m for m in markers if m}))
    if kind != "sections":
        rule[draw(st.sampled_from(["weight", "weight", "weight", "sample_weight"]))] = 0.5
    rule |= {"where": where} if where else {}
    for key in ("when", "unless"):
        rule |= {key: draw(CONDITIONS)} if draw(st.integers(0, 3)) == 0 else {}
    return rule


RULES = st.lists(rules(), min_size=1, max_size=3).map(
    lambda items: [{"name": f"r{i}", **item} for i, item in enumerate(items)]
)


@settings(max_examples=1000)
@given(said=TALKS, items=RULES, base=st.sampled_from(["assistant", "last_turn", "all"]), row=ROWS)
def test_entries_claim_what_the_reference_claims(
    said: Said, items: list[dict[str, Any]], base: str, row: dict[str, Any]
) -> None:
    text, turns, slow = said.build()
    found = rule_set(items, base=base)
    claims = found.claims(Talk(text, turns, row))
    held: dict[str, set[int]] = {}
    for rule, start, end in claims:
        assert 0 <= start < end <= len(text)
        held.setdefault(found.rules[rule].name, set()).update(range(start, end))
    expected = claim_characters(text, slow, items, base, row)
    assert held == {f"f.{name}": claimed for name, claimed in expected.items() if claimed}
    for a, b in itertools.pairwise(claims):
        assert a.rule < b.rule or a.end <= b.start, "of one rule sorted and disjoint"


PIECES = st.sampled_from(
    [
        *"ab.*+?(|)[]{}\\^$-A1 e<\n",
        *("(?:", "(?i)", "(?i:", "(?V1i)", "(?#", "(?=", "(?!", "(?<=", "(?|", "(?>", "(?P<n>"),
        *(r"\b", r"\.", r"\{", r"\x41", r"\n", r"\K", "{2}", "{,2}", "{e<=1}", "++", "?+", "*?"),
        *("[ab]", "[^a]", "[[a]--[b]]", "[]a]", "ab", r"(?P=n)"),
    ]
)
TEXTS = st.text("abABe12 <{}.\n)", max_size=12)


@settings(max_examples=3000)
@given(source=st.lists(PIECES, max_size=8).map("".join), texts=st.lists(TEXTS, max_size=4))
@example("x{2}y", ["xxy"])
@example("(?:cats){e<=2}", ["cat"])
@example("(?V1i)ab", ["AB"])
@example("a{0}b", ["b"])
@example("^ab", ["abab"])
@example("(?m)^a", ["a\na"])
def test_what_a_pattern_cannot_match_without_hides_no_match(source: str, texts: list[str]) -> None:
    try:
        pattern = compile_pattern(source)
    except ValueError:
        return
    needed = required_texts(source)
    for text in [*texts, source, source.replace("\\", "")]:
        if pattern.search(text, timeout=5):
            assert not needed or any(part in text for part in needed)
        if is_anchored(pattern):
            found = [match.span() for match in pattern.finditer(text, timeout=5)]
            match = pattern.match(text, timeout=5)
            assert found == ([match.span()] if match else [])


@settings(max_examples=150, deadline=None)
@given(
    source=st.lists(
        st.sampled_from([*"aaab.|()*+?", "*?", "+?", "(?:", "[ab]", "{2,9}"]),
        min_size=2,
        max_size=14,
    ).map("".join),
    unit=st.sampled_from(["a", "b", "ab", "aab"]),
)
@example("a*a*b", "a")
@example("(a*|a)(a|a)(a|a)b", "a")
@example("a?a?a?a?a?a?a?a?aaaaaaaab", "a")
@example("(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)(a|a)b", "a")
@example(".*.*.*b", "a")
def test_what_needs_no_time_limit_takes_no_time(source: str, unit: str) -> None:
    try:
        pattern = compile_pattern(source)
    except ValueError:
        return
    text = unit * (min(quick_length(pattern), 30_000) // len(unit))
    list(pattern.finditer(text, timeout=2))


@pytest.mark.parametrize(
    "source",
    ["(?:a|aa)+c", "(a*)*b", r"(a)\1b", "(?i)a", "(?=a*)b", "a{e<=1}b", "[[a]--[b]]", "(?>a*)b"],
)
def test_what_repeats_a_group_or_looks_around_has_a_time_limit(source: str) -> None:
    assert quick_length(compile_pattern(source)) == 0


@settings(max_examples=400, deadline=None)
@given(
    source=st.lists(
        st.sampled_from([*"aabx\n.|()*+?", "*?", "(?:", "[ab]", "a{2,3}", r"\s*", "^", "$", r"\b"]),
        min_size=1,
        max_size=8,
    ).map("".join),
    parts=st.lists(st.tuples(st.booleans(), st.text("abx \n", max_size=5)), max_size=6),
)
@example(r"a\s*", [(True, "a"), (False, "  "), (True, " a ")])
@example("ab", [(True, "a"), (True, "b"), (True, "ab")])
@example("a*b|a", [(True, "aa"), (False, "b"), (True, "ab")])
@example("a++b", [(True, "aa"), (False, "ab"), (True, "aab")])
@example("^a", [(True, "ba"), (False, "x"), (True, "\na")])
def test_pieces_are_matched_as_if_each_stood_alone(
    source: str, parts: list[tuple[bool, str]]
) -> None:
    """However many of them are looked at in one search."""
    try:
        rules = rule_set([{"name": "r", "pattern": source, "weight": 0}])
    except WeightedShardsError:
        return
    pattern = compile_pattern(source)
    text, pieces, expected = "", [], list[tuple[int, int, int]]()
    for said, part in parts:
        start, text = len(text), text + part
        if said:
            pieces.append((0, start, len(text)))
            found = pattern.finditer(part)
            expected += [(0, start + m.start(), start + m.end()) for m in found if m[0]]
    (matcher,) = rules.matchers
    assert [tuple(c) for c in find_said([(matcher, pieces)], text)] == expected


@pytest.mark.parametrize(
    "source",
    [
        "^a",
        "a$",
        r"a\b",
        "a(?=b)",
        "(?<!b)a",
        "a++",
        r"\Aa",
        r"(a)\1",
        "(?>a|ab)c",
        r"\Ka",
        "(?r)ab",
    ],
)
def test_what_looks_around_is_no_local_pattern(source: str) -> None:
    assert not is_local(compile_pattern(source))


@pytest.mark.parametrize(
    ("source", "opening"),
    [
        (r"^\s*</think>\s*", "</think>"),
        ("^abc*", "ab"),
        (r"^a\.b+c", "a.b"),
        ("^[ab]c", ""),
        ("^a|b", ""),
        ("(?i)^ab", ""),
        ("ab", ""),
    ],
)
def test_an_anchored_pattern_tells_what_it_opens_with(source: str, opening: str) -> None:
    pattern = compile_pattern(source)
    assert opening_of(pattern) == opening
    for text in ("</think>x", "  </think>", "abcc", "a.bbc", "aXb", "c", "AB", "ab", "bc", "b"):
        if pattern.search(text) and is_anchored(pattern):
            assert text.lstrip().startswith(opening)


@pytest.mark.parametrize(
    ("source", "needed"),
    [
        (r"<think>\s*</think>\s*", ("</think>",)),
        ("ab|b", ("ab", "b")),
        ("ab|(?:b)", ()),
        ("(?:ab)?cd", ("cd",)),
        ("abc*", ("ab",)),
        (r"x\.yz?", ("x.y",)),
        ("a{2}bc", ("bc",)),
    ],
)
def test_the_longest_plain_texts_of_a_pattern_are_needed(
    source: str, needed: tuple[str, ...]
) -> None:
    assert required_texts(source) == needed


def talk(text: str, **fields: Any) -> Talk:
    """One turn of the assistant that says it."""
    span = [Span(0, len(text))]
    return Talk(text, [Turn(3, "assistant", span, span, -1, "prompt", False)], fields)


def spans(found: RuleSet, said: Talk) -> list[tuple[int, int]]:
    return [(start, end) for _, start, end in found.claims(said)]


def test_each_output_of_a_turn_is_a_text_of_its_own() -> None:
    """In the document ``b`` follows an ``a`` and is not at the start; in the output it is."""
    outputs = [Span(1, 2), Span(3, 4)]
    turn = Turn(0, "assistant", [Span(0, 4)], outputs, -1, "prompt", False)
    found = rule_set([{"pattern": "^b|(?<!a)c", "weight": 0}])
    assert spans(found, Talk("abac", [turn], {})) == [(1, 2), (3, 4)]


def test_the_message_of_the_user_before_is_the_nearest() -> None:
    roles = [("user", "one"), ("user", "two"), ("assistant", "a"), ("user", "one")]
    said = Said([(role, [("input", text)], False) for role, text in roles])
    text, turns, _ = said.build()
    turns[2] = turns[2]._replace(outputs=turns[2].ranges)
    for user, expected in (("two", [(6, 7)]), ("one", [])):
        found = rule_set([{"weight": 0, "when": {"user": user}}])
        assert spans(found, Talk(text, turns, {})) == expected


def test_a_marker_without_text_starts_no_section() -> None:
    found = rule_set([{"sections": [{"pattern": "a(?=b)|(?=c)", "weight": 1, "body": 2}]}])
    assert spans(found, talk("xcxabc")) == [(4, 6)]
    found = rule_set([{"sections": [{"pattern": "(?=c)", "weight": 1, "body": 2}]}])
    assert spans(found, talk("xc")) == []


def test_regions_that_touch_are_one_text() -> None:
    where = {"region": ["reasoning", "content"]}
    found = rule_set([{"pattern": r"k>\s*x", "weight": 0, "where": where}])
    assert spans(found, talk("<think>a</think>\nxy")) == [(14, 18)]


def test_a_group_that_matches_several_times_claims_each() -> None:
    found = rule_set([{"pattern": r"(?:(?P<g>\d),)+", "group": "g", "weight": 0}])
    assert spans(found, talk("x1,2,y3,")) == [(1, 2), (3, 4), (6, 7)]


def test_groups_in_lookarounds_that_overlap_are_claimed_once() -> None:
    found = rule_set([{"pattern": "a(?=(?P<g>aa))", "group": "g", "weight": 0}])
    assert spans(found, talk("aaaa")) == [(1, 4)]


def test_a_pattern_that_searches_backwards_claims_from_left_to_right() -> None:
    found = rule_set([{"pattern": "(?r)a+", "weight": 0}])
    assert spans(found, talk("aabab")) == [(0, 2), (3, 4)]
    first = rule_set([{"pattern": "(?r)a", "weight": 0, "where": {"first": True}}])
    assert spans(first, talk("abab")) == [(2, 3)]


def test_a_pattern_starts_at_characters_not_at_bytes() -> None:
    found = rule_set([{"pattern": r"\[b\]", "weight": 0}])
    assert spans(found, talk("é🙂[b]")) == [(2, 5)]


def test_a_field_of_a_field_is_asked_for_by_a_path_with_points() -> None:
    found = rule_set([{"weight": 0, "when": {"row": {"meta.source": "web"}}}])
    assert found.fields == ("meta.source",)
    assert spans(found, talk("ab", meta={"source": "web"})) == [(0, 2)]
    assert spans(found, talk("ab", **{"meta.source": "web"})) == [(0, 2)]
    assert spans(found, talk("ab", meta={"source": "book"}, source="web")) == []
    assert spans(found, talk("ab", meta=None)) == []


def test_true_is_not_1_in_a_field() -> None:
    found = rule_set([{"weight": 0, "when": {"row": {"kept": 1}}}])
    assert spans(found, talk("a", kept=True)) == []
    assert spans(found, talk("a", kept=1.0)) == [(0, 1)]


@pytest.mark.parametrize(
    ("test", "value", "message"),
    [
        ({"min": 1}, "3", "score: a rule expects a number, found '3'; mend the record or the rule"),
        ({"min": 1}, True, "score: a rule expects a number, found 'True'"),
        ({"pattern": "a"}, 3, "score: a rule expects a string, found '3'"),
    ],
)
def test_a_field_of_another_type_than_a_rule_expects_rejects_the_record(
    test: dict[str, Any], value: Any, message: str
) -> None:
    found = rule_set([{"weight": 0, "when": {"row": {"score": test}}}])
    with pytest.raises(RecordError) as caught:
        found.claims(talk("a", score=value))
    assert (caught.value.stage, caught.value.reason) == ("match", "field_type")
    assert str(caught.value).startswith(message)


RUNAWAY = [
    {"pattern": "(a|aa)+b"},
    {"pattern": "x(?:a+)+$"},
    {"weight": 0, "when": {"turn": "(a|aa)+b"}},
    {"weight": 0, "when": {"user": "(a|aa)+b"}},
    {"weight": 0, "where": {"anchored": True}, "pattern": "x(a|aa)+b"},
    {"weight": 0, "where": {"first": True}, "pattern": "(a|aa)+b"},
    {"weight": 0, "when": {"row": {"long": {"pattern": "(a|aa)+b"}}}},
]


@pytest.mark.parametrize("item", RUNAWAY, ids=str)
def test_a_runaway_pattern_on_a_megabyte_is_a_reject_that_names_rule_and_message(
    item: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rules.matching.TIME_LIMIT", 0.3)
    found = rule_set([{"name": "slow", "weight": 0, **item}])
    text = "x" + "a" * 1_000_000 + "cb"
    asking = Turn(2, "user", [Span(0, len(text))], [], -1, "", False)
    said = talk(text, long=text)
    began = time.monotonic()
    with pytest.raises(RecordError) as caught:
        found.claims(said._replace(turns=[asking, *said.turns]))
    assert time.monotonic() - began < 3
    assert (caught.value.stage, caught.value.reason) == ("match", "pattern_timeout")
    assert str(caught.value).startswith(
        "messages[3]: rule f.slow took the rules over 0.3 s on this row of 1,000,003 characters; "
    )


def test_the_time_limit_is_for_a_row_and_not_for_each_match() -> None:
    """Two thousand matches, each of which takes its time."""
    found = rule_set([{"pattern": "(?:a|aa)+c|x", "weight": 0}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.rules.matching.TIME_LIMIT", 0.2)
        with pytest.raises(RecordError, match="took the rules over"):
            found.claims(talk(("a" * 24 + "xc") * 2000))


def test_a_row_with_too_many_claims_is_a_reject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rules.matching.MOST_CLAIMS", 100)
    found = rule_set([{"pattern": "a", "weight": 0}, {"pattern": "b", "weight": 0}])
    assert len(found.claims(talk("ac" * 50 + "bc" * 50))) == 100
    with pytest.raises(RecordError) as caught:
        found.claims(talk("ac" * 50 + "bc" * 51))
    assert caught.value.reason == "too_many_claims"
    assert "rule f[1] makes over 100 claims in one row; " in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "((a{9999}){9999}){9999}",
        "(?:(?:a|b?){999}){999}b",
        "a{999999}",
        "a{,99999999999999999999}",
        "a{10}{10}{10}{10}{10}{10}",
        "(?:[^x]{400}){400}",
        r"(?:\w{400}|y){400}",
    ],
)
def test_a_pattern_that_would_fill_the_memory_is_refused_at_once(source: str) -> None:
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"^expands to [\d,]+ characters; use \+ or \*, or smaller"
    ):
        compile_pattern(source)
    assert time.monotonic() - began < 0.1


def test_counts_one_after_another_do_not_multiply() -> None:
    assert compile_pattern(r"\S{1,90} \S{1,90} \S{1,90} \S{1,90}").search("a b c d")


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("x*", "matches the empty string"),
        ("a|", "matches the empty string"),
        ("(?i)(?:a?)+", "matches the empty string"),
        ("(?R)", "calls itself"),
        ("(?P<x>(?&x)a|b)", "calls itself"),
        (r"(a(?1)?b)", "calls itself"),
        ("(?L)ab", "depends on the locale"),
        ("a" * 20_001, "is 20,001 characters long"),
        ("(" * 4000 + "a" + ")" * 4000, "is no pattern"),
        ("(?<n", "is no pattern"),
        (r"\p{Nothing}", "is no pattern"),
        (r"\L<names>", "is no pattern"),
    ],
)
def test_a_pattern_that_claims_nothing_or_cannot_be_told_is_refused(source: str, fact: str) -> None:
    with pytest.raises(ValueError, match=f"^{fact}") as caught:
        compile_pattern(source)
    assert "; " in str(caught.value)
