"""The flags that commands share, and what their words may be."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.crew import cpus
from pipeline.errors import ConfigurationError
from pipeline.policy import CONTROL_TOKENS, EDGES, PROFILES, TURNS, UNSURE

_DEEPEST = 100  # levels of --template-kwargs; workers get them pickled, which takes some 300
_DIGITS = 18  # of a number on the command line


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


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of what writes shards: who does it, what is left out, what lies there already."""
    parser.add_argument(
        "--workers",
        type=positive,
        default=cpus(),
        metavar="N",
        help="processes at most, one for each shard that is left to make (default: one a CPU)",
    )
    parser.add_argument(
        "--rejects", type=path, metavar="FILE", help="(default: rejects.jsonl in the output)"
    )
    parser.add_argument(
        "--max-reject-rate",
        type=share,
        default=0.01,
        metavar="R",
        help="exit with 1 where a larger share was rejected (default: 0.01)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="go on from the finished shards (the default)"
    )
    again.add_argument("--overwrite", action="store_true", help="remove what a run left there")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the sha256 of shards that are finished, not only their size, and make those "
        "that are damaged again",
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
