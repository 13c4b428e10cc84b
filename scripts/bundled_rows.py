"""Conversations in the written format of ``bundled/*.txt``, and the rows that are made of them.

A conversation is a run of ``::keyword text``; ``====`` stands between two. The rows take the forms
in which such data is met: think blocks in the text or in ``reasoning_content``, empty ones with all
kinds of blanks, arguments as objects or as JSON text, part lists. Forms are dealt out in turn.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

KEYWORD = re.compile(r"^::(system|tools|user|think|assistant|call|result)(?:[ \n]|$)", re.M)

# How a turn without reasoning says so; None leaves the block out, "" is an empty field.
EMPTY = (
    "<think>\n\n</think>\n\n",
    "<think>\n\n</think>\n\n",
    None,
    "<think>\n\n</think>\n\n",
    "<think>\n</think>\n\n",
    "<think>\n\n</think>\n\n",
    "",
    "<think></think>\n",
    "<think>\n\n</think>\n\n",
    None,
    "<think> \n\n </think>\n\n\n",
    "<think>\n\n</think>\n\n",
    "<think>\t\r\n</think>\n",
)
THOUGHT = (
    "<think>\n{}\n</think>\n\n",
    None,
    "<think>\n{}\n</think>\n\n",
    None,
    "<think>{}</think>\n",
)


@dataclass
class Turn:
    """One message as written: its calls are (name, arguments) pairs."""

    role: str
    text: str = ""
    thought: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)


@dataclass
class Written:
    """One conversation as written; *tools* are names from ``tools.json``."""

    turns: list[Turn]
    tools: list[str]


@dataclass
class Forms:
    """Endless rounds of forms; whoever takes the next moves the round on."""

    empty: Iterator[str | None] = field(default_factory=lambda: itertools.cycle(EMPTY))
    thought: Iterator[str | None] = field(default_factory=lambda: itertools.cycle(THOUGHT))
    parts: Iterator[bool] = field(default_factory=lambda: every(14))
    call: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    arguments_as_text: Iterator[bool] = field(default_factory=lambda: every(3))
    tools_as_text: Iterator[bool] = field(default_factory=lambda: every(11))
    ascii_only: Iterator[bool] = field(default_factory=lambda: every(9))


def every(period: int) -> Iterator[bool]:
    """True once in *period*, at its end."""
    return (turn % period == 0 for turn in itertools.count(1))


def parse(text: str) -> Written:
    """One conversation of the written format: ``::keyword text``, to the next keyword."""
    turns: list[Turn] = []
    tools: list[str] = []
    thought = ""
    marks = list(KEYWORD.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        keyword, body = mark[1], text[mark.end() : end].strip("\n")
        if keyword == "tools":
            tools = body.split()
        elif keyword == "think":
            thought = body
        elif keyword == "call":
            name, arguments = body.split(" ", 1)
            if turns[-1].role != "assistant":
                turns.append(Turn("assistant", thought=thought))
                thought = ""
            turns[-1].calls.append((name, json.loads(arguments)))
        else:
            role = "tool" if keyword == "result" else keyword
            turns.append(Turn(role, body, thought))
            thought = ""
    return Written(turns, tools)


def parse_all(text: str) -> list[Written]:
    return [parse(part) for part in re.split(r"^====\n", text, flags=re.M)]


def describe(names: list[str], known: dict[str, Any]) -> list[dict[str, Any]]:
    """Tool descriptions as requests to a chat model carry them."""
    return [{"type": "function", "function": {"name": name, **known[name]}} for name in names]


def assistant_message(turn: Turn, forms: Forms, *, arguments_as_text: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text}
    if turn.thought:
        form = next(forms.thought)
        if form is None:
            message["reasoning_content"] = turn.thought
        else:
            message["content"] = form.format(turn.thought) + turn.text
    else:
        empty = next(forms.empty)
        if empty == "":
            message["reasoning_content"] = ""
        elif empty is not None:
            message["content"] = empty + turn.text
    if turn.calls:
        message["content"] = message["content"] or None
        message["tool_calls"] = [
            {
                "id": f"call_{next(forms.call)}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": json.dumps(arguments, ensure_ascii=False)
                    if arguments_as_text
                    else arguments,
                },
            }
            for name, arguments in turn.calls
        ]
    return message


def in_parts(text: str) -> list[dict[str, str]]:
    """A text as a list of text parts, cut at its paragraphs."""
    return [{"type": "text", "text": part} for part in re.split(r"(?<=\n\n)", text) if part]


def record(written: Written, forms: Forms, known: dict[str, Any]) -> dict[str, Any]:
    """A row of the sample: ``messages``, and ``tools`` where it has some."""
    messages: list[dict[str, Any]] = []
    open_calls: list[dict[str, Any]] = []
    arguments_as_text = next(forms.arguments_as_text) if written.tools else False
    for turn in written.turns:
        if turn.role == "assistant":
            message = assistant_message(turn, forms, arguments_as_text=arguments_as_text)
            open_calls = list(message.get("tool_calls", ()))
        elif turn.role == "tool":
            message = {"role": "tool", "content": turn.text}
            if open_calls:
                call = open_calls.pop(0)
                message |= {"tool_call_id": call["id"], "name": call["function"]["name"]}
        else:
            message = {"role": turn.role, "content": turn.text}
            if turn.role == "user" and next(forms.parts):
                message["content"] = in_parts(turn.text)
        messages.append(message)
    row: dict[str, Any] = {"messages": messages}
    if written.tools:
        tools = describe(written.tools, known)
        as_text = next(forms.tools_as_text)
        row["tools"] = json.dumps(tools, ensure_ascii=False) if as_text else tools
    return row
