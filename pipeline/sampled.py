"""Content that came as token ids: the text that a template is given, and where that stands.

The ids that a model sampled are the ids that train, whatever its text would be tokenized to. So
each run of ids has one place in the rendered text, which is cut there, and keeps its ids. A stop
token at a run's end is left out of what the template is given, as the template writes it: where it
stands right after the run, it is that token. Any other control token is a part of the content.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.conversation import Conversation, Piece, SampledContent, Weights
from pipeline.errors import RecordError
from pipeline.regions import Turn
from pipeline.rendered import Rendered
from pipeline.scales import Scale
from pipeline.spans import Span
from pipeline.tokens.encoded import Int32, Int64
from pipeline.tokens.offsets import character_starts
from pipeline.tokens.tokenizer import Tokenizer

Range = tuple[int, int, float]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive ids of one message, and the ``text`` that they spell.

    ``widths`` are bytes of each, ``weights`` one each, or none. ``stop`` is the control token that
    the last one is, where it is not in ``text``. ``part`` numbers the content's traced ranges.
    """

    message: int
    part: int
    text: str
    ids: Int32
    widths: Int64
    weights: tuple[float, ...]
    stop: str
    field: str


@dataclass(frozen=True, slots=True)
class Place:
    """A run in a row's text, from ``start`` to ``end``."""

    run: Run
    start: int
    end: int

    def holds(self, span: Span) -> bool:
        """Whether the span lies inside."""
        return self.start <= span.start and span.end <= self.end


def spell(
    conversation: Conversation, tokenizer: Tokenizer, *, whole: Collection[int]
) -> tuple[Conversation, list[Run]]:
    """The conversation with text for ids, and the runs; itself where it has none.

    Its weights gain a range for each run, by which a traced render tells it; of the messages in
    *whole* the stop token stays in the text. Raises RecordError (``encode``) for ids that the
    tokenizer has not, or that spell no text.
    """
    for message in () if conversation.plain else conversation.messages:
        if type(message["content"]) is SampledContent:
            break
    else:
        return conversation, []
    messages, runs = list(conversation.messages), list[Run]()
    weights = conversation.weights or Weights({}, {})
    parts = dict(weights.parts)
    for index, message in enumerate(messages):
        content = message["content"]
        if not isinstance(content, SampledContent):
            continue
        text, ranges = "", list[Range]()
        for sampled, group in itertools.groupby(content.pieces, key=lambda piece: bool(piece.ids)):
            pieces = list(group)
            if sampled:
                last = pieces[-1] is content.pieces[-1] and index not in whole
                run = _read_run(pieces, tokenizer, message=index, part=len(ranges), ended=last)
                runs.append(run)
                ranges.append((len(text), len(text) + len(run.text), 1.0))
                text += run.text
                continue
            for piece in pieces:
                if piece.weights and piece.text:
                    ranges.append((len(text), len(text) + len(piece.text), piece.weights[0]))
                text += piece.text
        messages[index] = {**message, "content": text}
        if ranges:
            parts[index] = ranges
    return replace(conversation, messages=messages, weights=replace(weights, parts=parts)), runs


def _read_run(
    pieces: Sequence[Piece], tokenizer: Tokenizer, *, message: int, part: int, ended: bool
) -> Run:
    """Ids in a row; *ended*: the last may be the message's stop token."""
    for piece in pieces:
        largest = max(piece.ids)
        if largest >= tokenizer.size:
            fact = (
                f"{largest} is beyond the tokenizer's last id, {tokenizer.size - 1:,}; name the "
                "tokenizer that they were sampled with, or drop the record"
            )
            at = f"{piece.field}[{piece.ids.index(largest)}]"
            raise RecordError("encode", "unknown_token_ids", fact, field=at)
    ids = np.array([id_ for piece in pieces for id_ in piece.ids], np.int32)
    raw, widths = tokenizer.spell(ids)
    if not widths.all():
        fact = (
            f"the bytes of {int(ids[int(np.argmin(widths))])} are not told by the id alone; write "
            "text, or use a tokenizer whose ids tell their bytes (byte-level, byte fallback)"
        )
        raise RecordError("encode", "unspelled_token_ids", fact, field=pieces[0].field)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        token = int(np.searchsorted(np.cumsum(widths), error.start, side="right"))
        fact = (
            f"from token {token:,} on its bytes are no UTF-8 text; drop the tokens of a character "
            "that is cut off, or the record"
        )
        raise RecordError("encode", "broken_token_ids", fact, field=pieces[0].field) from None
    stop = tokenizer.control_contents.get(int(ids[-1]), "") if ended else ""
    if len(stop) == len(text):
        stop = ""  # nothing would be left whose place could be found
    return Run(
        message,
        part,
        text[: len(text) - len(stop)],
        ids,
        widths,
        _weights(pieces),
        stop,
        pieces[0].field,
    )


def _weights(pieces: Sequence[Piece]) -> tuple[float, ...]:
    if not any(piece.weights for piece in pieces):
        return ()
    return tuple(w for piece in pieces for w in piece.weights or (1.0,) * len(piece.ids))


def locate(runs: Sequence[Run], traced: Rendered) -> list[Place]:
    """Where each run's text stands in a traced render, in the order of the text.

    A template may take it apart and write it again (Qwen3 does that to thinking), as long as the
    same text stands there once, made of the run and of the template's own words. Raises
    RecordError(``render``, ``token_ids_edited``) where it does not.
    """
    codes = traced.codes()
    literal = np.array([origin.field == "" for origin in traced.origins], np.bool_)
    fields = {(origin.message, origin.field): k for k, origin in enumerate(traced.origins)}
    places = []
    for run in runs:
        code = fields.get((run.message, f"content[{run.part}]"), -1)
        known = np.flatnonzero(codes == code)
        starts = list(_starts(traced.text, run.text, known)) if len(known) else []
        found = [
            start
            for start in starts
            if (literal[(c := codes[start : start + len(run.text)])] | (c == code)).all()
        ]
        if len(found) != 1:
            fact = (
                "the template changes or leaves out the text of these token ids, so that they have "
                "no place in it; use a template that prints it as it is, or write text"
            )
            raise RecordError("render", "token_ids_edited", fact, field=run.field)
        places.append(Place(run, found[0], found[0] + len(run.text)))
    return sorted(places, key=lambda place: place.start)


def _starts(text: str, run: str, known: Int64) -> Iterator[int]:
    """Where *run* stands in *text* so that all that is known to be its lies inside."""
    first, stop = int(known[0]), int(known[-1]) + 1
    start = text.find(run, max(0, stop - len(run)), first + len(run))
    while start >= 0:
        yield start
        start = text.find(run, start + 1, first + len(run))


def find_controls(places: Sequence[Place], tokenizer: Tokenizer) -> list[Span]:
    """The control tokens inside runs: whatever they are, no turn begins or ends with them."""
    return [
        Span(place.start + start, place.start + end)
        for place in places
        for start, end in tokenizer.control_matches(place.run.text)
    ]


def with_stops(
    places: Sequence[Place], text: str, *, stops: Collection[str], tokenizer: Tokenizer
) -> tuple[list[Place], set[int]]:
    """The places with the stop tokens that stand right after them, and the messages without.

    Raises RecordError(``render``, ``stop_token_differs``) where a run ends with one of *stops*, and
    the template ends the turn with a token of its own all the same: nobody sampled both.
    """
    stopped, without = [], set()
    for place in places:
        run, end = place.run, place.end
        if run.stop and text.startswith(run.stop, end):
            end += len(run.stop)
        elif run.stop:
            without.add(run.message)
        last = tokenizer.control_contents.get(int(run.ids[-1]), "")
        if last and not run.stop and last in stops:
            rest = text[end:].lstrip()
            told = next((t for t in tokenizer.control_tokens if rest.startswith(t)), "")
            if told:
                fact = (
                    f"ends with {last!r}, and the template ends the turn with {told!r}, which was "
                    "not sampled after it; drop the last id"
                )
                raise RecordError("render", "stop_token_differs", fact, field=run.field)
        stopped.append(replace(place, end=end))
    return stopped, without


def scale_places(
    parts: Mapping[int, Sequence[Scale]], places: Sequence[Place], turns: Sequence[Turn]
) -> dict[int, list[Scale]]:
    """*parts* with the weights of runs, token by token, in place of the runs' own ranges.

    Raises RecordError(``weigh``) where a weight would hold for a part of a character, or where the
    text of a weight is nobody's: weights are kept by characters, so that they can be had back.
    """
    owned = {turn.message: turn.ranges for turn in turns}
    scaled = {index: list(scales) for index, scales in parts.items()}
    for place in places:
        message, weights = place.run.message, place.run.weights
        mine = scaled.setdefault(message, [])
        mine[:] = [s for s in mine if not place.holds(Span(s.start, s.end))]
        if not weights:
            continue
        span = Span(place.start, place.end)
        if not any(r.start <= span.start and span.end <= r.end for r in owned.get(message, ())):
            fact = "has weights, but the template prints it outside of its message; drop them"
            raise RecordError("weigh", "weight_untraced", fact, field=place.run.field)
        mine += _scale_tokens(place)
    return {index: sorted(scales) for index, scales in scaled.items() if scales}


def _scale_tokens(place: Place) -> Iterator[Scale]:
    """The weights of a run as scales, one for each stretch of equal ones."""
    run = place.run
    leads = character_starts(run.text + run.stop)
    weights = np.array(run.weights, np.float64)
    changed = np.flatnonzero(weights[1:] != weights[:-1]) + 1
    edges = np.concatenate(([0], changed, [len(weights)]))
    positions = np.concatenate(([0], np.cumsum(run.widths)))[edges]
    characters = np.searchsorted(leads, positions)
    split = np.flatnonzero(leads[characters] != positions)
    if len(split):
        fact = (
            f"token {int(edges[split[0]]):,} begins inside a character and weighs another than the "
            "token before it; give all tokens of a character one weight"
        )
        raise RecordError("weigh", "weights_split_character", fact, field=run.field)
    for k, (start, end) in enumerate(itertools.pairwise(characters.tolist())):
        yield Scale(place.start + start, place.start + end, float(weights[edges[k]]))
