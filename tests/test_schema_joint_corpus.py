"""ms-swift's own records of tool talks, as Qwen3's template prints them."""

from __future__ import annotations

import datetime
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import load_template
from pipeline.schema import read_conversation
from pipeline.tokens.vocabulary import read_vocabulary


def hermes(messages: list[dict[str, Any]]) -> str:
    """Qwen's own format by hand, without thinking."""
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, text = message["role"], without_thinking(message["content"])
        side = {"tool_call": "assistant", "tool_response": "user"}.get(role, role)
        if side != role:
            text = f"<{role}>\n{text}\n</{role}>"
            if turns and turns[-1][0] == side:
                text = "\n".join(filter(None, (turns.pop()[1], text)))
        turns.append((side, text))
    return "".join(f"<|im_start|>{side}\n{text}<|im_end|>\n" for side, text in turns)


def without_thinking(text: str) -> str:
    return re.sub(r"<think>.*?</think>\s*", "", text, flags=re.DOTALL)


@pytest.mark.corpus
def test_tool_talks_read_as_qwens_own_format(shared: Path) -> None:
    vocabulary = read_vocabulary(shared / "tokenizers" / "qwen3")
    template = load_template(vocabulary, today=datetime.date(2026, 3, 14))
    path = shared / "oracle" / "conversations.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        talks = [r for r in map(json.loads, lines) if "tool_" in r["id"]]
    for talk in talks:
        text = template.render(read_conversation({**talk, "tools": None})).text
        assert without_thinking(text) == hermes(talk["messages"])
    assert len(talks) == 7
