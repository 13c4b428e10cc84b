"""A finished build read again whole: hashes, counts, the contract of each column, each record."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli
from pipeline.findings import shorten
from pipeline.redaction import redact
from pipeline.verification import Verified, verify_output


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where all is right, else 1, with every fault on stderr."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="weighted-shards-") as spool:
        verified = verify_output(
            args.folder,
            spool=Path(spool),
            rejects=args.rejects,
            inputs=args.input,
            tokenizer=args.tokenizer,
        )
    faults = verified.findings.lines()
    if faults and not args.quiet:
        total = verified.findings.total
        faults.append(f"{total:,} fault{'' if total == 1 else 's'} in {verified.folder}")
    for line in faults:
        cli.complain(line)
    if args.json:
        cli.say(_as_json(verified))
    elif verified.sound and not args.quiet:
        cli.say(_summary(verified))
    return 0 if verified.sound else 1


def _summary(verified: Verified) -> str:
    outline, sums = verified.outline, verified.sums
    assert outline is not None  # else there was a fault
    counts = outline.counts
    kept = f", {verified.sidecars:,} sidecars" if verified.sidecars else ""
    asked = "not given (--input), so not read again"
    if verified.inputs is not None:
        asked = f"{verified.inputs:,}, of the names, sizes, sha256 and records that were built"
    known = f"; ids below {verified.ids:,}" if verified.ids else ""
    known += ", weights as the rules give them" if verified.weighed else ""
    before = outline.elsewhere.stop - 1
    left = f"; {before:,} left out by the build that was reweighted" if before else ""
    lines = [
        ("verified", f"{verified.folder}  (fingerprint {outline.fingerprint[:12]})"),
        ("manifest", f"agrees with itself{kept}"),
        ("shards", f"{verified.shards:,} {outline.form}, {verified.bytes:,} bytes: sizes, sha256"),
        ("rows", f"{sums.rows:,}: schema and contract of each column"),
        ("tokens", f"{sums.tokens:,}, {sums.targets:,} of them trained{known}"),
        (
            "records",
            f"{counts.get('conversations', 0):,}: {verified.records:,} with rows, "
            f"{verified.rejects:,} rejects{left}; each once",
        ),
        ("inputs", asked),
        ("seconds", f"{verified.seconds:.1f}"),
    ]
    return "\n".join(f"{name:<8}  {shorten(value)}" for name, value in lines)


def _as_json(verified: Verified) -> str:
    outline, sums = verified.outline, verified.sums
    return json.dumps(
        {
            "exit": 0 if verified.sound else 1,
            "folder": redact(str(verified.folder)),
            "sound": verified.sound,
            "told": [redact(line) for line in verified.findings.lines()],
            "faults": dict(sorted(verified.findings.found.items())),
            "not_checked": verified.findings.passed,
            "format": outline.form if outline else None,
            "fingerprint": outline.fingerprint if outline else None,
            "shards": verified.shards,
            "bytes": verified.bytes,
            "rows": sums.rows,
            "tokens": sums.tokens,
            "targets": sums.targets,
            "records": verified.records,
            "rejects": verified.rejects,
            "sidecars": verified.sidecars,
            "inputs": verified.inputs,
            "ids": verified.ids,
            "weighed": verified.weighed,
            "seconds": round(verified.seconds, 3),
        }
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "verify",
        "Reads a finished build again and tells everything that is not as it should be.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the output of a finished build")
    parser.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="the build's own words: its inputs are read again too",
    )
    parser.add_argument(
        "--rejects",
        type=Path,
        metavar="FILE",
        help="where the build put its rejects (default: rejects.jsonl in DIR)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR_OR_HUB_ID",
        help="the build's tokenizer: ids are held against its vocabulary, weights against what the "
        "build's rules make of the rows",
    )
    parser.add_argument("--quiet", action="store_true", help="print faults only")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON line")
    return parser


if __name__ == "__main__":
    cli.leave(main)
