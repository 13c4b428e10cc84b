"""Examples, run: missing, noisy, of another weight, and how each is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RuleError
from pipeline.rules import parse_rule_file
from pipeline.rules.example import Failure, check_coverage, check_examples
from pipeline.rules.marks import mark, unmark

HEAD = "version: 1\nname: f\n"
RULES = HEAD + "rules: [{pattern: '\\[[^\\]]*\\]', weight: 0.5}]\nexamples:\n  - "


def check(example: str, *, head: str = RULES) -> list[Failure]:
    return check_examples(parse_rule_file(head + example + "\n", place="f.yaml"))


@pytest.mark.parametrize(
    ("example", "fact", "shown"),
    [
        ("'⟦[a]⟧ and [b]'", "noisy: the rules claim '[b]' (x0.5)", "⟦[a]⟧ and ⟦[b]⟧"),
        ("'⟦[a]⟧ and ⟦b⟧'", "missing: the rules do not claim 'b'", "⟦[a]⟧ and b"),
        ("'⟦[a] and b⟧'", "missing: the rules do not claim ' and b'", "⟦[a]⟧ and b"),
        ("'[a]'", "noisy: the rules claim '[a]' (x0.5)", "⟦[a]⟧"),
        ("'⟦⟧[a]'", "marks nothing", "⟦[a]⟧"),
        ("{text: '⟦[a]⟧', weights: [2]}", "'[a]' weighs 0.5, not 2", "⟦[a]⟧"),
        ("{text: '[⟦a]⟧'}", "noisy: the rules claim '[' (x0.5)", "⟦[a]⟧"),
        (
            "{user: '[a]', text: '⟦b⟧', stop: 'E'}",
            "missing: the rules do not claim 'b'",
            "user: [a]\nassistant: bE",
        ),
        (
            "{messages: [{role: assistant, content: '[a]', stop: 'E'}]}",
            "noisy: the rules claim '[a]' (x0.5)",
            "⟦[a]⟧E",
        ),
    ],
)
def test_an_example_that_is_not_as_it_is_marked_says_how(
    example: str, fact: str, shown: str
) -> None:
    (failure,) = check(example)
    place = "f.yaml:5:5: examples[0]"
    assert failure.message == f"{place}: {fact}; mend the pattern or the marks"
    assert failure.shown == (shown if ": " in shown else f"assistant: {shown}")


@pytest.mark.parametrize(
    "example",
    [
        "'⟦[a]⟧⟦[b]⟧'",
        "'⟦[a][b]⟧'",
        "'a'",
        "{text: '⟦[a]⟧ ⟦[b]⟧', weights: [0.5, 0.5], stop: '[stop]'}",
        "{user: '[a]', text: 'b'}",
        "{messages: [{role: tool, content: '[a]'}, {role: assistant, content: '⟦[b]⟧'}]}",
    ],
)
def test_an_example_that_is_as_it_is_marked_is_silent(example: str) -> None:
    assert check(example) == []


def test_of_several_examples_each_that_fails_is_told_at_its_place() -> None:
    messages = [failure.message for failure in check("'[a]'\n  - 'b'\n  - '[c]'")]
    assert [message.partition(": noisy")[0] for message in messages] == [
        "f.yaml:5:5: examples[0]",
        "f.yaml:7:5: examples[2]",
    ]


def test_weights_are_compared_as_they_are_written() -> None:
    """0.1 * 3 is 0.30000000000000004."""
    head = HEAD + "rules: [{pattern: a, weight: 0.1}, {pattern: a, weight: 3}]\nexamples:\n  - "
    assert check("{text: '⟦a⟧', weights: [0.3]}", head=head) == []
    (failure,) = check("{text: '⟦a⟧', weights: [0.31]}", head=head)
    assert "'a' weighs 0.3, not 0.31" in failure.message


def test_what_weighs_0_or_1_is_claimed_only_where_it_changes() -> None:
    head = HEAD + "rules: [{pattern: a, weight: 1}, {pattern: b, weight: 0}]\nexamples:\n  - "
    assert check("'a⟦b⟧'", head=head) == []


def test_a_row_of_an_example_is_what_conditions_ask_for() -> None:
    head = HEAD + "rules: [{weight: 0, when: {row: {kind: web, n: {min: 2}}}}]\nexamples:\n  - "
    assert check("{text: '⟦a⟧', row: {kind: web, n: 2}}", head=head) == []
    assert check("{text: 'a', row: {kind: web, n: 1}}", head=head) == []
    assert check("{text: 'a'}", head=head) == []
    (failure,) = check("{text: 'a', row: {kind: web, n: x}}", head=head)
    assert failure.message == (
        "f.yaml:5:5: examples[0]: a rule expects a number, found 'x'; mend the record or the rule"
    )


@pytest.mark.parametrize(
    ("region", "text"),
    [
        ("reasoning", "{text: '⟦<think>a</think>⟧b', calls: c, stop: d}"),
        ("content", "{text: '<think>a</think>⟦b⟧', calls: c, stop: d}"),
        ("tool_call", "{text: '<think>a</think>b', calls: '⟦c⟧', stop: d}"),
        ("stop", "{text: '<think>a</think>b', calls: c, stop: '⟦d⟧'}"),
        ("tool_call", "{messages: [{role: assistant, content: b, calls: '⟦c⟧'}]}"),
        ("tool_call", "{text: '<tool_call>c</tool_call>'}"),
    ],
)
def test_the_regions_of_an_answer_can_be_shown(region: str, text: str) -> None:
    head = HEAD + f"rules: [{{weight: 0, where: {{region: {region}}}}}]\nexamples:\n  - "
    assert check(text, head=head) == []


def test_base_all_marks_what_would_else_carry_no_loss() -> None:
    head = HEAD + "base: all\nexamples:\n  - "
    assert check("{user: '⟦a⟧', text: b}", head=head) == []
    (failure,) = check("{user: a, text: b}", head=head)
    assert failure.message.startswith("f.yaml:5:5: examples[0]: noisy: the rules claim 'a' (x1)")


def test_base_last_turn_marks_what_was_said_before() -> None:
    head = HEAD + "base: last_turn\nexamples:\n  - "
    talk = (
        "{messages: [{role: user, content: a}, {role: assistant, content: %s, stop: %s},"
        " {role: user, content: c}, {role: assistant, content: d}]}"
    )
    assert check(talk % ("'⟦b⟧'", "'⟦E⟧'"), head=head) == []
    (failure,) = check(talk % ("'⟦b⟧'", "E"), head=head)
    assert failure.shown == "user: a\nassistant: ⟦bE⟧\nuser: c\nassistant: d"


def test_a_sample_weight_changes_all_that_carries_loss() -> None:
    head = HEAD + "rules: [{pattern: bad, sample_weight: 0.5}]\nexamples:\n  - "
    assert check("{user: a, text: '⟦so bad⟧', stop: '⟦E⟧', weights: [0.5, 0.5]}", head=head) == []
    assert check("{user: bad, text: 'good'}", head=head) == []


@pytest.mark.parametrize(
    ("examples", "lack"),
    [
        ("[]", "has no example with a marked span"),
        ("[a]", "has no example with a marked span"),
        ("['⟦[a]⟧']", "has no near miss, an example in which nothing is marked"),
        ("['⟦[a]⟧', a]", ""),
    ],
)
def test_a_file_needs_a_hit_and_a_near_miss(examples: str, lack: str) -> None:
    text = RULES.replace("\n  - ", " ") + examples
    assert check_coverage(parse_rule_file(text, place="f.yaml")) == lack


def test_a_file_that_changes_nothing_needs_an_example_of_that() -> None:
    head = HEAD + "base: assistant\nexamples: "
    assert check_coverage(parse_rule_file(head + "[a]", place="f.yaml")) == ""
    lack = check_coverage(parse_rule_file(head + "[]", place="f.yaml"))
    assert lack == "has no example in which nothing is marked"


def test_an_example_error_names_the_text_that_is_wrong() -> None:
    with pytest.raises(RuleError) as caught:
        check("{user: 'a⟧', text: b}")
    message = "f.yaml:5:12: examples[0].user: has an unpaired ⟧; close each ⟦ with a ⟧"
    assert str(caught.value) == message


def test_marks_are_taken_out_and_told() -> None:
    assert unmark("a⟦bc⟧d⟦e⟧") == ("abcde", [(1, 3), (4, 5)])


@given(text=st.text("ab\n⟦⟧", max_size=12))
def test_marks_that_are_taken_out_can_be_put_back(text: str) -> None:
    depths = [text[:i].count("⟦") - text[:i].count("⟧") for i in range(len(text) + 1)]
    if depths[-1] == 0 and set(depths) <= {0, 1}:
        assert mark(*unmark(text)) == text
    else:
        with pytest.raises(ValueError, match="unpaired"):
            unmark(text)
