"""Finished shards in a trainer's own layout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline import cli, flags
from pipeline.redaction import redact
from pipeline.targets import TARGETS, takers

if TYPE_CHECKING:
    from pipeline.exporting import Exported


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, with the lines that load what was written."""
    args = _parser().parse_args(argv)
    # Here, not above: --help needs none of it.
    from pipeline.exporting import export_dataset

    made = export_dataset(
        args.shards,
        args.to,
        args.output,
        binarize=args.binarize,
        uncount=args.uncount,
        pack=args.pack,
        validation=args.validation,
        overwrite=args.overwrite,
    )
    if args.json:
        cli.say(json.dumps(_as_json(made)))
    elif not args.quiet:
        cli.say(_summary(made))
    return 0


def _summary(made: Exported) -> str:
    receipt, files = made.receipt, len(made.receipt["files"])
    kept = "as built" if receipt["weights"] == "float" else "0 and 1, as built"
    if receipt["binarized_at"]:
        kept = f"1 from {receipt['binarized_at']:g} on, else 0"
    lines = [
        (
            "export",
            f"{made.folder}  ({receipt['target']}, {files:,} file{'' if files == 1 else 's'})",
        ),
        ("weights", kept),
        ("rows", f"{receipt['rows']:,}"),
        ("tokens", f"{receipt['tokens']:,}"),
        *(("changed", f"{n:,} {name.replace('_', ' ')}") for name, n in receipt["changed"].items()),
        *((name.replace("_", " "), str(value)) for name, value in receipt["told"].items()),
        ("seconds", f"{made.seconds:.1f}"),
    ]
    width = max(len(name) for name, _ in lines)
    told = "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
    return f"{told}\n\nTo load it:\n\n{made.recipe.rstrip()}"


def _as_json(made: Exported) -> dict[str, object]:
    return {
        "exit": 0,
        "output": redact(str(made.folder)),
        **made.receipt,
        "recipe": redact(made.recipe),
        "seconds": round(made.seconds, 3),
    }


def _parser() -> argparse.ArgumentParser:
    told = "; ".join(f"{target.name} ({target.weights})" for target in TARGETS.values())
    parser = cli.make_parser(
        "export",
        "Writes finished shards as a trainer reads them. Targets, and what weights they keep: "
        f"{told}.",
    )
    parser.add_argument(
        "shards", type=flags.path, metavar="SHARDS", help="the folder of a finished build"
    )
    parser.add_argument("--to", required=True, choices=tuple(TARGETS), metavar="TARGET")
    parser.add_argument(
        "--output", type=flags.path, required=True, metavar="DIR", help="a new or empty folder"
    )
    parser.add_argument(
        "--binarize",
        type=_weight,
        metavar="THRESHOLD",
        help="a token of at least this weight trains with 1, all others not at all (default: "
        "weights that the target cannot hold are refused)",
    )
    parser.add_argument(
        "--uncount",
        action="store_true",
        help="tokens of weight 0 that a rule counts (count: true) do not count (default: refused "
        "where the target cannot hold them)",
    )
    parser.add_argument(
        "--pack",
        type=flags.positive,
        metavar="TOKENS",
        help=f"put whole rows together into sequences of at most this length ({takers('pack')})",
    )
    parser.add_argument(
        "--validation",
        type=flags.share,
        metavar="SHARE",
        help="this share of the records, with all their rows, becomes the validation set "
        f"({takers('validation')})",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier export in the output"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--json", action="store_true", help="print the summary, or the error, as one JSON line"
    )
    return parser


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0")
    return value


if __name__ == "__main__":
    cli.leave(main)
