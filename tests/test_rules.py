"""What rule files may say, and what their patterns claim."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.errors import RecordError, RuleError
from pipeline.rules import (
    RuleSet,
    bundled_rules,
    compose,
    find_rule_file,
    load_rules,
    marked,
    parse_rule_file,
    read_rule_file,
)
from pipeline.spans import Span
from pipeline.turns import Turn

RULE = """\
version: 1
name: brackets
rules:
  - pattern: '\\[[^\\]]*\\]'
    weight: 0.5
"""


def turn_over(text: str, *outputs: tuple[int, int]) -> Turn:
    spans = [Span(*o) for o in outputs] or [Span(0, len(text))]
    return Turn(0, "assistant", spans, spans, -1, "prompt", False)


def claims(rules: RuleSet, text: str, *outputs: tuple[int, int]) -> list[tuple[int, int]]:
    return [(c.start, c.end) for c in rules.claims(turn_over(text, *outputs), text)]


@pytest.mark.parametrize("path", sorted(bundled_rules().glob("*.yaml")), ids=lambda p: p.stem)
def test_every_bundled_rule_claims_what_its_examples_mark(path: Path) -> None:
    file = read_rule_file(path)
    assert file.name == path.stem
    assert file.summary
    spans = [marked(example) for example in file.examples]
    assert any(s for _, s in spans), "no example that hits"
    assert any(not s for _, s in spans), "no near miss"
    for text, expected in spans:
        assert claims(compose([file]), text) == expected


def test_a_pattern_sees_the_turn_and_not_the_document() -> None:
    rules = compose([parse_rule_file(RULE.replace("'\\[[^\\]]*\\]'", "'^b|(?<!a)c'"), place="r")])
    # In the document `b` follows an `a` and is not at the start; in the turn it is.
    assert claims(rules, "abac", (1, 2), (3, 4)) == [(1, 2), (3, 4)]


def test_claims_are_in_characters_of_the_whole_text() -> None:
    rules = compose([parse_rule_file(RULE, place="r")])
    text = "é[a]🙂[b]"
    assert [text[a:b] for a, b in claims(rules, text, (2, len(text)))] == ["[b]"]


def test_files_compose_in_one_order_whatever_the_command_line_says() -> None:
    other = RULE.replace("brackets", "another")
    a, b = parse_rule_file(RULE, place="a"), parse_rule_file(other, place="b")
    assert compose([a, b]).rules == compose([b, a]).rules


def test_a_rule_set_survives_pickling() -> None:
    rules = compose([parse_rule_file(RULE, place="r")])
    assert claims(pickle.loads(pickle.dumps(rules)), "x[y]") == [(1, 4)]


def test_a_pattern_that_runs_away_is_a_record_error() -> None:
    text = RULE.replace("'\\[[^\\]]*\\]'", "'(a|aa)+$'")
    rules = compose([parse_rule_file(text, place="r")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.rules.TIME_LIMIT", 0.05)
        with pytest.raises(RecordError) as caught:
            claims(rules, "a" * 200 + "b")
    assert caught.value.reason == "pattern_timeout"
    assert "brackets" in str(caught.value)


def test_a_name_is_a_path_first_and_a_bundled_rule_then(tmp_path: Path) -> None:
    own = tmp_path / "ignore_empty_think.yaml"
    own.write_text(RULE)
    assert find_rule_file(own) == own
    for name in ("ignore_empty_think", "ignore_empty_think.yaml"):
        assert find_rule_file(name) == bundled_rules() / "ignore_empty_think.yaml"
    with pytest.raises(RuleError, match=r"no_such: no such rule file; .*ignore_empty_think"):
        find_rule_file("no_such")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("version: 1", "version: 2"), "f:1:10: version: is not 1; write 1"),
        (("version: 1", "version: '1'"), "f:1:10: version: is not a whole number"),
        (("name: brackets", "nme: x"), "f:2:1: nme: unknown key; use one of version, name"),
        (("name: brackets\n", ""), "f:1:1: name: missing; add it"),
        (("name: brackets", "name: [x]"), "f:2:7: name: is not a string"),
        (("name: brackets", "name: 7"), "f:2:7: name: is not a string"),
        (("weight: 0.5", "weight: -1"), "f:5:13: rules[0].weight: is -1.0"),
        (("weight: 0.5", "weight: .nan"), "f:5:13: rules[0].weight: is nan"),
        (("weight: 0.5", "weight: .inf"), "f:5:13: rules[0].weight: is inf"),
        (("weight: 0.5", "weight: 1.0e+39"), "write a finite number from 0 to 1,000,000"),
        (("weight: 0.5", "weight: 0x_"), "is no"),
        (("weight: 0.5", "weight: yes"), "f:5:13: rules[0].weight: is not a number"),
        (("weight: 0.5", "weight: '1'"), "f:5:13: rules[0].weight: is not a number"),
        (("weight: 0.5", "wait: 1"), "f:5:5: rules[0].wait: unknown key"),
        (("weight: 0.5", "weight: 1\n    weight: 2"), "f:6:5: rules[0].weight: given twice"),
        (("'\\[[^\\]]*\\]'", "'x*'"), "f:4:14: rules[0].pattern: matches the empty string"),
        (("'\\[[^\\]]*\\]'", "'(x'"), "f:4:14: rules[0].pattern: is no pattern"),
        (("'\\[[^\\]]*\\]'", '"\\d"'), "f:4:16: not YAML"),
        (("weight: 0.5", "weight: 1\n    where: {role: user}"), "rules[0].where.role: 'user'"),
        (("weight: 0.5", "weight: 1\n    where: user"), "rules[0].where: is not a mapping"),
        (("rules:", "rules: []\nx:"), "unknown key"),
        (("rules:", "why: 3\nrules:"), "f:3:6: why: is not a string"),
        (("rules:", "examples: [[1]]\nrules:"), "f:3:12: examples[0]: is not a string"),
    ],
)
def test_an_error_names_file_line_column_key_and_remedy(
    change: tuple[str, str], message: str
) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule_file(RULE.replace(*change), place="f")
    assert message in str(caught.value)
    assert ";" in str(caught.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "[]", "word", "a: b: c", "\x00"])
def test_a_text_that_is_no_rule_file_is_a_rule_error(text: str) -> None:
    with pytest.raises(RuleError, match="f"):
        parse_rule_file(text, place="f")


def test_a_file_that_cannot_be_read_is_a_rule_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError, match="cannot be read"):
        load_rules([bad])


def test_a_rule_file_given_twice_is_refused() -> None:
    with pytest.raises(RuleError, match="ignore_empty_think: given twice"):
        load_rules(["ignore_empty_think", "ignore_empty_think.yaml"])


def test_marks_are_taken_out_and_told() -> None:
    assert marked("a⟦bc⟧d⟦e⟧") == ("abcde", [(1, 3), (4, 5)])


@pytest.mark.parametrize("example", ["⟦a", "a⟧", "⟦⟦a⟧⟧"])
def test_marks_that_do_not_pair_are_refused(example: str) -> None:
    with pytest.raises(ValueError, match="unpaired"):
        marked(example)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("⟦[a]⟧ and [b]", "f:4:5: examples[0]: noisy: the rules claim '[b]'"),
        ("⟦[a]⟧ and ⟦b⟧", "f:4:5: examples[0]: missing: the rules do not claim 'b'"),
        ("⟦[a]", "f:4:5: examples[0]: has an unpaired ⟦; close each"),
    ],
)
def test_an_example_that_is_not_claimed_as_marked_is_an_error(example: str, message: str) -> None:
    text = RULE.replace("rules:", f'examples:\n  - "{example}"\nrules:')
    with pytest.raises(RuleError) as caught:
        parse_rule_file(text, place="f")
    assert message in str(caught.value)
