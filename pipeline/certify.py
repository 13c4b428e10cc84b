"""Command: compare both engines on tokenizers, and say whether the fast one may encode for them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import cli, flags
from pipeline.errors import ConfigurationError
from pipeline.tokens.certificate import examine, write_shipped
from pipeline.tokens.trust import Certificate, certificate_key, read_shipped
from pipeline.tokens.vocabulary import read_vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 whatever is found: a rejected engine is an answer, the reference then encodes."""
    args = _parser().parse_args(argv)
    if args.write:
        _require_writable(args.write)
    known = read_shipped(args.write) if args.write else {}
    for name in args.tokenizers:
        vocabulary = read_vocabulary(name)
        started = time.monotonic()
        certificate = examine(vocabulary)
        known[certificate_key(certificate)] = certificate
        cli.put(_line(name, certificate, time.monotonic() - started))
    if args.write:
        write_shipped(known, args.write)
    return 0


def _line(name: str, certificate: Certificate, seconds: float) -> str:
    points = " ".join(f"U+{point:04X}" for point in certificate.code_points)
    verdict = f"{name}: {certificate.engine} ({certificate.reason})"
    differing = f"; differing: {points}" if points else ""
    return f"{verdict}; {certificate.strings:,} strings in {seconds:.1f} s{differing}"


def _require_writable(path: Path) -> None:
    """Before, not after the half minute that a comparison takes."""
    try:
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"--write {path}: cannot be written ({error.strerror}); choose another file"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser("certify", "Compares the encoding engines on tokenizers, anew.")
    parser.add_argument("tokenizers", nargs="+", metavar="TOKENIZER", help="folders or hub ids")
    parser.add_argument(
        "--write",
        type=flags.path,
        metavar="FILE",
        help="also add the certificates to this list (the package's own is "
        "pipeline/bundled/certificates.json); it holds hashes and results only",
    )
    return parser


if __name__ == "__main__":
    cli.leave(main)
