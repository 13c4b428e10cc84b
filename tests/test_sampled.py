"""Ids that a model sampled: they stand in the row as they came, with the weights they came with."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import build, cli, reweight, show
from pipeline.batch import Encoder
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED
from pipeline.rules import compose, load_rules, parse_rule_file
from pipeline.show import explain_record
from pipeline.source.record import Record
from pipeline.template import Template
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary
from tests import vocabularies
from tests.test_show import CHAT, write_tokenizer

DAY = datetime.date(2026, 3, 14)
VOCABULARY = read_vocabulary(BUNDLED / "tokenizer")
TOKENIZER: Tokenizer = load_tokenizer(VOCABULARY)
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ WHAT }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def printing(what: str) -> str:
    """A template that prints *what* of each message."""
    return TEMPLATE.replace("WHAT", what) + PROMPT


CHATML = printing("m.content")
USER = {"role": "user", "content": "q"}
STOP = TOKENIZER.control_tokens["<|im_end|>"]
HEAD = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def ids_of(*pieces: str) -> list[int]:
    """Each piece tokenized apart: seldom what the whole would give."""
    return [int(id_) for piece in pieces for id_ in TOKENIZER.encode([piece]).ids]


def encoder_of(
    source: str = CHATML, *, rules: Sequence[str] = (), rule: str = "", **policy: Any
) -> Encoder:
    template = Template(source, variables=VOCABULARY.special_tokens, today=DAY)
    chosen = compose([parse_rule_file(rule, place="t", name="t")]) if rule else load_rules(rules)
    return Encoder(TOKENIZER, template, chosen, policy=Policy(**policy))


def answer(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def record(*messages: Any) -> Record:
    raw = json.dumps({"messages": list(messages)}).encode()
    return Record(source="s", row=0, line=1, raw=raw)


def row_of(encoder: Encoder, *messages: Any) -> dict[str, Any]:
    batch = encoder.encode([record(*messages)])
    assert not batch.rejects, batch.rejects[0].message
    row: dict[str, Any] = batch.rows.to_pylist()[-1]
    return row


def fault_of(encoder: Encoder, *messages: Any) -> tuple[str, str]:
    (found,) = encoder.encode([record(*messages)]).rejects
    return found.reason, found.field


def between(row: dict[str, Any], head: Sequence[int], tail: Sequence[int]) -> slice:
    """The tokens between those of *head* and of *tail*, both of which must be there."""
    ids = row["input_ids"]
    assert ids[: len(head)] == list(head)
    assert ids[len(ids) - len(tail) :] == list(tail)
    return slice(len(head), len(ids) - len(tail))


END = ids_of("<|im_end|>\n")


def test_the_ids_that_were_sampled_train_whatever_the_text_would_give() -> None:
    sampled = ids_of("h", "e", "l", "lo", " ", "wor", "ld")
    row = row_of(encoder_of(), USER, answer({"token_ids": sampled}))
    here = between(row, ids_of(HEAD), END)
    assert row["input_ids"][here] == sampled != ids_of("hello world")
    assert row["labels"][here] == sampled
    assert row["loss_scale"][here] == [1.0] * len(sampled)
    assert row["labels"][here.stop] == STOP, "the template's stop token trains as ever"


def test_each_id_has_the_weight_that_came_with_it() -> None:
    sampled = ids_of("h", "i", "!", "?")
    content = {"token_ids": sampled, "loss_scale": [0, 0.5, 1, 2.5]}
    row = row_of(encoder_of(), USER, answer(content))
    here = between(row, ids_of(HEAD), END)
    assert row["loss_scale"][here] == [0.0, 0.5, 1.0, 2.5]
    assert row["labels"][here] == [-100, *sampled[1:]]
    assert row["loss_scale"][here.stop] == 1.0


@pytest.mark.parametrize("edge", ["majority", "any", "contained", "fraction", "split"])
def test_rules_read_the_text_and_multiply(edge: str) -> None:
    rule = f"""
version: 1
name: t
summary: s
why: w
rules:
  - pattern: 'b+'
    weight: 3
    edge: {edge}
examples: ['a⟦bb⟧', 'a']
"""
    content = {"token_ids": ids_of("a", "b", "b", "c"), "loss_scale": [1, 0.5, 0, 2]}
    row = row_of(encoder_of(rule=rule), USER, answer(content))
    here = between(row, ids_of(HEAD), END)
    assert row["input_ids"][here] == ids_of("a", "b", "b", "c")
    assert row["loss_scale"][here] == [1.0, 1.5, 0.0, 2.0]


def test_no_rule_cuts_a_sampled_token() -> None:
    rule = """
version: 1
name: t
summary: s
why: w
rules:
  - pattern: 'the'
    weight: 0
    edge: split
examples: ['⟦the⟧re', 'a']
"""
    (whole,) = ids_of(" there")
    row = row_of(encoder_of(rule=rule), USER, answer({"token_ids": [whole]}))
    assert row["input_ids"][between(row, ids_of(HEAD), END)] == [whole]
    text = row_of(encoder_of(rule=rule), USER, answer(" there"))
    assert whole not in text["input_ids"], "where the text came as text it is cut"


def test_a_messages_weight_multiplies_those_of_its_ids() -> None:
    content = {"token_ids": ids_of("a", "b"), "loss_scale": [0.5, 1]}
    row = row_of(encoder_of(), USER, answer(content, loss_scale=4))
    assert row["loss_scale"][between(row, ids_of(HEAD), END)] == [2.0, 4.0]


def test_texts_and_ids_take_turns() -> None:
    content = [
        {"type": "text", "text": "he", "weight": 0.5},
        {"token_ids": ids_of("l", "l"), "loss_scale": [1, 0]},
        ids_of("o"),
        " world",
    ]
    row = row_of(encoder_of(), USER, answer(content))
    here = between(row, ids_of(HEAD), END)
    assert row["input_ids"][here] == [*ids_of("he"), *ids_of("l", "l", "o"), *ids_of(" world")]
    weights = [0.5] * len(ids_of("he")) + [1.0, 0.0, 1.0] + [1.0] * len(ids_of(" world"))
    assert row["loss_scale"][here] == weights


def test_ids_of_others_stay_and_do_not_train() -> None:
    asked = {"role": "user", "content": {"token_ids": ids_of("h", "i")}}
    row = row_of(encoder_of(), asked, answer("a"))
    head = ids_of("<|im_start|>user\n")
    assert row["input_ids"][: len(head) + 2] == [*head, *ids_of("h", "i")]
    assert row["num_target_tokens"] == len(ids_of("a")) + 1


def test_weights_of_others_ids_are_refused_but_where_all_trains() -> None:
    asked = {"role": "user", "content": {"token_ids": ids_of("h", "i"), "loss_scale": [0, 0.5]}}
    assert fault_of(encoder_of(), asked, answer("a")) == ("unsupported_weight", "messages[0]")
    row = row_of(encoder_of(rules=["all"]), asked, answer("a"))
    head = len(ids_of("<|im_start|>user\n"))
    assert row["loss_scale"][head - 1 : head + 3] == [1.0, 0.0, 0.5, 1.0]


def test_a_stop_token_that_was_sampled_is_the_one_that_the_template_writes() -> None:
    sampled = [*ids_of("a", "b"), STOP]
    content = {"token_ids": sampled, "loss_scale": [1, 2, 3]}
    row = row_of(encoder_of(), USER, answer(content))
    here = between(row, ids_of(HEAD), ids_of("\n"))
    assert row["input_ids"][here] == sampled
    assert row["loss_scale"][here] == [1.0, 2.0, 3.0]


def test_another_control_token_at_the_end_is_content() -> None:
    other = next(id_ for t, id_ in TOKENIZER.control_tokens.items() if t == "<|im_start|>")
    row = row_of(encoder_of(), USER, answer([*ids_of("a"), other]))
    assert row["labels"][between(row, ids_of(HEAD), ids_of("\n"))] == [*ids_of("a"), other, STOP]


def test_a_stop_token_that_the_template_does_not_write_is_refused() -> None:
    end = TOKENIZER.control_tokens["<|endoftext|>"]
    source = CHATML.replace("<|im_end|>", "<|im_start|>")
    reason = fault_of(encoder_of(), USER, answer([*ids_of("a"), end]))[0]
    assert reason == "stop_token_differs"
    assert fault_of(encoder_of(source), USER, answer([*ids_of("a"), end]))[0] == reason


@pytest.mark.parametrize("control_tokens", ["text", "reject", "allow"])
def test_control_tokens_inside_ids_stay_what_was_sampled(control_tokens: str) -> None:
    sampled = [*ids_of("a"), STOP, *ids_of("\nb", "<", "|im", "_end|>", "c")]
    row = row_of(encoder_of(control_tokens=control_tokens), USER, answer({"token_ids": sampled}))
    here = between(row, ids_of(HEAD), END)
    assert row["input_ids"][here] == sampled
    assert row["labels"][here] == sampled, "the turn does not end inside of its content"


@pytest.mark.parametrize(
    "printed",
    [
        "m.content | trim",
        "m.content | upper",
        "m.content.replace('c', '')",
        "m.content ~ m.content",
        "'' if m.role == 'assistant' else m.content",
    ],
)
def test_a_template_that_edits_them_is_refused(printed: str) -> None:
    content = {"token_ids": ids_of(" a", "bc", "d")}
    fault = fault_of(encoder_of(printing(printed)), USER, answer(content))
    assert fault == ("token_ids_edited", "messages[1].content.token_ids")


def test_a_template_may_take_thinking_apart_if_it_writes_the_same_again() -> None:
    source = printing(
        "m.content if '</think>' not in m.content else '<think>\\n' "
        "~ m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') "
        "~ '\\n</think>\\n\\n' ~ m.content.split('</think>')[-1].lstrip('\\n')"
    )
    sampled = ids_of("<think>", "\n", "h", "m", "\n", "</think>", "\n", "\n", "o", "k")
    row = row_of(encoder_of(source), USER, answer(sampled))
    assert row["input_ids"][between(row, ids_of(HEAD), END)] == sampled
    other = ids_of("<think>", "h", "m", "</think>", "o", "k")
    assert fault_of(encoder_of(source), USER, answer(other))[0] == "token_ids_edited"


def test_equal_ids_of_several_messages_each_have_their_place() -> None:
    one, other = ids_of("a", "a", "a"), ids_of("a", "aa")
    row = row_of(encoder_of(), USER, answer(one), USER, answer(other))
    middle = ids_of("<|im_end|>\n" + HEAD)
    assert row["input_ids"] == [*ids_of(HEAD), *one, *middle, *other, *END]


@pytest.mark.parametrize("turns", ["fan_out", "last_turn"])
def test_rows_of_one_turn_have_the_ids_of_all(turns: str) -> None:
    one, other = ids_of("h", "i"), ids_of("y", "o")
    row = row_of(encoder_of(turns=turns), USER, answer(one), USER, answer(other))
    middle = ids_of("<|im_end|>\n" + HEAD)
    assert row["input_ids"] == [*ids_of(HEAD), *one, *middle, *other, *END]
    assert row["num_target_tokens"] == len(other) + 1


PARROT = ids_of("🦜")


def test_ids_that_end_inside_a_character_are_refused() -> None:
    assert len(PARROT) > 1
    for broken in (PARROT[:-1], PARROT[1:], [*PARROT[:-1], *ids_of("a")]):
        fault = fault_of(encoder_of(), USER, answer({"token_ids": broken}))
        assert fault == ("broken_token_ids", "messages[1].content.token_ids")


def test_runs_that_touch_may_share_a_character() -> None:
    content = [{"token_ids": PARROT[:1]}, {"token_ids": PARROT[1:]}]
    row = row_of(encoder_of(), USER, answer(content))
    assert row["input_ids"][between(row, ids_of(HEAD), END)] == PARROT


def test_tokens_of_one_character_weigh_the_same() -> None:
    rest = [0.25] * (len(PARROT) - 1)
    content = {"token_ids": PARROT, "loss_scale": [0.25, *rest]}
    row = row_of(encoder_of(), USER, answer(content))
    assert row["loss_scale"][between(row, ids_of(HEAD), END)] == [0.25, *rest]
    content["loss_scale"] = [0.5, *rest]
    fault = fault_of(encoder_of(), USER, answer(content))
    assert fault == ("weights_split_character", "messages[1].content.token_ids")


def test_an_id_that_the_tokenizer_has_not_is_refused_where_it_stands() -> None:
    for content, field in (
        ({"token_ids": [1, TOKENIZER.size]}, "content.token_ids[1]"),
        ([[1], "a", [TOKENIZER.size]], "content[2][0]"),
    ):
        fault = fault_of(encoder_of(), USER, answer(content))
        assert fault == ("unknown_token_ids", f"messages[1].{field}")


def test_without_ids_an_answer_is_empty() -> None:
    row = row_of(encoder_of(), USER, answer({"token_ids": []}))
    assert row["input_ids"] == ids_of(HEAD) + END
    assert row["num_target_tokens"] == 1


def test_records_with_and_without_ids_share_a_batch() -> None:
    sampled = ids_of("h", "i")
    talks = [
        [USER, answer("hi")],
        [USER, answer(sampled)],
        [USER, answer("")],
        [USER, answer([PARROT])],
    ]
    encoder = encoder_of()
    together = encoder.encode([record(*talk) for talk in talks]).rows.to_pylist()
    assert together == [row_of(encoder, *talk) for talk in talks]


def test_show_tells_their_weights() -> None:
    content = {"token_ids": ids_of("h", "i"), "loss_scale": [0.5, 1]}
    explanation = explain_record(record(USER, answer(content)), encoder_of())
    told = {t.piece: (t.weight, t.why) for t in explanation.tokens if t.region == "content"}
    assert told == {b"h": (0.5, "assistant, own weight ×0.5"), b"i": (1.0, "assistant")}


def test_a_build_and_its_source_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(record(USER, answer({"token_ids": ids_of("h", "i")})).raw or b"")
    flags = ["--input", str(path), "--tokenizer", str(BUNDLED / "tokenizer")]
    assert cli.run(build.main, [*flags, "--output", str(tmp_path / "out"), "--workers", "1"]) == 0
    (shard,) = (tmp_path / "out").glob("*.parquet")
    (row,) = pq.read_table(shard).to_pylist()
    assert row["input_ids"][-len(END) - 2 :] == [*ids_of("h", "i"), *END]
    capsys.readouterr()
    assert cli.run(show.main, [str(path), *flags[2:]]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    pieces = [line[2] for line in shown if "content" in line]
    assert pieces == ["h", "i"]


@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}])
def test_reweighted_rows_keep_their_ids_and_own_weights(
    normalizer: dict[str, str] | None, tmp_path: Path
) -> None:
    """Where the tokenizer normalizes, the text of a decomposed question is stored beside."""
    folder = write_tokenizer(tmp_path / "tokenizer", CHAT, normalizer=normalizer)
    tokenizer = load_tokenizer(read_vocabulary(folder))
    pieces = ("P", "aris", " ", "is", "e", "🦜", "!")
    sampled = [int(id_) for piece in pieces for id_ in tokenizer.encode([piece]).ids]
    content = {"token_ids": sampled, "loss_scale": [0.5, *[2.0] * (len(sampled) - 2), 0.25]}
    (path := tmp_path / "in.jsonl").write_bytes(
        b"\n".join(
            record({"role": "user", "content": question}, answer(content)).raw or b""
            for question in ("Paris", "e\u0301 Paris e\u0301")
        )
    )
    (rule := tmp_path / "t.yaml").write_text(
        "{version: 1, name: t, rules: [{pattern: is, weight: 3}]}"
    )

    def run(main: Any, *flags: Any) -> list[dict[str, Any]]:
        argv = [*map(str, flags), "--tokenizer", folder, "--workers", "1", "--quiet"]
        assert cli.run(main, argv) == 0
        output = Path(argv[argv.index("--output") + 1])
        return [r for shard in output.glob("*.parquet") for r in pq.read_table(shard).to_pylist()]

    plain = run(build.main, "--input", path, "--output", tmp_path / "plain")
    fresh = run(build.main, "--input", path, "--output", tmp_path / "fresh", "--rules", rule)
    again = run(reweight.main, tmp_path / "plain", "--rules", rule, "--output", tmp_path / "again")
    assert again == fresh != plain
    assert [row["text"] is None for row in fresh] == [True, normalizer is None]
    for row in fresh:
        found = [i for i in range(row["length"]) if row["input_ids"][i:][: len(sampled)] == sampled]
        assert len(found) == 1


def test_ms_swifts_rules_do_not_read_ids() -> None:
    sampled = ids_of("<think>", "\n\n", "</think>", "\n\n", "a")
    talk = (USER, answer(sampled))
    rule = ["ignore_empty_think"]
    ours = row_of(encoder_of(rules=rule), *talk)
    theirs = row_of(encoder_of(rules=rule, profile="ms-swift", edge="split"), *talk)
    here = slice(len(ids_of(HEAD)), len(ids_of(HEAD)) + len(sampled))
    assert ours["loss_scale"][here] == [0.0] * (len(sampled) - 1) + [1.0]
    assert theirs["loss_scale"][here] == [1.0] * len(sampled)


weight = st.sampled_from([0.0, 0.25, 1.0, 2.0])
printable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)


@given(st.lists(st.tuples(printable, weight), min_size=1, max_size=8))
def test_any_ids_stand_in_the_row_exactly(drawn: list[tuple[str, float]]) -> None:
    tokens = [(id_, w) for piece, w in drawn for id_ in ids_of(piece)]
    sampled, weights = map(list, zip(*tokens, strict=True))
    if sampled[-1] in TOKENIZER.control_contents:
        sampled, weights = [*sampled, *ids_of(".")], [*weights, 1.0]
    content = {"token_ids": sampled, "loss_scale": weights}
    row = row_of(encoder_of(), USER, answer(content))
    here = between(row, ids_of(HEAD), END)
    assert row["input_ids"][here] == sampled
    assert row["loss_scale"][here] == weights
    assert row["labels"][here] == [
        id_ if w else -100 for id_, w in zip(sampled, weights, strict=True)
    ]


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_ids_spell_what_the_reference_decodes_or_are_refused(kind: str, tmp_path: Path) -> None:
    vocabularies.write(tmp_path, vocabularies.KINDS[kind]())
    tokenizer = load_tokenizer(read_vocabulary(tmp_path), engine="reference")
    for text in ("Hello world, they'll see", "naïve café", "a\n\nb"):
        ids = tokenizer.encode([text]).ids
        raw, widths = tokenizer.spell(ids)
        if widths.all():
            assert (raw.decode(), int(widths.sum())) == (text, len(raw))
        else:
            assert kind not in ("byte_level", "byte_fallback")
