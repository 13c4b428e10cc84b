"""Inputs that are nearly right: conversations, rule files, and edited bytes of real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.fuzz_choices import Choices, once_in, pick

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>")
# White space and controls, combining marks, right-to-left, joined emoji, a letter of each plane,
# what NFC changes, noncharacters; lone surrogates, which only JSON's escapes can write.
LETTERS = (
    *("a", "b", " ", "\n", "\t", "\r", "\0", "\x0b", "\x1b", "\x7f", "\x85", "\u2028", "\ufeff"),
    *("é", "e\u0301", "ß", "İ", "\u0958", "ﬁ", "한", "\u1100\u1161", "你", "〇", "مرحبا", "שלום"),
    *("\u202e", "\u200d", "👩\u200d👩\u200d👧", "😀", "\U00010000", "\U0001f1e6", "\U00020000"),
    *("\U000e0001", "\U000f0000", "\U0010ffff", "\ufffe", "\ufdd0", "\ud800", "\udfff"),
)
PIECES = (
    *("", "Yes.", "Hello, world", "1+1=2", "0.05", "It's", "aaaaaaaa", "  ", "\n\n", "{}", "[]"),
    *("<think>\n\n</think>\n\n", "<think>\nHm.\n</think>\n\n", "<think>", "<tool_response>"),
    *("assistant\n", "user\n", "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>user\n"),
    *("Thought: x\nAction: y\nAction Input: {}\nObservation: z\nFinal Answer: 1", "```py\n1\n```"),
    *('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', '{"a": [1, {"b": null}]}'),
    *("{{ x }}", "{% raw %}", "<image>", "<audio>", "\\", '"', "'", "⟦", "⟧", "✿FUNCTION✿", "$"),
)
ROLES = (
    *("user", "assistant", "user", "assistant", "user", "assistant", "system", "tool", "gpt"),
    *("human", "developer", "function_call", "tool_call", "tool_response", "observation", "model"),
    *("", "Assistant", "ipython", " user"),
)
NUMBERS = (
    *("0", "1", "-1", "0.5", "2", "1e-7", "1e6", "1000001", "-0.0", "1e400", "-1e400", "NaN"),
    *("Infinity", "-Infinity", "2147483647", "2147483648", "-2147483649", "9223372036854775808"),
    *("18446744073709551616", "1" * 30, "9" * 400, "1" + "0" * 5000, "1e308", "0.1", "5e-324"),
)
ODD_IDS = (-1, 2**31 - 1, 2**31, -(2**31) - 1, 2**64, 10**30, 50_000, 151_643, 1.0, True)
WEIGHT_KEYS = ("weight", "loss_scale", "loss", "train", "output_with_loss", "sample_weight")
LIST_KEYS = ("messages", "conversations", "conversation", "traj", "dialogue", "data", "history")
OTHER_KEYS = (
    *("id", "source", "role", "content", "name", "images", "audio", "objects", "rejected_response"),
    *("channel", "label", "chat_template_kwargs", "documents", "add_generation_prompt", "", "a.b"),
    *("enable_thinking", "prompt", "completion", "chosen", "rejected", "margin", "prefix", "raw"),
)


class Raw(str):
    """JSON as it stands."""

    __slots__ = ()


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may come twice."""


def conversations(choices: Choices) -> bytes:
    """Some lines of JSON, most of them conversations that are nearly right."""
    values = [_record(choices) for _ in range(1 + choices.below(4))]
    if not once_in(choices, 12):
        return b"".join(_line(choices, value) for value in values)
    parts = [_written(value, ascii_only=True) for value in values]
    return ("[" + ",\n".join(parts) + "]").encode("utf-8", "surrogatepass")


def _line(choices: Choices, value: Any) -> bytes:
    text = _written(value, ascii_only=choices.below(2) == 0)
    ending = pick(choices, ("\n", "\n", "\n", "\r\n", "\n\n", " \n", ""))
    return (text + ending).encode("utf-8", "surrogatepass")


def _written(value: Any, *, ascii_only: bool) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        parts = (
            f"{json.dumps(key, ensure_ascii=ascii_only)}: {_written(item, ascii_only=ascii_only)}"
            for key, item in value
        )
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_written(item, ascii_only=ascii_only) for item in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def text(choices: Choices) -> str:
    """A few pieces of what matters to a template, a tokenizer or a rule."""
    parts: list[str] = []
    for _ in range(choices.below(5)):
        kind = choices.below(8)
        if kind < 4:
            parts.append(pick(choices, PIECES))
        elif kind == 4:
            parts.append(pick(choices, CONTROLS))
        elif kind < 7:
            parts.append(pick(choices, LETTERS))
        else:
            parts.append(chr(choices.below(0x110000)))
    joined = "".join(parts)
    return joined * (1 + choices.below(200)) if once_in(choices, 60) else joined


def _odd(choices: Choices) -> Any:
    """A value of a kind that was not asked for."""
    kind = choices.below(10)
    if kind == 9:
        depth = pick(choices, (3, 30, 200, 600, 1500, 5000))
        opening, closing = pick(choices, (("[", "]"), ('{"a":', "}"), ('[{"role":[', "]}]")))
        return Raw(opening * depth + "1" + closing * depth)
    if kind == 8:
        return [_odd(choices) for _ in range(choices.below(3))]
    if kind == 7:
        return Pairs((pick(choices, OTHER_KEYS), _odd(choices)) for _ in range(choices.below(3)))
    if kind >= 5:
        return text(choices)
    return pick(choices, (None, True, False, Raw(pick(choices, NUMBERS)), [], Pairs(), ""))


def _maybe(choices: Choices, value: Any) -> Any:
    return _odd(choices) if once_in(choices, 50) else value


def _record(choices: Choices) -> Any:
    if once_in(choices, 40):
        return _odd(choices)
    kind, record = choices.below(8), Pairs()
    if kind < 6:
        key = pick(choices, LIST_KEYS[:2] if kind < 5 else LIST_KEYS)
        names = pick(choices, (("role", "content"), ("role", "content"), ("from", "value")))
        messages = [
            _message(choices, *names) for _ in range(pick(choices, (2, 1, 3, 4, 6, 2, 5, 0)))
        ]
        shown: Any = messages
        if once_in(choices, 15):
            shown = _written(messages, ascii_only=True)
        record.append((key, _maybe(choices, shown)))
    elif kind == 6:
        keys = pick(
            choices,
            (("instruction", "input", "output"), ("query", "response"), ("prompt", "completion")),
        )
        record += [(key, _maybe(choices, text(choices))) for key in keys]
        if once_in(choices, 3):
            record.append(("history", _maybe(choices, [[text(choices), text(choices)]])))
    else:
        pairs = [
            Pairs([("input", text(choices)), ("output", text(choices))])
            for _ in range(choices.below(4))
        ]
        record.append(("conversation", _maybe(choices, pairs)))
    _dress(choices, record)
    return record


def _dress(choices: Choices, record: Pairs) -> None:
    """What a record may have beside its messages."""
    if once_in(choices, 6):
        record.append(("system", _maybe(choices, text(choices))))
    if once_in(choices, 5):
        tools = [_tool(choices) for _ in range(1 + choices.below(2))]
        shown = _written(tools, ascii_only=True) if once_in(choices, 3) else tools
        record.append(("tools", _maybe(choices, shown)))
    if once_in(choices, 8):
        record.append((pick(choices, WEIGHT_KEYS), _weight(choices)))
    while once_in(choices, 5):
        record.append((pick(choices, (*OTHER_KEYS, *LIST_KEYS)), _odd(choices)))


def _message(choices: Choices, role_key: str, content_key: str) -> Any:
    if once_in(choices, 40):
        return _odd(choices)
    role = pick(choices, ROLES if once_in(choices, 6) else ROLES[:8])
    message = Pairs([(role_key, _maybe(choices, role))])
    if not once_in(choices, 30):
        message.append((content_key, _maybe(choices, _content(choices))))
    if once_in(choices, 6):
        message.append((pick(choices, WEIGHT_KEYS), _weight(choices)))
    if once_in(choices, 7):
        key = pick(choices, ("reasoning_content", "reasoning", "thinking"))
        message.append((key, _maybe(choices, text(choices))))
    if once_in(choices, 6):
        calls: Any = [_call(choices) for _ in range(1 + choices.below(2))]
        message.append(("tool_calls", _maybe(choices, calls)))
    while once_in(choices, 10):
        message.append((pick(choices, OTHER_KEYS), _odd(choices)))
    return message


def _content(choices: Choices) -> Any:
    kind = choices.below(20)
    if kind < 16:
        return text(choices)
    if kind == 16:
        return None
    ids = [_token(choices) for _ in range(choices.below(6))]
    if kind == 17:
        return ids
    if kind == 18:
        weights = [_weight(choices) for _ in ids[once_in(choices, 9) :]]
        return Pairs([("token_ids", ids), ("loss_scale", _maybe(choices, weights))])
    return [_part(choices) for _ in range(choices.below(4))]


def _part(choices: Choices) -> Any:
    kind = pick(choices, ("text", "text", "text", "image", "thinking", ""))
    part = Pairs([("type", _maybe(choices, kind)), ("text", _maybe(choices, text(choices)))])
    if once_in(choices, 4):
        part.append((pick(choices, WEIGHT_KEYS), _weight(choices)))
    if once_in(choices, 9):
        part.append(("token_ids", [_token(choices)]))
    return part


def _token(choices: Choices) -> Any:
    if once_in(choices, 25):
        return pick(choices, (*ODD_IDS, _odd(choices)))
    return choices.below(2000)


def _weight(choices: Choices) -> Any:
    kind = choices.below(12)
    if kind < 10:
        return Raw(pick(choices, ("0", "1", "0.5", "2", "true", "false", "0.25", "3.0")))
    return Raw(pick(choices, NUMBERS)) if kind == 10 else _odd(choices)


def _call(choices: Choices) -> Any:
    arguments: Any = Pairs((text(choices), _odd(choices)) for _ in range(choices.below(3)))
    if once_in(choices, 3):
        arguments = pick(choices, ("{}", '{"a": 1}', "[]", "", "{", '{"a": 1e400}', '"x"'))
    function = Pairs([("name", _maybe(choices, "f")), ("arguments", _maybe(choices, arguments))])
    if once_in(choices, 3):
        return function
    return Pairs([("type", _maybe(choices, "function")), ("function", function)])


def _tool(choices: Choices) -> Any:
    function = Pairs([("name", "f"), ("description", text(choices)), ("parameters", _odd(choices))])
    if once_in(choices, 3):
        return function
    return Pairs([("type", "function"), ("function", _maybe(choices, function))])


def edited(choices: Choices, seeds: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of *seeds* after some edits: bits, *words*, cuts, repeats, parts of other seeds."""
    data = bytearray(pick(choices, seeds))
    for _ in range(pick(choices, (1, 1, 1, 2, 3, 6))):
        kind, at = choices.below(7), choices.below(len(data) + 1)
        end = min(len(data), at + pick(choices, (1, 2, 4, 8, 32, 200)))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << choices.below(8)
        elif kind == 1 and at < len(data):
            data[at] = choices.below(256)
        elif kind == 2:
            data[at:at] = pick(choices, words)
        elif kind == 3:
            data[at:end] = pick(choices, words)
        elif kind == 4:
            del data[at : end if choices.below(4) else len(data)]
        elif kind == 5:
            data[at:at] = data[at:end] * (1 + choices.below(3))
        else:
            other = pick(choices, seeds)
            begin = choices.below(len(other) + 1)
            data[at:end] = other[begin : begin + end - at]
    return bytes(data)
