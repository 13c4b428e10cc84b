"""The bundled sample, tokenizer and template: made by a script, small, valid, and as described."""

from __future__ import annotations

import datetime
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastokens  # type: ignore[import-untyped] # has no py.typed
import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from tests.reference import plain_template

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "pipeline" / "bundled"
FOLDER = BUNDLED / "tokenizer"
MADE = ("sample.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")

Render = Callable[..., str]


@pytest.fixture(scope="module")
def render() -> Render:
    """The bundled template through plain Jinja."""
    source = (FOLDER / "chat_template.jinja").read_text(encoding="utf-8")
    compiled = plain_template(source, datetime.date(2024, 1, 1))

    def rendered(messages: list[dict[str, Any]], tools: Any = None, **variables: Any) -> str:
        variables = {"add_generation_prompt": False, "documents": None, **variables}
        return compiled.render(messages=messages, tools=tools, **variables)

    return rendered


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The sample, its tools decoded where a row has them as JSON text."""
    lines = (BUNDLED / "sample.jsonl").read_bytes().splitlines()
    found = [json.loads(line) for line in lines]
    for row in found:
        if isinstance(row.get("tools"), str):
            row["tools"] = json.loads(row["tools"])
    return found


@pytest.fixture(scope="module")
def texts(rows: list[dict[str, Any]], render: Render) -> list[str]:
    return [render(row["messages"], row.get("tools")) for row in rows]


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def fast() -> Any:
    return fastokens.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def fast_ids(fast: Any, texts: list[str]) -> list[list[int]]:
    ids, offsets = fast.encode_batch_flat(texts)
    flat, ends = np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.uint64).astype(int)
    return [flat[a:b].tolist() for a, b in itertools.pairwise(ends)]


def test_the_script_writes_the_same_bytes_again(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "make_bundled.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, capture_output=True)
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (BUNDLED / name).read_bytes(), name


def test_sample_and_tokenizer_are_under_2_mb_together() -> None:
    files = [BUNDLED / "sample.jsonl", *FOLDER.iterdir()]
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_every_message_is_well_formed(rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        offered = {tool["function"]["name"] for tool in row.get("tools") or []}
        messages = row["messages"]
        assert messages[-1]["role"] == "assistant", number
        for message in messages:
            assert message["role"] in {"system", "user", "assistant", "tool"}, number
            calls = message.get("tool_calls", [])
            content = message["content"]
            if isinstance(content, list):
                assert all(part["type"] == "text" and part["text"] for part in content), number
            else:
                assert (isinstance(content, str) and content) or calls, number
            for call in calls:
                arguments = call["function"]["arguments"]
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
                assert isinstance(arguments, dict), number
                assert call["function"]["name"] in offered, number


def test_every_call_has_its_result(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        asked = [call["id"] for m in row["messages"] for call in m.get("tool_calls", [])]
        answered = [m["tool_call_id"] for m in row["messages"] if "tool_call_id" in m]
        assert asked == answered


def test_no_conversation_comes_twice(texts: list[str]) -> None:
    assert len(set(texts)) == len(texts)


def test_every_conversation_renders_with_all_its_turns(
    rows: list[dict[str, Any]], texts: list[str]
) -> None:
    for row, text in zip(rows, texts, strict=True):
        roles = [message["role"] for message in row["messages"]]
        turns = len(re.sub(r"t+", "t", "".join(role[0] for role in roles)))
        turns += bool(row.get("tools")) and roles[0] != "system"
        assert text.count("<|im_start|>") == text.count("<|im_end|>\n") == turns
        assert text.endswith("<|im_end|>\n")


def test_empty_and_real_reasoning_both_abound(texts: list[str]) -> None:
    empty = sum(len(re.findall(r"<think>\s*</think>\s*", text)) for text in texts)
    every = sum(text.count("<think>") for text in texts)
    assert empty >= 200
    assert every - empty >= 100


def test_the_config_names_the_tokens_that_the_tokenizer_has(reference: Tokenizer) -> None:
    config = json.loads((FOLDER / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "chat_template" not in config
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        None,
        "<|im_end|>",
        "<|endoftext|>",
    )
    added = reference.get_added_tokens_decoder()
    assert {
        int(key): value["content"] for key, value in config["added_tokens_decoder"].items()
    } == {key: token.content for key, token in added.items()}
    assert {token.content for token in added.values() if token.special} == {
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    }


def test_the_vocabulary_is_dense_and_has_all_256_bytes(reference: Tokenizer) -> None:
    vocabulary = reference.get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert 4000 <= len(vocabulary) <= 8000
    assert len(set(pre_tokenizers.ByteLevel.alphabet()) & set(vocabulary)) == 256


def test_every_utf_8_byte_round_trips_in_both_engines(reference: Tokenizer, fast: Any) -> None:
    points = [*range(0x800), *range(0x800, 0xD800, 41), *range(0xE000, 0x110000, 997)]
    assert len({byte for point in points for byte in chr(point).encode()}) == 256 - 13
    ids = fast_ids(fast, [chr(point) for point in points])
    for point, found in zip(points, ids, strict=True):
        assert found == reference.encode(chr(point)).ids
        assert reference.decode(found, skip_special_tokens=False) == chr(point)
        assert fast.decode(found) == chr(point)


def test_line_breaks_join_the_mark_before_them(reference: Tokenizer) -> None:
    assert reference.encode("Yes.\n\nNo").tokens[-2:] == [".ĊĊ", "No"]
    assert reference.encode("</think>\n\nNo").tokens == ["</think>", "ĊĊ", "No"]


def test_both_engines_agree_on_the_sample(
    texts: list[str], reference: Tokenizer, fast: Any
) -> None:
    for text, ids in zip(texts, fast_ids(fast, texts), strict=True):
        assert ids == reference.encode(text).ids
        assert reference.decode(ids, skip_special_tokens=False) == text


MARKERS = st.sampled_from(["<think>", "</think>", "<|im_end|>", "<|im_", "<tool_call", ">"])
BLANKS = st.sampled_from([" ", "  ", "\t", "\n\n", ".\n", "\r\n", "\u180e", "\u3000", "\x85"])
LETTERS = st.sampled_from(["'s", "12", "é", "e\u0301", "ſ", "你好。", "ब", "ि", "👩🏻\u200d🚀"])
ANYTHING = st.lists(MARKERS | BLANKS | LETTERS | st.text(max_size=3), max_size=25).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=ANYTHING)
def test_both_engines_agree_on_anything(reference: Tokenizer, fast: Any, text: str) -> None:
    ids = reference.encode(text).ids
    assert fast_ids(fast, [text]) == [ids]
    assert reference.decode(ids, skip_special_tokens=False) == text


USER, END = "<|im_start|>user\n", "<|im_end|>\n"
ASSISTANT, EMPTY = "<|im_start|>assistant\n", "<think>\n\n</think>\n\n"
HI = {"role": "user", "content": "Hi"}


def said(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def called(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


ONE_CALL = '<tool_call>\n{"name": "f", "arguments": {"x": null}}\n</tool_call>'
TWO_CALLS = said(None, tool_calls=[called("f", {"x": None}), called("f", '{"x": 1.50}')])
BOTH_CALLED = ONE_CALL + '\n<tool_call>\n{"name": "f", "arguments": {"x": 1.50}}\n</tool_call>'
RESULTS = [{"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}]
ANSWERED = f"{USER}<tool_response>\na\n</tool_response>\n<tool_response>\nb\n</tool_response>{END}"
THOUGHT = f"{ASSISTANT}<think>\nHm.\n</think>\n\nYo{END}"

EXPECTED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a last turn without reasoning gets an empty block": (
        [HI, said("Yo")],
        f"{USER}Hi{END}{ASSISTANT}{EMPTY}Yo{END}",
    ),
    "an empty block in the text is written once": (
        [HI, said("<think> \t\r\n</think>\nYo")],
        f"{USER}Hi{END}{ASSISTANT}{EMPTY}Yo{END}",
    ),
    "reasoning in the text": ([HI, said("<think>Hm.</think>Yo")], f"{USER}Hi{END}{THOUGHT}"),
    "reasoning in its field": (
        [HI, said(EMPTY + "Yo", reasoning_content="Hm.")],
        f"{USER}Hi{END}{THOUGHT}",
    ),
    "the history shows no reasoning": (
        [HI, said("<think>\nHm.\n</think>\n\nYo"), HI, said("Ha")],
        f"{USER}Hi{END}{ASSISTANT}Yo{END}{USER}Hi{END}{ASSISTANT}{EMPTY}Ha{END}",
    ),
    "tool results neither end the turn nor share one each": (
        [HI, TWO_CALLS | {"reasoning_content": "Hm."}, *RESULTS, said("Yo")],
        f"{USER}Hi{END}{ASSISTANT}<think>\nHm.\n</think>\n\n{BOTH_CALLED}{END}{ANSWERED}"
        f"{ASSISTANT}{EMPTY}Yo{END}",
    ),
    "a middle turn without reasoning has no block": (
        [HI, TWO_CALLS, *RESULTS, said("Yo")],
        f"{USER}Hi{END}{ASSISTANT}{BOTH_CALLED}{END}{ANSWERED}{ASSISTANT}{EMPTY}Yo{END}",
    ),
    "a call after text starts a line": (
        [HI, said("Look:", tool_calls=[called("f", {"x": None})])],
        f"{USER}Hi{END}{ASSISTANT}{EMPTY}Look:\n{ONE_CALL}{END}",
    ),
    "a user turn that is a tool response does not begin the history": (
        [HI, said("<think>Hm.</think>Yo"), {"role": "user", "content": "<tool_response>\n7"}],
        f"{USER}Hi{END}{THOUGHT}{USER}<tool_response>\n7{END}",
    ),
    "text parts are joined": (
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("H", "i")]}],
        f"{USER}Hi{END}",
    ),
    "reasoning that is only mentioned stays": (
        [HI, said("Use <think> and </think>.")],
        f"{USER}Hi{END}{ASSISTANT}{EMPTY}Use <think> and </think>.{END}",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_template_writes_exactly(name: str, render: Render) -> None:
    messages, expected = EXPECTED[name]
    assert render(messages) == expected


def test_tools_join_the_system_turn(render: Render) -> None:
    tools = [{"type": "function", "function": {"name": "f", "é": [1.0, None, True]}}]
    system = {"role": "system", "content": "Be brief."}
    text = render([system, HI], tools)
    described = '\n{"type": "function", "function": {"name": "f", "é": [1.0, null, true]}}\n'
    assert text.startswith("<|im_start|>system\nBe brief.\n\nThese functions")
    assert described in text.partition(END)[0]
    assert text.count("Be brief.") == 1
    assert render([HI], tools) == text.replace("Be brief.\n\n", "")
    assert render([system, HI], []) == f"<|im_start|>system\nBe brief.{END}{USER}Hi{END}"


def test_the_prompt_is_a_header_and_without_thinking_an_empty_block(render: Render) -> None:
    prompted = f"{USER}Hi{END}{ASSISTANT}"
    assert render([HI], add_generation_prompt=True) == prompted
    assert render([HI], add_generation_prompt=True, enable_thinking=True) == prompted
    assert render([HI], add_generation_prompt=True, enable_thinking=False) == prompted + EMPTY


@pytest.mark.parametrize(
    "message",
    [{"role": "narrator", "content": "x"}, {"role": "user", "content": [{"type": "image"}]}],
)
def test_what_cannot_be_rendered_is_refused(message: dict[str, Any], render: Render) -> None:
    with pytest.raises(jinja2.TemplateError, match=r"unknown role|only text parts"):
        render([message])
