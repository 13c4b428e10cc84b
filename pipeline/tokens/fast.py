"""The fast engine, and a thread that loads it; the only importer of fastokens.

Loading takes most of a second and lets go of the interpreter: a worker begins it before its own
imports, which take a third of one.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tokens.merges import join_merges
from pipeline.tokens.trust import EngineName, known_certificate
from pipeline.tokens.vocabulary import TOKENIZER

if TYPE_CHECKING:
    from pipeline.tokens.encoded import Int32, Int64


class FastEngine:
    """fastokens: ids only. Raises whatever the library does on what it does not support."""

    name: EngineName = "fast"

    def __init__(self, raw: bytes) -> None:
        from fastokens import Tokenizer as Library  # type: ignore[import-untyped] # has no py.typed

        self._library = Library.from_json_str(join_merges(raw).decode())
        self._library.no_truncation()
        self._library.no_padding()

    def encode(self, texts: Sequence[str]) -> tuple[Int32, Int64]:
        import numpy as np  # Here: who only loads the engine needs none.

        ids, firsts = self._library.encode_batch_flat(list(texts))
        return np.frombuffer(ids, np.int32), np.frombuffer(firsts, np.int64)

    def warm(self) -> None:
        """The first text of a library costs 57 ms, whatever it is."""
        self._library.encode_batch_flat(["."])


@dataclass(frozen=True, slots=True)
class Ahead:
    """The tokenizer in *folder*, to be loaded by whoever gets this, before more is known."""

    folder: str

    def begin(self) -> Loading:
        """Begins in a thread of its own."""
        return Loading(Path(self.folder) / TOKENIZER)


def look_ahead(name: str | None) -> Ahead | None:
    """What to begin with where a command names a tokenizer's folder; a hub's id takes a network."""
    folder = os.path.expanduser(name or "")  # noqa: PTH111 - Path's raises for an unknown user
    return Ahead(folder) if os.path.isdir(folder) else None  # noqa: PTH112 - so does Path's, for long names


class Loading:
    """A fast engine on its way, if its tokenizer has a certificate for it."""

    def __init__(self, path: Path) -> None:
        self._path, self._digest = path, ""
        self._engine: FastEngine | None = None
        self._thread = threading.Thread(target=self._load, daemon=True)
        self._thread.start()

    def take(self, digest: str) -> FastEngine | None:
        """The engine of the ``tokenizer.json`` with that sha256, once; None if there is none."""
        self._thread.join()
        engine, self._engine = self._engine, None
        return engine if self._digest == digest else None

    @property
    def done(self) -> bool:
        """Whether `take` would not wait."""
        return not self._thread.is_alive()

    def _load(self) -> None:
        try:
            raw = self._path.read_bytes()
            digest = hashlib.sha256(raw).hexdigest()
            certificate = known_certificate(digest)
            if certificate is None or certificate.engine != "fast":
                return
            engine = FastEngine(raw)
            engine.warm()
        except BaseException:  # noqa: BLE001 - a panic is one; who takes none loads it, and is told
            return
        self._digest, self._engine = digest, engine
