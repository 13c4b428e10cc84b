"""Where a worker's time goes: each stage against the whole, each engine against its library."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.flags import Request
from benchmarks.measurement import Load, Timing, alternate, print_table
from benchmarks.workbench import NAMES, Workbench
from pipeline.recipe import recipe_of
from pipeline.tokens.tokenizer import load_tokenizer


def measure_profile(request: Request, scratch: Path, conversations: int) -> dict[str, Any]:
    """What each stage costs of the first so many conversations, and encoding by each engine."""
    args = request.own
    source = scratch / "stages.jsonl"
    material.repeat(args.input, source, min(conversations, material.count(args.input)))
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


def print_profile(report: dict[str, Any]) -> None:
    """The stages' table, the roofline, the engines'."""
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
    _print_engines(report)


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
