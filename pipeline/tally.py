"""What deserves to be counted of a row: what its template leaves out, or writes otherwise later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.conversation import Weights
from pipeline.laid import Laid
from pipeline.regions import Turn
from pipeline.situation import Learnt, Setting, find_thought
from pipeline.surroundings import Surroundings

_REASONING = ("reasoning_content", "reasoning", "thinking")


def count_row(
    setting: Setting,
    turns: Sequence[Turn],
    text: str,
    *,
    quoted: int,
    surroundings: Surroundings,
) -> dict[str, int]:
    """By name, where it is not 0; *quoted* are the control tokens that the data spells out."""
    found: list[str] = ["quoted_control_tokens"] * quoted
    messages, weights = setting.messages, setting.conversation.weights
    rewrites = setting.learnt.rewrites
    for turn in turns:
        if turn.outputs:
            rewritten = rewrites.get(turn.message)
            if rewritten is None:
                rewritten = surroundings.rewrites(setting, turn.message)
            if rewritten:
                found.append("rewritten_turns")
    if len(turns) < len(messages):
        found += [f"unrendered.{role}" for role in _unrendered(messages, turns, text)]
    if weights is not None:
        found += ["weighted_inputs"] * _count_inputs(weights, messages)
    written: dict[int, Turn] | None = None
    for index in setting.learnt.thoughts:
        message = messages[index]
        if len(message) > 2 or "</think>" in (message["content"] or ""):
            if written is None:
                written = {turn.message: turn for turn in turns}
            found += _lost(message, text, written.get(index))
    return dict(Counter(found)) if found else {}


def count_usual(
    messages: Sequence[Mapping[str, Any]], turns: Laid, text: str, learnt: Learnt
) -> dict[str, int]:
    """What `count_row` counts of a usual row, which has all that the assistant says in it."""
    assert learnt.usual is not None
    found = {"rewritten_turns": learnt.usual.rewritten} if learnt.usual.rewritten else {}
    if len(turns) < len(messages):
        found.update(Counter(f"unrendered.{role}" for role in _unrendered(messages, turns, text)))
    if learnt.thoughts:
        starts = {message: start for message, start, _ in turns.said()}
        lost = 0
        for index in learnt.thoughts:
            content, start = messages[index]["content"], starts.get(index, -1)
            if start >= 0 and text.startswith(content, start):
                continue  # all of it, as it is
            if "</think>" not in content:
                continue
            reasoning, _ = find_thought(content)
            if messages[index]["role"] == "assistant" and reasoning:
                lost += text.find(reasoning, max(start, 0)) < 0 and reasoning not in text
        if lost:
            found["unrendered.reasoning"] = lost
    return found


def _lost(message: Mapping[str, Any], text: str, turn: Turn | None) -> Iterator[str]:
    """What to count of a message's calls and reasoning that the template does not print."""
    start = turn.outputs[0].start if turn and turn.outputs else len(text)
    if len(message) == 2 and text.startswith(message["content"], start):
        return  # all of it, as it is
    ranges = turn.ranges if turn else []
    for call in message.get("tool_calls") or ():
        name = call["function"]["name"]
        if not any(text.find(name, start, end) >= 0 for start, end in ranges):
            yield "unrendered.tool_calls"
    reasoning = next((message[key] for key in _REASONING if message.get(key)), "").strip()
    if not reasoning and message["role"] == "assistant":
        reasoning, _ = find_thought(message.get("content") or "")
    # Where it mostly is, and only then everywhere: texts are long.
    start = ranges[0].start if ranges else 0
    if reasoning and text.find(reasoning, start) < 0 and reasoning not in text:
        yield "unrendered.reasoning"


def _count_inputs(weights: Weights, messages: Sequence[Mapping[str, Any]]) -> int:
    """How many weights are positive and of what is no assistant's."""
    asked = [*weights.messages.items()]
    asked += [(i, weight) for i, parts in weights.parts.items() for _, _, weight in parts]
    # A row that is cut has fewer messages than its conversation has weights.
    return sum(
        weight > 0 and index < len(messages) and messages[index]["role"] != "assistant"
        for index, weight in asked
    )


def _unrendered(
    messages: Sequence[Mapping[str, Any]], turns: Sequence[Turn], text: str
) -> list[str]:
    """Roles of the messages that own no text and whose words stand nowhere in it.

    Owning none is no proof: many templates print the system text before their loop.
    """
    owners = {turn.message for turn in turns}
    return [
        str(message["role"])
        for index, message in enumerate(messages)
        if index not in owners
        and isinstance(message.get("content"), str)
        and message["content"].strip() not in text
    ]
