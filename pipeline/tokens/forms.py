"""Unicode's normalization forms: whether they change a text, and where."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD", "NFKC", "NFKD")
# Characters of which all four forms make a starter that nothing before it composes with: what is
# before one has the same form without it (Unicode's annex 15, "stable code points"). Not all of
# them: those that texts are made of, and all in Unicode before 2016.
_STABLE = (
    "\x00-\u02ff\u0384-\u038a\u038c\u038e-\u03a1\u03a3-\u03ff\u0400-\u0482\u048a-\u052f"
    "\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\u0958-\u0961\u0e01-\u0e30\u2010-\u2027\u2030-\u205e"
    "\u2190-\u22ff\u2500-\u257f\u3000-\u3029\u3041-\u3096\u30a0-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
    "\uff01-\uff5e\U0001f300-\U0001f5ff\U0001f600-\U0001f64f\U00020000-\U0002a6d6"
)
STABLE = re.compile(f"[{_STABLE}]")
# Each begins with a stable character, but for the first.
_CHUNK = re.compile(f".{{1,128}}[^{_STABLE}]*", re.DOTALL)
_PIECE = re.compile(f".[^{_STABLE}]*", re.DOTALL)


def is_normalized(text: str, forms: Iterable[Form]) -> bool:
    """Whether normalizing in each of *forms* would leave the text as it is."""
    # Linear, unlike unicodedata.normalize: it answers No at the first mark out of order, before
    # the quadratic sort (0.6 ms for 16,000 marks, whichever of them are repeated).
    return text.isascii() or all(unicodedata.is_normalized(form, text) for form in forms)


def are_normalized(
    texts: Sequence[str], raws: Sequence[bytes], forms: Sequence[Form]
) -> npt.NDArray[np.bool_]:
    """bool [texts]: `is_normalized` of each; *raws* are their UTF-8.

    At 10 ns a character that would be a tenth of a long row's cost, so most of ASCII is left out.
    """
    normal = np.ones(len(texts), np.bool_)
    rows = [row for row, text in enumerate(texts) if not text.isascii()]
    if forms and rows and not _is_condensed(b"\n".join(raws[row] for row in rows), forms):
        normal[rows] = [_is_condensed(raws[row], forms) for row in rows]
    return normal


def find_changes(text: str, form: Form) -> Iterator[tuple[int, int]]:
    """The stretches of *text* that *form* changes, in order; none is cut by a stable character."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    places = np.flatnonzero(_may_change(points))
    condensed = points[places].tobytes().decode("utf-32-le")
    for start, end in _changed_chunks(condensed, form):
        for piece in _PIECE.finditer(condensed, start, end):
            if not unicodedata.is_normalized(form, piece[0]):
                yield int(places[piece.start()]), int(places[piece.end() - 1]) + 1


def _is_condensed(raw: bytes, forms: Sequence[Form]) -> bool:
    """`is_normalized` of what is in UTF-8."""
    codes = np.frombuffer(raw, np.uint8)
    condensed = codes[_may_change(codes)].tobytes().decode()
    return not any(True for form in forms for _ in _changed_chunks(condensed, form))


def _may_change(codes: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.bool_]:
    """bool [codes]: what is not ASCII, or stands before that; *codes* are points or UTF-8.

    An ASCII character changes only together with what follows it, so a text has the same changes
    without the others.
    """
    high = codes > 0x7F
    result: npt.NDArray[np.bool_] = high.copy()
    result[:-1] |= high[1:]
    return result


def _changed_chunks(text: str, form: Form) -> Iterator[tuple[int, int]]:
    """Chunk by chunk: of a text with marks, to ask about all of it would normalize all of it."""
    for chunk in _CHUNK.finditer(text):
        if not unicodedata.is_normalized(form, chunk[0]):
            yield chunk.span()
