"""What all commands share: their flags, and the one place that turns errors into exit codes.

0 done, 1 the input or the configuration is wrong, 2 usage, 3 a bug, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import __version__
from pipeline.errors import BuildError, ConfigurationError, WeightedShardsError
from pipeline.policy import CONTROL_TOKENS, EDGES, PROFILES, TURNS, UNSURE
from pipeline.redaction import redact
from pipeline.terminal import harmless

if TYPE_CHECKING:
    from pipeline.dataset import Built

Main = Callable[[Sequence[str] | None], int]

_DEEPEST = 100  # levels of --template-kwargs; workers get them pickled, which takes some 300
_DIGITS = 18  # of a number on the command line


class Terminated(BaseException):
    """SIGTERM came: a scheduler or ``docker stop`` wants the process gone within seconds."""


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
    _open_standard_files()
    code = run(main, None)
    _give_up_unwritten()
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - as signal asks
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows takes a moment, once
    raise Terminated


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
    except BrokenPipeError:  # somebody has closed our output (`| head`), and wants no more of it
        return 0
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
        return 2, error.told
    if isinstance(error, KeyboardInterrupt | Terminated):
        code, done = (
            (130, "interrupted") if isinstance(error, KeyboardInterrupt) else (143, "terminated")
        )
        told = f"{done}; run the same command again to go on"
        complain(told)
    elif isinstance(error, WeightedShardsError):
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


def say(text: str | None = None) -> None:
    """Prints *text*, with all that was printed before; ConfigurationError where it cannot be."""
    try:
        if text is not None:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
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
    from pipeline.dataset import require_few_rejects
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


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide how conversations become rows, and what their tokens weigh."""
    add_rule_flags(parser)
    add_render_flags(parser)


def add_render_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide how conversations become text."""
    parser.add_argument(
        "--tokenizer",
        metavar="DIR_OR_HUB_ID",
        help="folder or hub id with tokenizer.json and its chat template "
        "(default: the embedded one, for the embedded sample only)",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a Jinja file to use instead, or the name of one of the tokenizer's templates",
    )
    parser.add_argument(
        "--template-kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="variables for the template, such as '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "--schema",
        choices=("auto", "messages", "sharegpt", "alpaca", "query-response"),
        default="auto",
        help="what the records are (default: told from each record's keys)",
    )
    parser.add_argument(
        "--turns",
        choices=TURNS,
        default=TURNS[0],
        help="as_rendered: one row a conversation; fan_out: one for each message of the assistant, "
        "rendered as it was generated; last_turn: the last of these (default: as_rendered)",
    )
    parser.add_argument(
        "--control-tokens",
        choices=CONTROL_TOKENS,
        help="what a message that spells one gives: text, a reject, or the token (default: text)",
    )
    parser.add_argument(
        "--unsure",
        choices=UNSURE,
        default=UNSURE[0],
        help="a turn whose output cannot be established: reject its conversation, or build with "
        "what the message says itself (default: reject)",
    )
    parser.add_argument(
        "--stop-token",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="what ends a turn where the template writes no stop token of its own (GLM's next role "
        "marker); the first is appended to a text that ends without",
    )
    parser.add_argument(
        "--train-trailing",
        action="store_true",
        help="train the template's white space after a stop token too",
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="reject a conversation with a row of more tokens, whole (default: no limit)",
    )
    parser.add_argument(
        "--date",
        type=_date,
        default=datetime.date.today().isoformat(),
        metavar="YYYY-MM-DD",
        help="the day that templates tell (default: today)",
    )


def add_rule_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide what tokens weigh."""
    parser.add_argument(
        "--rules",
        nargs="+",
        default=[],
        metavar="FILE",
        help="rule files, names of bundled rules, or several of them joined by +, in any order: "
        "their weights multiply; ms-swift's JSON configs too "
        "(default: none, every assistant token weighs 1)",
    )
    add_edge_flags(parser)


def add_edge_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide over edges, and what stays of a record."""
    parser.add_argument(
        "--edge",
        choices=EDGES,
        help="a token across an edge goes where most of its bytes are (majority, the default), to "
        "the span always (any) or never (contained), or by the share inside (fraction); split "
        "tokenizes apart there, and so changes ids",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default=PROFILES[0],
        help="ms-swift: ids and weights as it gives them (edge split, white space after stop "
        "tokens trained, its rounds and stop tokens)",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="fields of the record that stay with its row, so that rules can ask for them in "
        "finished shards too",
    )


def add_report_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that decide what a job says of itself."""
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--json", action="store_true", help="print the summary, or the error, as one JSON line"
    )
    parser.add_argument(
        "--log-level",
        choices=("error", "warning", "info"),
        help="what to log on stderr (default: warning; error with --quiet)",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        fact = "half of a surrogate pair is no text; drop it"
        raise argparse.ArgumentTypeError(fact) from None
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    except RecursionError:
        value, deep = {}, True
    else:
        deep = _is_deep(value)
    if deep:
        raise argparse.ArgumentTypeError(f"nests over {_DEEPEST} levels deep")
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object such as {"enable_thinking": false}')
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


def path(text: str) -> Path:
    """A path, ``~`` expanded."""
    expanded = os.path.expanduser(text)  # noqa: PTH111 - Path's raises for an unknown user
    if not expanded or "\0" in expanded:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    if expanded.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"{text}: nobody's home is known by that name; write ./{text} if it is no home"
        )
    return Path(expanded)


def _date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write YYYY-MM-DD") from error


def positive(text: str) -> int:
    """A whole number above zero."""
    digits = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    if not digits or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number above 0")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def needs_tokenizer(inputs: Sequence[str], tokenizer: str | None) -> None:
    """Real data with the toy tokenizer would be a silent mistake."""
    if inputs and tokenizer is None:
        raise ConfigurationError(
            "--tokenizer: missing; name the folder or hub id of the model that will be trained "
            "(the embedded tokenizer is for the embedded sample only)"
        )
