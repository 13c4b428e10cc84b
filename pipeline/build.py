"""Conversations in, weighted shards out."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pipeline import cli
from pipeline.engine import local
from pipeline.errors import BuildError, EngineMismatch
from pipeline.manifest import Manifest, make_manifest, write_manifest
from pipeline.output import SPOOL, finish_output, gather_rejects, open_output, prepare_output
from pipeline.plan import Plan, make_plan, piece_size
from pipeline.recipe import BUNDLED, Recipe, make_recipe
from pipeline.shards import FORMATS, write_arrow_state
from pipeline.source import survey
from pipeline.summary import Timing, summarize, summarize_as_json
from pipeline.task import WORK, Job, TaskDone
from pipeline.tokens import Certificate
from pipeline.tokens.certificate import certify, distrust

SHARD_SIZE = 8 << 20  # bytes of input: a shard of two million tokens, a task of seconds


@dataclass(frozen=True, slots=True)
class Built:
    """A finished build: its manifest, where the rejects went, and how long it took."""

    manifest: Manifest
    rejects: Path
    timing: Timing


def build_dataset(
    inputs: Sequence[str],
    recipe: Recipe,
    output: Path,
    *,
    workers: int = 1,
    shard_size: int = SHARD_SIZE,
    rejects: Path | None = None,
    overwrite: bool = False,
    bar: bool = False,
) -> Built:
    """Builds, or finishes, the shards of *inputs* in the folder *output*.

    Raises ConfigurationError, InputError or BuildError; what was finished before stays and is
    used by the next call with the same arguments.
    """
    started = time.monotonic()
    prepare_output(output, overwrite=overwrite)
    sources = survey(inputs, spool=output / WORK / SPOOL, piece_bytes=piece_size(shard_size))
    plan = make_plan(sources, recipe, shard_size=shard_size)
    certificate = certify(recipe.vocabulary)
    total = sum(source.records for source in sources)
    with tqdm(total=total, unit="conv", smoothing=0.1, disable=not bar) as shown:
        try:
            done, fresh = _run(plan, recipe, certificate, output, workers, shown)
        except EngineMismatch as mismatch:
            # Nothing that the fast engine made is kept: the build starts anew with the reference.
            certificate = distrust(recipe.vocabulary, str(mismatch))
            prepare_output(output, overwrite=True)
            sources = survey(
                inputs, spool=output / WORK / SPOOL, piece_bytes=piece_size(shard_size)
            )
            shown.reset()
            done, fresh = _run(plan, recipe, certificate, output, workers, shown)
    rejects = rejects or output / "rejects.jsonl"
    gather_rejects(output, plan, rejects)
    if recipe.form == "arrow":
        write_arrow_state(output, [d.file for d in done], plan.fingerprint)
    manifest = make_manifest(plan, recipe, done, asdict(certificate))
    write_manifest(manifest, output)
    finish_output(output)
    return Built(manifest, rejects, Timing(time.monotonic() - started, fresh))


def _run(
    plan: Plan,
    recipe: Recipe,
    certificate: Certificate,
    output: Path,
    workers: int,
    shown: tqdm[NoReturn],
) -> tuple[list[TaskDone], int]:
    """All tasks' results in order, and the tokens that were encoded now rather than before."""
    opened = open_output(output, plan)
    shown.update(sum(d.counts.get("conversations", 0) for d in opened.done))
    job = Job(recipe, certificate, output, plan.fingerprint)

    def tell(records: int) -> None:
        shown.update(records)

    built = list(local.run(opened.left, job, workers=workers, progress=tell))
    done = sorted([*opened.done, *built], key=lambda d: d.index)
    return done, sum(d.counts.get("tokens", 0) for d in built)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where more than the allowed share of the records was rejected."""
    args = _parser().parse_args(argv)
    cli.needs_tokenizer(args.input, args.tokenizer)
    recipe = make_recipe(
        rules=args.rules,
        tokenizer=args.tokenizer,
        chat_template=args.chat_template,
        template_kwargs=args.template_kwargs,
        date=args.date,
        schema=args.schema,
        form=args.format,
    )
    built = build_dataset(
        args.input or [str(BUNDLED / "sample.jsonl")],
        recipe,
        args.output,
        workers=args.workers,
        shard_size=args.shard_size,
        rejects=args.rejects,
        overwrite=args.overwrite,
        bar=sys.stderr.isatty() and not args.quiet,
    )
    if args.json:
        print(summarize_as_json(built.manifest, args.output, built.rejects, built.timing))
    elif not args.quiet:
        print(summarize(built.manifest, args.output, built.rejects, built.timing))
    return _verdict(built, args.max_reject_rate)


def _verdict(built: Built, allowed: float) -> int:
    counts = built.manifest.counts
    rejected, conversations = counts.get("rejects", 0), counts.get("conversations", 0)
    if rejected <= allowed * conversations:
        return 0
    raise BuildError(
        f"{built.rejects}: {rejected:,} of {conversations:,} conversations were rejected "
        f"({rejected / conversations:.2%}), more than {allowed:.2%}; the shards are whole without "
        "them: mend the records, or allow more with --max-reject-rate"
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
    parser.add_argument("--output", type=Path, default=Path("shards"), metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    parser.add_argument(
        "--workers", type=cli.positive, default=cpus(), metavar="N", help="processes (default: all)"
    )
    parser.add_argument(
        "--shard-size",
        type=cli.positive,
        default=SHARD_SIZE,
        metavar="BYTES",
        help=f"of input in one shard (default: {SHARD_SIZE:,})",
    )
    parser.add_argument(
        "--rejects", type=Path, metavar="FILE", help="(default: rejects.jsonl in the output)"
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
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line")
    return parser


def cpus() -> int:
    """The CPUs that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    cli.leave(main)
