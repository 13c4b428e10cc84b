"""Texts that are tokenized apart at their cuts, and come back as rows."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.preparation import Prepared
from pipeline.spans import Span
from pipeline.tokens import Encoded, EncodeFailure, Tokenizer
from pipeline.tokens.encoded import cut_text, join_pieces


def encode_pieces(tokenizer: Tokenizer, prepared: Sequence[Prepared]) -> Encoded:
    """Ids of the rows' texts, no token of which lies across a cut.

    A control token that the data spells out and a cut divides needs no quoting: neither half is
    one. Raises EncodeFailure by row.
    """
    pieces: list[str] = []
    counts: list[int] = []
    quoted: dict[int, list[Span]] = {}
    rows: list[int] = []
    for row, p in enumerate(prepared):
        start = 0
        parts = cut_text(p.text, p.cuts)
        for part in parts:
            end = start + len(part)
            inside = [Span(a - start, b - start) for a, b in p.quoted if start <= a and b <= end]
            if inside:
                quoted[len(pieces)] = inside
            pieces.append(part)
            rows.append(row)
            start = end
        counts.append(len(parts))
    try:
        return join_pieces(tokenizer.encode(pieces, quoted=quoted), counts)
    except EncodeFailure as failure:
        raise EncodeFailure({rows[piece]: fault for piece, fault in failure.rows.items()}) from None
