"""Feeds the readers and the rule loader what nobody wrote, and keeps what breaks them.

    python -m benchmarks.fuzz --target records --engine atheris --seconds 300
    python -m benchmarks.fuzz --target records --replay FILE

Targets: records, conversations, rules, claims, columns, templates. Engines: random (seeded edits),
hypothesis, and atheris (coverage-guided; `pip install atheris`, which is no dependency). Inputs run
in a child, so that one that kills or hangs it is kept as well. Exits with 1 if a fault was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

TARGETS = ("records", "conversations", "rules", "claims", "columns", "templates")
ENGINES = ("random", "hypothesis", "atheris")
LONGEST = 30.0  # seconds for one input: longer, and it hangs
MOST_FAULTS = 20  # different ones; the fuzzer then stops
_LARGEST = 1 << 22  # bytes of an input that the child can tell
_LONGEST_RAW = 20_000
_FAULTS = "faults.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 where an input broke something, 2 where an engine does not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--engine", choices=ENGINES, default="random")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("crashers"), help="folder of crashers")
    parser.add_argument("--corpus", type=Path, help="folder where atheris keeps what it learns")
    told = "JSON lines with a template each: every input is rendered by one of them too"
    parser.add_argument("--templates", type=Path, help=told)
    parser.add_argument("--replay", type=Path, help="run this one input, here, and nothing else")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.replay:
        return _replay(args)
    if args.child:
        return _fuzz(args)
    if args.engine == "atheris" and _absent("atheris"):
        print("atheris is not installed; pip install atheris, into an environment of its own")
        return 2
    return _supervise(args)


def _absent(module: str) -> bool:
    try:
        import_module(module)
    except ImportError:
        return True
    return False


def _replay(args: argparse.Namespace) -> int:
    from benchmarks.fuzz_targets import Checks, find_target

    faulthandler.enable()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        checks = Checks(Path(folder), _templates(args.templates))
        find_target(args.target).check(checks, args.replay.read_bytes())
    print("no fault")
    return 0


def _templates(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [json.loads(line)["template"] for line in path.read_text("utf-8").splitlines()]


def _supervise(args: argparse.Namespace) -> int:
    """Runs children until the time is over; one that dies is replaced, and its input kept."""
    started, seed, executions, died = time.monotonic(), args.seed, 0, 0
    args.keep.mkdir(parents=True, exist_ok=True)
    faults: dict[str, str] = {}
    while (left := args.seconds - (time.monotonic() - started)) > 0 and len(faults) < MOST_FAULTS:
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            folder = Path(name)
            child = subprocess.run(_command(args, folder, left, seed), check=False)
            told = Ledger(folder).told()
            executions += told[0]
            if child.returncode and not told[0]:
                print(f"{args.engine} ended with {child.returncode} before the first input")
                return 2
            if (folder / _FAULTS).exists():
                faults |= json.loads((folder / _FAULTS).read_text())
            if child.returncode:
                died += 1
                how = _ending(child.returncode)
                faults.setdefault(f"{how} {died}", _keep(args.keep, args.target, told[1]))
        seed += 1
    seconds = time.monotonic() - started
    print(
        f"{args.target} by {args.engine}, seed {args.seed}: {executions:,} executions in "
        f"{seconds:.0f} s ({executions / seconds:.1f}/s), {len(faults)} faults"
    )
    for what, path in faults.items():
        print(f"  {what}: {path}")
    return 1 if faults else 0


def _command(args: argparse.Namespace, folder: Path, seconds: float, seed: int) -> list[str]:
    words = ["--target", args.target, "--engine", args.engine, "--child", str(folder)]
    words += ["--seconds", str(seconds), "--seed", str(seed), "--keep", str(args.keep)]
    if args.corpus:
        words += ["--corpus", str(args.corpus)]
    if args.templates:
        words += ["--templates", str(args.templates)]
    return [sys.executable, "-m", "benchmarks.fuzz", *words]


def _ending(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with {code}, or took longer than {LONGEST:g} s; see above"


def _keep(folder: Path, target: str, data: bytes) -> str:
    path = folder / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    return str(path)


class Ledger:
    """How many inputs were run, and the last of them, told even by a child that is killed."""

    def __init__(self, folder: Path) -> None:
        path = folder / "ledger"
        if not path.exists():
            path.write_bytes(bytes(16 + _LARGEST))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def enter(self, count: int, data: bytes) -> None:
        self._bytes[:16] = count.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self._bytes[16 : 16 + min(_LARGEST, len(data))] = data[:_LARGEST]

    def told(self) -> tuple[int, bytes]:
        count, size = (int.from_bytes(self._bytes[i : i + 8], "little") for i in (0, 8))
        return count, self._bytes[16 : 16 + min(_LARGEST, size)]


def _fuzz(args: argparse.Namespace) -> int:
    """In the child: inputs of one engine until the time is over."""
    faulthandler.enable()
    deadline = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        if args.engine == "atheris":
            atheris = import_module("atheris")
            with atheris.instrument_imports(include=["pipeline"]):
                runner = Runner(args, Path(folder), deadline)
            _by_atheris(atheris, runner, args)
        runner = Runner(args, Path(folder), deadline)
        for data in runner.target.seeds():
            runner.run(data)
        (_by_hypothesis if args.engine == "hypothesis" else _by_chance)(runner, args.seed)
    return 0


class Runner:
    """Runs inputs, each under a time limit, and keeps one for each fault that is new."""

    def __init__(self, args: argparse.Namespace, folder: Path, deadline: float) -> None:
        from benchmarks.fuzz_targets import Checks, find_target

        self.target = find_target(args.target)
        self._checks = Checks(folder, _templates(args.templates))
        self._ledger = Ledger(args.child)
        self._folder, self._kept = args.child, args.keep
        self._deadline, self._count = deadline, 0
        self._faults: dict[str, str] = {}

    @property
    def over(self) -> bool:
        return time.monotonic() > self._deadline or len(self._faults) >= MOST_FAULTS

    def run(self, data: bytes) -> None:
        self._count += 1
        self._ledger.enter(self._count, data)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            self.target.check(self._checks, data)
        except Exception as error:  # noqa: BLE001 - any of them is what is looked for
            self._tell(error, data)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _tell(self, error: Exception, data: bytes) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        if what not in self._faults:
            self._faults[what] = _keep(self._kept, self.target.name, data)
            (self._folder / _FAULTS).write_text(json.dumps(self._faults))
            traceback.print_exception(error)


def _by_chance(runner: Runner, seed: int) -> None:
    from benchmarks.fuzz_choices import Chance

    chance = Random(seed)
    while not runner.over:
        runner.run(runner.target.make(Chance(chance)))


def _by_hypothesis(runner: Runner, seed: int) -> None:
    hypothesis: Any = import_module("hypothesis")
    strategies: Any = import_module("hypothesis.strategies")
    from benchmarks.fuzz_choices import Drawn

    @strategies.composite  # type: ignore[untyped-decorator] # imported late
    def inputs(draw: Callable[[Any], Any]) -> bytes:
        return runner.target.make(Drawn(draw, strategies.integers))

    def run(data: bytes) -> None:
        if not runner.over:
            runner.run(data)

    settings = hypothesis.settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    while not runner.over:
        hypothesis.seed(seed)(settings(hypothesis.given(inputs())(run)))()
        seed += 1


def _by_atheris(atheris: Any, runner: Runner, args: argparse.Namespace) -> None:
    """Does not return: libFuzzer ends the process."""
    corpus = args.corpus or args.child / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in runner.target.seeds() or [bytes(range(256))]:
        _keep(corpus, args.target, data)

    def run(data: bytes) -> None:
        if runner.over:
            os._exit(0)
        runner.run(runner.target.spell(data))

    flags = [f"-seed={args.seed + 1}", f"-max_len={_LONGEST_RAW}"]
    if runner.target.words:  # an empty dictionary is an error
        words = args.child / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in runner.target.words))
        flags.append(f"-dict={words}")
    # Its own limit, of whole seconds, ends the process without a word of the input.
    flags += [f"-timeout={2 * LONGEST:.0f}", "-rss_limit_mb=6000", "-verbosity=0"]
    flags += [f"-artifact_prefix={args.child}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], run)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02X}" for byte in word[:64])


if __name__ == "__main__":
    sys.exit(main())
