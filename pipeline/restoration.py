"""Rows of a shard as they were before they were weighed: text, tokens' ends, turns."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa

from pipeline.columns import flat_column, numbers
from pipeline.divided import DividedTurns, read_regions
from pipeline.errors import InputError, RecordError
from pipeline.policy import Policy
from pipeline.rows import Prepared
from pipeline.rules import RuleSet, Talk
from pipeline.scales import Scale
from pipeline.source.record import Record
from pipeline.swift import exempt_weighted
from pipeline.tokens.alignment import Alignment
from pipeline.tokens.encoded import Encoded, Int32, Int64, Paths, end_tokens, join_texts
from pipeline.tokens.faults import EncodeFailure
from pipeline.tokens.spelling import Spellings, read_spellings
from pipeline.tokens.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_definition

_NO_PATHS = Paths(fast=0, reference=0, repaired=0, checked=0)


class UnplacedError(InputError):
    """Ids that cannot be laid over their text, though nothing is damaged."""


class _Records(Sequence[Record]):
    """Where the rows of a table come from; made when asked for, as most are not."""

    def __init__(self, table: pa.Table) -> None:
        self._sources, self._rows = table["source"], table["row"]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Record(self._sources[index].as_py(), self._rows[index].as_py(), line=0)


@dataclass(frozen=True, slots=True)
class Restored:
    """The rows of one table, in its order."""

    records: Sequence[Record]
    texts: list[str]
    encoded: Encoded
    turns: DividedTurns
    scales: list[list[Scale]]
    fields: list[dict[str, Any]]

    def prepare(self, row: int, rules: RuleSet, policy: Policy) -> Prepared:
        """A row with what *rules* claim of it. Raises RecordError where they fail on it."""
        text, turns, scales = self.texts[row], self.turns.of(row), self.scales[row]
        claims = rules.claims(Talk(text, turns, self.fields[row], policy.swift))
        if policy.swift:
            weighted = {
                turn.message
                for turn in turns
                for output in turn.outputs
                if any(output.start <= scale.start < output.end for scale in scales)
            }
            claims = exempt_weighted(claims, turns, rules, weighted=weighted)
        return Prepared(self.records[row], text, turns, claims, scales)


class Restoration:
    """Gives rows back with the tokenizer that made them.

    Text and ends come from ids by a table; only for the rows that have their ``text`` stored the
    reference is asked, where their tokens end or, if need be, to encode them again.
    """

    def __init__(self, vocabulary: Vocabulary, *, tokenizer: Tokenizer | None = None) -> None:
        """*tokenizer* is that of *vocabulary*; without one it is loaded where a row needs it."""
        self._vocabulary, self._tokenizer = vocabulary, tokenizer
        self._spellings: Spellings | None = None
        self._alignment: Alignment | None = None

    def restore(self, table: pa.Table) -> Restored:
        """*table* has the columns of ``shards.SCHEMA``. InputError names a row that is damaged."""
        records = _Records(table)
        firsts, values = flat_column(table["input_ids"])
        encoded, raws = self._spell(numbers(values), firsts, table["text"], records)
        texts = list(_decode(raws, records))
        regions = read_regions(table["spans"])
        for row in regions.outside(np.fromiter(map(len, texts), np.int64, len(texts))).tolist():
            raise _damaged(records[row], f"a span lies outside its {len(texts[row])} characters")
        turns = regions.turns(texts)
        fields = [json.loads(f) if f else {} for f in table["fields"].to_pylist()]
        return Restored(records, texts, encoded, turns, regions.scales(), fields)

    def _spell(
        self, ids: Int32, firsts: Int64, stored: pa.ChunkedArray, records: Sequence[Record]
    ) -> tuple[Encoded, list[bytes]]:
        """The rows' tokens, and their texts in UTF-8."""
        if not self._spell_out().knows(ids):
            raise InputError(f"input_ids: {TOKENIZER} has no such ids; name their own tokenizer")
        text, ends = self._spell_out().spell(ids)
        starts = np.concatenate(([0], ends))[firsts]
        data, edges = text.tobytes(), starts.tolist()
        raws = [data[start:end] for start, end in itertools.pairwise(edges)]
        if stored.null_count < len(stored):
            widths = np.diff(ends, prepend=0)
            for row, kept in enumerate(stored.to_pylist()):
                if kept is not None:
                    tokens = slice(firsts[row], firsts[row + 1])
                    widths[tokens] = self._measure(kept, ids[tokens], records[row])
                    raws[row] = kept.encode()
            text, starts = join_texts(raws)
            ends = end_tokens(widths, firsts, starts)
        return Encoded(ids, firsts, ends, text, starts, _NO_PATHS), raws

    def _measure(self, text: str, ids: Int32, record: Record) -> Int64:
        """Bytes per token of a row whose text is not what its ids spell."""
        if self._alignment is None:
            place = self._vocabulary.folder / TOKENIZER
            raw = place.read_bytes()
            definition = read_definition(raw, place)
            self._alignment = Alignment(definition, raw=raw, spellings=self._spell_out())
        try:
            widths = self._alignment.widths(text, ids)
            if widths is not None:
                return widths
            self._tokenizer = self._tokenizer or load_tokenizer(self._vocabulary)
            quoted = self._tokenizer.quotes(text, ids.tolist())
            encoded = self._tokenizer.encode([text], quoted={0: quoted})
        except (EncodeFailure, RecordError) as error:
            raise _damaged(record, f"its text cannot be encoded: {error}") from error
        if not np.array_equal(encoded.ids, ids):
            raise UnplacedError(
                f"{record.place}: its text was normalized and its ids are not what it encodes to "
                "(sampled ids, or edges that split), so that they cannot be laid over it; build "
                "again with the new rules"
            )
        return np.diff(encoded.ends, prepend=0)

    def _spell_out(self) -> Spellings:
        if self._spellings is None:
            place = self._vocabulary.folder / TOKENIZER
            self._spellings = read_spellings(read_definition(place.read_bytes(), place))
        return self._spellings


def _decode(raws: Sequence[bytes], records: Sequence[Record]) -> Iterator[str]:
    for row, raw in enumerate(raws):
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            raise _damaged(records[row], f"its ids spell no text ({error.reason})") from error


def _damaged(record: Record, fact: str) -> InputError:
    return InputError(f"{record.place}: {fact}: the shard is damaged; build it again")
