"""From conversations to the text of their rows: rendered, turns established, claims found.

Stage by stage for some dozens of them at a time: record by record, each stage finds the processor's
caches full of the others', which cost a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec

from pipeline.conversation import Conversation, Weights
from pipeline.cuts import find_cuts, splits
from pipeline.draft import Draft
from pipeline.errors import ConfigurationError, RecordError
from pipeline.established import establish, find_told
from pipeline.laid import Laid
from pipeline.layout import lay
from pipeline.markers import Markers
from pipeline.payoff import Payoff
from pipeline.policy import Policy
from pipeline.quotation import Quotation, find_quoted, join_strings, make_quotation
from pipeline.recipe import require_turns
from pipeline.regions import Turn
from pipeline.rendered import Rendered
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, Talk
from pipeline.rules.matching import field_of
from pipeline.sampled import Place, find_controls, locate, scale_places, spell, with_stops
from pipeline.scales import Scale, find_parts, refuse_weights, scale_turns
from pipeline.situation import Setting
from pipeline.source.record import Record, decode
from pipeline.spans import Span
from pipeline.surroundings import Closing, Surroundings
from pipeline.swift import exempt_sampled, exempt_weighted, own_weights
from pipeline.tally import count_row, count_usual
from pipeline.template import Template
from pipeline.tokens.tokenizer import Tokenizer
from pipeline.written import Row

_MOST_FANNED = 1 << 24  # characters of a conversation's rows: they are held at once
_MOST_LAID = 1 << 22  # characters that are laid together: an array of them takes four bytes each
_NONE = Weights({}, {})
_EMPTY: Mapping[int, Sequence[Scale]] = MappingProxyType({})
_new = tuple.__new__  # a named tuple's own is Python, and takes twice the time
TOO_DEEP = RecordError("parse", "too_deep", "is nested too deep; flatten it or drop the record")


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
        self._reads_fields = bool(rules.fields or policy.keep)
        rewrites = policy.turns != "as_rendered" or policy.trailing or policy.stop_tokens
        self._openings = rules.openings
        self._splits = splits(rules, policy)
        self._lays = not (rewrites or policy.swift)  # what these ask for is asked turn by turn
        self._laying = Payoff()
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

    def prepare(
        self,
        talks: Sequence[tuple[Record, Conversation]],
        *,
        at: Callable[[int], None] | None = None,
    ) -> list[list[Prepared] | RecordError]:
        """The rows of each: one, or with ``fan_out`` one for each message that is supervised.

        An error instead for what cannot be rendered, established or honoured. *at* is told the
        number of each talk that a stage looks at.
        """
        if self.policy.turns != "fan_out":
            found = self._finish([Draft(*talk) for talk in talks], at=at)
            return [p if isinstance(p, RecordError) else [p] for p in found]
        rows: list[list[Prepared] | RecordError] = []
        for index, talk in enumerate(talks):
            if at is not None:
                at(index)
            try:
                rows.append([*self._fan_out(*talk)])
            except RecordError as error:
                rows.append(error)
        return rows

    def _fan_out(self, record: Record, conversation: Conversation) -> Iterator[Prepared]:
        draft = Draft(record, conversation)
        whole = self._finish_one(draft)
        yield whole._replace(whole=True, counts={})
        size = 0
        for index in draft.supervised:
            row = self._finish_one(Draft(record, conversation, [index], cut=True))
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

    def _finish_one(self, draft: Draft) -> Prepared:
        (prepared,) = self._finish([draft])
        if isinstance(prepared, RecordError):
            raise prepared
        return prepared

    def _finish(
        self, drafts: Sequence[Draft], *, at: Callable[[int], None] | None = None
    ) -> list[Prepared | RecordError]:
        _each(self._render, drafts, at)
        if self._lays and not self._laying.rests(len(drafts)):
            self._lay(drafts)
        if not all(draft.laid for draft in drafts):
            _each(self._establish, drafts, at)
        _each(self._claim, drafts, at)
        return [draft.error or self._complete(draft) for draft in drafts]

    def _supervise(self, draft: Draft) -> None:
        """Which messages may train, if the draft does not say."""
        conversation, everything = draft.given, self.rules.base == "all"
        weights = conversation.weights
        if not everything:
            refuse_weights(conversation)
        if draft.supervised:
            return
        speakers = [i for i, m in enumerate(conversation.messages) if m["role"] == "assistant"]
        if self.policy.turns == "last_turn":
            draft.supervised, draft.cut = speakers[-1:], True
        elif weights is None or (everything and self.policy.swift):
            draft.supervised = speakers  # there a weight of 0 is that of the answer, not its header
        else:
            draft.supervised = [i for i in speakers if weights.messages.get(i) != 0]

    def _render(self, draft: Draft) -> None:
        conversation = draft.given
        if not (self._lays and conversation.plain):  # such are supervised where they are not usual
            self._supervise(draft)
        if draft.cut:
            last = draft.supervised[-1] + 1
            draft.following = "".join(m["role"] for m in conversation.messages[last : last + 1])
            conversation = replace(conversation, messages=conversation.messages[:last])
        conversation, runs = spell(conversation, self.tokenizer, whole=draft.whole)
        draft.conversation, weights = conversation, conversation.weights
        draft.recorded = self.template.record(conversation)
        if draft.recorded is None:
            draft.rendered = self.template.assemble(conversation, None)
        draft.strings = strings = join_strings(conversation)
        parts = weights.parts if weights else None
        if parts or self.quotation.hinted(strings):
            ranges = {i: [(a, b) for a, b, _ in mine] for i, mine in (parts or {}).items()}
            draft.traced = self.template.trace(conversation, parts=ranges)
            draft.places = locate(runs, draft.traced) if runs else ()
            draft.quoted = self._quoted(conversation, draft.traced, draft.places)

    def _lay(self, drafts: Sequence[Draft]) -> None:
        """The turns of those rows that are usual, all at once."""
        chosen: list[Draft] = []
        rows: list[Row] = []
        size = 0
        for draft in drafts:
            if draft.error or draft.recorded is None or draft.traced:
                continue
            # Rows of columnar files come by number, whatever they hold.
            if draft.conversation.plain and size + len(draft.recorded.text) <= _MOST_LAID:
                size += len(draft.recorded.text)
                messages = draft.conversation.messages
                try:
                    learnt = self.surroundings.usual(draft.conversation, draft.strings)
                except (RecordError, RecursionError):  # the slow way says it, record by record
                    continue
                assert learnt.usual is not None
                draft.learnt = learnt
                chosen.append(draft)
                roles, prompts, _ = learnt.usual
                rows.append(Row(draft.recorded, messages, draft.strings, roles, prompts))

        def closings(row: int) -> Sequence[Closing]:
            draft = chosen[row]
            return self.surroundings.closings(draft.conversation, draft.learnt, self.markers)

        tagged, openings = self.template.tagged, self._openings
        found = lay(rows, self.markers, tagged=tagged, closings=closings, openings=openings)
        self._laying.note(len(found), sum(laid is not None for laid in found))
        for draft, row, laid in zip(chosen, rows, found, strict=True):
            if laid is not None:
                draft.text, draft.turns, draft.laid = row.recorded.text, laid, True
                draft.recorded = None  # large, and read no more

    def _establish(self, draft: Draft) -> None:
        if draft.laid:
            return
        self._supervise(draft)
        conversation, rendered, traced = draft.conversation, draft.rendered, draft.traced
        if rendered is None:
            rendered = self.template.assemble(conversation, draft.recorded)
        quoted = draft.quoted
        if draft.places:
            quoted = sorted([*quoted, *find_controls(draft.places, self.tokenizer)])
        draft.setting = setting = self.surroundings.setting(conversation, draft.strings)
        turns = establish(
            setting,
            rendered,
            traced,
            surroundings=self.surroundings,
            markers=self.markers,
            quoted=quoted,
            supervised=draft.supervised,
            sure=self.policy.unsure == "reject",
        )
        text = rendered.text
        if self.policy.trailing or self.policy.stop_tokens:
            text, turns = self._close(text, turns, setting, draft.following)
        if len(turns) < len(conversation.messages):
            turns = find_told(conversation.messages, turns, text)
        draft.text, draft.turns = text, turns
        draft.recorded = draft.rendered = draft.traced = None  # large, and read no more
        if traced and conversation.weights:
            draft.parts = find_parts(conversation.weights, traced)
        if draft.places:
            draft.places, late = with_stops(
                draft.places, text, stops=self.stops, tokenizer=self.tokenizer
            )
            if late:
                draft.whole |= late
                self._render(draft)
                self._establish(draft)
                return
            draft.parts = scale_places(draft.parts, draft.places, turns)

    def _claim(self, draft: Draft) -> None:
        text, turns, swift = draft.text, draft.turns, self.policy.swift
        fields = decode(draft.record) if self._reads_fields else {}
        draft.kept = _keep(fields, self.policy.keep) if fields else None
        claims = self.rules.claims(Talk(text, turns, fields, swift))
        if swift:
            weighted, switched = own_weights(draft.conversation)
            claims = exempt_weighted(
                claims, turns, self.rules, weighted=weighted, switched=switched
            )
            claims = exempt_sampled(claims, draft.places, self.rules)
        draft.claims = claims

    def _complete(self, draft: Draft) -> Prepared:
        text, turns, claims = draft.text, draft.turns, draft.claims
        if draft.laid and not self._splits:  # a plain conversation has no weights
            counts, places = self._count(draft), draft.places
            usual = draft.record, text, turns, claims, (), (), (), places, draft.kept, counts
            return _new(Prepared, (*usual, False, _NONE, _EMPTY))
        weights = draft.conversation.weights or _NONE
        scales = scale_turns(
            turns,
            length=len(text),
            weights=weights.messages,
            parts=draft.parts,
            row=weights.row,
            outputs_only=self.policy.swift,
        )
        return Prepared(
            draft.record,
            text,
            turns,
            claims,
            scales,
            draft.quoted,
            find_cuts(text, turns, scales, claims, self.rules, policy=self.policy),
            draft.places,
            draft.kept,
            self._count(draft),
            weights=weights,
            parts=draft.parts,
        )

    def _count(self, draft: Draft) -> dict[str, int]:
        turns, text, quoted = draft.turns, draft.text, len(draft.quoted)
        if isinstance(turns, Laid):
            return count_usual(draft.conversation.messages, turns, text, draft.learnt)
        return count_row(draft.setting, turns, text, quoted=quoted, surroundings=self.surroundings)

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


def _each(
    stage: Callable[[Draft], None], drafts: Sequence[Draft], at: Callable[[int], None] | None
) -> None:
    for index, draft in enumerate(drafts):
        if draft.error is not None:
            continue
        if at is not None:
            at(index)
        try:
            stage(draft)
        except RecordError as error:
            draft.error = error
        except RecursionError:
            draft.error = TOO_DEEP


def _keep(fields: Mapping[str, Any], keep: Sequence[str]) -> str | None:
    """The record's fields that stay with its row, as JSON, by dotted path; None where it has none.

    Independent of rules, so that rows can be weighed by others.
    """
    found = {path: field_of(fields, path) for path in keep}
    held = {path: value for path, value in found.items() if value is not None}
    return msgspec.json.encode(held, order="sorted").decode() if held else None


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
