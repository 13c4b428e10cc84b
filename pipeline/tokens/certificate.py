"""Trust in the fast engine, earned once per tokenizer and remembered.

A certificate is looked for in the cache, then in the list that comes with the package, and else
made by running both engines on the fixed set of ``pipeline.tokens.trial`` (some seconds).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pipeline.errors import TokenizerError
from pipeline.tokens.trust import (
    Certificate,
    certificate_file,
    engine_versions,
    known_certificate,
)
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_definition

__all__ = ["Certificate", "distrust", "examine", "find_certificate"]

_LOG = logging.getLogger(__name__)
_WORDS = 5000


def find_certificate(vocabulary: Vocabulary, *, cache: Path | None = None) -> Certificate:
    """The certificate of this ``tokenizer.json`` with the installed engines, made on first use.

    *cache* defaults to ``$XDG_CACHE_HOME/weighted-shards/certificates``. An entry that cannot be
    read is made anew, a folder that cannot be written is done without.
    """
    digest = vocabulary.digests[TOKENIZER]
    found = known_certificate(digest, cache=cache)
    if found is None:
        found = _keep(examine(vocabulary), certificate_file(digest, cache=cache))
        _LOG.info("%s: new here, so both engines were tried: %s", vocabulary.name, found.reason)
    return found


def distrust(vocabulary: Vocabulary, reason: str, *, cache: Path | None = None) -> Certificate:
    """Withdraw trust, after an EngineMismatch: from now on the reference encodes."""
    certificate = _rejected(vocabulary, reason, code_points=(), strings=0)
    return _keep(certificate, certificate_file(certificate.tokenizer, cache=cache))


def examine(vocabulary: Vocabulary) -> Certificate:
    """Compare both engines now; a fast one that differs or does not load is rejected, no error."""
    # Here: a build whose certificate is known loads no engine, nor numpy, to find it.
    from pipeline.tokens.fast import FastEngine
    from pipeline.tokens.offsets import read_model, sample_words
    from pipeline.tokens.tokenizer import ReferenceEngine, build_engine, read_tokenizer
    from pipeline.tokens.trial import compare

    raw, place = read_tokenizer(vocabulary), vocabulary.folder / TOKENIZER
    definition = read_definition(raw, place)
    reference = build_engine(ReferenceEngine, raw, place)
    if read_model(definition).lengths is None:
        fact = "ids do not tell offsets, so the reference is needed for each text"
        return _rejected(vocabulary, fact, code_points=(), strings=0)
    try:
        fast = build_engine(FastEngine, raw, place)
    except TokenizerError as error:
        fact = str(error).removeprefix(f"{place}: ").rpartition("; ")[0]
        return _rejected(vocabulary, fact, code_points=(), strings=0)
    added = [token.content for token in definition.added_tokens]
    sampled = sample_words(definition, limit=_WORDS)
    words = [*sampled, *(reference.decode([id_]) for id_ in sampled.values())]
    found = compare(fast, reference, added=added, words=words)
    if found.difference:
        fact = f"other ids for {found.difference[:80]!a}"
        return _rejected(vocabulary, fact, code_points=found.code_points, strings=found.strings)
    return Certificate(
        engine="fast",
        reason="equal ids" + (", but for some code points" if found.code_points else ""),
        code_points=found.code_points,
        strings=found.strings,
        tokenizer=vocabulary.digests[TOKENIZER],
        versions=engine_versions(),
    )


def write_shipped(certificates: Mapping[str, Certificate], path: Path) -> None:
    """Write the list of `read_shipped`, in a stable order."""
    ordered = dict(sorted(certificates.items()))
    path.write_bytes(msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n")


def _rejected(
    vocabulary: Vocabulary, reason: str, *, code_points: tuple[int, ...], strings: int
) -> Certificate:
    return Certificate(
        engine="reference",
        reason=reason,
        code_points=code_points,
        strings=strings,
        tokenizer=vocabulary.digests[TOKENIZER],
        versions=engine_versions(),
    )


def _keep(certificate: Certificate, path: Path) -> Certificate:
    """Write it under a name of its own, then rename: readers see all of it or nothing."""
    with contextlib.suppress(OSError):  # only a cache: another run makes it again
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            os.write(handle, msgspec.json.encode(certificate))
            os.close(handle)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink()
            raise
    return certificate
