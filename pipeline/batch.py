"""The pure core: records in, one Arrow record batch and the rejects out.

Everything else (processes, ``datasets.map``, Ray) is a way of calling ``Encoder``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.conversation import Conversation
from pipeline.errors import InputError, RecordError
from pipeline.markers import Markers
from pipeline.regions import Region, divide
from pipeline.reject import Reject, reject
from pipeline.rules import Claim, RuleSet
from pipeline.schema import read_conversation
from pipeline.shards import SCHEMA, SPAN_TYPE
from pipeline.source.columns import to_records
from pipeline.source.record import Record, decode
from pipeline.surroundings import Surroundings
from pipeline.template import Template
from pipeline.tokens import Encoded, EncodeFailure, Tokenizer
from pipeline.turns import Turn, establish_turns
from pipeline.weights import IGNORED, CharacterSpans, Weighed, weigh

_WEIGHT_KEYS = {"weight", "loss", "loss_scale", "train"}  # what data calls a message's own weight

_TOO_DEEP = RecordError("parse", "too_deep", "is nested too deep; flatten it or drop the record")

Counts: TypeAlias = "Counter[str]"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A record as text: rendered, its turns established, its rules' claims found.

    ``unrendered`` are the roles of messages whose text the template left out.
    """

    record: Record
    text: str
    turns: list[Turn]
    claims: list[Claim]
    unrendered: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Rows in the records' order, the rejects, and what happened (dotted names to numbers)."""

    rows: pa.RecordBatch
    rejects: list[Reject]
    counts: Counts


class Encoder:
    """Conversations to weighted rows; picklable, pure: the same records give the same batch."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        rules: RuleSet,
        *,
        tool_template: Template | None = None,
        schema: str = "auto",
    ) -> None:
        """*tool_template*, where a tokenizer has one, renders the conversations that have tools."""
        self.tokenizer, self.template, self.rules, self.schema = tokenizer, template, rules, schema
        self.tool_template = tool_template or template
        self.markers = Markers(
            control=tokenizer.control_tokens,
            added=tokenizer.added_tokens,
            eos=str(template.variables.get("eos_token") or ""),
        )

    def __call__(self, conversations: Iterable[Any] | pa.RecordBatch | pa.Table) -> Any:
        """Rows for values in memory: a Table for a Table, else a RecordBatch.

        Fits ``datasets.map(batched=True)`` on a dataset in the ``arrow`` format, Ray Data's
        ``map_batches(batch_format="pyarrow")`` and a loop of one's own. Raises InputError with the
        number of the first record that a build would reject.
        """
        if isinstance(conversations, Mapping):
            raise InputError(
                "a batch: expected records, found a dict of columns; with datasets.map, put the "
                'dataset in the arrow format first: dataset.with_format("arrow")'
            )
        if isinstance(conversations, (pa.RecordBatch, pa.Table)):
            records = to_records(conversations)
        else:
            # Through JSON: whatever a template does, the caller's values stay as they are.
            raws = map(msgspec.json.encode, conversations)
            records = [Record(source="", row=i, line=0, raw=raw) for i, raw in enumerate(raws)]
        encoded = self.encode(records)
        if encoded.rejects:
            raise InputError(encoded.rejects[0].message)
        if isinstance(conversations, pa.Table):
            return pa.Table.from_batches([encoded.rows])
        return encoded.rows

    def encode(self, records: Sequence[Record]) -> EncodedBatch:
        """Every record becomes a row or a reject, once."""
        prepared, rejects = self.prepare(records)
        prepared, encoded, failed = self._encode_texts(prepared)
        rejects += failed
        weighed = self.weigh(prepared, encoded)
        rows, untrained, counts = self.tabulate(prepared, encoded, weighed)
        rejects += untrained
        counts["conversations"] = len(records)
        counts["rejects"] = len(rejects)
        for r in rejects:
            counts[f"reject.{r.stage}.{r.reason}"] += 1
        rejects.sort(key=lambda r: r.row)
        return EncodedBatch(rows, rejects, counts)

    def prepare(self, records: Iterable[Record]) -> tuple[list[Prepared], list[Reject]]:
        """All that happens to text before tokens; bad records come back as rejects."""
        prepared: list[Prepared] = []
        rejects: list[Reject] = []
        surroundings = {t: Surroundings(t) for t in (self.template, self.tool_template)}
        for record in records:
            try:
                prepared.append(self._prepare(record, surroundings))
            except RecordError as error:
                rejects.append(reject(record, error))
            except RecursionError:
                rejects.append(reject(record, _TOO_DEEP))
        return prepared, rejects

    def _prepare(self, record: Record, surroundings: dict[Template, Surroundings]) -> Prepared:
        conversation = read_conversation(decode(record), schema=self.schema)
        _refuse_weights(conversation)
        template = self.tool_template if conversation.tools else self.template
        rendered = template.render(conversation)
        turns = establish_turns(
            conversation, rendered, surroundings=surroundings[template], markers=self.markers
        )
        text = rendered.text
        claims = [c for turn in turns if turn.outputs for c in self.rules.claims(turn, text)]
        return Prepared(record, text, turns, claims, _unrendered(conversation, turns, text))

    def _encode_texts(
        self, prepared: list[Prepared]
    ) -> tuple[list[Prepared], Encoded, list[Reject]]:
        """Ids of all texts; those that no engine can encode come back as rejects."""
        try:
            return prepared, self.tokenizer.encode([p.text for p in prepared]), []
        except EncodeFailure as failure:
            rejects = [reject(prepared[row].record, e) for row, e in failure.rows.items()]
            able = [p for row, p in enumerate(prepared) if row not in failure.rows]
        return able, self.tokenizer.encode([p.text for p in able]), rejects

    def weigh(self, prepared: Sequence[Prepared], encoded: Encoded) -> Weighed:
        """Labels and weights of the batch; claims are in the order of ``rules.rules``."""
        outputs = [
            (row, *span) for row, p in enumerate(prepared) for t in p.turns for span in t.outputs
        ]
        claims: list[list[tuple[int, int, int]]] = [[] for _ in self.rules.rules]
        for row, p in enumerate(prepared):
            for rule, start, end in p.claims:
                claims[rule].append((row, start, end))
        # A template may print messages in another order, and a pattern may search backwards.
        outputs.sort()
        for spans in claims:
            spans.sort()
        return weigh(
            encoded,
            [p.text for p in prepared],
            _character_spans(outputs),
            [
                (_character_spans(spans), rule.weight)
                for spans, rule in zip(claims, self.rules.rules, strict=True)
            ],
        )

    def tabulate(
        self, prepared: Sequence[Prepared], encoded: Encoded, weighed: Weighed
    ) -> tuple[pa.RecordBatch, list[Reject], Counts]:
        """The columns of a shard, rows that would train nothing apart, and what to count."""
        targets = _sums(weighed.labels != IGNORED, encoded.firsts)
        counts = self._counts(prepared, encoded, weighed, targets)
        return *_rows(prepared, encoded, weighed, targets), counts

    def _counts(
        self, prepared: Sequence[Prepared], encoded: Encoded, weighed: Weighed, targets: Any
    ) -> Counts:
        """Of the rows that carry loss: what trains, how starts were found, what rules claimed."""
        kept = targets > 0
        counts: Counts = Counter({f"encoded.{k}": n for k, n in asdict(encoded.paths).items()})
        counts["rows"] = int(kept.sum())
        counts["tokens"] = int(np.diff(encoded.firsts)[kept].sum())
        counts["targets"] = int(targets.sum())
        counts["weight_sum"] = float(weighed.loss_scale.sum(dtype=np.float64))  # type: ignore[assignment] # floats add up too
        counts["straddling.outputs"] = weighed.outputs.straddling
        for keep, p in zip(kept.tolist(), prepared, strict=True):
            if not keep:
                continue
            for role in p.unrendered:
                counts[f"unrendered.{role}"] += 1
            for turn in p.turns:
                if turn.outputs:
                    counts["turns"] += 1
                    counts[f"found.{turn.found}"] += 1
                    counts["turns_without_stop"] += turn.stop < 0
        for rule, spans, trained in zip(
            self.rules.rules, weighed.claims, weighed.trained_claims, strict=True
        ):
            counts[f"rule.{rule.name}.spans"] = spans.spans
            counts[f"rule.{rule.name}.tokens"] = trained
            counts[f"rule.{rule.name}.straddling"] = spans.straddling
        return counts


def _refuse_weights(conversation: Conversation) -> None:
    """A weight that the data asks for is honoured or refused, never passed over."""
    for index, message in enumerate(conversation.messages):
        if isinstance(message.get("content"), list):
            raise RecordError(
                "parse",
                "unsupported_weight",
                "a weight on a part cannot be honoured by this version; drop it or the record",
                field=f"messages[{index}].content",
            )
        for key in _WEIGHT_KEYS & message.keys():
            value = message[key]
            as_it_is = 1 if message["role"] == "assistant" else 0
            if value is None or (isinstance(value, (int, float)) and value == as_it_is):
                continue
            raise RecordError(
                "parse",
                "unsupported_weight",
                f"{value!r} cannot be honoured by this version; drop the key or the record",
                field=f"messages[{index}].{key}",
            )


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


def _character_spans(spans: list[tuple[int, int, int]]) -> CharacterSpans:
    """Sorted by row and start; each (row, start, end)."""
    flat = np.array(spans, np.int64).reshape(-1, 3)
    return CharacterSpans(flat[:, 0], flat[:, 1], flat[:, 2])


def _sums(values: Any, firsts: Any) -> Any:
    """The sum of *values* over each row of a flat batch; 0 for an empty row."""
    dtype = np.int64 if values.dtype == np.bool_ else np.float64
    sums = np.zeros(len(firsts) - 1, dtype)
    filled = firsts[:-1] < firsts[1:]
    # Row by row: the difference of running sums would lose a row next to one of huge weights.
    if filled.any():
        sums[filled] = np.add.reduceat(values, firsts[:-1][filled], dtype=dtype)
    return sums


def _rows(
    prepared: Sequence[Prepared], encoded: Encoded, weighed: Weighed, targets: Any
) -> tuple[pa.RecordBatch, list[Reject]]:
    """The batch's columns, from flat buffers; a row that would train nothing is a reject."""
    nothing = RecordError(
        "weigh",
        "nothing_to_train",
        "no token of it carries loss; drop the record or change the rules",
    )
    rejects = [reject(prepared[i].record, nothing) for i in np.flatnonzero(targets == 0).tolist()]
    firsts = encoded.firsts
    columns = [
        _lists(firsts, encoded.ids),
        _lists(firsts, weighed.labels),
        _lists(firsts, weighed.loss_scale),
        pa.array(np.diff(firsts).astype(np.int32)),
        pa.array(targets.astype(np.int32)),
        pa.array(_sums(weighed.loss_scale, firsts).astype(np.float32)),
        pa.array([p.record.source for p in prepared], pa.string()),
        pa.array([p.record.row for p in prepared], pa.int64()),
        _regions(prepared),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    return (batch.filter(pa.array(targets > 0)) if rejects else batch), rejects


def _lists(firsts: Any, values: Any) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(firsts.astype(np.int32)), pa.array(values))


def _regions(prepared: Sequence[Prepared]) -> pa.ListArray:
    """The ``spans`` column: each message's regions, in characters of the rendered text."""
    stops = [0]
    flat: list[Region] = []
    for p in prepared:
        for turn in p.turns:
            flat.extend(divide(turn, p.text))
        stops.append(len(flat))
    messages, roles, names, starts, ends = zip(*flat, strict=True) if flat else ((),) * 5
    fields = [
        pa.array(messages, pa.int32()),
        pa.array(roles, pa.string()),
        pa.array(names, pa.string()),
        pa.array(starts, pa.int32()),
        pa.array(ends, pa.int32()),
    ]
    values = pa.StructArray.from_arrays(fields, fields=list(SPAN_TYPE))
    return pa.ListArray.from_arrays(pa.array(stops, pa.int32()), values)
