"""Conversations in, weighted shards out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli, flags
from pipeline.engine.crew import EARLY, Crew
from pipeline.policy import FORMATS, ROW_TIMEOUT, SHARD_SIZE


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where more than the allowed share of the records was rejected."""
    args = _parser().parse_args(argv)
    flags.needs_tokenizer(args.input, args.tokenizer)
    from pipeline.source.extent import count_tasks
    from pipeline.tokens.fast import look_ahead

    early = count_tasks(args.input, args.shard_size, min(args.workers, EARLY))
    ahead = look_ahead(args.tokenizer)
    with Crew(args.workers, "pipeline.building", ahead, early=early) as crew:
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
    flags.add_recipe_flags(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="files, globs, folders, a hub dataset id, or - for standard input "
        "(default: the embedded sample)",
    )
    parser.add_argument("--output", type=flags.path, default=Path("shards"), metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument(
        "--shard-size",
        type=flags.positive,
        default=SHARD_SIZE,
        metavar="BYTES",
        help=f"of input, uncompressed, that make one shard, the task of one worker "
        f"(default: {SHARD_SIZE:,}): less input than N of these keeps fewer than N workers busy",
    )
    parser.add_argument(
        "--row-timeout",
        type=flags.positive,
        default=ROW_TIMEOUT,
        metavar="SECONDS",
        help=f"reject a record that a worker is at for longer (default: {ROW_TIMEOUT:g})",
    )
    parser.add_argument(
        "--no-space-check",
        action="store_true",
        help="begin even if the disk seems too small for the shards",
    )
    flags.add_output_flags(parser)
    flags.add_report_flags(parser)
    return parser


if __name__ == "__main__":
    cli.leave(main)
