"""A build and what people do without us, side by side on the same conversations.

    python -m benchmarks.versus --input FILE --tokenizer DIR --rules ignore_empty_think \
        --python PEERS_PYTHON

First the answers: on the first conversations each peer's ids must be ours, and its trained tokens
those of a build that defines them as it does; what our own recipe trains otherwise is counted by
token. Then all run turn about, in one process each (ours: one worker). Exit code 1 where an answer
differs. Peers are the programs of a folder (benchmarks/peers/phases.py says what they have to do);
PEERS_PYTHON is one that has what they need, such as trl.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import material
from benchmarks.answers import Answer, compare, read_answer, tell
from benchmarks.contest import ROOT, Contest, enter, find_peers
from benchmarks.flags import make_parser, read_flags
from benchmarks.measurement import (
    alternate,
    describe_machine,
    is_quiet,
    machine_line,
    print_table,
    write_json,
)
from benchmarks.picture import draw_bars
from benchmarks.process import Run
from pipeline import cli, flags

OURS = "weighted-shards"
_SHORT, _START = 3, "0.6 to 1.5"  # seconds of a build, by the size of its tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Prints each peer's differences, then the table of speeds."""
    request = read_flags(_parser(), argv)
    args = request.own
    machine = describe_machine()
    print(machine_line(machine), end="\n\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="versus-") as folder:
        contest = enter(request, Path(folder))
        peers = find_peers(args.peers)
        report: dict[str, Any] = {"machine": machine, "input": args.input.name, "runs": args.runs}
        answers = _judge(contest, peers)
        report["answers"] = answers
        able = [peer for peer in peers if "unable" not in answers[peer.stem]]
        report["programs"] = _race(contest, able)
    _print_programs(report["programs"])
    report["quiet"] = is_quiet([p["others_cores"] for p in report["programs"].values()])
    write_json(args.json, report)
    if args.plot:
        _plot(args.plot, report)
    if report["programs"][OURS]["seconds"] < _SHORT:
        print(
            f"Ours takes under {_SHORT} s, of which {_START} are its start: give more conversations"
        )
    wrong = [name for name, answer in answers.items() if not answer.get("equal", True)]
    if wrong:
        print(f"exit code 1, as ids or trained tokens differ: {', '.join(wrong)}")
    return int(bool(wrong))


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("versus", __doc__, runs=3)
    parser.add_argument("--peers", type=flags.path, default=ROOT / "benchmarks" / "peers")
    parser.add_argument("--python", default=sys.executable, help="that runs the peers")
    parser.add_argument(
        "--check", type=flags.positive, default=2000, help="conversations whose answers to compare"
    )
    return parser


def _judge(contest: Contest, peers: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Compares each peer's answer with ours, in its definition and in our own."""
    own, theirs, built = contest.request.own, contest.scratch / "theirs", dict[Any, Answer]()
    source, output = contest.scratch / "check.jsonl", contest.scratch / "ours"
    material.repeat(own.input, source, min(own.check, material.count(own.input)))
    tokens = _tokens(contest.tokenizer)

    def answer(like: Sequence[str] | None) -> Answer:
        key = None if like is None else tuple(like)
        if key not in built:
            contest.build(source, output, like=like)
            built[key] = read_answer(output)
        return built[key]

    answers: dict[str, dict[str, Any]] = {}
    for peer in peers:
        told = answers[peer.stem] = contest.try_peer(peer, source, theirs)
        if "unable" in told:
            print(f"{peer.stem}: left out: {told['unable']}\n", flush=True)
            continue
        found = read_answer(theirs)
        alike, asked = compare(answer(told["like"]), found), compare(answer(None), found)
        told |= {"equal": alike.none, "alike": tell(alike, tokens), "ours": tell(asked, tokens)}
        print(f"{peer.stem}, ours with {' '.join(told['like']) or 'no rules'}: {told['alike']}")
        print(f"{peer.stem}, ours as asked: {told['ours']}\n", flush=True)
    return answers


def _tokens(folder: Path) -> dict[int, str]:
    """What each id spells, as the tokenizer's file writes it."""
    from tokenizers import Tokenizer as Library

    vocabulary = Library.from_file(str(folder / "tokenizer.json")).get_vocab()
    return {number: token for token, number in vocabulary.items()}


def _race(contest: Contest, peers: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Medians of all, and how many times as long as ours each takes."""
    given, output = contest.request.own.input, contest.scratch / "race"
    source = contest.scratch / "race.jsonl"  # plain lines, which every peer can read
    material.repeat(given, source, material.count(given))
    works = {OURS: partial(contest.build, source, output)}
    works |= {peer.stem: partial(contest.run_peer, peer, source, output) for peer in peers}
    runs = alternate(works, contest.request.own.runs)
    counts = runs[OURS][0].told["counts"]
    found = {name: _summarize(done, counts["tokens"]) for name, done in runs.items()}
    for program in found.values():
        for of in ("seconds", "seconds_without_imports", "cpu_seconds"):
            program[f"ratio_of_{of}"] = program[of] / found[OURS][of]
    return found


def _summarize(runs: Sequence[Run], tokens: int) -> dict[str, Any]:
    def median(values: Sequence[float]) -> float:
        return float(statistics.median(values))

    seconds = median([r.seconds for r in runs])
    without = median([_without_imports(r) for r in runs])
    return {
        "seconds": seconds,
        "seconds_of_runs": [r.seconds for r in runs],
        "seconds_without_imports": without,
        "cpu_seconds": median([r.cpu for r in runs]),
        "others_cores": median([r.others for r in runs]),
        "tokens_per_second": tokens / seconds,
        "tokens_per_second_without_imports": tokens / without,
        "memory_mb": max(max(r.memory, r.child_memory) for r in runs),
        "phases": runs[-1].told.get("phases", {}),
    }


def _without_imports(run: Run) -> float:
    """A build's own count of seconds begins after its imports, but holds its worker's start."""
    if "seconds" in run.told:
        return float(run.told["seconds"])
    imports = run.told["phases"].get("imports", 0.0)
    return math.fsum(run.told["phases"].values()) - imports or run.seconds


def _print_programs(programs: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (
            name,
            f"{p['seconds']:.2f}",
            f"{p['tokens_per_second']:,.0f}",
            f"{p['ratio_of_seconds']:.2f}",
            f"{p['tokens_per_second_without_imports']:,.0f}",
            f"{p['ratio_of_seconds_without_imports']:.2f}",
            f"{p['cpu_seconds']:.2f}",
            f"{p['ratio_of_cpu_seconds']:.2f}",
            f"{p['memory_mb']:.0f}",
            f"{p['others_cores']:.2f}",
        )
        for name, p in programs.items()
    ]
    heading: tuple[str, ...] = (
        "program",
        "seconds",
        "tokens/s",
        "times ours",
        "no imports, tokens/s",
        "times ours",
    )
    heading += ("CPU s", "times ours", "largest MB", "others, cores")
    print_table(heading, rows)


def _plot(path: Path, report: Mapping[str, Any]) -> None:
    speeds = {n: p["tokens_per_second"] / 1e3 for n, p in report["programs"].items()}
    title = f"Thousand tokens a second, start-up included ({report['input']})"
    note = machine_line(report["machine"])
    draw_bars(path, speeds, title=title, unit="thousand tokens/s", note=note)


if __name__ == "__main__":
    cli.leave(main)
