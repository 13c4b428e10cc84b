"""Rules in rows: what a build makes of bases, edges, conditions and counted zeros."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batch import Encoder
from pipeline.errors import ConfigurationError, RuleError
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED
from pipeline.rules import compose, load_rules, parse_rule_file
from pipeline.source.record import Record
from pipeline.template import Template
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary

DAY = datetime.date(2026, 3, 14)
VOCABULARY = read_vocabulary(BUNDLED / "tokenizer")
TOKENIZER: Tokenizer = load_tokenizer(VOCABULARY)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SWIFT = Policy(profile="ms-swift")


def encoder_of(*rules: str, policy: Policy | None = None, source: str = CHATML) -> Encoder:
    """Rules are names of bundled files, or the ``rules`` of a file."""
    template = Template(source, variables=VOCABULARY.special_tokens, today=DAY)
    files = []
    for number, rule in enumerate(rules):
        if rule.startswith("-"):
            text = f"version: 1\nname: r{number}\nrules:\n  {rule}\n"
            files.append(parse_rule_file(text, place="r.yaml"))
        else:
            files += load_rules([rule], profile=policy.profile if policy else "").files
    return Encoder(TOKENIZER, template, compose(files), policy=policy)


def talk(*contents: str, **extra: Any) -> dict[str, Any]:
    roles = itertools.cycle(("user", "assistant"))
    return {
        "messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)],
        **extra,
    }


def row_of(encoder: Encoder, value: Any) -> dict[str, Any]:
    record = Record(source="s", row=0, line=1, raw=json.dumps(value).encode())
    batch = encoder.encode([record])
    assert not batch.rejects, batch.rejects[0].message
    (row,) = batch.rows.to_pylist()
    return dict(row)


def reason_of(encoder: Encoder, value: Any) -> str:
    record = Record(source="s", row=0, line=1, raw=json.dumps(value).encode())
    (found,) = encoder.encode([record]).rejects
    return found.reason


def runs(row: dict[str, Any]) -> list[tuple[str, float]]:
    """Neighbouring tokens of one weight as text, those of weight 0 left out."""
    pairs = zip(row["input_ids"], row["loss_scale"], strict=True)
    return [
        (TOKENIZER.decode([id_ for id_, _ in run]), weight)
        for weight, run in itertools.groupby(pairs, key=lambda pair: pair[1])
        if weight
    ]


def test_base_all_weighs_every_token_but_the_first() -> None:
    row = row_of(encoder_of("all"), talk("Q", "A"))
    assert row["loss_scale"] == [0.0] + [1.0] * (row["length"] - 1)


def test_base_all_gives_other_roles_to_rules_that_name_no_role() -> None:
    rule = "- {pattern: 'a+', weight: 0.5}"
    assert (" aa", 0.5) in runs(row_of(encoder_of("all", rule), talk("x aa", "Q")))
    only = "- {pattern: 'a+', weight: 0.5, where: {role: user}}"
    assert runs(row_of(encoder_of("all", only), talk("x", "aa")))[-1][1] == 1.0


def test_a_positive_weight_of_a_user_is_honoured_with_base_all_only() -> None:
    value = talk("Q", "A")
    value["messages"][0]["weight"] = 0.5
    assert reason_of(encoder_of(), value) == "unsupported_weight"
    assert runs(row_of(encoder_of("all"), value))[0][1] == 0.5


def test_a_sample_weight_reaches_the_text_that_nobody_owns() -> None:
    source = "{{ 'Zebra ' }}" + CHATML
    row = row_of(encoder_of("all", source=source), talk("Q", "A", sample_weight=0.5))
    assert set(row["loss_scale"][1:]) == {0.5}
    assert next(s for s in row["spans"] if s["region"] == "template")["message"] == -1


def test_base_last_turn_keeps_the_calls_of_the_last_round() -> None:
    value = talk("Q1", "A1", "Q2", "call")
    value["messages"] += [{"role": "tool", "content": "21"}, {"role": "assistant", "content": "A2"}]
    said = [text for text, _ in runs(row_of(encoder_of("last_round"), value))]
    assert said == ["call<|im_end|>", "A2<|im_end|>"]
    swift = [text for text, _ in runs(row_of(encoder_of("last_round", policy=SWIFT), value))]
    assert swift == ["A2<|im_end|>\n"], "ms-swift's round starts at the tool's message"


@pytest.mark.parametrize("turns", ["fan_out", "last_turn"])
def test_rows_of_parts_of_a_talk_need_a_base_that_means_something_there(turns: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--turns {turns}: .*; use as_rendered"):
        row_of(encoder_of("all", policy=Policy(turns=turns)), talk("Q", "A"))


def test_last_turn_rows_may_have_the_base_last_turn() -> None:
    row = row_of(encoder_of("last_round", policy=Policy(turns="last_turn")), talk("Q", "A"))
    assert runs(row) == [("A<|im_end|>", 1.0)]
    with pytest.raises(ConfigurationError, match="use last_turn"):
        row_of(encoder_of("last_round", policy=Policy(turns="fan_out")), talk("Q", "A"))


def test_no_pattern_takes_the_loss_of_a_stop_token() -> None:
    row = row_of(
        encoder_of("- {pattern: 'B.*', flags: [dotall], weight: 0}"), talk("Q", "A B c\nd")
    )
    assert runs(row)[-1][0].endswith("<|im_end|>")
    row = row_of(encoder_of("- {where: {region: stop}, weight: 0}"), talk("Q", "A"))
    assert runs(row) == [("A", 1.0)]
    assert reason_of(encoder_of("- {weight: 0}"), talk("Q", "A")) == "nothing_to_train"


def test_a_counted_zero_keeps_its_label() -> None:
    rule = "- {pattern: 'bb', weight: 0, count: true}"
    row = row_of(encoder_of(rule), talk("Q", "aa bb cc"))
    plain = row_of(encoder_of("- {pattern: 'bb', weight: 0}"), talk("Q", "aa bb cc"))
    assert row["loss_scale"] == plain["loss_scale"]
    counted = row["num_target_tokens"] - plain["num_target_tokens"]
    assert counted == sum(x != y for x, y in zip(row["labels"], plain["labels"], strict=True)) > 0
    batch = encoder_of(rule).encode(
        [Record(source="s", row=0, line=1, raw=json.dumps(talk("Q", "aa bb cc")).encode())]
    )
    assert batch.counts["counted_zeros"] == counted


def test_a_row_of_counted_zeros_trains_nothing() -> None:
    rule = "- {where: {region: [content, stop]}, weight: 0, count: true}"
    assert reason_of(encoder_of(rule), talk("Q", "A")) == "nothing_to_train"


def test_a_negative_weight_keeps_its_label() -> None:
    row = row_of(encoder_of("- {pattern: 'bb', weight: -0.5, negative: true}"), talk("Q", "aa bb"))
    assert min(row["loss_scale"]) == -0.5
    assert all(
        (w == 0) == (x == -100) for w, x in zip(row["loss_scale"], row["labels"], strict=True)
    )


def test_a_sample_weight_of_a_rule_counts_once() -> None:
    rule = "- {pattern: a, sample_weight: 0.5}"
    assert {w for _, w in runs(row_of(encoder_of(rule), talk("Q", "a a a")))} == {0.5}
    assert {w for _, w in runs(row_of(encoder_of(rule), talk("Q", "b")))} == {1.0}


def test_fields_of_the_record_decide_and_those_to_keep_stay_with_the_row() -> None:
    rule = "- {when: {row: {meta.lang: zh}}, sample_weight: 0.5}"
    encoder = encoder_of(rule, policy=Policy(keep=("meta.lang", "id", "absent")))
    value = talk("Q", "A", meta={"lang": "zh", "more": 1}, id=7)
    record = Record(source="s", row=0, line=1, raw=json.dumps(value).encode())
    (prepared,), _ = encoder.prepare([record])
    assert prepared.fields == '{"id":7,"meta.lang":"zh"}'
    assert {w for _, w in runs(row_of(encoder, value))} == {0.5}
    assert {w for _, w in runs(row_of(encoder, talk("Q", "A", meta={"lang": "en"})))} == {1.0}


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from("ab é中\n"), max_size=20),
    st.sampled_from(["a+", "b", " ", "é|中", r"\s+"]),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_split_edges_cut_where_weights_change_and_nowhere_else(
    said: str, pattern: str, weight: float
) -> None:
    """Reference: pieces of equal weight by character, each encoded on its own."""
    import regex

    rule = f"- {{pattern: '{pattern}', weight: {weight}, edge: split}}"
    value = talk("Q", said + "x")
    row = row_of(encoder_of(rule), value)
    head, tail = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
    weights = [1.0] * len(said + "x")
    for match in regex.finditer(pattern, said + "x"):
        weights[slice(*match.span())] = [weight] * (match.end() - match.start())
    weights = [1.0] * len(head) + weights + [1.0] * len(tail)
    text, start, pieces = head + said + "x" + tail, 0, []
    for _, run in itertools.groupby(weights):
        stop = start + len(list(run))
        pieces.append(text[start:stop])
        start = stop
    assert row["input_ids"] == [i for p in pieces for i in TOKENIZER.encode([p]).ids.tolist()]


@pytest.mark.parametrize("rules", [(), ("react",), ("hermes", "ignore_empty_think")])
def test_rules_without_split_edges_never_change_ids(rules: Sequence[str]) -> None:
    value = talk("Q", "<think>\n\n</think>\n\nAction: <tool_call>x</tool_call> Observation: y")
    plain = row_of(encoder_of(), value)
    for edge in ("majority", "any", "contained", "fraction"):
        assert (
            row_of(encoder_of(*rules, policy=Policy(edge=edge)), value)["input_ids"]
            == (plain["input_ids"])
        )


def test_a_token_across_two_sections_of_one_weight_is_weighed_once() -> None:
    row = row_of(encoder_of("react"), talk("Q", "Action:x\nAction Input:y"))
    assert {w for _, w in runs(row)} == {2.0, 1.0}  # 1 is the stop token's


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"loss_scale": 0.5}, [("A", 0.5), ("<|im_end|>\n", 1.0), ("B<|im_end|>\n", 1.0)]),
        ({"loss": False}, [("B<|im_end|>\n", 1.0)]),
    ],
)
def test_ms_swift_weighs_stop_tokens_on_their_own(
    value: dict[str, Any], said: list[tuple[str, float]]
) -> None:
    record = talk("Q", "A", "Q", "B")
    record["messages"][1] |= value
    assert runs(row_of(encoder_of(policy=SWIFT), record)) == said


def test_ms_swift_trains_no_stop_token_after_an_untrained_one_but_the_last() -> None:
    record = talk("Q", "Observation: x", "Q", "Observation: y")
    assert runs(row_of(encoder_of("react", policy=SWIFT), record)) == [
        ("Observation:", 2.0),
        ("Observation:", 2.0),
        ("<|im_end|>\n", 1.0),
    ]


def test_an_answer_of_white_space_is_an_answer() -> None:
    assert runs(row_of(encoder_of(), talk("Q", " "))) == [(" <|im_end|>", 1.0)]


@pytest.mark.parametrize("turns", ["fan_out", "last_turn"])
def test_weights_of_messages_after_a_cut_are_no_fault(turns: str) -> None:
    value = talk("Q", "A", "Q", "B")
    value["messages"][3]["weight"] = 2
    encoder = encoder_of(policy=Policy(turns=turns))
    record = Record(source="s", row=0, line=1, raw=json.dumps(value).encode())
    assert not encoder.encode([record]).rejects
    value["messages"].append({"role": "user", "content": "C", "weight": 0})
    assert row_of(encoder_of(policy=Policy(turns="last_turn")), value)["row"] == 0


def test_a_token_across_the_edges_of_two_equal_rules_is_cut() -> None:
    rules = (
        "- {pattern: e, weight: 2, edge: split}",
        "- {pattern: r, weight: 2, edge: split}",
    )
    row = row_of(encoder_of(*rules), talk("Q", "er in her or"))
    assert {weight for _, weight in runs(row)} == {1.0, 2.0}


def test_the_largest_weights_allowed_add_up_to_a_number() -> None:
    rules = [f"- {{pattern: 'x', weight: {w}}}" for w in (1000000, 1000000)]
    value = talk("Q", "x " * 500, weight=1_000_000)
    value["messages"][1]["content"] = [{"type": "text", "text": "x " * 500, "weight": 1_000_000}]
    value["messages"][1]["weight"] = 1_000_000
    row = row_of(encoder_of(*rules), value)
    assert 1e29 < row["weight_sum"] < 1e38


def test_weights_that_multiply_beyond_float32_are_refused() -> None:
    with pytest.raises(RuleError, match="multiply to 1e\\+18"):
        encoder_of(*["- {pattern: 'x', weight: 1000000}"] * 3)
