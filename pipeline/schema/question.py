"""Questions with answers, as messages: Alpaca, query/response, lists of input/output pairs."""

from __future__ import annotations

from typing import Any

from pipeline.schema.field import NOTHING, fault, misfit
from pipeline.schema.message import read_message
from pipeline.schema.weight import Weight

QUESTION_KEYS = (("query", "response"), ("prompt", "completion"), ("prompt", "response"))


def fits_alpaca(record: dict[str, Any]) -> bool:
    """Whether the record has an instruction and room for its output."""
    return record.get("instruction") is not None and "output" in record


def find_question(record: dict[str, Any]) -> tuple[str, str] | None:
    """The keys of question and answer; ``prompt`` counts only as text, with text beside it."""
    for question, answer in QUESTION_KEYS:
        if question == "query" and record.get(question) is not None and answer in record:
            return question, answer
        if isinstance(record.get(question), str) and isinstance(record.get(answer), str):
            return question, answer
    return None


def read_alpaca(record: dict[str, Any]) -> list[dict[str, Any]]:
    r"""``history``, then instruction and input joined by ``\n`` where both have text, then output.

    The join is LLaMA-Factory's; Stanford's own prompt text is a template's business.
    """
    messages = read_history(record)
    instruction = _read_text(record, "instruction")
    given = "" if record.get("input") is None else _read_text(record, "input")
    if isinstance(record.get("output"), list):
        fact = "a list of outputs is preference data; keep the chosen one, as a string"
        raise fault("bad_content", "output", fact)
    question = "\n".join(text for text in (instruction, given) if text)
    return [*messages, *_exchange(question, _read_text(record, "output"))]


def read_query(record: dict[str, Any], keys: tuple[str, str]) -> list[dict[str, Any]]:
    """``history``, then the question and its answer."""
    messages = read_history(record)
    question, answer = keys
    return [*messages, *_exchange(_read_text(record, question), _read_text(record, answer))]


def read_history(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier questions and answers, oldest first, from a list of pairs."""
    history = record.get("history")
    if history is None or history == "":
        return []
    remedy = 'write [["question", "answer"], ...]'
    if not isinstance(history, list):
        raise misfit("bad_history", "history", "a list of pairs", history, remedy=remedy)
    messages: list[dict[str, Any]] = []
    for i, pair in enumerate(history):
        place = f"history[{i}]"
        if not isinstance(pair, (list, tuple)):
            raise misfit("bad_history", place, "a pair", pair, remedy=remedy)
        if len(pair) != 2:
            raise fault("bad_history", place, f"expected 2 strings, found {len(pair)}; {remedy}")
        for j, text in enumerate(pair):
            if not isinstance(text, str):
                raise misfit("bad_history", f"{place}[{j}]", "a string", text, remedy=remedy)
        messages += _exchange(*pair)
    return messages


def read_pairs(items: list[Any], place: str) -> tuple[list[dict[str, Any]], dict[int, Weight]]:
    """xtuner's list of ``{system?, input, output}``; other keys go to the assistant's message.

    Weights, which are among them, come by the index of that message.
    """
    messages: list[dict[str, Any]] = []
    weights: dict[int, Weight] = {}
    for i, item in enumerate(items):
        at = f"{place}[{i}]"
        if not isinstance(item, dict):
            raise misfit("bad_message", at, "an object", item, remedy="write one object per pair")
        if item.get("system") not in (None, ""):
            messages.append({"role": "system", "content": _read_text(item, "system", f"{at}.")})
        messages.append({"role": "user", "content": _read_text(item, "input", f"{at}.")})
        answer = {key: item[key] for key in item if key not in ("system", "input", "role")}
        answer["role"] = "assistant"
        message, weight = read_message(answer, at, content_key="output")
        if weight is not None:
            weights[len(messages)] = weight
        messages.append(message)
    return messages, weights


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _read_text(holder: dict[str, Any], key: str, place: str = "") -> str:
    value = holder.get(key, NOTHING)
    if isinstance(value, str):
        return value
    reason = "null_content" if value is None or value is NOTHING else "bad_content"
    remedy = 'use "" or drop the record'
    raise misfit(reason, f"{place}{key}", "a string", value, remedy=remedy)
