"""How fast a build is: stage by stage in this process, and whole in processes of its own.

    python -m benchmarks.run --input FILE --tokenizer DIR --rules ignore_empty_think

The stages are those of the very code that a worker runs, watched by a stopwatch; runs with and
without it alternate. Whole builds alternate with builds of one conversation, which tell the start.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.flags import Request, make_parser, read_flags
from benchmarks.measurement import (
    Load,
    Timing,
    alternate,
    describe_machine,
    machine_line,
    print_table,
    write_json,
)
from benchmarks.picture import draw_bars
from benchmarks.process import Run, build_command, run
from benchmarks.workbench import NAMES, Workbench
from pipeline import cli, flags
from pipeline.recipe import recipe_of
from pipeline.tokens.tokenizer import load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables."""
    request = read_flags(_parser(), argv)
    args = request.own
    machine = describe_machine()
    print(machine_line(machine), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        scratch = Path(folder)
        report: dict[str, Any] = {"machine": machine, "input": args.input.name, "runs": args.runs}
        report |= _measure_stages(request, scratch)
        report["builds"] = [_measure_builds(request, scratch, n) for n in args.workers]
        report["start"] = _measure_commands(args.runs)
    _print_stages(report)
    _print_engines(report)
    _print_builds(report)
    write_json(args.json, report)
    if args.plot:
        _plot(args.plot, report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("run", __doc__, runs=5)
    parser.add_argument("--conversations", type=flags.positive, default=5000, help="in the stages")
    parser.add_argument("--workers", nargs="*", type=flags.positive, default=[1, 2], metavar="N")
    return parser


def _measure_stages(request: Request, scratch: Path) -> dict[str, Any]:
    args = request.own
    source = scratch / "stages.jsonl"
    material.repeat(args.input, source, min(args.conversations, material.count(args.input)))
    bench = Workbench(recipe_of(request.recipe), scratch)
    pieces = bench.survey([str(source)])
    load = bench.work(pieces)  # engines load on first use, and headers are asked for
    parts = list[dict[str, float]]()

    def watched() -> float:
        parts.append(bench.work_by_stages(pieces))
        return math.fsum(parts[-1].values())

    whole = partial(_seconds, partial(bench.work, pieces))
    timings = _timings({"whole": whole, "watched": watched}, args.runs)
    stages = {name: Timing(tuple(part[name] for part in parts)) for name in NAMES}
    return {
        "load": asdict(load),
        "stages": {name: _told(timing, load) for name, timing in stages.items()},
        "whole": _told(timings["whole"], load),
        "watched": _told(timings["watched"], load),
        "roofline": sum(timing.least for timing in stages.values()) / timings["whole"].least,
        "engines": _measure_engines(bench, bench.texts(pieces), load, args.runs),
    }


def _measure_engines(
    bench: Workbench, texts: Sequence[list[str]], load: Load, runs: int
) -> dict[str, Any]:
    """Both engines with all that we do around them, and the reference's library by itself."""
    from tokenizers import Tokenizer as Library

    vocabulary = bench.recipe.vocabulary
    raw = Library.from_file(str(vocabulary.folder / "tokenizer.json"))
    reference = load_tokenizer(vocabulary, certificate=None)
    works: dict[str, Callable[[], object]] = {
        "as a build encodes": lambda: [bench.encoder.tokenizer.encode(b) for b in texts],
        "by the reference": lambda: [reference.encode(b) for b in texts],
        "raw encode_batch_fast": lambda: [
            [e.ids for e in raw.encode_batch_fast(b, add_special_tokens=False)] for b in texts
        ],
    }
    for work in works.values():
        work()
    timings = _timings({name: partial(_seconds, work) for name, work in works.items()}, runs)
    return {name: _told(timing, load) for name, timing in timings.items()}


def _timings(works: dict[str, Callable[[], float]], runs: int) -> dict[str, Timing]:
    return {name: Timing(tuple(found)) for name, found in alternate(works, runs).items()}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _told(timing: Timing, load: Load) -> dict[str, float]:
    median = timing.median
    return {
        "us_per_conversation": 1e6 * median / load.conversations,
        "ns_per_token": 1e9 * median / load.tokens,
        "tokens_per_second": load.tokens / median if median else 0.0,
        "least_us": 1e6 * timing.least / load.conversations,
        "spread": timing.spread,
    }


def _measure_builds(request: Request, scratch: Path, workers: int) -> dict[str, Any]:
    args = request.own
    one, output = scratch / "one.jsonl", scratch / "shards"
    material.repeat(args.input, one, 1)

    def build(source: Path) -> Run:
        shutil.rmtree(output, ignore_errors=True)
        return run(build_command(request.words, source, output, workers), output=output)

    runs = alternate({"start": lambda: build(one), "whole": lambda: build(args.input)}, args.runs)
    counts, single = (runs[name][0].told["counts"] for name in ("whole", "start"))

    def median(name: str, of: str) -> float:
        return float(statistics.median(getattr(r, of) for r in runs[name]))

    seconds, start = median("whole", "seconds"), median("start", "seconds")
    cpu, worked = median("whole", "cpu"), median("whole", "worked")
    return {
        "workers": workers,
        "conversations": counts["conversations"],
        "tokens": counts["tokens"],
        "seconds": seconds,
        "seconds_of_runs": [r.seconds for r in runs["whole"]],
        "others_cores": median("whole", "others"),
        "tokens_per_second": counts["tokens"] / seconds,
        # By difference: less the build of one conversation, which starts and ends alike.
        "tokens_per_second_without_start": (counts["tokens"] - single["tokens"])
        / max(seconds - start, 1e-9),
        # By the clock of its files: from the first shard's beginning to the last one's end.
        "tokens_per_second_of_shards": counts["tokens"] / worked if worked else 0.0,
        "tokens_per_cpu_second": counts["tokens"] / cpu,
        "start_seconds": start,
        "first_shard_begun": median("whole", "begun"),
        "coordinator_mb": max(r.memory for r in runs["whole"]),
        "worker_mb": max(r.child_memory for r in runs["whole"]),
    }


def _measure_commands(runs: int) -> dict[str, float]:
    """Seconds until commands that build nothing are done."""
    python = [sys.executable, "-m"]
    words = {
        "build --help": [*python, "pipeline.build", "--help"],
        "check of a bundled rule": [*python, "pipeline.check", "ignore_empty_think"],
    }
    found = alternate({name: partial(run, command) for name, command in words.items()}, runs)
    return {name: statistics.median(r.seconds for r in done) for name, done in found.items()}


def _print_stages(report: dict[str, Any]) -> None:
    load = report["load"]
    print(f"{load['conversations']:,} conversations, {load['tokens']:,} tokens, in one process")
    whole = report["watched"]["us_per_conversation"]
    rows = [
        (
            name,
            f"{t['us_per_conversation']:.1f}",
            f"{t['ns_per_token']:.1f}",
            f"{t['tokens_per_second']:,.0f}",
            f"{t['least_us']:.1f}",
            f"{t['us_per_conversation'] / whole:.0%}",
        )
        for name, t in (
            *report["stages"].items(),
            ("all, watched", report["watched"]),
            ("all, unwatched", report["whole"]),
        )
    ]
    print_table(("stage", "us/conv", "ns/token", "tokens/s", "least us", "share"), rows)
    print(f"roofline: the stages' minima are {report['roofline']:.2f} of the whole's\n")


def _print_engines(report: dict[str, Any]) -> None:
    raw = report["engines"]["raw encode_batch_fast"]["tokens_per_second"]
    rows = [
        (
            name,
            f"{t['ns_per_token']:.1f}",
            f"{t['tokens_per_second']:,.0f}",
            f"{t['tokens_per_second'] / raw:.2f}",
        )
        for name, t in report["engines"].items()
    ]
    print_table(("encoding the same texts", "ns/token", "tokens/s", "of raw"), rows)


def _print_builds(report: dict[str, Any]) -> None:
    rows = [
        (
            f"{b['workers']}",
            f"{b['seconds']:.2f}",
            f"{b['tokens_per_second']:,.0f}",
            f"{b['tokens_per_second_without_start']:,.0f}",
            f"{b['tokens_per_cpu_second']:,.0f}",
            f"{b['start_seconds']:.2f}",
            f"{b['first_shard_begun']:.2f}",
            f"{b['coordinator_mb']:.0f}",
            f"{b['worker_mb']:.0f}",
            f"{b['others_cores']:.2f}",
        )
        for b in report["builds"]
    ]
    heading: tuple[str, ...] = (
        "workers",
        "seconds",
        "tokens/s",
        "less start",
        "per CPU s",
        "one conv., s",
    )
    heading += ("begun, s", "coord. MB", "worker MB", "others, cores")
    if rows:
        print_table(heading, rows)
    for name, seconds in report["start"].items():
        print(f"{name}: {1e3 * seconds:.0f} ms")


def _plot(path: Path, report: dict[str, Any]) -> None:
    bars = {name: t["us_per_conversation"] for name, t in report["stages"].items()}
    title = f"Microseconds a conversation ({report['input']})"
    note = machine_line(report["machine"])
    draw_bars(path, bars, title=title, unit="us", note=note)


if __name__ == "__main__":
    cli.leave(main)
