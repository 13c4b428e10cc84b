"""What is fuzzed: a check takes bytes, and raises only where the program is wrong."""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.fuzz_choices import Choices, Spelled
from benchmarks.fuzz_rules import rule_file
from benchmarks.fuzz_seeds import (
    COLUMN_WORDS,
    JSON_WORDS,
    RULE_WORDS,
    column_seeds,
    record_seeds,
    rule_seeds,
)
from benchmarks.fuzz_shapes import conversations, edited
from benchmarks.fuzz_templates import template_case
from pipeline.batch import Encoder
from pipeline.contract import check_rows
from pipeline.conversation import Arguments, Conversation
from pipeline.errors import InputError, RecordError, RuleError, TemplateError
from pipeline.findings import Findings
from pipeline.policy import Policy
from pipeline.recipe import BUNDLED, load_template
from pipeline.reject import Reject
from pipeline.rules import RuleSet, compose, load_rules, matching, read_rule_file
from pipeline.rules.example import check_examples
from pipeline.source import read, survey
from pipeline.source.record import Record, decode
from pipeline.template import Template
from pipeline.tokens.certificate import find_certificate
from pipeline.tokens.tokenizer import load_tokenizer
from pipeline.tokens.vocabulary import read_vocabulary

DAY = datetime.date(2026, 1, 1)
PATTERN_SECONDS = 0.2  # in place of the program's 5 s, which many generated patterns would take
MOST_RECORDS = 64  # encoded of one input; all are read
_POLICIES = (
    Policy(turns="fan_out"),
    Policy(turns="last_turn", control_tokens="reject", keep=("id", "messages", "a.b")),
    Policy(profile="ms-swift", unsure="build"),
    Policy(turns="fan_out", edge="fraction", control_tokens="allow", stop_tokens=("<|im_end|>",)),
)


class Fault(Exception):  # noqa: N818 - what is wrong is the program, not this
    """An invariant that does not hold."""


@dataclass(frozen=True, slots=True)
class Target:
    """``make`` turns choices into an input for ``check``; a ``raw`` one's bytes are one as they
    are, and ``seeds`` are good ones."""

    name: str
    make: Callable[[Choices], bytes]
    check: Callable[[Checks, bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...]
    raw: bool

    def spell(self, data: bytes) -> bytes:
        """The input that a fuzzer's bytes stand for."""
        return data if self.raw else self.make(Spelled(data))


class Checks:
    """The checks, with what they need made once; *folder* is theirs to write in.

    Of *templates* each input is rendered by one more, as well as by the embedded one.
    """

    def __init__(self, folder: Path, templates: Sequence[str] = ()) -> None:
        self.folder, self.templates = folder, templates
        self._under: dict[int, Encoder | None] = {}
        self.shortened = 0  # talks that a template's shortcut rendered

    @cached_property
    def plain(self) -> Encoder:
        """One row a conversation, by the engine that a build would use."""
        vocabulary = read_vocabulary(BUNDLED / "tokenizer")
        certificate = find_certificate(vocabulary)
        return Encoder(
            load_tokenizer(vocabulary, certificate=certificate),
            load_template(vocabulary, today=DAY),
            load_rules(["ignore_empty_think"]),
        )

    @cached_property
    def others(self) -> list[Encoder]:
        """By the reference engine, under other policies."""
        tokenizer = load_tokenizer(read_vocabulary(BUNDLED / "tokenizer"))
        return [
            Encoder(tokenizer, self.plain.template, self.plain.rules, policy=policy)
            for policy in _POLICIES
        ]

    def under(self, number: int) -> Encoder | None:
        """By the template of that number; None where it does not compile."""
        if number not in self._under:
            names = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
            policy = (Policy(), *_POLICIES)[number % (1 + len(_POLICIES))]
            try:
                template = Template(self.templates[number], variables=names, today=DAY)
            except TemplateError:
                self._under[number] = None
            else:
                tokenizer, rules = self.others[0].tokenizer, self.plain.rules
                self._under[number] = Encoder(tokenizer, template, rules, policy=policy)
        return self._under[number]

    def records(self, data: bytes) -> None:
        """A file of JSON: all of its records are rows or rejects."""
        self._file(data, name=".jsonl" if _choice(data, 2) else ".json")

    def columns(self, data: bytes) -> None:
        """A compressed or columnar file: InputError, or its records are rows or rejects."""
        self._file(data, name="")

    def rules(self, data: bytes) -> None:
        """A rule file: RuleError, or its rules weigh talks that say what the file does."""
        path = self.folder / f"rules{_choice(data, 2)}.yaml"
        path.write_bytes(data)
        limit = matching.TIME_LIMIT
        matching.TIME_LIMIT = PATTERN_SECONDS
        try:
            try:
                file = read_rule_file(path)
                rules = compose([file])
            except RuleError as error:
                _require_message(error)
                return
            for failure in check_examples(file):
                _require_message(failure.message)
            self._weigh(rules, data.decode("utf-8-sig"))
        finally:
            matching.TIME_LIMIT = limit

    def shortcuts(self, data: bytes) -> None:
        """A template and talks: its shortcut gives what its own code does, or nothing."""
        case = json.loads(data)
        try:
            template = Template(case["template"], variables=case["variables"], today=DAY)
        except TemplateError:
            return
        for talk in case["talks"]:
            _wrap_arguments(talk["messages"])
            conversation = Conversation(talk["messages"], talk["tools"])
            self._compare(template, conversation)

    def _compare(self, template: Template, conversation: Conversation) -> None:
        shortcut = template.shortcut.render(conversation, tagged=template.tagged)
        if shortcut is None or " at 0x" in shortcut.text.lower():
            return  # an object that is printed tells its address
        try:
            own = template.render_fully(conversation)
        except RecordError as error:
            raise Fault(f"the shortcut renders what is refused: {error}") from error
        self.shortened += 1
        for name in ("text", "owned", "generated", "called"):
            mine, theirs = getattr(shortcut, name), getattr(own, name)
            _require(mine == theirs, f"{name} is {str(mine)[:300]}, not {str(theirs)[:300]}")

    def _weigh(self, rules: RuleSet, said: str) -> None:
        records = [
            Record("talk", row, row + 1, raw=json.dumps(value).encode())
            for row, value in enumerate(_talks(said))
        ]
        policy = _POLICIES[_choice(said.encode(), len(_POLICIES))]
        if rules.base != "assistant":  # goes with one row a conversation only
            policy = replace(policy, turns="as_rendered")
        for base, chosen in ((self.plain, self.plain.policy), (self.others[0], policy)):
            encoder = Encoder(base.tokenizer, base.template, rules, policy=chosen)
            self._encode(encoder, records, again=False)

    def _file(self, data: bytes, *, name: str) -> None:
        path = self.folder / f"input{name}"
        path.write_bytes(data)
        spool = self.folder / "spool"
        piece_bytes, piece_rows = 1 + _choice(data, 3000), 1 + _choice(data, 7)
        records: list[Record] = []
        try:
            sources = survey(
                [str(path)], spool=spool, piece_bytes=piece_bytes, piece_rows=piece_rows
            )
            for source in sources:
                for piece in source.pieces:
                    for batch in read(piece, batch_records=5, batch_bytes=500):
                        records += batch
        except InputError as error:
            _require_message(error)
            return
        told = sum(source.records for source in sources)
        _require(told == len(records), f"{told} records were counted, {len(records)} read")
        rows = [record.row for record in records]
        _require(rows == list(range(told)), f"the records are numbered {rows[:20]}")
        _require_lines(data, records)
        for record in records[MOST_RECORDS:]:
            _decode(record)
        records = records[:MOST_RECORDS]
        self._encode(self.plain, records, again=_choice(data, 4) == 0)
        other: Encoder | None = self.others[_choice(data, len(self.others))]
        if self.templates:
            other = self.under(_choice(data, len(self.templates)))
        if other is not None:
            self._encode(other, records, again=False)

    def _encode(self, encoder: Encoder, records: Sequence[Record], *, again: bool) -> None:
        """Rows and rejects are all records, once; rows keep the contract."""
        made = encoder.encode(records)
        trained = set(made.rows["row"].to_pylist())
        rejected = [r.row for r in made.rejects]
        both = sorted([*trained, *rejected])
        if both != [r.row for r in records]:
            raise Fault(f"rows {sorted(trained)} and rejects {rejected} of {len(records)} records")
        for r in made.rejects:
            line = r.to_json()
            _require(line.count(b"\n") == 1, "a reject is not one line")
            _require(json.loads(line)["row"] == r.row, "a reject tells another row")
            _require(all((r.place, r.stage, r.reason, r.message)), "a reject is not told")
        findings, counting = Findings(), any(rule.count for rule in encoder.rules.rules)
        check_rows(
            pa.Table.from_batches([made.rows]),
            lambda row: f"row {row}",
            findings,
            keep=encoder.policy.keep,
            counting=counting,
            ids=encoder.tokenizer.size,
        )
        _require(not findings.total, "; ".join(findings.lines()))
        if again:
            alone = [encoder.encode([record]).rows for record in records]
            _require(
                not records or pa.Table.from_batches(alone) == pa.Table.from_batches([made.rows]),
                "records encoded one by one give other rows",
            )
            self._feed_again(encoder, made.rejects)

    def _feed_again(self, encoder: Encoder, rejects: Sequence[Reject]) -> None:
        """A reject that nobody mended is rejected for the same reason."""
        lines = [r.to_json()[:-1] for r in rejects]
        fed = encoder.encode([Record("fed", i, i + 1, raw=line) for i, line in enumerate(lines)])
        again = {r.row: (r.stage, r.reason) for r in fed.rejects}
        for i, r in enumerate(rejects):
            # What is kept of bytes that are no text is text, so the next fault may be another.
            if r.reason != "bad_utf8":
                why = (r.stage, r.reason)
                _require(again.get(i) == why, f"a reject of {why} is of {again.get(i)} when fed")


def _wrap_arguments(messages: Sequence[Any]) -> None:
    """Arguments of calls as they are where a record wrote a string."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(values := function.get("arguments"), dict):
                function["arguments"] = Arguments(values, written=json.dumps(values))


def _choice(data: bytes, of: int) -> int:
    """What an input decides beside its content: the same for the same input."""
    return zlib.crc32(data) % of


def _require(holds: bool, fact: str) -> None:
    if not holds:
        raise Fault(fact)


def _require_message(error: object) -> None:
    """*place: fact; remedy*, which a terminal and a log can show."""
    told = str(error)
    _require(": " in told and "; " in told, f"no place, fact and remedy: {told!r}")


def _decode(record: Record) -> None:
    try:
        decode(record)
    except RecordError as error:
        _require(bool(error.stage and error.reason), "a record's error has no reason")


def _require_lines(data: bytes, records: Sequence[Record]) -> None:
    """Records with lines are the file's lines that are not blank."""
    if not records or not records[0].line:
        return
    if data[:2] in (b"\x1f\x8b", b"BZ", b"\x04\x22", b"\x28\xb5") or data[1:4] == b"\x2a\x4d\x18":
        return  # lines of what was unpacked
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    filled = [(i, line.rstrip(b" \t\r\n")) for i, line in enumerate(lines, 1)]
    expected = [(i, line) for i, line in filled if line]
    found = [(r.line, r.raw) for r in records]
    _require(found == expected, "the records are not the lines")


def _talks(said: str) -> list[dict[str, Any]]:
    """Talks for rules: what a rule file says is also what its patterns look for."""
    words = said[:2000]
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [words[:50], 1]}}}
    react = "Thought: a\nAction: b\nAction Input: {}\nObservation: c\nFinal Answer: d"
    answers: list[dict[str, Any]] = [
        {"role": "assistant", "content": f"<think>\n\n</think>\n\n{words}"},
        {"role": "assistant", "content": "aab" * 300 + "! " + words[::-1][:500]},
        {"role": "assistant", "content": f"<think>\nHm.\n</think>\n\n{react}"},
        {"role": "assistant", "content": "Yes.", "tool_calls": [call], "weight": 0.5},
        {"role": "tool", "content": '{"a": 1}'},
        {
            "role": "assistant",
            "content": "e\u0301👩\u200d👩\u200d👧 \u202e你好",
            "reasoning": words[:300],
        },
    ]
    asked = [{"role": "user", "content": c} for c in ("Hi", words[:300], "aaaa", "x", "", "So?")]
    merged = [{"role": "system", "content": "Be."}]
    for question, answer in zip(asked, answers, strict=True):
        merged += [answer] if answer["role"] == "tool" else [question, answer]
    return [
        {"messages": merged, "id": "x", "n": 3, "meta": {"x": "a"}},
        {"messages": [asked[0], answers[0]], "n": "text", "sample_weight": 2},
        {"messages": [asked[1], answers[5]], "id": 1, "meta": 7},
    ]


def find_target(name: str) -> Target:
    """The target of that name."""
    return next(target for target in TARGETS if target.name == name)


def _target(
    name: str,
    check: Callable[[Checks, bytes], None],
    seeds: Callable[[], Sequence[bytes]],
    words: tuple[bytes, ...],
) -> Target:
    seeds = cache(seeds)

    def edit(choices: Choices) -> bytes:
        return edited(choices, seeds(), words)

    return Target(name, edit, check, seeds, words, raw=True)


TARGETS = (
    _target("records", Checks.records, record_seeds, JSON_WORDS),
    Target("conversations", conversations, Checks.records, list, (), raw=False),
    _target("rules", Checks.rules, rule_seeds, RULE_WORDS),
    Target("claims", rule_file, Checks.rules, list, (), raw=False),
    _target("columns", Checks.columns, column_seeds, COLUMN_WORDS),
    Target("templates", template_case, Checks.shortcuts, list, (), raw=False),
)
