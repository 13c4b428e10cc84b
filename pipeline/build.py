"""Conversations in, weighted shards out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.engine.crew import Crew, cpus
from pipeline.policy import FORMATS, ROW_TIMEOUT, SHARD_SIZE


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where more than the allowed share of the records was rejected."""
    args = _parser().parse_args(argv)
    cli.needs_tokenizer(args.input, args.tokenizer)
    with Crew(args.workers) as crew:
        # Here, not above: workers load the same meanwhile, and --help needs none of it.
        from pipeline.dataset import build_dataset
        from pipeline.progress import Progress
        from pipeline.recipe import BUNDLED, recipe_of

        shown = None if args.quiet else sys.stderr
        with cli.logging_to_stderr(args.log_level, quiet=args.quiet), Progress(shown) as progress:
            built = build_dataset(
                args.input or [str(BUNDLED / "sample.jsonl")],
                recipe_of(args, form=args.format),
                args.output,
                workers=crew,
                shard_size=args.shard_size,
                rejects=args.rejects,
                overwrite=args.overwrite,
                verify=args.verify,
                row_timeout=args.row_timeout,
                check_space=not args.no_space_check,
                progress=progress,
            )
    return cli.report(
        built, args.output, allowed=args.max_reject_rate, as_json=args.json, quiet=args.quiet
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "build",
        "Turns conversations into training shards whose every token carries its own loss weight.",
    )
    cli.add_recipe_flags(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, globs, folders, a hub dataset id, or - for standard input "
        "(default: the embedded sample)",
    )
    parser.add_argument("--output", type=cli.path, default=Path("shards"), metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument(
        "--workers",
        type=cli.positive,
        default=cpus(),
        metavar="N",
        help="processes (default: all)",
    )
    parser.add_argument(
        "--shard-size",
        type=cli.positive,
        default=SHARD_SIZE,
        metavar="BYTES",
        help=f"of input in one shard (default: {SHARD_SIZE:,})",
    )
    parser.add_argument(
        "--rejects", type=cli.path, metavar="FILE", help="(default: rejects.jsonl in the output)"
    )
    parser.add_argument(
        "--max-reject-rate",
        type=cli.share,
        default=0.01,
        metavar="R",
        help="exit with 1 where a larger share was rejected (default: 0.01)",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on from the finished shards of the same build (the default)",
    )
    again.add_argument("--overwrite", action="store_true", help="remove what a build left there")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the sha256 of shards that are finished, not only their size, and build those "
        "that are damaged again",
    )
    parser.add_argument(
        "--row-timeout",
        type=cli.positive,
        default=ROW_TIMEOUT,
        metavar="SECONDS",
        help=f"reject a record that a worker is at for longer (default: {ROW_TIMEOUT:g})",
    )
    parser.add_argument(
        "--no-space-check",
        action="store_true",
        help="begin even if the disk seems too small for the shards",
    )
    cli.add_report_flags(parser)
    return parser


if __name__ == "__main__":
    cli.leave(main)
