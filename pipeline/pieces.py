"""Texts that are tokenized apart at their cuts, and come back as rows."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.rows import Prepared
from pipeline.spans import Span
from pipeline.tokens.encoded import Encoded, Int32, Int64, cut_text, fill_rows, join_pieces
from pipeline.tokens.faults import EncodeFailure
from pipeline.tokens.tokenizer import Tokenizer


def encode_pieces(tokenizer: Tokenizer, prepared: Sequence[Prepared]) -> Encoded:
    """Ids of the rows' texts, no token of which lies across a cut; sampled ones as they came.

    A control token that the data spells out and a cut divides needs no quoting: neither half is
    one. Raises EncodeFailure by row.
    """
    pieces: list[str] = []
    sampled: dict[int, tuple[Int32, Int64, bytes]] = {}
    counts: list[int] = []
    quoted: dict[int, list[Span]] = {}
    rows: list[int] = []
    for row, p in enumerate(prepared):
        start = 0
        places = {place.start: place.run for place in p.places}
        parts = cut_text(p.text, _cuts(p))
        for part in parts:
            end = start + len(part)
            if start in places:
                run = places[start]
                sampled[len(pieces) + len(sampled)] = (run.ids, run.widths, part.encode())
                start = end
                continue
            inside = [Span(a - start, b - start) for a, b in p.quoted if start <= a and b <= end]
            if inside:
                quoted[len(pieces)] = inside
            pieces.append(part)
            rows.append(row)
            start = end
        counts.append(len(parts))
    try:
        encoded = tokenizer.encode(pieces, quoted=quoted)
    except EncodeFailure as failure:
        raise EncodeFailure({rows[piece]: fault for piece, fault in failure.rows.items()}) from None
    return join_pieces(fill_rows(encoded, sampled) if sampled else encoded, counts)


def _cuts(prepared: Prepared) -> Sequence[int]:
    """Where a text is cut: around each run of ids that came with the data, never inside one."""
    if not prepared.places:
        return prepared.cuts
    edges = {edge for place in prepared.places for edge in (place.start, place.end)}
    outside = (
        cut
        for cut in prepared.cuts
        if not any(place.start < cut < place.end for place in prepared.places)
    )
    return sorted(edges.union(outside) - {0, len(prepared.text)})
