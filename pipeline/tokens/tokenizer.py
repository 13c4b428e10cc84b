"""Text to ids and byte offsets, a batch at a time; the only importer of tokenizers.

Both libraries are imported when an engine is built, never with this module. They read their
thread counts from the environment then: fastokens obeys ``FASTOKENS_BPE_THREADS`` (not
``RAYON_NUM_THREADS``), tokenizers ``TOKENIZERS_PARALLELISM`` and ``RAYON_NUM_THREADS``.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from pipeline.errors import RecordError, TokenizerError
from pipeline.spans import Span
from pipeline.tokens.changes import Changes
from pipeline.tokens.controls import Controls
from pipeline.tokens.encoded import (
    Encoded,
    Int32,
    Int64,
    Paths,
    end_tokens,
    join_rows,
    join_texts,
    splice,
    sum_rows,
)
from pipeline.tokens.fast import FastEngine, Loading
from pipeline.tokens.faults import (
    EncodeFailure,
    Faults,
    encode_each,
    encode_utf8,
    library_fault,
    raise_any,
    require_equal,
    require_tokens,
)
from pipeline.tokens.forms import is_normalized
from pipeline.tokens.offsets import ends_from_characters, read_model
from pipeline.tokens.quoted import Quoted, Quoting, quotes
from pipeline.tokens.spelling import Spellings, read_spellings
from pipeline.tokens.trust import ENGINES, Certificate, EngineName, engine_versions
from pipeline.tokens.vocabulary import TOKENIZER, AddedToken, Vocabulary, read_definition
from pipeline.tokens.windows import confirm, pay

__all__ = ["Certificate", "EncodeFailure", "Encoded", "Paths", "Tokenizer", "load_tokenizer"]

SAMPLE = 200  # one document in so many is encoded by both engines
NOTHING_QUOTED: Mapping[int, Sequence[Span]] = MappingProxyType({})
_CHUNK = 1 << 18  # characters: the reference's Encodings hold some 200 bytes a token


class Engine(Protocol):
    """What turns texts into flat ids [tokens] and firsts [texts+1]; adds no special tokens."""

    @property
    def name(self) -> EngineName: ...

    def encode(self, texts: Sequence[str]) -> tuple[Int32, Int64]: ...


class ReferenceEngine:
    """Hugging Face's tokenizers: ids, offsets and decoding."""

    name: EngineName = "reference"

    def __init__(self, raw: bytes) -> None:
        from tokenizers import Tokenizer as Library

        self._library = Library.from_buffer(raw)
        self._library.no_truncation()
        self._library.no_padding()
        # With no special tokens to add, all it could do is ByteLevel(trim_offsets=True): take
        # spaces out of every token's offsets, so that they lie in none.
        self._library.post_processor = None

    def encode(self, texts: Sequence[str]) -> tuple[Int32, Int64]:
        encode, rows = self._library.encode_batch_fast, []
        for chunk in _chunks(texts):
            encodings = encode(chunk, add_special_tokens=False)
            rows += [np.array(encoding.ids, np.int32) for encoding in encodings]
        return join_rows(rows)

    def read(self, text: str) -> tuple[Int32, list[tuple[int, int]]]:
        """Ids, and the characters of each; RecordError if the library fails."""
        try:
            encoding = self._library.encode(text, add_special_tokens=False)
        except BaseException as error:  # noqa: BLE001 - a panic is one, the rest is raised again
            raise library_fault(error) from None
        return np.array(encoding.ids, np.int32), encoding.offsets

    def locate(self, text: str) -> tuple[Int32, Int64, RecordError | None]:
        """Ids, where each ends in the text's UTF-8, and what went wrong instead."""
        try:
            ids, offsets = self.read(text)
        except RecordError as fault:
            return np.zeros(0, np.int32), np.zeros(0, np.int64), fault
        return ids, ends_from_characters(text, offsets), None

    def find(self, content: str) -> int:
        """The id of a token, -1 if there is none."""
        found: int | None = self._library.token_to_id(content)
        return -1 if found is None else found

    def has_in_model(self, content: str) -> bool:
        """Whether it is an entry of the model's own vocabulary, added tokens left aside."""
        return self._library.model.token_to_id(content) is not None

    def normalize(self, text: str) -> str:
        normalizer = self._library.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def share_model(self, other: ReferenceEngine) -> None:
        """Take another engine's model, not a copy; before tokens are added, whose ids follow it."""
        self._library.model = other._library.model

    def add(self, tokens: Iterable[AddedToken]) -> list[int]:
        """Add tokens after those there are, unless the model has them; their ids."""
        from tokenizers import AddedToken as Added

        added = [(t.content, msgspec.structs.asdict(t)) for t in tokens]
        flags = ("special", "lstrip", "rstrip", "normalized", "single_word")
        self._library.add_tokens([Added(c, **{f: t[f] for f in flags}) for c, t in added])
        return [self.find(content) for content, _ in added]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._library.decode(list(ids), skip_special_tokens=False))


E = TypeVar("E", FastEngine, ReferenceEngine)


class LateEngine:
    """A fast engine that a thread is loading; nothing encodes before `wait`."""

    name: EngineName = "fast"

    def __init__(self, loading: Loading, vocabulary: Vocabulary, raw: bytes) -> None:
        self.loading, self._vocabulary, self._raw = loading, vocabulary, raw

    def wait(self) -> FastEngine:
        """The engine; loaded here where the thread's is none, or another file's."""
        engine = self.loading.take(self._vocabulary.digests[TOKENIZER])
        place = self._vocabulary.folder / TOKENIZER
        return engine or build_engine(FastEngine, self._raw, place)


class Tokenizer:
    """Encodes batches with one engine, held to the reference. Made by `load_tokenizer`; picklable.

    ``added_tokens`` maps contents to ids; ``control_tokens`` are those of them
    that are special, or look it; ``control_contents`` maps ids of these to contents.
    ``size`` is one more than the largest id.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        raw: bytes,
        *,
        engine: Engine | LateEngine,
        code_points: Iterable[int] = (),
    ) -> None:
        place = vocabulary.folder / TOKENIZER
        definition = read_definition(raw, place)
        self._model = model = read_model(definition)
        if model.dropout:
            raise TokenizerError(f"{place}: model.dropout: makes ids random; set it to null")
        if model.lengths is None and engine.name != "reference":
            # Every text needs its offsets anyway.
            engine = build_engine(ReferenceEngine, raw, place)
        added = definition.added_tokens
        self.vocabulary = vocabulary
        self.size = model.size
        self.added_tokens: Mapping[str, int] = {token.content: token.id for token in added}
        self.control_tokens: Mapping[str, int] = {t.content: t.id for t in added if t.control}
        self.control_contents = {id_: content for content, id_ in self.control_tokens.items()}
        self.code_points = tuple(sorted(code_points))
        self._raw, self._definition, self._engine = raw, definition, engine
        self._reference = engine if isinstance(engine, ReferenceEngine) else None
        points = re.escape("".join(map(chr, self.code_points)))
        self._distrusted = re.compile(f"[{points}]") if points else None
        self._controls: Controls | None = None
        self._quoting: Quoting | None = None
        self._spellings: Spellings | None = None
        self._changes: Changes | None = None

    @property
    def engine(self) -> EngineName:
        """Which engine gives the ids."""
        return self._engine.name

    def load(self) -> None:
        """Loads now what the first rows need, as long as a thread has the fast engine to load."""
        self._find_spellings()
        if isinstance(self._engine, LateEngine) and not self._engine.loading.done:
            self._refer()

    def encode(
        self, texts: Sequence[str], *, quoted: Mapping[int, Sequence[Span]] = NOTHING_QUOTED
    ) -> Encoded:
        """Ids and byte ends of *texts*, the same in any batching; adds no special tokens.

        ``quoted[row]`` are sorted disjoint spans of ``texts[row]``, control tokens' spellings (see
        `control_matches`) that are content: none of their text is in a control token. All other
        spellings act, and added tokens that are no control tokens stay tokens everywhere.

        Raises EncodeFailure naming every text that cannot be encoded (a lone surrogate, no token
        for it, a quoted spelling that is no text to the model, a fault in the library), and
        EngineMismatch.
        """
        raws, faults = encode_utf8(texts)
        rows = self._encode_quoted(texts, quoted, faults)
        apart = rows.keys() | faults.keys()
        readable = ["" if row in apart else text for row, text in enumerate(texts)]
        sizes = [b"" if row in apart else raw for row, raw in enumerate(raws)] if rows else raws
        by = self._by_offsets if self._model.lengths is None else self._by_lengths
        ids, firsts, widths, paths = by(readable, sizes, faults)
        if rows:
            widths, _ = splice(widths, firsts, {row: found.widths for row, found in rows.items()})
            ids, firsts = splice(ids, firsts, {row: found.ids for row, found in rows.items()})
            require_tokens(raws, firsts, faults)
            raise_any(faults)
            paths = _count_quoted(paths, rows.values(), engine=self.engine)
        text, starts = join_texts(raws)
        return Encoded(ids, firsts, end_tokens(widths, firsts, starts), text, starts, paths)

    def control_matches(self, text: str) -> list[Span]:
        """Every control token that *text* spells, sorted, as the engine would split them out.

        Leftmost, then longest, among all added tokens; without the spaces that ``lstrip`` and
        ``rstrip`` take.
        """
        return [match.span for match in self._find_controls().match(text)]

    def quotes(self, text: str, ids: Sequence[int]) -> list[Span]:
        """The spellings of control tokens in *text* that are none in *ids*, its encoding.

        ``encode([text], quoted={0: quotes(text, ids)})`` gives the ids back, if they are those of
        this text. May raise EncodeFailure where lengths of ids do not tell offsets.
        """
        return quotes(self, self._model, self._find_controls(), text, np.array(ids, np.int64))

    def spelled(self, encoded: Encoded) -> npt.NDArray[np.bool_]:
        """bool [rows]: whether a row's ids alone give its text and ends back, by `Spellings`."""
        return self._find_spellings().spelled(encoded)

    def spell(self, ids: Int32) -> tuple[bytes, Int64]:
        """The bytes that *ids*, each below ``size``, stand for, and how many each covers.

        0 where an id alone tells none, or the tokenizer is one whose ids do not.
        """
        text, ends = self._find_spellings().spell(ids)
        widths = np.diff(ends, prepend=0)
        lengths = self._model.lengths
        told = np.zeros(len(ids), np.bool_) if lengths is None else lengths[ids] == widths
        return text.tobytes(), np.where(told, widths, 0)

    def decode(self, ids: Iterable[int]) -> str:
        """The reference's text of *ids*, control tokens included; broken UTF-8 becomes U+FFFD."""
        return self._refer().decode(ids)

    def _by_offsets(
        self, texts: Sequence[str], raws: Sequence[bytes], faults: Faults
    ) -> tuple[Int32, Int64, Int64, Paths]:
        """Ids, firsts, bytes per token and counts, where ids do not tell lengths."""
        engine, rows, widths = self._refer(), [], [np.zeros(0, np.int64)]
        for row, text in enumerate(texts):
            ids, ends, fault = engine.locate(text)
            rows.append(ids)
            widths.append(np.diff(ends, prepend=0))
            if fault:
                faults[row] = fault
        flat, firsts = join_rows(rows)
        require_tokens(raws, firsts, faults)
        raise_any(faults)
        paths = Paths(fast=0, reference=len(texts), repaired=len(texts), checked=0)
        return flat, firsts, np.concatenate(widths), paths

    def _by_lengths(
        self, texts: Sequence[str], raws: Sequence[bytes], faults: Faults
    ) -> tuple[Int32, Int64, Int64, Paths]:
        """Ids, firsts, bytes per token and counts, where ids tell lengths of most texts."""
        assert self._model.lengths is not None
        ids, firsts, referred, checked = self._identify(texts, raws, faults)
        require_tokens(raws, firsts, faults)
        raise_any(faults)
        widths = self._model.lengths[ids]
        doubtful = sum_rows(widths, firsts) != np.fromiter(map(len, raws), np.int64, len(raws))
        if forms := self._model.forms:
            doubtful |= np.array([not is_normalized(text, forms) for text in texts], np.bool_)
        repaired = np.flatnonzero(doubtful).tolist()
        for row in repaired:
            tokens = slice(firsts[row], firsts[row + 1])
            ends = self._align(texts[row], raws[row], ids[tokens])
            if ends is None:
                located, ends, fault = self._refer().locate(texts[row])
                if fault:
                    faults[row] = fault
                    continue
                require_equal(texts[row], ids[tokens], located)
            widths[tokens] = np.diff(ends, prepend=0)
        raise_any(faults)
        paths = Paths(len(texts) - referred, referred, repaired=len(repaired), checked=checked)
        return ids, firsts, widths, paths

    def _align(self, text: str, raw: bytes, ids: Int32) -> Int64 | None:
        """Ends of tokens from the stretches that a normalizer changes, if these tell them all.

        Around the changes a fast engine's *ids* are held to the reference's.
        """
        lengths, changes = self._model.lengths, self._find_changes()
        stretches, held = changes.find(text), self.engine == "reference"
        if lengths is None or not (held or pay(len(stretches), len(ids))):
            return None
        aligned = changes.align(text, raw, ids, stretches)
        if aligned is None:
            return None
        sure = held or confirm(self._refer().encode, raw, ids, aligned, lengths)
        return aligned.ends if sure else None

    def _identify(
        self, texts: Sequence[str], raws: Sequence[bytes], faults: Faults
    ) -> tuple[Int32, Int64, int, int]:
        """Ids and firsts, how many texts were left to the reference, and how many it checked."""
        engine = self._engine
        if isinstance(engine, LateEngine):
            engine = self._engine = engine.wait()
        if engine.name == "reference":
            ids, firsts, failed = encode_each(engine.encode, texts)
            faults |= failed
            return ids, firsts, len(texts), 0
        distrusted = {row for row, text in enumerate(texts) if self._distrusts(text)}
        trusted = ["" if row in distrusted else text for row, text in enumerate(texts)]
        ids, firsts, failed = encode_each(engine.encode, trusted)
        referred = distrusted | failed.keys()
        checked = {row for row, raw in enumerate(raws) if is_sampled(raw)} - referred
        rows = sorted(referred | checked)
        if not rows:  # the reference need not even be loaded
            return ids, firsts, 0, 0
        slow_ids, slow_firsts, failed = encode_each(self._refer().encode, [texts[r] for r in rows])
        faults |= {rows[k]: fault for k, fault in failed.items()}
        slow = dict(zip(rows, np.split(slow_ids, slow_firsts[1:-1]), strict=True))
        for row in checked - faults.keys():
            require_equal(texts[row], ids[firsts[row] : firsts[row + 1]], slow[row])
        ids, firsts = splice(ids, firsts, {row: slow[row] for row in referred})
        return ids, firsts, len(referred), len(checked)

    def _distrusts(self, text: str) -> bool:
        # No certificate has an ASCII code point in its table.
        return bool(self._distrusted and not text.isascii() and self._distrusted.search(text))

    def _encode_quoted(
        self, texts: Sequence[str], quoted: Mapping[int, Sequence[Span]], faults: Faults
    ) -> dict[int, Quoted]:
        """The rows that have quoted spans, apart from all others."""
        rows: dict[int, Quoted] = {}
        for row, spans in quoted.items():
            if not spans or row in faults:
                continue
            try:
                rows[row] = self._quote().encode(texts[row], spans)
            except RecordError as fault:
                faults[row] = fault
        return rows

    def _quote(self) -> Quoting:
        if self._quoting is None:
            self._quoting = Quoting(
                self._definition,
                raw=self._raw,
                model=self._model,
                controls=self._find_controls(),
                reference=self._refer(),
                make=ReferenceEngine,
            )
        return self._quoting

    def _find_controls(self) -> Controls:
        if self._controls is None:
            self._controls = Controls(self._definition, raw=self._raw, make=ReferenceEngine)
        return self._controls

    def _find_spellings(self) -> Spellings:
        if self._spellings is None:
            self._spellings = read_spellings(self._definition)
        return self._spellings

    def _find_changes(self) -> Changes:
        if self._changes is None:
            self._changes = Changes(
                self._definition,
                raw=self._raw,
                model=self._model,
                spellings=self._find_spellings(),
                make=ReferenceEngine,
            )
        return self._changes

    def _refer(self) -> ReferenceEngine:
        # Not before it is needed: it doubles the memory.
        if self._reference is None:
            self._reference = ReferenceEngine(self._raw)
        return self._reference

    def __reduce__(self) -> tuple[object, ...]:
        return _reload, (self.vocabulary, self.engine, self.code_points)


def _count_quoted(paths: Paths, rows: Collection[Quoted], *, engine: EngineName) -> Paths:
    """Quoted rows went through the common path as empty texts."""
    common = replace(paths, **{engine: getattr(paths, engine) - len(rows)})
    repaired = sum(row.repaired for row in rows)
    return replace(common, repaired=common.repaired + repaired, quoted=len(rows))


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Slices of *texts* that end with the first to reach _CHUNK characters."""
    first = size = 0
    for stop, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHUNK or stop == len(texts):
            yield list(texts[first:stop])
            first, size = stop, 0


def is_sampled(raw: bytes) -> bool:
    """One text in SAMPLE, by what it says alone: the same in any batching, on any machine."""
    return bool(raw) and zlib.crc32(raw) % SAMPLE == 0


def load_tokenizer(
    vocabulary: Vocabulary,
    *,
    certificate: Certificate | None = None,
    engine: Literal["auto", "fast", "reference"] = "auto",
    loading: Loading | None = None,
) -> Tokenizer:
    """``auto`` is the *certificate*'s engine, without one the reference: trust is earned.

    ``fast`` asks for the fast engine whatever a certificate says (but still leaves its code
    points to the reference). *loading* may have begun to load it. Raises TokenizerError.
    """
    if certificate is not None:
        _require_current(certificate, vocabulary)
    chosen = engine
    if chosen == "auto":
        chosen = certificate.engine if certificate is not None else "reference"
    points = certificate.code_points if certificate is not None and chosen == "fast" else ()
    return _reload(vocabulary, chosen, points, loading)


def build_engine(kind: type[E], raw: bytes, place: Path) -> E:
    """An engine for a ``tokenizer.json``'s bytes; a refusal is a TokenizerError."""
    try:
        return kind(raw)
    except BaseException as error:  # noqa: BLE001 - a panic is one, the rest is raised again
        library_fault(error)
        remedy = "use the reference" if kind.name == "fast" else "save or download it again"
        raise TokenizerError(
            f"{place}: {ENGINES[kind.name]} cannot load it: {error}; {remedy}"
        ) from None


def read_tokenizer(vocabulary: Vocabulary) -> bytes:
    """The bytes of ``tokenizer.json``, which must be those that *vocabulary* was read with."""
    raw = (vocabulary.folder / TOKENIZER).read_bytes()
    if hashlib.sha256(raw).hexdigest() != vocabulary.digests[TOKENIZER]:
        raise TokenizerError(
            f"{vocabulary.folder / TOKENIZER}: changed since it was read; start again"
        )
    return raw


def _reload(
    vocabulary: Vocabulary,
    engine: EngineName,
    code_points: Iterable[int],
    loading: Loading | None = None,
) -> Tokenizer:
    raw = read_tokenizer(vocabulary)
    place = vocabulary.folder / TOKENIZER
    built: Engine | LateEngine
    if engine == "fast" and loading is not None:
        built = LateEngine(loading, vocabulary, raw)
    elif engine == "fast":
        built = build_engine(FastEngine, raw, place)
    else:
        built = build_engine(ReferenceEngine, raw, place)
    return Tokenizer(vocabulary, raw, engine=built, code_points=code_points)


def _require_current(certificate: Certificate, vocabulary: Vocabulary) -> None:
    expected = (vocabulary.digests[TOKENIZER], engine_versions())
    if (certificate.tokenizer, certificate.versions) != expected:
        raise TokenizerError(
            f"{vocabulary.folder / TOKENIZER}: its certificate is another file's or other "
            "engines'; certify it anew"
        )
