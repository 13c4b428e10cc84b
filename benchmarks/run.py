"""How fast a build is: stage by stage in this process, and whole in processes of its own.

    python -m benchmarks.run --input FILE --tokenizer DIR --rules ignore_empty_think

The stages are those of the very code that a worker runs, watched by a stopwatch; runs with and
without it alternate. Whole builds alternate with builds of one conversation, which tell the start.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.flags import Request, make_parser, read_flags
from benchmarks.measurement import (
    alternate,
    describe_machine,
    is_quiet,
    machine_line,
    print_table,
    write_json,
)
from benchmarks.picture import draw_bars
from benchmarks.process import Run, build_command, run
from benchmarks.profile import measure_profile, print_profile
from pipeline import cli, flags


def main(argv: Sequence[str] | None = None) -> int:
    """Prints tables."""
    request = read_flags(_parser(), argv)
    args = request.own
    machine = describe_machine()
    print(machine_line(machine), end="\n\n")
    with tempfile.TemporaryDirectory(prefix="run-") as folder:
        scratch = Path(folder)
        report: dict[str, Any] = {"machine": machine, "input": args.input.name, "runs": args.runs}
        report |= measure_profile(request, scratch, args.conversations)
        print_profile(report)
        report["builds"] = _measure_builds(request, scratch)
        report["start"] = _measure_commands(args.runs)
    _print_builds(report)
    report["quiet"] = is_quiet([b["others_cores"] for b in report["builds"]])
    write_json(args.json, report)
    if args.plot:
        _plot(args.plot, report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("run", __doc__, runs=5)
    parser.add_argument("--conversations", type=flags.positive, default=5000, help="in the stages")
    parser.add_argument("--workers", nargs="*", type=flags.positive, default=[1, 2], metavar="N")
    return parser


def _measure_builds(request: Request, scratch: Path) -> list[dict[str, Any]]:
    args = request.own
    one, output = scratch / "one.jsonl", scratch / "shards"
    material.repeat(args.input, one, 1)

    def build(source: Path, workers: int) -> Run:
        shutil.rmtree(output, ignore_errors=True)
        return run(build_command(request.words, source, output, workers), output=output)

    works = {
        f"{name} {workers}": partial(build, source, workers)
        for workers in args.workers
        for name, source in (("start", one), ("whole", args.input))
    }
    runs = alternate(works, args.runs)
    built = [_summarize(runs[f"whole {n}"], runs[f"start {n}"], n) for n in args.workers]
    for build_ in built:
        for of in ("tokens_per_second", "tokens_per_second_without_start"):
            build_[f"times_{of}"] = build_[of] / built[0][of] if built[0][of] else 0.0
    return built


def _summarize(whole: Sequence[Run], start: Sequence[Run], workers: int) -> dict[str, Any]:
    """Medians; memory is the most of all runs."""
    counts, single = whole[0].told["counts"], start[0].told["counts"]

    def median(runs: Sequence[Run], of: str) -> float:
        return float(statistics.median(getattr(r, of) for r in runs))

    tokens, seconds, worked = counts["tokens"], median(whole, "seconds"), median(whole, "worked")
    started = median(start, "seconds")
    return {
        "workers": workers,
        "conversations": counts["conversations"],
        "tokens": tokens,
        "seconds": seconds,
        "seconds_of_runs": [r.seconds for r in whole],
        "others_cores": median(whole, "others"),
        "tokens_per_second": tokens / seconds,
        # By difference: less the build of one conversation, which starts and ends alike. Where
        # the start is all, the difference is noise.
        "tokens_per_second_without_start": (tokens - single["tokens"]) / (seconds - started)
        if seconds > 1.1 * started
        else 0.0,
        # By the clock of its files: from the first shard's beginning to the last one's end.
        "tokens_per_second_of_shards": tokens / worked if worked else 0.0,
        "tokens_per_cpu_second": tokens / median(whole, "cpu"),
        "one_conversation_seconds": started,
        "first_shard_begun": median(whole, "begun"),
        "coordinator_mb": max(r.memory for r in whole),
        "worker_mb": max(r.child_memory for r in whole),
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


def _print_builds(report: dict[str, Any]) -> None:
    rows = [
        (
            f"{b['workers']}",
            f"{b['seconds']:.2f}",
            f"{b['tokens_per_second']:,.0f}",
            f"{b['times_tokens_per_second']:.2f}",
            *_without_start(b),
            f"{b['tokens_per_cpu_second']:,.0f}",
            f"{b['one_conversation_seconds']:.2f}",
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
        "times",
        "less start",
        "times",
        "per CPU s",
    )
    heading += ("one conv., s", "begun, s", "coord. MB", "worker MB", "others, cores")
    if rows:
        print_table(heading, rows)
    for name, seconds in report["start"].items():
        print(f"{name}: {1e3 * seconds:.0f} ms")


def _without_start(build: dict[str, Any]) -> tuple[str, str]:
    speed, times = (f"{of}tokens_per_second_without_start" for of in ("", "times_"))
    return (f"{build[speed]:,.0f}", f"{build[times]:.2f}") if build[speed] else ("-", "-")


def _plot(path: Path, report: dict[str, Any]) -> None:
    bars = {name: t["us_per_conversation"] for name, t in report["stages"].items()}
    title = f"Microseconds a conversation ({report['input']})"
    note = machine_line(report["machine"])
    draw_bars(path, bars, title=title, unit="us", note=note)


if __name__ == "__main__":
    cli.leave(main)
