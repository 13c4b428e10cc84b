"""Which texts of a batch an engine fails on: isolated, named all at once, as RecordErrors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.errors import EngineMismatch, RecordError, WeightedShardsError
from pipeline.tokens.encoded import Int32, Int64, join_rows

Faults = dict[int, RecordError]
Encode = Callable[[Sequence[str]], tuple[Int32, Int64]]


class EncodeFailure(WeightedShardsError):  # noqa: N818 - an outcome, as EngineMismatch is
    """Some texts of a batch cannot be encoded: ``rows`` maps each one's index to its RecordError.

    All of them are named at once: without them the same call succeeds.
    """

    def __init__(self, rows: Mapping[int, RecordError]) -> None:
        super().__init__("; ".join(f"texts[{row}]: {error}" for row, error in rows.items()))
        self.rows = dict(rows)

    def __reduce__(self) -> tuple[type[EncodeFailure], tuple[Faults]]:
        return EncodeFailure, (self.rows,)


def raise_any(faults: Faults) -> None:
    """EncodeFailure with *faults* in the order of their rows, if there are any."""
    if faults:
        raise EncodeFailure(dict(sorted(faults.items())))


def encode_utf8(texts: Sequence[str]) -> tuple[list[bytes], Faults]:
    """UTF-8 of each text, empty where a lone surrogate has none."""
    raws: list[bytes] = []
    faults: Faults = {}
    for row, text in enumerate(texts):
        try:
            raws.append(text.encode())
        except UnicodeEncodeError as error:
            raws.append(b"")
            faults[row] = RecordError(
                "encode",
                "lone_surrogate",
                f"character {error.start} is U+{ord(text[error.start]):04X}, half of a surrogate "
                "pair; replace it, for example by U+FFFD",
            )
    return raws, faults


def encode_each(encode: Encode, texts: Sequence[str]) -> tuple[Int32, Int64, Faults]:
    """All *texts* at once, or after a fault one by one; a text at fault has no ids."""
    try:
        return *encode(texts), {}
    except BaseException as error:  # noqa: BLE001 - a panic is one, and the rest is raised again
        fault = library_fault(error)
    if len(texts) == 1:
        return *join_rows([np.zeros(0, np.int32)]), {0: fault}
    singles = [encode_each(encode, [text]) for text in texts]
    faults = {row: fault for row, (_, _, single) in enumerate(singles) for fault in single.values()}
    return *join_rows([ids for ids, _, _ in singles]), faults


def require_tokens(raws: Sequence[bytes], firsts: Int64, faults: Faults) -> None:
    """Adds the texts to *faults* that have bytes, but no token to hold them."""
    for row in np.flatnonzero(firsts[1:] == firsts[:-1]).tolist():
        if raws[row] and row not in faults:
            faults[row] = RecordError(
                "encode",
                "no_tokens",
                f"none of its {len(raws[row])} bytes is in any token; drop it",
            )


def library_fault(error: BaseException) -> RecordError:
    """What a tokenizer's library raised for a text, as a RecordError; the rest is raised again.

    A panic in Rust arrives as pyo3's PanicException, which is no Exception.
    """
    panic = type(error).__name__ == "PanicException"
    if not panic and (not isinstance(error, Exception) or isinstance(error, MemoryError)):
        raise error
    fact = f"the tokenizer failed on this text: {error}"
    return RecordError("encode", "engine_fault", f"{fact}; change or drop it")


def require_equal(text: str, ids: Int32, reference: Int32) -> None:
    """Raise EngineMismatch with the evidence if *ids* are not the *reference*'s."""
    if np.array_equal(ids, reference):
        return
    shared = min(len(ids), len(reference))
    different = np.flatnonzero(ids[:shared] != reference[:shared])
    first = int(different[0]) if len(different) else shared
    window = slice(max(first - 2, 0), first + 6)
    raise EngineMismatch(
        f"text of {len(text)} characters, crc32 {zlib.crc32(text.encode()):08x}: token {first} "
        f"differs: {ids[window].tolist()}, reference {reference[window].tolist()}, "
        f"text begins {text[:200]!r}; encode with the reference engine"
    )
