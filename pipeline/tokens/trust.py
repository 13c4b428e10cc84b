"""Which engine may encode with a tokenizer: what is known of that, in the cache or in the package.

Needs no engine: who starts a process asks here first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from pipeline.errors import TokenizerError

EngineName = Literal["fast", "reference"]
ENGINES: Mapping[EngineName, str] = {"fast": "fastokens", "reference": "tokenizers"}
SET = 1  # the trial's version: part of a certificate's key, so raise it with any change there
SHIPPED = Path(__file__).parent.parent / "bundled" / "certificates.json"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Which engine may encode with a tokenizer, and why; what ``certificate`` finds.

    Texts with one of ``code_points`` are left to the reference. ``tokenizer`` is the sha256 of
    ``tokenizer.json``, ``versions`` those of both packages, ``strings`` how many were compared.
    """

    engine: EngineName
    reason: str
    code_points: tuple[int, ...]
    strings: int
    tokenizer: str
    versions: Mapping[str, str]

    def summary(self) -> dict[str, Any]:
        """What a manifest says of it: nothing that depends on the run, or quotes a text."""
        points = [f"U+{point:04X}" for point in self.code_points]
        return {"engine": self.engine, "versions": dict(self.versions), "distrusted": points}


def engine_versions() -> dict[str, str]:
    """Installed versions of both engines' packages, by package, without importing them."""
    return {package: metadata.version(package) for package in sorted(ENGINES.values())}


def known_certificate(digest: str, *, cache: Path | None = None) -> Certificate | None:
    """The certificate of the ``tokenizer.json`` with that sha256, if one was made or shipped.

    An entry of the *cache* that cannot be read is as good as none.
    """
    path = certificate_file(digest, cache=cache)
    return _read(path, digest) or read_shipped(SHIPPED).get(path.stem)


def certificate_file(digest: str, *, cache: Path | None = None) -> Path:
    """Where a certificate with the installed engines is kept.

    *cache* defaults to ``$XDG_CACHE_HOME/weighted-shards/certificates``.
    """
    if cache is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path's raises for a user without a home
        if home.startswith("~"):
            home = os.devnull  # a folder that cannot be is done without
        cache = Path(home) / "weighted-shards" / "certificates"
    return cache / f"{_key(digest, engine_versions())}.json"


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


def _key(tokenizer: str, versions: Mapping[str, str]) -> str:
    parts = [tokenizer, *(f"{name}=={version}" for name, version in sorted(versions.items()))]
    return hashlib.sha256("\n".join([*parts, f"set {SET}"]).encode()).hexdigest()


def _read(path: Path, digest: str) -> Certificate | None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Certificate)
    except (OSError, UnicodeDecodeError, msgspec.DecodeError):
        return None
    return found if found.tokenizer == digest else None
