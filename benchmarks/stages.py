"""How fast each stage is, and the whole build.

Stages run one after the other in this process on the first conversations of the file, several
times; medians are shown. The whole is ``pipeline.build`` in processes of its own, start-up
included, with the largest memory of any of its processes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import cli, flags
from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.established import establish
from pipeline.recipe import BUNDLED, recipe_of
from pipeline.rows import Prepared
from pipeline.rules import Talk
from pipeline.schema import read_conversation
from pipeline.shards import open_shard
from pipeline.source import read, survey
from pipeline.source.record import Record, decode
from pipeline.tokens.certificate import find_certificate


@dataclass(frozen=True, slots=True)
class Load:
    """What was worked on: conversations, tokens, megabytes of input."""

    conversations: int
    tokens: int
    megabytes: float

    def line(self, name: str, seconds: float, memory: str = "") -> str:
        return (
            f"{name:<22} {seconds:8.2f} {1e6 * seconds / self.conversations:10.1f} "
            f"{self.conversations / seconds:12,.0f} {self.tokens / seconds:14,.0f} "
            f"{self.megabytes / seconds:9.1f} {memory:>10}"
        )


HEADING = (
    f"{'stage':<22} {'seconds':>8} {'us/conv':>10} {'conv/s':>12} {'tokens/s':>14} "
    f"{'MB/s':>9} {'peak MB':>10}"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    flags.add_recipe_flags(parser)
    parser.add_argument("--input", nargs="+", default=[str(BUNDLED / "sample.jsonl")])
    parser.add_argument("--conversations", type=flags.positive, default=5000, help="in the stages")
    parser.add_argument("--runs", type=flags.positive, default=3)
    parser.add_argument("--workers", nargs="*", type=flags.positive, default=[1, 2])
    args = parser.parse_args(argv)
    print(HEADING)
    with tempfile.TemporaryDirectory() as scratch:
        _print_stages(args, Path(scratch))
        for workers in args.workers:
            _print_whole(args, Path(scratch), workers)
    return 0


def _print_stages(args: argparse.Namespace, scratch: Path) -> None:
    os.environ.update(TOKENIZERS_PARALLELISM="false", FASTOKENS_BPE_THREADS="1")
    recipe = recipe_of(args)
    encoder = make_encoder(recipe, find_certificate(recipe.vocabulary))
    sources = survey(args.input, spool=scratch / "spool", piece_bytes=1 << 20)
    pieces = [p for s in sources for p in s.pieces]

    def read_all() -> list[list[Record]]:
        batches, held = [], 0
        for piece in pieces:
            for batch in read(piece):
                batches.append(batch)
                held += len(batch)
                if held >= args.conversations:
                    return batches
        return batches

    stages = _Stages(encoder, scratch)
    batches = read_all()
    batches = [_able(encoder, batch) for batch in batches]
    stages.everything(batches)  # warm: engines load on first use
    names = ("parse", "render", "turns", "rules", "encode", "weigh", "columns", "write")
    timings = [
        ("read", _median(read_all, args.runs)),
        *((n, _median(partial(stages.run, n, batches), args.runs)) for n in names),
        ("encoder, all of it", _median(partial(stages.everything, batches), args.runs)),
    ]
    load = Load(
        sum(map(len, batches)),
        sum(len(e.ids) for e in stages.encoded),
        sum(len(r.raw or b"") for b in batches for r in b) / 1e6,
    )
    for name, seconds in timings:
        print(load.line(name, seconds))


def _able(encoder: Encoder, batch: list[Record]) -> list[Record]:
    """Without the records that the template refuses, which would end a stage alone."""
    prepared, _ = encoder.prepare(batch)
    return [p.record for p in prepared]


class _Stages:
    """The encoder's steps, each on what the step before it left."""

    def __init__(self, encoder: Encoder, scratch: Path) -> None:
        self.encoder, self.scratch = encoder, scratch
        self.left: dict[str, Any] = {}
        self.encoded: list[Any] = []

    def run(self, name: str, batches: list[list[Record]]) -> None:
        getattr(self, f"_{name}")(batches)

    def everything(self, batches: list[list[Record]]) -> None:
        self.left["rows"] = [self.encoder.encode(batch).rows for batch in batches]

    def _parse(self, batches: list[list[Record]]) -> None:
        schema = self.encoder.schema
        self.left["conversations"] = [
            [read_conversation(decode(r), schema=schema) for r in b] for b in batches
        ]

    def _render(self, _: list[list[Record]]) -> None:
        render = self.encoder.template.render
        self.left["rendered"] = [[render(c) for c in b] for b in self.left["conversations"]]

    def _turns(self, _: list[list[Record]]) -> None:
        mine = self.encoder.preparation(self.encoder.template)
        find = partial(establish, surroundings=mine.surroundings, markers=mine.markers)
        self.left["turns"] = [
            [find(c, r, None) for c, r in zip(*batch, strict=True)]
            for batch in zip(self.left["conversations"], self.left["rendered"], strict=True)
        ]

    def _rules(self, batches: list[list[Record]]) -> None:
        claims = self.encoder.rules.claims
        self.left["prepared"] = [
            [
                Prepared(record, r.text, ts, claims(Talk(r.text, ts, {})))
                for record, r, ts in zip(*batch, strict=True)
            ]
            for batch in zip(batches, self.left["rendered"], self.left["turns"], strict=True)
        ]

    def _encode(self, _: list[list[Record]]) -> None:
        encode = self.encoder.tokenizer.encode
        self.encoded = [encode([p.text for p in b]) for b in self.left["prepared"]]

    def _weigh(self, _: list[list[Record]]) -> None:
        self.left["weighed"] = [
            self.encoder.weigh(p, e)
            for p, e in zip(self.left["prepared"], self.encoded, strict=True)
        ]

    def _columns(self, _: list[list[Record]]) -> None:
        for prepared, encoded, weighed in zip(
            self.left["prepared"], self.encoded, self.left["weighed"], strict=True
        ):
            self.encoder.tabulate(prepared, encoded, weighed)

    def _write(self, _: list[list[Record]]) -> None:
        path = self.scratch / "stage.parquet"
        with open_shard(path, "parquet", temporary=self.scratch / "stage.tmp") as shard:
            for rows in self.left["rows"]:
                shard.write(rows)


def _median(work: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _print_whole(args: argparse.Namespace, scratch: Path, workers: int) -> None:
    command = [sys.executable, "-m", "pipeline.build", "--json", "--max-reject-rate", "1"]
    command += ["--input", *args.input, "--workers", str(workers), "--output", str(scratch / "o")]
    command += ["--tokenizer", args.tokenizer or str(BUNDLED / "tokenizer")]
    for flag, value in (("--rules", args.rules), ("--chat-template", args.chat_template)):
        if value:
            command += [flag, *([value] if isinstance(value, str) else value)]
    if args.template_kwargs:
        command += ["--template-kwargs", json.dumps(args.template_kwargs)]
    seconds, summary = [], {}
    for _ in range(args.runs):
        shutil.rmtree(scratch / "o", ignore_errors=True)
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        summary = json.loads(done.stdout)
    manifest = json.loads((scratch / "o" / "manifest.json").read_text(encoding="utf-8"))
    size = sum(item["size"] for item in manifest["parts"]["inputs"])
    load = Load(summary["counts"]["conversations"], summary["counts"]["tokens"], size / 1e6)
    # The largest of all processes so far; the stages above ran in this one, so they do not count.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(
        load.line(
            f"build, {workers} worker{'s'[: workers > 1]}",
            statistics.median(seconds),
            f"{memory:.0f}",
        )
    )


if __name__ == "__main__":
    cli.leave(main)
