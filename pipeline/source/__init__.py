"""Where conversations come from: inputs are surveyed once, then read by pieces, anywhere.

survey: words ─▶ inputs ─▶ sniffed, hashed, unpacked into the spool if need be ─▶ pieces
read:   a piece ─▶ batches of records, undecoded ─▶ decode
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.source.reading import read, read_together, survey
    from pipeline.source.record import Piece, Record, Source, decode

__all__ = ["Piece", "Record", "Source", "decode", "read", "read_together", "survey"]
# Imported on first use: who only speaks of records needs no Arrow to read them.
_ROOMS = {
    **dict.fromkeys(("read", "read_together", "survey"), "reading"),
    **dict.fromkeys(("Piece", "Record", "Source", "decode"), "record"),
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
