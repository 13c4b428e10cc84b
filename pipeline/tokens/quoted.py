"""Texts that spell control tokens as content: those are encoded as ordinary text, the rest act.

An engine reads every spelling of a control token as that token, or with
``encode_special_tokens`` none. So the reference is built a second time, around the same model,
with each control token renamed to a character that texts do not have; in the text the acting ones
are replaced by their characters, and what is left of spellings is text to it. It still sees the
text whole: merges, normalizers, and the spaces that ``lstrip`` takes are its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from pipeline.errors import RecordError
from pipeline.spans import Span
from pipeline.tokens.controls import (
    FILLER,
    STUB,
    Controls,
    Make,
    Match,
    Reference,
    mask,
    replace,
    rewrite,
)
from pipeline.tokens.encoded import Encoded, Int32, Int64
from pipeline.tokens.forms import is_normalized
from pipeline.tokens.offsets import Model, character_starts, ends_from_characters
from pipeline.tokens.vocabulary import AddedToken, Definition


@dataclass(frozen=True, slots=True)
class Quoted:
    """One text's ids int32, bytes of text per token int64; ``repaired`` as in Paths."""

    ids: Int32
    widths: Int64
    repaired: bool


class Quoting:
    """Encodes texts some of whose control tokens are content; made where the first one comes."""

    def __init__(
        self,
        definition: Definition,
        *,
        raw: bytes,
        model: Model,
        controls: Controls,
        reference: Reference,
        make: Make,
    ) -> None:
        added = [token for token in definition.added_tokens if token.content]
        contents = {token.content for token in added if token.control}
        self._model, self._controls = model, controls
        self._characters = _characters(contents, avoid="".join(token.content for token in added))
        spelling = msgspec.json.decode(definition.model, type=_Spelling)
        renamed = _rename(definition, spelling, self._characters, reference)
        self._engine = _build(raw, renamed, reference, make)
        got = self._engine.add([_renamed(t, self._characters, self._engine) for t in added])
        real = [reference.find(token.content) for token in added]
        self._ids = np.arange(1 + max([model.size, *got]), dtype=np.int32)
        self._ids[got] = real
        self._control = {content: reference.find(content) for content in contents}
        self._unknown = reference.find(spelling.unk_token or "")
        if spelling.unk_id is not None:  # Unigram, whose ids are places in its list
            self._unknown = spelling.unk_id

    def encode(self, text: str, quoted: Sequence[Span]) -> Quoted:
        """Raises RecordError where the model itself makes a control token of a spelling."""
        edges = [0, *itertools.chain.from_iterable(quoted), len(text)]
        if any(start > end for start, end in itertools.pairwise(edges)):
            raise ValueError(f"quoted spans {quoted} are not sorted and disjoint in the text")
        acting = self._controls.match(mask(text, quoted))
        self._require_free(text)
        placed = replace(text, ((m.start, m.end, self._characters[m.content]) for m in acting))
        ids, offsets = self._engine.read(placed)
        ids = self._ids[ids]
        widths, repaired = self._measure(text, ids, acting, offsets)
        self._require_separated(text, quoted, acting, ids, widths)
        return Quoted(ids, widths, repaired)

    def _measure(
        self, text: str, ids: Int32, acting: Sequence[Match], offsets: Sequence[tuple[int, int]]
    ) -> tuple[Int64, bool]:
        """Bytes per token: by ids where that is sure, as in the common path; else by offsets."""
        lengths, forms = self._model.lengths, self._model.forms
        if lengths is not None and (not forms or is_normalized(text, forms)):
            widths = lengths[ids]
            if int(widths.sum()) == len(text.encode()):
                return widths, False
        places = _original(acting, len(text))
        original = [(int(places[start]), int(places[end])) for start, end in offsets]
        return np.diff(ends_from_characters(text, original), prepend=0), True

    def _require_free(self, text: str) -> None:
        """A character that stands for a control token would act as it."""
        if text.isascii():
            return
        taken = set(self._characters.values()).intersection(text)
        if taken:
            at = min(map(text.index, taken))
            raise RecordError(
                "encode",
                "control_token_inseparable",
                f"character {at} is U+{ord(text[at]):X}, for private use, which stands for a "
                "control token where a text quotes one; replace it, or drop the record",
            )

    def _require_separated(
        self,
        text: str,
        quoted: Sequence[Span],
        acting: Sequence[Match],
        ids: Int32,
        widths: Int64,
    ) -> None:
        """The control tokens are the acting ones, in order, and none lies in a quoted span.

        What a model makes of unknown text may be a control token, and counts only there.
        """
        control = np.isin(ids, list(self._control.values()))
        known = control & (ids != self._unknown)
        expected = [self._control[match.content] for match in acting]
        expected = [id_ for id_ in expected if id_ != self._unknown]
        starts = character_starts(text)
        ends = np.cumsum(widths)[control]
        spans = np.array(quoted, np.int64).reshape(-1, 2)
        # The first control token that ends after a span begins must begin where the span ends.
        after = np.searchsorted(ends, starts[spans[:, 0]], side="right")
        begins = np.append(ends - widths[control], len(text.encode()) + 1)
        inside = begins[after] < starts[spans[:, 1]]
        if ids[known].tolist() == expected and not inside.any():
            return
        start, end = quoted[int(inside.argmax())]
        raise RecordError(
            "encode",
            "control_token_inseparable",
            f"{text[start:end]!r} at character {start} is content, but this tokenizer has no "
            "other tokens for it than control tokens; change it, or drop the record",
        )


class Encoder(Protocol):
    """What `quotes` asks of a tokenizer."""

    @property
    def control_tokens(self) -> Mapping[str, int]: ...

    def encode(self, texts: Sequence[str], *, quoted: Mapping[int, Sequence[Span]]) -> Encoded: ...


def quotes(
    tokenizer: Encoder, model: Model, controls: Controls, text: str, ids: Int64
) -> list[Span]:
    """See ``Tokenizer.quotes``: by lengths of ids where they tell offsets, else by trial."""
    matches = controls.match(text)
    acting = _acting(tokenizer, model, text, ids) if matches else []
    if acting is not None:
        return [match.span for match in controls.match(mask(text, acting))] if matches else []
    return _try_quotes(tokenizer, [match.span for match in matches], text, ids)


def _acting(tokenizer: Encoder, model: Model, text: str, ids: Int64) -> list[Span] | None:
    """Where control tokens act, None if lengths do not tell."""
    if model.lengths is None or not is_normalized(text, model.forms):
        return None
    starts, ends = character_starts(text), np.cumsum(model.lengths[ids])
    if len(ends) == 0 or ends[-1] != starts[-1]:
        return None
    (at,) = np.isin(ids, list(tokenizer.control_tokens.values())).nonzero()
    edges = np.searchsorted(starts, [ends[at] - model.lengths[ids[at]], ends[at]])
    return [Span(start, end) for start, end in edges.T.tolist()]


def _try_quotes(tokenizer: Encoder, spans: Sequence[Span], text: str, ids: Int64) -> list[Span]:
    """One more each time: what differs first is what comes before a wrong control token, or it."""
    starts, found = character_starts(text), list[Span]()
    while True:
        encoded = tokenizer.encode([text], quoted={0: found})
        size = min(len(ids), len(encoded.ids))
        different = np.flatnonzero(encoded.ids[:size] != ids[:size])
        if not len(different) and len(ids) == len(encoded.ids):
            return found
        first = int(different[0]) if len(different) else size
        begin = int(encoded.ends[first - 1]) if first else 0
        wrong = next((s for s in spans if starts[s.end] > begin and s not in found), None)
        if wrong is None:
            return found
        found.append(wrong)


class _Spelling(msgspec.Struct):
    """What of a ``model`` decides which tokens it can make of a spelling."""

    type: str | None = None
    merges: msgspec.Raw = msgspec.Raw(b"[]")
    unk_token: str | None = None
    unk_id: int | None = None
    ignore_merges: bool | None = False
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


def _build(raw: bytes, model: dict[str, Any] | None, reference: Reference, make: Make) -> Reference:
    """All but the added tokens: around that model, or else around the reference's own.

    To share it costs milliseconds instead of a second, and no memory.
    """
    parts: dict[str, Any] = {"added_tokens": [], "post_processor": None}
    engine = make(rewrite(raw, **parts, model=STUB if model is None else model))
    if model is None:
        engine.share_model(reference)
    return engine


def _renamed(token: AddedToken, characters: Mapping[str, str], engine: Reference) -> AddedToken:
    if not token.control:
        return token
    content = characters[token.content]
    # BertNormalizer takes characters for private use away.
    normalized = token.normalized and content in engine.normalize(content)
    return msgspec.structs.replace(token, content=content, normalized=normalized)


def _characters(contents: Iterable[str], *, avoid: str) -> dict[str, str]:
    """A character of plane 16 for each, from its far end, where no fonts put their symbols."""
    free = (c for c in map(chr, range(ord(FILLER) - 1, 0x100000, -1)) if c not in avoid)
    return dict(zip(sorted(contents), free, strict=False))


def _rename(
    definition: Definition,
    spelling: _Spelling,
    characters: Mapping[str, str],
    reference: Reference,
) -> dict[str, Any] | None:
    """The model with control tokens renamed, so that it cannot make them; None if it cannot now.

    Merges that make or use one are left out.
    """
    named = {content for content in characters if reference.has_in_model(content)}
    merges = msgspec.json.decode(spelling.merges) if named else []
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    if not named or (_only_merges(spelling) and not _reach(named, pairs)):
        return None
    model: dict[str, Any] = msgspec.json.decode(definition.model)
    if isinstance(model["vocab"], list):
        model["vocab"] = [[characters.get(p, p), score] for p, score in model["vocab"]]
    else:
        model["vocab"] = {characters.get(p, p): id_ for p, id_ in model["vocab"].items()}
    if pairs:
        prefix = spelling.continuing_subword_prefix or ""
        made = ((a, b, {a, b, a + b, a + b.removeprefix(prefix)}) for a, b in pairs)
        model["merges"] = [[a, b] for a, b, names in made if not names & named]
    if spelling.unk_token in named:
        model["unk_token"] = characters[spelling.unk_token]
    return model


def _only_merges(spelling: _Spelling) -> bool:
    """Whether tokens of several characters come from merges of their plain halves alone."""
    affixes = spelling.continuing_subword_prefix or spelling.end_of_word_suffix
    return spelling.type == "BPE" and not spelling.ignore_merges and not affixes


def _reach(named: set[str], pairs: Iterable[Sequence[str]]) -> bool:
    return any(len(content) == 1 for content in named) or any("".join(p) in named for p in pairs)


def _original(acting: Sequence[Match], size: int) -> Int64:
    """int64 [placed characters + 1]: where each character came from, the text's end last."""
    widths = np.ones(size, np.int64)
    kept = np.ones(size, np.bool_)
    for match in acting:
        widths[match.start] = match.end - match.start
        kept[match.start + 1 : match.end] = False
    places = np.zeros(int(kept.sum()) + 1, np.int64)
    np.cumsum(widths[kept], out=places[1:])
    return places
