"""Trust in the fast engine, earned once per tokenizer and remembered.

A certificate is looked for in the cache, then in the list that comes with the package, and else
made by running both engines on the fixed set of ``pipeline.tokens.trial`` (some seconds).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pipeline.errors import TokenizerError
from pipeline.tokens.offsets import read_model, sample_words
from pipeline.tokens.tokenizer import (
    Certificate,
    FastEngine,
    ReferenceEngine,
    build_engine,
    engine_versions,
    read_tokenizer,
)
from pipeline.tokens.trial import SET, compare
from pipeline.tokens.vocabulary import TOKENIZER, Vocabulary, read_definition

__all__ = ["Certificate", "distrust", "examine", "find_certificate"]

_LOG = logging.getLogger(__name__)
_WORDS = 5000
SHIPPED = Path(__file__).parent.parent / "bundled" / "certificates.json"


def find_certificate(vocabulary: Vocabulary, *, cache: Path | None = None) -> Certificate:
    """The certificate of this ``tokenizer.json`` with the installed engines, made on first use.

    *cache* defaults to ``$XDG_CACHE_HOME/weighted-shards/certificates``. An entry that cannot be
    read is made anew, a folder that cannot be written is done without.
    """
    path = _entry(vocabulary, cache)
    found = _read(path, vocabulary) or read_shipped(SHIPPED).get(path.stem)
    if found is None:
        found = _keep(examine(vocabulary), path)
        _LOG.info("%s: new here, so both engines were tried: %s", vocabulary.name, found.reason)
    return found


def distrust(vocabulary: Vocabulary, reason: str, *, cache: Path | None = None) -> Certificate:
    """Withdraw trust, after an EngineMismatch: from now on the reference encodes."""
    certificate = _rejected(vocabulary, reason, code_points=(), strings=0)
    return _keep(certificate, _entry(vocabulary, cache))


def examine(vocabulary: Vocabulary) -> Certificate:
    """Compare both engines now; a fast one that differs or does not load is rejected, no error."""
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


def certificate_key(certificate: Certificate) -> str:
    """sha256 of all that a certificate depends on: a tokenizer, two versions, the set's version."""
    return _key(certificate.tokenizer, certificate.versions)


def read_shipped(path: Path) -> dict[str, Certificate]:
    """The list of known certificates by key; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Certificate])
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise TokenizerError(
            f"{path}: not a list of certificates: {error}; name another file"
        ) from error


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


def _key(tokenizer: str, versions: Mapping[str, str]) -> str:
    parts = [tokenizer, *(f"{name}=={version}" for name, version in sorted(versions.items()))]
    return hashlib.sha256("\n".join([*parts, f"set {SET}"]).encode()).hexdigest()


def _entry(vocabulary: Vocabulary, cache: Path | None) -> Path:
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path's raises for a user without a home
        if home.startswith("~"):
            home = os.devnull  # a folder that cannot be is done without
        cache = Path(home) / "weighted-shards" / "certificates"
    return cache / f"{_key(vocabulary.digests[TOKENIZER], engine_versions())}.json"


def _read(path: Path, vocabulary: Vocabulary) -> Certificate | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Certificate)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None
    return found if found.tokenizer == vocabulary.digests[TOKENIZER] else None


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
