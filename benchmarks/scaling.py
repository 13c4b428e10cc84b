"""Whether cost is linear: in conversations, in turns of a conversation, in its size.

    python -m benchmarks.scaling --input FILE --tokenizer DIR --rules ignore_empty_think

Numbers of conversations are built in processes of their own, and timed from the first shard's
beginning to the last one's end. Turns and sizes are cut from the input's text, the same for every
shape, and worked on in this process by CPU time. Over each axis seconds = a x rows + b x tokens is
fitted; how far a point lies from that line is what is not linear. Of rows that are *repaired* the
reference reads what their normalizer changes, or all where that is not told: a long row is
likelier to hold such a thing. Rows that are *checked*, 1 in 200 by what they say, are encoded by
the reference too; *of checks* are the seconds that this takes beyond 1 row in 200, and the line is
that of the others (of eight rows one may be checked). *spread* is between runs. Takes some minutes,
and disk for the largest number of conversations and its shards.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.flags import Request, make_parser, read_flags
from benchmarks.line import Line, Point, fit
from benchmarks.measurement import (
    Load,
    Timing,
    alternate,
    describe_machine,
    is_quiet,
    load_of,
    machine_line,
    print_table,
    spread_of,
    write_json,
)
from benchmarks.picture import draw_lines
from benchmarks.process import build_command, run
from benchmarks.workbench import Workbench
from pipeline import cli, flags
from pipeline.recipe import recipe_of
from pipeline.tokens.tokenizer import SAMPLE, is_sampled, load_tokenizer

_WIDTH = 400  # characters of a message where only turns vary
_LINEAR = 0.2
_PRICED = 300_000  # characters that tell what the reference takes for one


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table for each axis."""
    request = read_flags(_parser(), argv)
    args, machine = request.own, describe_machine()
    print(machine_line(machine), end="\n\n", flush=True)
    axes: dict[str, dict[str, Any]] = {}
    others: list[float] = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        for name, points in _measure(request, Path(folder), others):
            line = fit(points, rows=name != "conversations")
            axes[name] = _judge(points, line)
            _print_axis(name, points, line, axes[name])
    report = {"machine": machine, "input": args.input.name, "runs": args.runs, "axes": axes}
    report["quiet"] = is_quiet(others)
    write_json(args.json, report)
    if args.plot:
        _plot(args.plot, report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("scaling", __doc__, runs=3)
    number = flags.positive
    parser.add_argument(
        "--counts",
        nargs="*",
        type=number,
        default=[1000, 10_000, 50_000, 500_000],
        metavar="N",
        help="conversations of the builds (default: 1000 10000 50000 500000)",
    )
    parser.add_argument(
        "--turns-each",
        nargs="*",
        type=number,
        default=[1, 2, 5, 10, 20, 50, 100],
        metavar="N",
        help="(default: 1 2 5 10 20 50 100)",
    )
    parser.add_argument(
        "--sizes",
        nargs="*",
        type=number,
        default=[100, 1000, 10_000, 100_000, 1_000_000],
        metavar="CHARACTERS",
        help="of a conversation (default: 100 1000 10000 100000 1000000)",
    )
    parser.add_argument(
        "--text", type=number, default=8_000_000, metavar="CHARACTERS", help="cut for each shape"
    )
    parser.add_argument("--workers", type=number, default=1, help="of the builds (default: 1)")
    return parser


def _measure(request: Request, scratch: Path, others: list[float]) -> list[tuple[str, list[Point]]]:
    args, axes = request.own, list[tuple[str, list[Point]]]()
    if args.counts:
        axes.append(("conversations", _measure_counts(request, scratch, others)))
    if not args.turns_each and not args.sizes:
        return axes
    bench = Workbench(recipe_of(request.recipe), scratch)
    text = material.read_text(args.input, args.text)
    shapes = {
        "turns": {n: (n, 2 * n * _WIDTH) for n in args.turns_each},
        "characters": {n: (1, n) for n in args.sizes},
    }
    for name, axis in shapes.items():
        if axis:
            axes.append((name, _measure_shapes(bench, text, axis, args.runs)))
    return axes


def _measure_counts(request: Request, scratch: Path, others: list[float]) -> list[Point]:
    args, output = request.own, scratch / "shards"

    def build(source: Path) -> tuple[Load, float]:
        shutil.rmtree(output, ignore_errors=True)
        command = build_command(request.words, source, output, args.workers)
        print(f"a build of {source.stem} conversations", file=sys.stderr, flush=True)
        done = run(command, output=output)
        others.append(done.others)
        return load_of(done.told["counts"]), done.worked

    works: dict[str, Callable[[], tuple[Load, float]]] = {}
    for number in args.counts:
        source = scratch / f"{number}.jsonl"
        material.repeat(args.input, source, number)
        works[str(number)] = partial(build, source)
    return _points(alternate(works, args.runs))


def _measure_shapes(
    bench: Workbench, text: str, axis: dict[int, tuple[int, int]], runs: int
) -> list[Point]:
    def work(name: int) -> tuple[Load, float]:
        pieces = bench.survey([str(bench.scratch / f"{name}.jsonl")])
        started = time.process_time()
        load = bench.work(pieces)
        return load, time.process_time() - started

    beyond: dict[str, float] = {}
    for name, (turns, size) in axis.items():
        print(f"{name:,} of {len(text):,} characters", file=sys.stderr, flush=True)
        source = bench.scratch / f"{name}.jsonl"
        material.synthesize(text, source, turns=turns, size=size)
        work(name)  # a first time, not counted: headers are asked for, engines load
        beyond[str(name)] = _price_checks(bench, source)
    return _points(alternate({str(name): partial(work, name) for name in axis}, runs), beyond)


def _price_checks(bench: Workbench, source: Path) -> float:
    """CPU seconds of what the reference checks of a file, less those of 1 row in 200."""
    tokenizer = bench.encoder.tokenizer
    if tokenizer.engine == "reference":
        return 0.0
    texts = [text for batch in bench.texts(bench.survey([str(source)])) for text in batch]
    checked = sum(len(text) for text in texts if is_sampled(text.encode()))
    some, size = list[str](), 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size > _PRICED:
            break
    reference = load_tokenizer(bench.recipe.vocabulary, certificate=None)
    started = time.process_time()
    reference.encode(some)
    each = (time.process_time() - started) / size
    return each * (checked - sum(map(len, texts)) / SAMPLE)


def _points(
    found: dict[str, list[tuple[Load, float]]], beyond: Mapping[str, float] = {}
) -> list[Point]:
    points = list[Point]()
    for name, runs in found.items():
        load, timing = runs[0][0], Timing(tuple(seconds for _, seconds in runs))
        done = (load.conversations, load.tokens, load.repaired)
        checks = load.checked, beyond.get(name, 0.0)
        points.append(Point(int(name), *done, timing.median, timing.spread, *checks))
    return points


def _judge(points: Sequence[Point], line: Line) -> dict[str, Any]:
    """*spread* is that of tokens/s as measured, *spread_aside* with rows' or fixed cost off."""
    aside = [p.tokens / (p.seconds - p.beyond - line.fixed - line.row * p.rows) for p in points]
    return {
        "points": [{**asdict(p), "tokens_per_second": p.tokens / p.seconds} for p in points],
        **asdict(line),
        "spread": spread_of([p.tokens / p.seconds for p in points]),
        "spread_aside": spread_of(aside) if min(aside) > 0 else None,
        "linear": max(map(abs, line.off)) <= _LINEAR,
    }


def _print_axis(name: str, points: Sequence[Point], line: Line, judged: dict[str, Any]) -> None:
    rows = [
        (
            f"{p.x:,}",
            f"{p.rows:,}",
            f"{p.tokens:,}",
            f"{p.repaired:,}",
            f"{p.checked:,}",
            f"{p.seconds:.3f}",
            f"{p.beyond:+.3f}",
            f"{p.spread:.0%}",
            f"{p.tokens / p.seconds:,.0f}",
            f"{1e6 * p.seconds / p.rows:,.1f}",
            f"{off:+.0%}",
        )
        for p, off in zip(points, line.off, strict=True)
    ]
    heading = (
        name,
        "rows",
        "tokens",
        "repaired",
        "checked",
        "seconds",
        "of checks",
        "spread",
        "tokens/s",
        "us/row",
        "off the line",
    )
    print_table(heading, rows)
    each = f"{1e6 * line.row:.1f} us a row" if line.row else f"{line.fixed:.2f} s once"
    print(
        f"{each} + {1e9 * line.token:.0f} ns a token; tokens/s spread {judged['spread']:.0%}; "
        f"{'within' if judged['linear'] else 'NOT within'} {_LINEAR:.0%} of that line; "
        f"median {statistics.median(p.tokens / p.seconds for p in points):,.0f} tokens/s\n",
        flush=True,
    )


def _plot(path: Path, report: dict[str, Any]) -> None:
    lines = {
        name: {
            "x": [point["x"] for point in axis["points"]],
            "y": [point["tokens_per_second"] / 1e6 for point in axis["points"]],
        }
        for name, axis in report["axes"].items()
    }
    title = f"Speed by what alone varies ({report['input']})"
    unit, note = "million tokens/s", machine_line(report["machine"])
    draw_lines(path, lines, title=title, unit=unit, note=note)


if __name__ == "__main__":
    cli.leave(main)
