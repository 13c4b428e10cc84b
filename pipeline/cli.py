"""What all commands share: the one place that turns errors into exit codes, and what they print.

0 done, 1 the input or the configuration is wrong, 2 usage, 3 a bug, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from pipeline import __version__
from pipeline.errors import BuildError, ConfigurationError, WeightedShardsError
from pipeline.redaction import redact
from pipeline.terminal import harmless

if TYPE_CHECKING:
    from pipeline.built import Built

Main = Callable[[Sequence[str] | None], int]


class Terminated(BaseException):
    """SIGTERM or SIGHUP came: a scheduler, ``docker stop`` or a lost terminal wants the end."""


class _Misuse(SystemExit):
    """Exit code 2, as argparse has it, with what is wrong."""

    def __init__(self, told: str) -> None:
        super().__init__(2)
        self.told = told


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        complain(f"{self.prog}: error: {message}")
        raise _Misuse(message)


def leave(main: Main) -> NoReturn:
    """Runs *main* on the command line and exits; no error but a bug shows a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _terminate)
    # numpy would start a thread a core for linear algebra, which no command does.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _open_standard_files()
    code = run(main, None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # what has been told is what happens
    atexit._run_exitfuncs()
    _give_up_unwritten()
    # Not sys.exit: all is done, and to take numpy and Arrow apart is 45 ms more.
    os._exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - as signal asks
    for further in (signal.SIGTERM, signal.SIGHUP):  # what follows takes a moment, once
        signal.signal(further, signal.SIG_IGN)
    raise Terminated(number)


def _open_standard_files() -> None:
    """Opens what the caller has closed (``>&-``) as /dev/null, and lets no character fail.

    Else the next file that we open would get the number of standard output or error, and a shard
    what a library writes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == number:  # it takes the lowest that is free
                os.set_inheritable(opened, True)
            setattr(sys, name, open(opened, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - a number, and open to the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error does


def _give_up_unwritten() -> None:
    """What cannot be printed is forgotten: the interpreter would try again, and exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run(main: Main, argv: Sequence[str] | None) -> int:
    """The exit code of *main*, its errors told on stderr, and with ``--json`` on stdout too."""
    words = sys.argv[1:] if argv is None else argv
    try:
        _require_text(words)
        code = main(argv)
        say()
    except (Exception, KeyboardInterrupt, Terminated, _Misuse) as error:  # noqa: BLE001 - what is no error of ours is a bug, and says so
        code, told = _judge(error)
        if "--json" in words:
            with contextlib.suppress(OSError):
                print(json.dumps({"exit": code, "error": told}), flush=True)
    return code


def _judge(error: BaseException) -> tuple[int, str]:
    """The exit code and what is wrong, which it tells on stderr."""
    code, told = 1, redact(str(error))
    if isinstance(error, _Misuse):  # has been told
        return 2, redact(error.told)
    if isinstance(error, KeyboardInterrupt | Terminated):
        code, done = 130, "interrupted"
        if isinstance(error, Terminated):
            code, done = 128 + error.args[0], "terminated"
        told = f"{done}; run the same command again to go on"
        complain(told)
    elif isinstance(error, WeightedShardsError):
        complain(f"error: {told}")
    elif isinstance(error, MemoryError):
        told = (
            "out of memory: a worker needs some 500 MB with a tokenizer of 150,000 tokens; allow "
            "more (ulimit -v), or use fewer --workers"
        )
        complain(f"error: {told}")
    elif isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        told = f"{told}; allow more (ulimit -n), or use fewer --workers"
        complain(f"error: {told}")
    elif isinstance(error, OSError):
        told = f"{told}; see to the disk or the permissions and try again"
        complain(f"error: {told}")
    else:  # everything else is a bug, and says so
        code, told = 3, f"bug: {type(error).__name__}: {told}"
        complain("".join(traceback.format_exception(error)).rstrip())
        complain("this is a bug in weighted-shards; please report the lines above")
    return code, told


def complain(text: str) -> None:
    """A line on stderr; nothing where that is full or gone, which must change no exit code."""
    with contextlib.suppress(OSError, ValueError):
        print(harmless(redact(text)), file=sys.stderr, flush=True)


def _require_text(words: Sequence[str]) -> None:
    """Paths stand in manifests, messages and JSON, which are UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(
                f"{word[:80]!a}: not UTF-8; rename the file, or write the flag in UTF-8"
            ) from None


def put(text: str) -> None:
    """Prints a line; nothing where the reader has gone (``| head``), who wants no more of them.

    The command goes on, for its exit code is not the reader's: 0 would hide what it found wrong.
    """
    with contextlib.suppress(BrokenPipeError):
        print(text)


def say(text: str | None = None) -> None:
    """As `put`, with all that was put before; ConfigurationError where it cannot be printed."""
    try:
        if text is not None:
            put(text)
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
    except OSError as error:
        raise ConfigurationError(
            f"standard output: cannot be written ({error.strerror}), but all else is done; "
            "send it elsewhere"
        ) from error


@contextlib.contextmanager
def logging_to_stderr(level: str | None, *, quiet: bool) -> Iterator[None]:
    """What the package logs from *level* on, by default warnings, errors alone where *quiet*."""
    import logging  # with tqdm it takes as long as all that --help needs

    from tqdm import tqdm

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with tqdm.external_write_mode(sys.stderr):  # above a bar, not through it
                complain(self.format(record))

    handler, logger = Lines(), logging.getLogger("pipeline")
    form = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S")
    handler.setFormatter(form)
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel((level or ("error" if quiet else "warning")).upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def report(built: Built, output: Path, *, allowed: float, as_json: bool, quiet: bool) -> int:
    """Prints the summary; exit code 1 where more than *allowed* of the records was rejected."""
    from pipeline.built import require_few_rejects
    from pipeline.summary import summarize, summarize_as_json

    error = ""
    try:
        require_few_rejects(built, allowed=allowed)
    except BuildError as excess:
        error = str(excess)
    told = (built.manifest, output, built.rejects, built.timing)
    if as_json:
        say(summarize_as_json(*told, error=error))
    elif not quiet:
        say(summarize(*told))
    if error:
        complain(f"error: {error}")
    return 1 if error else 0


def make_parser(command: str, summary: str) -> argparse.ArgumentParser:
    """A parser that shows as ``python -m pipeline.COMMAND``."""
    parser = _Parser(prog=f"python -m pipeline.{command}", description=summary, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"weighted-shards {__version__}")
    return parser
