"""The pure core: records in, one Arrow record batch and the rejects out.

Everything else (processes, ``datasets.map``, Ray) is a way of calling ``Encoder``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipeline.columns import column, list_column, row_sums
from pipeline.conversation import Conversation
from pipeline.division import divide_rows
from pipeline.errors import InputError, RecordError
from pipeline.laid import BEGIN, BODY, FOUND, HOW, ROW, UNTIL, gather
from pipeline.parsing import count_together, parse
from pipeline.pieces import encode_pieces
from pipeline.policy import Policy
from pipeline.preparation import TOO_DEEP, Preparation
from pipeline.reject import Reject, reject
from pipeline.rows import NOTHING_TO_TRAIN, Counts, EncodedBatch, Prepared
from pipeline.rules import RuleSet
from pipeline.shards import SCHEMA
from pipeline.source.columns import to_records
from pipeline.source.record import Record
from pipeline.template import Template
from pipeline.tokens.encoded import Encoded, select_rows
from pipeline.tokens.faults import EncodeFailure
from pipeline.tokens.tokenizer import Tokenizer
from pipeline.weighing import count_weights, weigh_rows
from pipeline.weights import IGNORED, Weighed

_GROUP = 1 << 22  # characters
_TOLD = ("quoted_control_tokens", "rewritten_turns", "weighted_inputs")
_TOGETHER = 128  # records; and so many bytes of them
_TOGETHER_BYTES = 1 << 18


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
        policy: Policy | None = None,
    ) -> None:
        """*tool_template*, where a tokenizer has one, renders the conversations that have tools."""
        self.tokenizer, self.template, self.rules, self.schema = tokenizer, template, rules, schema
        self.policy = policy or Policy()
        self.tool_template = tool_template or template
        self._preparations: dict[Template, Preparation] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what renders have taught so far: `datasets.map` knows a function by its pickle.
        tools = None if self.tool_template is self.template else self.tool_template
        parts = (self.tokenizer, self.template, self.rules, tools, self.schema, self.policy)
        return _rebuild, parts

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

    def encode(
        self, records: Sequence[Record], *, at: Callable[[int], None] | None = None
    ) -> EncodedBatch:
        """Every record becomes its rows or a reject, once; *at* is told the number of each."""
        batches: list[pa.RecordBatch] = []
        rejects: list[Reject] = []
        counts: Counts = Counter()
        for group in self._groups(records, rejects, at):
            prepared, encoded, failed = self._encode_texts(group)
            rejects += failed
            if self.policy.max_length:
                prepared, encoded, failed = self._without_long(prepared, encoded)
                rejects += failed
            scaled, encoded = self.rescale(prepared, encoded)
            weighed = self.weigh(scaled, encoded)
            rows, untrained, counted = self.tabulate(scaled, encoded, weighed)
            rejects += untrained
            counts.update(counted)
            batches.append(rows)
        rows = batches[0] if len(batches) == 1 else _in_one(batches)
        counts["conversations"] = len(records)
        counts["rejects"] = len(rejects)
        for r in rejects:
            counts[f"reject.{r.stage}.{r.reason}"] += 1
        if rejects:  # a batch may hold records of several small sources
            places = {(record.source, record.row): i for i, record in enumerate(records)}
            rejects.sort(key=lambda r: places[r.source, r.row])
        return EncodedBatch(rows, rejects, counts)

    def _groups(
        self,
        records: Sequence[Record],
        rejects: list[Reject],
        at: Callable[[int], None] | None,
    ) -> Iterator[list[Prepared]]:
        """The records' rows, in groups of bounded text: what fans out is not held all at once."""
        size, group = 0, list[Prepared]()
        # What fans out is bounded one record at a time.
        most = 1 if self.policy.turns == "fan_out" else _TOGETHER
        for first, stop in _chunks(records, most):
            within = _numbered(at, range(first, stop))
            prepared, failed = self.prepare(records[first:stop], at=within)
            rejects += failed
            for p in prepared:
                if size > _GROUP and p.record is not group[-1].record:
                    yield group
                    size, group = 0, []
                group.append(p)
                size += len(p.text)
            if size > _GROUP:
                yield group
                size, group = 0, []
        yield group

    def prepare(
        self, records: Sequence[Record], *, at: Callable[[int], None] | None = None
    ) -> tuple[list[Prepared], list[Reject]]:
        """All that happens to text before tokens; bad records come back as rejects.

        *at* is told the number of each record that is looked at, by one stage after another.
        """
        errors: dict[int, RecordError] = {}
        talks: dict[Template, list[tuple[int, Conversation]]] = {}
        colons = count_together(records)
        for index, record in enumerate(records):
            if at is not None:
                at(index)
            try:
                talk = parse(record, schema=self.schema, colons=colons[index])
            except RecordError as error:
                errors[index] = error
            except RecursionError:
                errors[index] = TOO_DEEP
            else:
                template = self.tool_template if talk.tools else self.template
                talks.setdefault(template, []).append((index, talk))
        rows: dict[int, list[Prepared]] = {}
        for template, mine in talks.items():
            numbers = [index for index, _ in mine]
            told = at if len(numbers) == len(records) else _numbered(at, numbers)
            pairs = [(records[index], talk) for index, talk in mine]
            found = self.preparation(template).prepare(pairs, at=told)
            for index, prepared in zip(numbers, found, strict=True):
                if isinstance(prepared, RecordError):
                    errors[index] = prepared
                else:
                    rows[index] = prepared
        rejects = [reject(records[index], errors[index]) for index in sorted(errors)]
        return [p for index in sorted(rows) for p in rows[index]], rejects

    def preparation(self, template: Template) -> Preparation:
        """What prepares the conversations that *template* renders."""
        found = self._preparations.get(template)
        if found is None:
            found = Preparation(template, self.tokenizer, self.rules, self.policy)
            self._preparations[template] = found
        return found

    def _encode_texts(
        self, prepared: list[Prepared]
    ) -> tuple[list[Prepared], Encoded, list[Reject]]:
        """Ids of all texts; a record one of whose texts no engine can encode becomes a reject."""
        try:
            return prepared, self.encode_texts(prepared), []
        except EncodeFailure as failure:
            bad = {_key(prepared[row]): (row, error) for row, error in failure.rows.items()}
            able = [p for p in prepared if _key(p) not in bad]
            rejects = [reject(prepared[row].record, error) for row, error in bad.values()]
            return able, self.encode_texts(able), rejects

    def _without_long(
        self, prepared: list[Prepared], encoded: Encoded
    ) -> tuple[list[Prepared], Encoded, list[Reject]]:
        """The rows of records none of whose rows is too long; the others as rejects."""
        longest = self.policy.max_length
        lengths = np.diff(encoded.firsts).tolist()
        long: dict[tuple[str, int], tuple[Record, int]] = {}
        for p, length in zip(prepared, lengths, strict=True):
            if length > longest and not p.whole:
                long.setdefault(_key(p), (p.record, length))
        if not long:
            return prepared, encoded, []
        kept = [row for row, p in enumerate(prepared) if _key(p) not in long]
        rejects = [
            reject(
                record,
                RecordError(
                    "encode",
                    "too_long",
                    f"has {length:,} tokens, and --max-length is {longest:,}; shorten it or allow "
                    "more",
                ),
            )
            for record, length in long.values()
        ]
        return [prepared[row] for row in kept], select_rows(encoded, kept), rejects

    def encode_texts(self, prepared: Sequence[Prepared]) -> Encoded:
        """Ids of the rows' texts; control tokens that the data spells out are text."""
        if any(p.cuts or p.places for p in prepared):
            return encode_pieces(self.tokenizer, prepared)
        quoted = {row: p.quoted for row, p in enumerate(prepared) if p.quoted}
        return self.tokenizer.encode([p.text for p in prepared], quoted=quoted)

    def rescale(self, prepared: list[Prepared], encoded: Encoded) -> tuple[list[Prepared], Encoded]:
        """Fanned-out rows, divided so that a conversation weighs what it does rendered whole.

        Before rules: so a row's own weights stay what they are under others.
        """
        if not any(p.whole for p in prepared):
            return prepared, encoded
        weights = row_sums(self.weigh(prepared, encoded).own, encoded.firsts).tolist()
        whole: Counter[tuple[str, int]] = Counter()
        fanned: Counter[tuple[str, int]] = Counter()
        for p, weight in zip(prepared, weights, strict=True):
            (whole if p.whole else fanned)[_key(p)] += weight
        # One that fans out into nothing stays, to be rejected for training nothing.
        kept = [row for row, p in enumerate(prepared) if not p.whole or _key(p) not in fanned]
        rows = [prepared[row] for row in kept]
        # A template may hide a turn that its own row trains: nothing to divide by then.
        factors = [whole[k] / fanned[k] if whole[k] and fanned[k] else 1.0 for k in map(_key, rows)]
        return [
            p if factor == 1 else p.rescaled(factor)
            for p, factor in zip(rows, factors, strict=True)
        ], select_rows(encoded, kept)

    def weigh(self, prepared: Sequence[Prepared], encoded: Encoded) -> Weighed:
        """Labels and weights of the batch; claims are in the order of ``rules.rules``."""
        return weigh_rows(prepared, encoded, self.rules, self.policy)

    def tabulate(
        self, prepared: Sequence[Prepared], encoded: Encoded, weighed: Weighed
    ) -> tuple[pa.RecordBatch, list[Reject], Counts]:
        """The columns of a shard, rows that would train nothing apart, and what to count."""
        weighted = row_sums(weighed.loss_scale != 0, encoded.firsts)
        counts = count_weights(encoded, weighed, weighted, self.rules)
        counts.update(_count_turns(prepared, weighted > 0))
        # Of a conversation in several rows, those that train nothing while others do.
        counts["untrained_rows"] = 0
        if not weighted.all():
            training = {_key(prepared[i]) for i in np.flatnonzero(weighted).tolist()}
            counts["untrained_rows"] = sum(
                not some and _key(p) in training
                for some, p in zip(weighted.tolist(), prepared, strict=True)
            )
        told = self.tokenizer.spelled(encoded).tolist()
        texts = [None if t else p.text for t, p in zip(told, prepared, strict=True)]
        return *_rows(prepared, encoded, weighed, weighted, texts), counts


def _numbered(
    at: Callable[[int], None] | None, numbers: Sequence[int]
) -> Callable[[int], None] | None:
    """Tells *at* of the i-th thing by its own number."""
    if at is None:
        return None

    def told(index: int) -> None:
        at(numbers[index])

    return told


def _chunks(records: Sequence[Record], most: int) -> Iterator[tuple[int, int]]:
    """First and stop of the records that are prepared together.

    A large one is alone: should it kill the worker, it is the one that the worker was at.
    """
    first = size = 0
    for index, record in enumerate(records):
        more = len(record.raw or b"")
        if first < index and (index - first == most or size + more > _TOGETHER_BYTES):
            yield first, index
            first, size = index, 0
        size += more
    if first < len(records):
        yield first, len(records)


def _count_turns(prepared: Sequence[Prepared], kept: Any) -> Counts:
    """Of the *kept* rows: how starts were found, and what else was counted of each."""
    counts: Counts = Counter()
    if kept.any():
        counts.update(dict.fromkeys(_TOLD, 0))
    laid, listed = gather(p.turns for p in prepared)
    laid = laid[kept[laid[:, ROW]] & (laid[:, BEGIN] >= 0)]
    stopless = int((laid[:, BODY] == laid[:, UNTIL]).sum())
    found = [HOW[code] for code in laid[:, FOUND].tolist()]
    for row in listed:
        for turn in prepared[row].turns if kept[row] else ():
            if turn.outputs:
                found.append(turn.found)
                stopless += turn.stop < 0
    for p in itertools.compress(prepared, kept.tolist()):
        if p.counts:
            counts.update(p.counts)
    if found:
        counts["turns"] = len(found)
        counts["turns_without_stop"] = stopless
        counts.update({f"found.{how}": times for how, times in Counter(found).items()})
    return counts


def _rebuild(
    tokenizer: Tokenizer,
    template: Template,
    rules: RuleSet,
    tool_template: Template | None,
    schema: str,
    policy: Policy,
) -> Encoder:
    return Encoder(
        tokenizer, template, rules, tool_template=tool_template, schema=schema, policy=policy
    )


def _in_one(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    table = pa.Table.from_batches(batches, SCHEMA).combine_chunks()
    found = table.to_batches()
    return found[0] if found else batches[0]


def _key(prepared: Prepared) -> tuple[str, int]:
    """What the rows of one record share."""
    return prepared.record.source, prepared.record.row


def _rows(
    prepared: Sequence[Prepared],
    encoded: Encoded,
    weighed: Weighed,
    weighted: Any,
    texts: Sequence[str | None],
) -> tuple[pa.RecordBatch, list[Reject]]:
    """The batch's columns, from flat buffers; a row that would train nothing is a reject."""
    firsts, rejects = encoded.firsts, list[Reject]()
    if not weighted.all():
        # Of a conversation in several rows some may train: then the others are only left out.
        training = {_key(prepared[i]) for i in np.flatnonzero(weighted).tolist()}
        untrained = {_key(p): p.record for p in prepared if _key(p) not in training}
        rejects = [reject(record, NOTHING_TO_TRAIN) for record in untrained.values()]
    columns = [
        list_column(firsts, encoded.ids),
        list_column(firsts, weighed.labels),
        list_column(firsts, weighed.loss_scale),
        column(np.diff(firsts).astype(np.int32)),
        column(row_sums(weighed.labels != IGNORED, firsts).astype(np.int32)),
        column(row_sums(weighed.loss_scale, firsts).astype(np.float32)),
        pa.array([p.record.source for p in prepared], pa.string()),
        pa.array([p.record.row for p in prepared], pa.int64()),
        pa.array(texts, pa.string()),
        pa.array([p.fields for p in prepared], pa.string()),
        divide_rows(prepared),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    return (batch if weighted.all() else batch.filter(pa.array(weighted > 0))), rejects
