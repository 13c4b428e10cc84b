"""What all commands share: their flags, and the one place that turns errors into exit codes.

0 done, 1 the input or the configuration is wrong, 2 usage, 3 a bug, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from pipeline import __version__
from pipeline.errors import ConfigurationError, WeightedShardsError
from pipeline.policy import CONTROL_TOKENS, EDGES, PROFILES, TURNS, UNSURE
from pipeline.redaction import redact
from pipeline.terminal import harmless

Main = Callable[[Sequence[str] | None], int]


class Terminated(BaseException):
    """SIGTERM came: a scheduler or ``docker stop`` wants the process gone within seconds."""


def leave(main: Main) -> NoReturn:
    """Runs *main* on the command line and exits; no error but a bug shows a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(main, None))


def _terminate(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - as signal asks
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows takes a moment, once
    raise Terminated


def run(main: Main, argv: Sequence[str] | None) -> int:
    """The exit code of *main*, its errors told on stderr."""
    try:
        code = main(argv)
        sys.stdout.flush()
    except WeightedShardsError as error:
        print(f"error: {harmless(redact(str(error)))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except Terminated:
        print("terminated; run the same command again to go on", file=sys.stderr)
        return 143
    except BrokenPipeError:
        # Somebody closed our output (`| head`): the interpreter must not complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        fact = f"error: {error}; see to the disk or the permissions and try again"
        print(harmless(redact(fact)), file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - everything else is a bug, and says so
        sys.stderr.write(redact(traceback.format_exc()))
        print("this is a bug in weighted-shards; please report the lines above", file=sys.stderr)
        return 3
    return code


def make_parser(command: str, summary: str) -> argparse.ArgumentParser:
    """A parser that shows as ``python -m pipeline.COMMAND``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{command}", description=summary, allow_abbrev=False
    )
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


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('not a JSON object such as {"enable_thinking": false}')
    return value


def _date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write YYYY-MM-DD") from error


def positive(text: str) -> int:
    """A whole number above zero."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
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
