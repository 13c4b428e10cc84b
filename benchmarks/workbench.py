"""A worker's own work in this process: records read, encoded, written, whole or stage by stage."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.measurement import Load, load_of
from pipeline import batch
from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.preparation import Preparation
from pipeline.recipe import Recipe
from pipeline.shards import open_shard
from pipeline.source import read_together, survey
from pipeline.source.record import Piece, Record
from pipeline.tokens.certificate import find_certificate

# Whose time is whose. What a stage calls of another's counts there; what belongs to none (groups,
# rejects, the batch itself) is the rest.
STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "parse": ((batch, "count_together"), (batch, "parse")),
    "render": ((Preparation, "_render"),),
    "turns": ((Preparation, "_lay"), (Preparation, "_establish")),
    "rules": ((Preparation, "_claim"), (Preparation, "_complete")),
    "encode": ((Encoder, "encode_texts"),),
    "weigh": ((Encoder, "rescale"), (Encoder, "weigh")),
    "columns": ((Encoder, "tabulate"),),
}
NAMES = ("read", *STAGES, "write", "rest")
_PIECE = 1 << 20  # bytes


class Stopwatch:
    """Seconds by name, of the innermost one that is running."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(NAMES, 0.0)
        self._running: list[str] = ["rest"]
        self._since = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Within the block, unless an inner one runs."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, its time taken as *name*."""
        running, switch = self._running, self._switch  # it runs some ten times a conversation

        def call(*args: Any, **kwargs: Any) -> Any:
            switch()
            running.append(name)
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                running.pop()

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times the stages of every encoder in this process; what is left when it ends is told."""
        with ExitStack() as patched:
            for name, functions in STAGES.items():
                for owner, attribute in functions:
                    timed = self.timed(name, getattr(owner, attribute))
                    patched.enter_context(patch.object(owner, attribute, timed))
            self._since = time.perf_counter()
            yield
            self._switch()


class Workbench:
    """What a worker has: an encoder, and a place to write; with one thread, as there."""

    def __init__(self, recipe: Recipe, scratch: Path) -> None:
        os.environ.update(TOKENIZERS_PARALLELISM="false", FASTOKENS_BPE_THREADS="1")
        self.recipe, self.scratch = recipe, scratch
        self.certificate = find_certificate(recipe.vocabulary)
        self.encoder = make_encoder(recipe, self.certificate)

    def survey(self, inputs: Sequence[str]) -> list[Piece]:
        """The pieces of the inputs, as a build's plan has them."""
        sources = survey(inputs, spool=self.scratch / "spool", piece_bytes=_PIECE)
        return [piece for source in sources for piece in source.pieces]

    def work(self, pieces: Sequence[Piece], watch: Stopwatch | None = None) -> Load:
        """From pieces to one shard, as a task does it without its sidecar; *watch* sees stages."""
        watch = watch or Stopwatch()
        counts: Counter[str] = Counter()
        path = self.scratch / "shard.parquet"
        with (
            watch.running("write"),
            open_shard(path, "parquet", temporary=self.scratch / "shard.tmp") as shard,
            watch.running("read"),
        ):
            for records in read_together(pieces):
                with watch.running("rest"):
                    encoded = self.encoder.encode(records)
                with watch.running("write"):
                    shard.write(encoded.rows)
                counts.update(encoded.counts)
        return load_of(counts)

    def work_by_stages(self, pieces: Sequence[Piece]) -> dict[str, float]:
        """The seconds of each stage."""
        watch = Stopwatch()
        with watch.watching():
            self.work(pieces, watch)
        return watch.seconds

    def records(self, pieces: Sequence[Piece]) -> list[list[Record]]:
        """All of them, in the batches of a build."""
        return list(read_together(pieces))

    def texts(self, pieces: Sequence[Piece]) -> list[list[str]]:
        """What is tokenized, in the batches of a build."""
        prepared = (self.encoder.prepare(records)[0] for records in self.records(pieces))
        return [[p.text for p in rows] for rows in prepared]
