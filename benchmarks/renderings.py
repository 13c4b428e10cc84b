"""Texts like ms-swift's: chat templates of tokenizers, its ChatML, its tool talks read back."""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.differences import Row
from pipeline.errors import RecordError
from pipeline.schema import read_conversation
from pipeline.template import Template
from pipeline.tokens.vocabulary import choose_template, read_vocabulary

_DAY = datetime.date(2026, 3, 14)
_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# ms-swift's ChatML: it merges neighbours of one role, leaves an empty system text out, gives an
# assistant that speaks first an empty question, and adds no stop token to an answer that ends with
# one. `prefix` and `history` are what its Qwen3 template does to thoughts, `ending` what 3.6.4
# leaves out at the end. A tool's result stands in the assistant's turn, as in its ReAct texts.
CHATML = r"""
{%- set asked = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message.role in ('user', 'tool') %}{% set asked.last = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- set system = default_system -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
{%- endif -%}
{%- if system %}{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
    {%- set before = messages[loop.index0 - 1].role if loop.index0 else '' -%}
    {%- set after = '' if loop.last else messages[loop.index0 + 1].role -%}
    {%- set content = message.content -%}
    {%- if message.role == 'user' -%}
        {%- if before != 'user' %}{{ '<|im_start|>user\n' }}{% endif -%}
        {{- content -}}
        {%- if after != 'user' %}{{ '<|im_end|>\n' }}{% endif -%}
    {%- elif message.role == 'tool' -%}
        {{- content -}}
    {%- elif message.role == 'assistant' -%}
        {%- if before not in ('user', 'assistant', 'tool') -%}
            {{- '<|im_start|>user\n<|im_end|>\n' -}}
        {%- endif -%}
        {%- if before not in ('assistant', 'tool') %}{{ '<|im_start|>assistant\n' }}{% endif -%}
        {%- if before != 'assistant' -%}
            {%- if (prefix == 'all' or prefix == 'last_round' and loop.index0 > asked.last)
                   and not content.startswith('<think>') -%}
                {%- set content = '<think>\n\n</think>\n\n' + content -%}
            {%- endif -%}
            {%- if history == 'stripped' and loop.index0 < asked.last -%}
                {%- set content = content.split('</think>')[-1].strip() -%}
            {%- endif -%}
        {%- endif -%}
        {{- content -}}
        {%- if loop.last -%}
            {%- if not (ending and content.endswith('<|im_end|>')) -%}
                {{- '<|im_end|>' + ending -}}
            {%- endif -%}
        {%- elif after not in ('assistant', 'tool') -%}
            {{- '<|im_end|>\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if not messages or messages[-1].role == 'system' -%}
        {{- '<|im_start|>user\n<|im_end|>\n' -}}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A chat template with its variables, and the texts it gives by conversation."""

    name: str
    template: Template
    own: bool
    texts: Mapping[str, str]


def make_renderings(
    conversations: Mapping[str, dict[str, Any]], tokenizers: Path
) -> list[Rendering]:
    """The tokenizers' own templates first, as those are what users have."""
    qwen3, qwen2 = (
        choose_template(read_vocabulary(tokenizers / name)) for name in ("qwen3", "qwen2.5")
    )
    sources: list[tuple[str, str, dict[str, Any]]] = [
        ("qwen3", qwen3, {}),
        ("qwen3 enable_thinking=false", qwen3, {"enable_thinking": False}),
        ("qwen2.5", qwen2, {}),
    ]
    own = len(sources)
    for system, prefix, history, ending in itertools.product(
        ("", _SYSTEM), ("", "all", "last_round"), ("", "stripped"), ("\n", "")
    ):
        words = ["system" * bool(system), prefix and f"prefix {prefix}", history]
        words.append("" if ending else "no last newline")
        variables = {
            "default_system": system,
            "prefix": prefix,
            "history": history,
            "ending": ending,
        }
        sources.append((" ".join(["chatml", *filter(None, words)]), CHATML, variables))
    renderings = []
    for index, (name, source, variables) in enumerate(sources):
        template = Template(source, variables=variables, today=_DAY)
        texts = dict(_texts(template, conversations))
        renderings.append(Rendering(name, template, index < own, texts))
    return renderings


def _texts(
    template: Template, conversations: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    for key, record in conversations.items():
        try:
            yield key, template.render(read_conversation(record, schema="messages")).text
        except RecordError:
            continue


def choose(
    row: Row, record: dict[str, Any], renderings: Sequence[Rendering]
) -> tuple[int, dict[str, Any]]:
    """The first rendering that gives the row's text, or -1, and the record that it renders."""
    for index, rendering in enumerate(renderings):
        if rendering.texts.get(row.id) == row.text:
            return index, record
    if any(message["role"] == "tool_call" for message in record["messages"]):
        record = as_written(record, row.text)
        for index, rendering in enumerate(renderings):
            if not rendering.own and dict(_texts(rendering.template, {"": record}))[""] == row.text:
                return index, record
    return -1, record


def as_written(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A talk with calls as ms-swift's agent format wrote it, read back from its own text.

    It writes calls and results into the assistant's turn; a result there runs to the end of its
    line, or to the next result.
    """
    given = record["messages"]
    loss = {"loss": False} if any(m.get("loss") is False for m in given) else {}
    messages: list[dict[str, Any]] = []
    talks = [
        [m["content"] for m in group]
        for role, group in itertools.groupby(given, key=lambda m: m["role"])
        if role == "tool_response"
    ]
    for role, body in re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL):
        start = 0
        while role == "assistant" and talks:
            results = r"(?:\n\S+:)?".join(map(re.escape, talks[0]))
            found = re.compile(rf":({results}\n?)").search(body, start)
            if found is None:
                break
            messages.append({"role": role, "content": body[start : found.start(1)], **loss})
            messages.append({"role": "tool", "content": found[1]})
            start, talks, loss = found.end(), talks[1:], {}
        messages.append({"role": role, "content": body[start:]})
    return {"messages": messages}
