"""Finished shards weighed anew, without source, template or tokenizing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipeline import cli, flags
from pipeline.engine.crew import EARLY, Crew
from pipeline.policy import EDGES


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where more than the allowed share of the rows would train nothing."""
    args = _parser().parse_args(argv)
    from pipeline.source.extent import count_data

    early = min(count_data(args.shards), EARLY)
    with Crew(args.workers, "pipeline.reweighing", early=early) as crew:
        # Here, not above: workers load the same meanwhile, and --help needs none of it.
        from pipeline.progress import Progress
        from pipeline.reweighting import reweight_dataset

        shown = None if args.quiet else sys.stderr
        with cli.logging_to_stderr(args.log_level, quiet=args.quiet), Progress(shown) as progress:
            made = reweight_dataset(
                args.shards,
                args.rules,
                args.output,
                tokenizer=args.tokenizer,
                workers=crew,
                edge=args.edge or "",
                rejects=args.rejects,
                overwrite=args.overwrite,
                verify=args.verify,
                progress=progress,
            )
    return cli.report(
        made, args.output, allowed=args.max_reject_rate, as_json=args.json, quiet=args.quiet
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "reweight",
        "Weighs finished shards by other rules, without their source, template or tokenizing.",
    )
    parser.add_argument(
        "shards",
        type=flags.path,
        metavar="SHARDS",
        help="the folder of a finished build; before --rules",
    )
    parser.add_argument(
        "--rules",
        nargs="*",
        required=True,
        metavar="FILE",
        help="rule files, or names of bundled rules, instead of the build's; none, and every "
        "assistant token weighs 1",
    )
    parser.add_argument(
        "--edge", choices=EDGES[:-1], help="for tokens across an edge (default: the build's)"
    )
    parser.add_argument(
        "--output", type=flags.path, required=True, metavar="DIR", help="another folder than SHARDS"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR_OR_HUB_ID",
        help="folder or hub id of the build's tokenizer (default: the embedded one)",
    )
    flags.add_output_flags(parser)
    flags.add_report_flags(parser)
    return parser


if __name__ == "__main__":
    cli.leave(main)
