"""From one record to the text of its rows: rendered, its turns established, its claims found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from pipeline.conversation import Conversation, Weights
from pipeline.cuts import find_cuts
from pipeline.errors import ConfigurationError, RecordError
from pipeline.markers import Markers
from pipeline.policy import Policy
from pipeline.quotation import Quotation, find_quoted, join_strings, make_quotation
from pipeline.recipe import require_turns
from pipeline.regions import Turn
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, Talk
from pipeline.rules.matching import field_of
from pipeline.sampled import (
    Place,
    find_controls,
    locate,
    scale_places,
    spell,
    with_stops,
)
from pipeline.scales import find_parts, refuse_weights, scale_turns
from pipeline.situation import Setting, find_thought
from pipeline.source.record import Record, decode
from pipeline.spans import Span, subtract
from pipeline.surroundings import Surroundings
from pipeline.swift import exempt_sampled, exempt_weighted, own_weights
from pipeline.template import Rendered, Template
from pipeline.tokens.tokenizer import Tokenizer
from pipeline.turns import establish_turns

_REASONING = ("reasoning_content", "reasoning", "thinking")
_MOST_FANNED = 1 << 24  # characters of a conversation's rows: they are held at once
_NONE = Weights({}, {})


class Preparation:
    """One template with all that reads its renders; lives as long as its encoder."""

    def __init__(
        self, template: Template, tokenizer: Tokenizer, rules: RuleSet, policy: Policy
    ) -> None:
        self.template, self.tokenizer, self.rules, self.policy = template, tokenizer, rules, policy
        for token in policy.stop_tokens:
            if token not in tokenizer.control_tokens:
                raise ConfigurationError(f"stop_tokens: {token!r} is no control token; use one")
        require_turns(policy, rules)
        self.reads_fields = bool(rules.fields or policy.keep)
        self.surroundings = Surroundings(template)
        self.markers = Markers(
            control=tokenizer.control_tokens,
            added=tokenizer.added_tokens,
            eos=str(template.variables.get("eos_token") or ""),
            told=(*policy.stop_tokens, *tokenizer.vocabulary.stop_tokens),
        )
        named = ("bos_token", "eos_token", "pad_token")
        self.stops = {*self.markers.told, *(str(template.variables.get(n) or "") for n in named)}
        watched = () if policy.control_tokens == "allow" else tokenizer.control_tokens
        self.quotation: Quotation = make_quotation(watched, template)

    def prepare(self, record: Record, conversation: Conversation) -> Iterator[Prepared]:
        """The rows of a record: one, or with ``fan_out`` one for each message that is supervised.

        Raises RecordError for what cannot be rendered, established or honoured.
        """
        weights = conversation.weights or _NONE
        if self.rules.base != "all":
            refuse_weights(conversation)
        speakers = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        supervised = [i for i in speakers if weights.messages.get(i) != 0]
        if self.policy.swift and self.rules.base == "all":
            supervised = speakers  # a weight of 0 is that of the answer, not of its header
        if self.policy.turns == "as_rendered":
            yield self._row(record, conversation, supervised)
        elif self.policy.turns == "last_turn":
            yield self._row(record, conversation, speakers[-1:], cut=True)
        else:
            yield from self._fan_out(record, conversation, supervised)

    def _fan_out(
        self, record: Record, conversation: Conversation, supervised: Sequence[int]
    ) -> Iterator[Prepared]:
        whole = self._row(record, conversation, supervised)
        yield whole._replace(whole=True, counts={})
        size = 0
        for index in supervised:
            row = self._row(record, conversation, [index], cut=True)
            size += len(row.text)
            if size > _MOST_FANNED:
                raise RecordError(
                    "render",
                    "fan_out_too_large",
                    f"its rows hold over {_MOST_FANNED:,} characters, as they grow with the square "
                    "of its turns; split it, or use --turns last_turn or as_rendered",
                )
            differs = not _written(whole, index).startswith(_written(row, index).rstrip())
            yield row._replace(counts={**row.counts, "rewritten_turns": int(differs)})

    def _row(
        self,
        record: Record,
        conversation: Conversation,
        supervised: Sequence[int],
        *,
        cut: bool = False,
        whole: frozenset[int] = frozenset(),
    ) -> Prepared:
        """*conversation* as one text, in which the messages *supervised* may train.

        With *cut* it ends with the last of them, as when that was generated. Of the messages in
        *whole* the template is given all that was sampled, a control token at its end too.
        """
        given, following = conversation, ""
        if cut:
            following = "".join(m["role"] for m in conversation.messages[supervised[-1] + 1 :][:1])
            conversation = _until(conversation, supervised[-1])
        conversation, runs = spell(conversation, self.tokenizer, whole=whole)
        weights = conversation.weights or _NONE
        rendered, traced = self.template.render(conversation), None
        strings = join_strings(conversation)
        setting = self.surroundings.setting(conversation, strings)
        if weights.parts or self.quotation.hinted(strings):
            ranges = {i: [(a, b) for a, b, _ in spans] for i, spans in weights.parts.items()}
            traced = self.template.trace(conversation, parts=ranges)
        places = locate(runs, traced) if traced and runs else []
        quoted = self._quoted(conversation, traced, places) if traced else []
        turns = establish(
            setting,
            rendered,
            traced,
            surroundings=self.surroundings,
            markers=self.markers,
            quoted=sorted([*quoted, *find_controls(places, self.tokenizer)]) if traced else (),
            supervised=supervised,
            sure=self.policy.unsure == "reject",
        )
        text = rendered.text
        if self.policy.trailing or self.policy.stop_tokens:
            text, turns = self._close(text, turns, setting, following)
        if len(turns) < len(conversation.messages):
            turns = _find_told(conversation, turns, text)
        parts = find_parts(weights, traced) if traced else {}
        if places:
            places, late = with_stops(places, text, stops=self.stops, tokenizer=self.tokenizer)
            if late:
                return self._row(record, given, supervised, cut=cut, whole=whole | late)
            parts = scale_places(parts, places, turns)
        fields = decode(record) if self.reads_fields else {}
        claims = self.rules.claims(Talk(text, turns, fields, self.policy.swift))
        if self.policy.swift:
            weighted, switched = own_weights(conversation)
            claims = exempt_weighted(
                claims, turns, self.rules, weighted=weighted, switched=switched
            )
            claims = exempt_sampled(claims, places, self.rules)
        scales = scale_turns(
            turns,
            length=len(text),
            weights=weights.messages,
            parts=parts,
            row=weights.row,
            outputs_only=self.policy.swift,
        )
        return Prepared(
            record,
            text,
            turns,
            claims,
            scales,
            quoted,
            find_cuts(text, turns, scales, claims, self.rules, policy=self.policy),
            places,
            _kept(fields, self.policy.keep),
            self._count(setting, turns, text, len(quoted), strings=strings),
            weights=weights,
            parts=parts,
        )

    def _quoted(
        self, conversation: Conversation, traced: Rendered, places: Sequence[Place]
    ) -> list[Span]:
        """Control tokens that the data spells out, if they may stand as text; not sampled ones."""
        if self.policy.control_tokens == "allow":
            return []
        quoted = find_quoted(conversation, traced, self.tokenizer.control_matches)
        quoted = [span for span in quoted if not any(place.holds(span) for place in places)]
        if quoted and self.policy.control_tokens == "reject":
            start, end = quoted[0]
            message, field = traced.origin_at(start)
            raise RecordError(
                "render",
                "control_token",
                f"spells {traced.text[start:end]!r}; take it out, or read it as text "
                "(--control-tokens text)",
                field=f"messages[{message}].{field}" if message >= 0 else field,
            )
        return quoted

    def _close(
        self, text: str, turns: list[Turn], setting: Setting, following: str
    ) -> tuple[str, list[Turn]]:
        """What the policy adds: white space after stop tokens, a stop token at the text's end."""
        trailing, tokens = self.policy.trailing, self.policy.stop_tokens
        if trailing:
            turns = [_through_white_space(t, text) if t.found != "tags" else t for t in turns]
        if not tokens:
            return text, turns
        end = len(text.rstrip())
        for i, turn in enumerate(turns):
            if turn.outputs and turn.stop < 0 and turn.outputs[-1].end >= end:
                token = self._told(setting, turn.message, following)
                turns[i] = _stopped_at(turn, len(text), len(text) + len(token))
                return text + token, turns
        return text, turns

    def _told(self, setting: Setting, message: int, following: str) -> str:
        """The stop token that somebody named for this end: the marker of who would speak next."""
        calls = setting.messages[message].get("tool_calls")
        closing = self.surroundings.after(
            setting, message, self.markers, following=following or ("tool" if calls else "user")
        )
        return closing.marker or self.policy.stop_tokens[0]

    def _count(
        self, setting: Setting, turns: Sequence[Turn], text: str, quoted: int, *, strings: str
    ) -> dict[str, int]:
        """What deserves it, where it is not 0."""
        thinks = "</think>" in strings
        found: list[str] = ["quoted_control_tokens"] * quoted
        conversation, messages, around = setting.conversation, setting.messages, self.surroundings
        rewrites = setting.learnt.rewrites
        for turn in turns:
            if turn.outputs:
                rewritten = rewrites.get(turn.message)
                if rewritten is None:
                    rewritten = around.rewrites(setting, turn.message)
                if rewritten:
                    found.append("rewritten_turns")
        if len(turns) < len(messages):
            found += [f"unrendered.{role}" for role in _unrendered(conversation, turns, text)]
        if conversation.weights is not None:
            found += ["weighted_inputs"] * _count_inputs(conversation.weights, messages)
        written: dict[int, Turn] | None = None
        for index, message in enumerate(messages):
            if len(message) > 2 or (
                thinks and message["role"] == "assistant" and "</think>" in message["content"]
            ):
                if written is None:
                    written = {turn.message: turn for turn in turns}
                found += _lost(message, text, written.get(index))
        return dict(Counter(found)) if found else {}


def establish(
    setting: Setting,
    rendered: Rendered,
    traced: Rendered | None,
    *,
    surroundings: Surroundings,
    markers: Markers,
    quoted: Sequence[Span] = (),
    supervised: Sequence[int] | None = None,
    sure: bool = True,
) -> list[Turn]:
    """The turns by the hooks where that is enough, else by tracing, else as good as it can be."""
    starts = [span.start for span in quoted]
    find = partial(
        establish_turns,
        setting,
        surroundings=surroundings,
        markers=markers,
        quoted=starts,
        supervised=supervised,
    )
    try:
        return find(rendered)
    except RecordError as error:
        if error.reason != "turn_unestablished":
            raise
    traced = traced or surroundings.template.trace(setting.conversation)
    return find(_combined(rendered, traced), sure=sure)


def _find_told(conversation: Conversation, turns: Sequence[Turn], text: str) -> list[Turn]:
    """The turns, and those of messages that a template prints outside of its loop.

    Most do so with a system text. What stands once in the text that nobody owns is the message's;
    what it says twice, or somebody else too, stays nobody's.
    """
    owners = {turn.message for turn in turns}
    lost = [
        (index, message["role"], message["content"].strip())
        for index, message in enumerate(conversation.messages)
        if index not in owners
        and message["role"] != "assistant"
        and isinstance(message.get("content"), str)
    ]
    if not any(said for _, _, said in lost):
        return list(turns)
    gaps = subtract([Span(0, len(text))], sorted(s for turn in turns for s in turn.ranges))
    found: list[Turn] = []
    for index, role, said in lost:
        at = [(gap, text.find(said, gap.start, gap.end)) for gap in gaps] if said else []
        at = [(gap, start) for gap, start in at if start >= 0]
        if len(at) == 1 and text.find(said, at[0][1] + 1, at[0][0].end) < 0:
            span = Span(at[0][1], at[0][1] + len(said))
            found.append(Turn(index, role, [span], [], -1, "", False))
    return sorted([*turns, *found], key=lambda turn: turn.message)


def _combined(rendered: Rendered, traced: Rendered) -> Rendered:
    """What the hooks saw, and where they saw nothing of a message, what tracing found.

    Hooks first: what a template prints around a tool result inside the assistant's turn (Gemma 4)
    is the result's by its loop, and the assistant's by where its literals were evaluated.
    """
    taken = sorted(span for ranges in rendered.owned for span in ranges)
    owned = [
        hooked or subtract(found, taken)
        for hooked, found in zip(rendered.owned, traced.owned, strict=True)
    ]
    return replace(
        rendered, owned=owned, marks=traced.marks, origins=traced.origins, own=traced.own
    )


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


def _kept(fields: Mapping[str, Any], keep: Sequence[str]) -> str | None:
    """The record's fields that stay with its row, as JSON, by dotted path; None where it has none.

    Independent of rules, so that rows can be weighed by others.
    """
    found = {path: field_of(fields, path) for path in keep}
    held = {path: value for path, value in found.items() if value is not None}
    return msgspec.json.encode(held, order="sorted").decode() if held else None


def _until(conversation: Conversation, last: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[: last + 1])


def _written(prepared: Prepared, message: int) -> str:
    """All that a message wrote."""
    return "".join(
        prepared.text[start:end]
        for turn in prepared.turns
        if turn.message == message
        for start, end in turn.ranges
    )


def _through_white_space(turn: Turn, text: str) -> Turn:
    if not turn.outputs:
        return turn
    *before, (start, end) = turn.outputs
    limit = next((s.end for s in turn.ranges if s.start <= start < s.end), end)
    white = text[end:limit]
    return turn._replace(outputs=[*before, Span(start, end + len(white) - len(white.lstrip()))])


def _stopped_at(turn: Turn, stop: int, end: int) -> Turn:
    *before, (start, _) = turn.outputs
    ranges = [*turn.ranges[:-1], Span(turn.ranges[-1].start, end)]
    return turn._replace(ranges=ranges, outputs=[*before, Span(start, end)], stop=stop)


def _unrendered(conversation: Conversation, turns: Sequence[Turn], text: str) -> list[str]:
    """Roles of the messages that own no text and whose words stand nowhere in it.

    Owning none is no proof: many templates print the system text before their loop.
    """
    owners = {turn.message for turn in turns}
    return [
        str(message["role"])
        for index, message in enumerate(conversation.messages)
        if index not in owners
        and isinstance(message.get("content"), str)
        and message["content"].strip() not in text
    ]
