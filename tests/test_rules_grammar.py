"""Rule files are strict: each fault is an error that names file, line, column, key and remedy."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RuleError
from pipeline.policy import EDGES
from pipeline.rules import compose, parse_rule_file
from pipeline.rules.entry import BASES, FLAGS, REGIONS, ROLES

HEAD = "version: 1\nname: f\n"
# What the rules start with stands in line 4, column 5.
RULES = HEAD + "rules:\n  - "
FORM = re.compile(r"f\.yaml:\d+:\d+: (?:[\w.\[\]-]+: )?[^;]+; [^;]+(?:; [^;]+)?", re.DOTALL)


def fault(text: str) -> str:
    """What is wrong with a file, alone or in a build of its own."""
    with pytest.raises(RuleError) as caught:
        compose([parse_rule_file(text, place="f.yaml")])
    return str(caught.value)


def fault_of_rule(rule: str) -> str:
    """The same for the one rule of a file, in YAML; its places count from its own start."""
    return fault(RULES + rule.replace("\n", "\n    ") + "\n")


def name_kinds() -> list[tuple[str, str]]:
    """A value of each kind, and what an error calls it."""
    return [
        ("'a'", "a string"),
        ("3", "a whole number"),
        ("1.5", "a number"),
        ("true", "true or false"),
        ("~", "null"),
        ("[a]", "a list"),
        ("{a: b}", "a mapping"),
        ("2020-01-01", "a date"),
    ]


# For each key: a file with @ in the place of its value, and the kinds that fit.
PLACES: dict[str, tuple[str, str]] = {
    "version": ("version: @\nname: f\nbase: all\n", "a whole number"),
    "name": ("version: 1\nname: @\nbase: all\n", "a string"),
    "summary": (HEAD + "base: all\nsummary: @\n", "a string"),
    "why": (HEAD + "base: all\nwhy: @\n", "a string"),
    "base": (HEAD + "base: @\n", "a string"),
    "rules": (HEAD + "rules: @\n", "a list"),
    "examples": (HEAD + "base: all\nexamples: @\n", "a list"),
    "rules[0]": (HEAD + "rules: [@]\n", "a mapping"),
    "rules[0].name": (RULES + "weight: 0\n    name: @\n", "a string"),
    "rules[0].pattern": (RULES + "weight: 0\n    pattern: @\n", "a string, a list"),
    "rules[0].pattern[1]": (RULES + "weight: 0\n    pattern: [a, @]\n", "a string"),
    "rules[0].flags": (RULES + "{pattern: a, weight: 0, flags: @}\n", "a string, a list"),
    "rules[0].flags[0]": (RULES + "{pattern: a, weight: 0, flags: [@]}\n", "a string"),
    "rules[0].group": (RULES + "{pattern: a, weight: 0, group: @}\n", "a string"),
    "rules[0].weight": (RULES + "weight: @\n", "a whole number, a number"),
    "rules[0].sample_weight": (RULES + "sample_weight: @\n", "a whole number, a number"),
    "rules[0].negative": (RULES + "{weight: 0, negative: @}\n", "true or false"),
    "rules[0].count": (RULES + "{weight: 0, count: @}\n", "true or false"),
    "rules[0].edge": (RULES + "{weight: 0, edge: @}\n", "a string"),
    "rules[0].where": (RULES + "{weight: 0, where: @}\n", "a mapping"),
    "rules[0].where.role": (RULES + "{weight: 0, where: {role: @}}\n", "a string, a list"),
    "rules[0].where.role[0]": (RULES + "{weight: 0, where: {role: [@]}}\n", "a string"),
    "rules[0].where.region": (RULES + "{weight: 0, where: {region: @}}\n", "a string, a list"),
    "rules[0].where.turn": (RULES + "{weight: 0, where: {turn: @}}\n", "a string, a whole number"),
    "rules[0].where.first": (
        RULES + "{pattern: a, weight: 0, where: {first: @}}\n",
        "true or false",
    ),
    "rules[0].where.anchored": (
        RULES + "{pattern: a, weight: 0, where: {anchored: @}}\n",
        "true or false",
    ),
    "rules[0].when": (RULES + "{weight: 0, when: @}\n", "a mapping"),
    "rules[0].unless": (RULES + "{weight: 0, unless: @}\n", "a mapping"),
    "rules[0].when.user": (RULES + "{weight: 0, when: {user: @}}\n", "a string"),
    "rules[0].unless.turn": (RULES + "{weight: 0, unless: {turn: @}}\n", "a string"),
    "rules[0].when.row": (RULES + "{weight: 0, when: {row: @}}\n", "a mapping"),
    "rules[0].when.row.x[0]": (
        RULES + "{weight: 0, when: {row: {x: [@]}}}\n",
        "a string, a whole number, a number, true or false, null",
    ),
    "rules[0].when.row.x.min": (
        RULES + "{weight: 0, when: {row: {x: {min: @}}}}\n",
        "a whole number, a number",
    ),
    "rules[0].when.row.x.pattern": (
        RULES + "{weight: 0, when: {row: {x: {pattern: @}}}}\n",
        "a string",
    ),
    "rules[0].sections": (RULES + "sections: @\n", "a list"),
    "rules[0].sections[0]": (RULES + "sections: [@]\n", "a mapping"),
    "rules[0].sections[0].marker": (
        RULES + "sections: [{weight: 2, body: 1, marker: @}]\n",
        "a string",
    ),
    "rules[0].sections[0].pattern": (
        RULES + "sections: [{weight: 2, body: 1, pattern: @}]\n",
        "a string",
    ),
    "rules[0].sections[0].weight": (
        RULES + "sections: [{marker: a, body: 2, weight: @}]\n",
        "a whole number, a number",
    ),
    "rules[0].sections[0].body": (
        RULES + "sections: [{marker: a, weight: 2, body: @}]\n",
        "a whole number, a number",
    ),
    "examples[0]": (HEAD + "base: all\nexamples: [@]\n", "a string, a mapping"),
    "examples[0].user": (HEAD + "base: all\nexamples: [{text: a, user: @}]\n", "a string"),
    "examples[0].weights": (HEAD + "base: all\nexamples: [{text: a, weights: @}]\n", "a list"),
    "examples[0].messages": (HEAD + "base: all\nexamples: [{messages: @}]\n", "a list"),
    "examples[0].messages[0].content": (
        HEAD + "base: all\nexamples: [{messages: [{role: user, content: @}]}]\n",
        "a string",
    ),
    "examples[0].row": (HEAD + "base: all\nexamples: [{text: a, row: @}]\n", "a mapping"),
}
WRONG = [
    (key, text, value, kind)
    for key, (text, fitting) in PLACES.items()
    for value, kind in name_kinds()
    if kind not in fitting.split(", ")
]


@pytest.mark.parametrize(("key", "text", "value", "kind"), WRONG)
def test_a_value_of_a_wrong_type_is_an_error_at_its_place(
    key: str, text: str, value: str, kind: str
) -> None:
    before = text.partition("@")[0]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    message = fault(text.replace("@", value))
    assert message.startswith(f"f.yaml:{line}:{column}: {key}: ")
    assert FORM.fullmatch(message)
    assert any(f in message for f in (f": is {kind}, not ", ": has no keys", ": is not a list"))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("extra", HEAD + "base: all\n@: 1\n"),
        ("rules[0].extra", RULES + "weight: 0\n    @: 1\n"),
        ("rules[0].where.extra", RULES + "weight: 0\n    where: {@: 1}\n"),
        ("rules[0].when.extra", RULES + "weight: 0\n    when: {user: a, @: 1}\n"),
        ("rules[0].unless.extra", RULES + "weight: 0\n    unless: {@: 1}\n"),
        ("rules[0].when.row.x.extra", RULES + "weight: 0\n    when: {row: {x: {min: 1, @: 1}}}\n"),
        ("rules[0].sections[0].extra", RULES + "sections: [{marker: a, @: 1}]\n"),
        ("examples[0].extra", HEAD + "base: all\nexamples: [{text: a, @: 1}]\n"),
        (
            "examples[0].messages[0].extra",
            HEAD + "base: all\nexamples: [{messages: [{role: user, @: 1}]}]\n",
        ),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_known_ones(key: str, text: str) -> None:
    before = text.partition("@")[0]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    message = fault(text.replace("@", "extra"))
    assert message.startswith(f"f.yaml:{line}:{column}: {key}: unknown key; use one of ")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("name", HEAD + "@name: g\nbase: all\n"),
        ("rules[0].weight", RULES + "weight: 0\n    @weight: 1\n"),
        ("rules[0].where.turn", RULES + "{weight: 0, where: {turn: 0, @turn: 1}}\n"),
        ("rules[0].when.user", RULES + "{weight: 0, when: {user: 'a', @user: 'b'}}\n"),
        ("rules[0].when.row.x", RULES + "{weight: 0, when: {row: {x: 1, @x: 2}}}\n"),
        ("rules[0].sections[0].body", RULES + "sections: [{body: 0, @body: 1}]\n"),
        ("examples[0].text", HEAD + "base: all\nexamples: [{text: a, @text: b}]\n"),
    ],
)
def test_a_key_given_twice_is_an_error_at_its_second_place(key: str, text: str) -> None:
    before = text.partition("@")[0]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    assert fault(text.replace("@", "")) == f"f.yaml:{line}:{column}: {key}: given twice; keep one"


@pytest.mark.parametrize(
    ("value", "fact"),
    [
        (".nan", "is nan; write a finite number"),
        (".inf", "is inf; write a finite number"),
        ("-.INF", "is -inf; write a finite number"),
        ("1" + "0" * 400, "is inf; write a finite number"),
        ("1" + "0" * 5000, "has too many digits; write fewer"),
        ("1.0e+400", "is inf; write a finite number"),
        ("1e400", "is inf; write a finite number"),
        ("1000001", "is 1e+06; write a number up to 1,000,000"),
        ("1.0e+39", "is 1e+39; write a number up to 1,000,000"),
        ("-0.5", "is -0.5; write 0 to 1,000,000, or add negative: true to push the model away"),
        ("1:30", "1:30 is not the same number to all readers of YAML; write it in decimals"),
        ("010", "010 is not the same number to all readers of YAML; write it in decimals"),
        ("0x10", "0x10 is not the same number to all readers of YAML; write it in decimals"),
        ("1_000", "1_000 is not the same number to all readers of YAML; write it in decimals"),
        ("!!int abc", "abc is not the same number to all readers of YAML; write it in decimals"),
        ("'1'", "is a string, not a number; write it without quotes"),
        ("!weight 1", "is a tagged value, not a number; write a number"),
        ("yes", "is true or false, not a number; write a number"),
    ],
)
@pytest.mark.parametrize("key", ["weight", "sample_weight"])
def test_a_weight_is_a_finite_number_from_0_to_a_million(key: str, value: str, fact: str) -> None:
    message = fault_of_rule(f"pattern: a\n{key}: {value}")
    assert message.startswith(f"f.yaml:5:{7 + len(key)}: rules[0].{key}: {fact}")


@pytest.mark.parametrize(
    ("value", "weight"), [("1e-3", 0.001), ("2E2", 200), (".5", 0.5), ("+1", 1), ("0.0", 0)]
)
def test_a_weight_may_be_written_as_json_or_python_writes_it(value: str, weight: float) -> None:
    """PyYAML takes ``1e-3`` for a string, as YAML 1.1 did."""
    file = parse_rule_file(f"{RULES}weight: {value}\n", place="f.yaml")
    assert file.entries[0].rules[0].weight == weight


def test_a_weight_of_minus_zero_is_zero() -> None:
    (entry,) = parse_rule_file(RULES + "weight: -0.0\n", place="f.yaml").entries
    assert str(entry.rules[0].weight) == "0.0"


def test_a_negative_weight_needs_a_key_that_says_so() -> None:
    (entry,) = parse_rule_file(RULES + "{weight: -1, negative: true}\n", place="f.yaml").entries
    assert entry.rules[0].weight == -1
    message = fault_of_rule("{weight: -1000001, negative: true}")
    assert message.startswith("f.yaml:4:14: rules[0].weight: is -1e+06; write a number up to")


FAULTS: list[tuple[str, str]] = [
    # patterns
    ("{weight: 0, pattern: 'x*'}", "26: rules[0].pattern: matches the empty string; use + instead"),
    ("{weight: 0, pattern: '(x'}", "26: rules[0].pattern: is no pattern: missing )"),
    ("{weight: 0, pattern: ''}", "26: rules[0].pattern: matches the empty string"),
    ("{weight: 0, pattern: []}", "26: rules[0].pattern: is empty; write a pattern"),
    ("{weight: 0, pattern: [a, 'b|']}", "30: rules[0].pattern[1]: matches the empty string"),
    ("{weight: 0, pattern: '((a{999}){999}){999}'}", "26: rules[0].pattern: expands to 997,"),
    ("{weight: 0, when: {user: 'x*'}}", "30: rules[0].when.user: matches the empty string"),
    ("{weight: 0, unless: {turn: '['}}", "32: rules[0].unless.turn: is no pattern"),
    ("{weight: 0, when: {row: {x: {pattern: 'a?'}}}}", "43: rules[0].when.row.x.pattern: matches"),
    # groups and flags
    ("{pattern: '(?P<g>a)', weight: 0, group: h}", "45: rules[0].group: the pattern has no group"),
    ("{pattern: 'a', weight: 0, group: h}", "38: rules[0].group: the pattern has no group 'h'; us"),
    ("{pattern: ['(?P<h>a)', a], weight: 0, group: h}", "50: rules[0].group: the pattern has no"),
    ("{weight: 0, group: h}", "24: rules[0].group: has no pattern; add pattern"),
    ("{weight: 0, flags: [dotall]}", "24: rules[0].flags: has no pattern; add pattern"),
    ("{pattern: a, weight: 0, flags: [i]}", "37: rules[0].flags[0]: 'i' is unknown; use one of ig"),
    ("{pattern: a, weight: 0, flags: []}", "36: rules[0].flags: is empty; use each of ignorecase"),
    ("{pattern: a, weight: 0, flags: [ascii, ascii]}", "36: rules[0].flags: names one twice; use"),
    # weights
    ("{pattern: a}", "5: rules[0]: has no weight; write one of weight and sample_weight"),
    ("{weight: 1, sample_weight: 1}", "5: rules[0]: has both weight and sample_weight; write one"),
    ("{weight: 1, count: true}", "24: rules[0].count: keeps the label of a weight of 0; write wei"),
    ("{sample_weight: 0, count: true}", "31: rules[0].count: keeps the label of a weight of 0"),
    ("{sample_weight: 1, edge: any}", "30: rules[0].edge: decides over tokens across an edge"),
    ("{weight: 0, edge: half}", "23: rules[0].edge: 'half' is unknown; use one of majority, any"),
    ("{weight: 0, count: yes}", "24: rules[0].count: yes is true or false to some readers of YAML"),
    # where
    ("{weight: 0, where: {role: bot}}", "31: rules[0].where.role: 'bot' is unknown; use one of as"),
    ("{weight: 0, where: {role: []}}", "31: rules[0].where.role: is empty; use each of assistant"),
    ("{weight: 0, where: {region: [stop, stop]}}", "33: rules[0].where.region: names one twice"),
    ("{weight: 0, where: {region: think}}", "33: rules[0].where.region: 'think' is unknown; use"),
    ("{weight: 0, where: {first: true}}", "24: rules[0].where: first and anchored say which match"),
    ("{weight: 0, where: {anchored: true}}", "24: rules[0].where: first and anchored say which"),
    ("{weight: 0, where: {turn: '2:1'}}", "31: rules[0].where.turn: '2:1' holds no turn, as its"),
    ("{weight: 0, where: {turn: '3:3'}}", "31: rules[0].where.turn: '3:3' holds no turn"),
    ("{weight: 0, where: {turn: '-1:-2'}}", "31: rules[0].where.turn: '-1:-2' holds no turn"),
    ("{weight: 0, where: {turn: ':0'}}", "31: rules[0].where.turn: ':0' holds no turn"),
    ("{weight: 0, where: {turn: '-1:0'}}", "31: rules[0].where.turn: '-1:0' holds no turn"),
    ("{weight: 0, where: {turn: ':'}}", "31: rules[0].where.turn: ':' is no range of turns; write"),
    ("{weight: 0, where: {turn: '-1'}}", "31: rules[0].where.turn: '-1' is no range of turns"),
    ("{weight: 0, where: {turn: '0:1:2'}}", "31: rules[0].where.turn: '0:1:2' is no range"),
    ("{weight: 0, where: {turn: 1:30}}", "31: rules[0].where.turn: 1:30 is a number in YAML; wri"),
    ("{weight: 0, where: {turn: 9999999}}", "31: rules[0].where.turn: is beyond any talk"),
    # conditions
    ("{weight: 0, when: {}}", "23: rules[0].when: asks for nothing; use one of user, turn, row"),
    ("{weight: 0, when: {row: {}}}", "29: rules[0].when.row: is empty; write name: value"),
    ("{weight: 0, when: {row: {x: []}}}", "33: rules[0].when.row.x: is empty; write a value"),
    ("{weight: 0, when: {row: {x: {}}}}", "33: rules[0].when.row.x: asks for nothing; write min"),
    (
        "{weight: 0, when: {row: {x: {min: 2, max: 1}}}}",
        "33: rules[0].when.row.x: no number is fro",
    ),
    ("{weight: 0, when: {row: {x: {min: 1, pattern: a}}}}", "33: rules[0].when.row.x: has a patte"),
    ("{weight: 0, when: {row: {x: {min: .nan}}}}", "39: rules[0].when.row.x.min: is nan; write a"),
    ("{weight: 0, when: {row: {x: [a, .inf]}}}", "37: rules[0].when.row.x[1]: is inf; write a fin"),
    ("{weight: 0, when: {row: {lang: no}}}", "36: rules[0].when.row.lang: no is true or false to"),
    (
        "{weight: 0, when: {row: {at: 12:30}}}",
        "34: rules[0].when.row.at: 12:30 is not the same num",
    ),
    # sections
    ("{sections: []}", "16: rules[0].sections: is empty; write a marker"),
    ("{sections: [{marker: a, weight: 1, body: 1}]}", "16: rules[0].sections: weigh 1 throughout"),
    ("{sections: [{marker: '', weight: 1, body: 2}]}", "26: rules[0].sections[0].marker: is empty"),
    ("{sections: [{marker: a, weight: 2}]}", "17: rules[0].sections[0].body: missing; add it"),
    ("{sections: [{weight: 2, body: 2}]}", "17: rules[0].sections[0]: has not one marker; write"),
    ("{sections: [{marker: a, pattern: a, weight: 2, body: 2}]}", "17: rules[0].sections[0]: has"),
    ("{sections: [{marker: a, weight: -2, body: 2}]}", "37: rules[0].sections[0].weight: is -2"),
    (
        "{sections: [{marker: a, weight: 2, body: 2}, {marker: ab, weight: 3, body: 1}]}",
        "50: rules[0].sections[1]: is never reached: 'a' matches before it; list the longer one",
    ),
    (
        "{sections: [{marker: a, weight: 2, body: 2}], weight: 1}",
        "59: rules[0].weight: does not go with sections; give each section its own",
    ),
    (
        "{sections: [{marker: a, weight: 2, body: 2}], where: {first: true}}",
        "58: rules[0].where: first and anchored say which match counts; use them with pattern",
    ),
    (
        r"{sections: [{pattern: '(a)(b)\2', weight: 2, body: 2}]}",
        "16: rules[0].sections: refers to a group by number; name it, (?P<x>...), and use",
    ),
    (
        "{sections: [{pattern: '(?P<x>a)', weight: 2, body: 2}, "
        "{pattern: '(?P<x>b)', weight: 2, body: 2}]}",
        "16: rules[0].sections: two have a group x; give them names of their own",
    ),
    (
        "{sections: [{pattern: '(?r)ab', weight: 2, body: 2}]}",
        "16: rules[0].sections: searches backwards, and sections go forwards; take (?r) out",
    ),
    # names
    ("{weight: 0, name: 'a b'}", "23: rules[0].name: 'a b' is no name; use letters, digits"),
    ("{weight: 0, name: ''}", "23: rules[0].name: '' is no name; use letters, digits"),
    # roles that carry no loss
    ("{weight: 0, where: {role: user}}", "31: rules[0].where.role: user carries no loss with base"),
    ("{weight: 0, where: {role: [tool, user]}}", "31: rules[0].where.role: tool carries no loss"),
]


@pytest.mark.parametrize(("rule", "message"), FAULTS)
def test_an_error_names_file_line_column_key_fact_and_remedy(rule: str, message: str) -> None:
    found = fault_of_rule(rule)
    assert found.startswith(f"f.yaml:4:{message}")
    assert FORM.fullmatch(found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2\nname: f\nbase: all\n", "1:10: version: is not 1; write 1"),
        ("name: f\nbase: all\n", "1:1: version: missing; add it"),
        ("version: 1\nbase: all\n", "1:1: name: missing; add it"),
        ("version: 1\nname: a b\nbase: all\n", "2:7: name: 'a b' is no name; use letters"),
        (HEAD, "1:1: rules: missing; write a rule, or a base"),
        (HEAD + "rules: []\n", "3:8: rules: is empty; write a rule, or a base"),
        (HEAD + "base: last\n", "3:7: base: 'last' is unknown; use one of assistant, last_turn"),
        (HEAD + "1: 2\n", "3:1: 1: unknown key; use one of version"),
        (HEAD + "? [a]\n: b\n", "3:3: has a key that is no name; write a plain name"),
        (HEAD + "<<: {base: all}\n", "3:1: <<: unknown key"),
        (
            HEAD + "rules:\n  - {weight: 0, name: x}\n  - {weight: 1, name: x}\n",
            "5:5: rules[1]: another rule is called f.x too; give this one a name of its own",
        ),
        (
            HEAD + "base: last_turn\nrules:\n  - {weight: 0, name: base}\n",
            "5:5: rules[0]: another rule is called f.base too",
        ),
        (
            HEAD + "base: last_turn\nrules:\n  - {weight: 0, where: {role: tool}}\n",
            "5:31: rules[0].where.role: tool carries no loss with base last_turn; add the rule",
        ),
        (HEAD + "base: all\nexamples: ['⟦a']\n", "4:12: examples[0]: has an unpaired ⟦; close"),
        (HEAD + "base: all\nexamples: ['a⟧']\n", "4:12: examples[0]: has an unpaired ⟧; close"),
        (HEAD + "base: all\nexamples: ['⟦⟦a⟧⟧']\n", "4:12: examples[0]: has an unpaired ⟦; close"),
        (HEAD + "base: all\nexamples: [{user: a}]\n", "4:12: examples[0]: has not one talk; write"),
        (
            HEAD + "base: all\nexamples: [{text: a, messages: []}]\n",
            "4:12: examples[0]: has not one talk; write text, or messages",
        ),
        (
            HEAD + "base: all\nexamples: [{messages: [], stop: a}]\n",
            "4:33: examples[0].stop: goes with text; drop it",
        ),
        (
            HEAD + "base: all\nexamples: [{messages: [{role: bot, content: a}]}]\n",
            "4:31: examples[0].messages[0].role: 'bot' is unknown; use one of assistant",
        ),
        (
            HEAD + "base: all\nexamples: [{text: '⟦a⟧', weights: [1, 2]}]\n",
            "4:35: examples[0].weights: 2 given for 1 marked; write one for each",
        ),
    ],
)
def test_an_error_of_the_file_names_its_place(text: str, message: str) -> None:
    found = fault(text)
    assert found.startswith(f"f.yaml:{message}")
    assert FORM.fullmatch(found), found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f.yaml: empty; write version, name, summary and rules"),
        ("# nothing\n", "f.yaml: empty; "),
        ("[]", "f.yaml:1:1: has no keys; write some of version, name"),
        ("word", "f.yaml:1:1: has no keys; "),
        ("\x00", "f.yaml: not YAML: special characters are not allowed; "),
        ("a: b: c", "f.yaml:1:5: not YAML: mapping values are not allowed here; quote patterns"),
        ('a: "\\d"', "f.yaml:1:6: not YAML: found unknown escape character 'd'; quote patterns"),
        ("a: 1\n---\nb: 1", "f.yaml:2:1: not YAML: but found another document; "),
        ("a: *b", "f.yaml:1:4: not YAML: found undefined alias 'b'; "),
        ("[" * 5000, "f.yaml: is nested too deep; write it flat"),
        ('name: "\\ud800"\nversion: 1', "f.yaml:1:7: name: holds half a surrogate pair"),
    ],
)
def test_a_text_that_is_no_rule_file_is_a_rule_error(text: str, message: str) -> None:
    assert fault(text).startswith(message)


def read(text: str) -> Any:
    return parse_rule_file(text, place="f.yaml")


@pytest.mark.parametrize("base", BASES)
def test_a_file_may_be_a_base_alone(base: str) -> None:
    assert compose([read(f"{HEAD}base: {base}\n")]).base == base


def test_each_word_of_the_language_is_read() -> None:
    for flag in FLAGS:
        (entry,) = read(f"{RULES}{{pattern: a, weight: 0, flags: {flag}}}\n").entries
        assert entry.pattern.flags & FLAGS[flag]
    for edge in EDGES:
        assert read(f"{RULES}{{weight: 0, edge: {edge}}}\n").entries[0].rules[0].edge == edge
    for role in ROLES:
        entry = read(f"{HEAD}base: all\nrules: [{{weight: 0, where: {{role: {role}}}}}]\n").entries[
            0
        ]
        assert entry.where.roles == (role,)
    for region in REGIONS:
        entry = read(f"{RULES}{{weight: 0, where: {{region: {region}}}}}\n").entries[0]
        assert entry.where.regions == (region,)


def test_a_sample_weight_may_hang_on_a_role_without_loss() -> None:
    """The row is weighed, not the user's text."""
    rules = compose([read(RULES + "{pattern: rude, sample_weight: 0, where: {role: user}}\n")])
    assert rules.rules[0].weight == 0


def test_one_rule_is_called_like_its_file_and_several_by_number_or_name() -> None:
    names = [r.name for e in read(HEAD + "rules: [{weight: 0}]\n").entries for r in e.rules]
    assert names == ["f"]
    two = read(HEAD + "rules: [{weight: 0}, {weight: 1, name: x}]\n")
    assert [r.name for e in two.entries for r in e.rules] == ["f[0]", "f.x"]


def test_sections_of_one_weight_are_one_rule() -> None:
    text = "sections: [{marker: a, weight: 2, body: 1}, {marker: b, weight: 0, body: 2}]\n"
    (entry,) = read(RULES + text).entries
    assert [(rule.name, rule.weight) for rule in entry.rules] == [("f[x2]", 2), ("f[x0]", 0)]


SHREDS = st.sampled_from(
    [
        *(
            "version: 1\n",
            "name: f\n",
            "base: all\n",
            "rules:\n",
            "  - ",
            "    ",
            "weight: 0\n",
            "\n",
        ),
        *(
            "pattern: ",
            "'a'",
            "where: ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            ": ",
            "turn: ",
            "-1",
            "'1:2'",
            "~",
        ),
        *(
            "role: ",
            "user",
            "when: ",
            "row: ",
            "x",
            "&a ",
            "*a",
            "!!int ",
            "!!str ",
            "1:30",
            ".nan",
        ),
        *(
            "examples:\n",
            "⟦a⟧",
            "sections: ",
            "marker: ",
            "body: ",
            '"\\ud800"',
            "? ",
            "<<: ",
            "|\n",
        ),
    ]
)


@given(text=st.lists(SHREDS, max_size=25).map("".join) | st.text(max_size=40))
def test_no_text_is_anything_but_a_file_or_a_rule_error(text: str) -> None:
    said = "f.yaml: or; not raised"
    try:
        compose([read(text)])
    except RuleError as error:
        said = str(error)
    assert re.match(r"f\.yaml[:;].*; ", said, re.DOTALL)
