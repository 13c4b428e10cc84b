"""Text of others on a terminal or in a log: characters that would steer it are escaped."""

from __future__ import annotations

import re

# What breaks lines, steers a terminal, reverses text, or is no text at all.
_STEERING = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_MESSAGES = re.compile(f"[{_STEERING}]")
_IN_NAMES = re.compile(rf"[\\\t\n{_STEERING}]")


def printable(name: str) -> str:
    r"""A name on one line, ``\x1b`` for what steers; two names stay two: ``\`` is doubled."""
    return _IN_NAMES.sub(_escape, name)


def harmless(message: str) -> str:
    """A message whose line ends, tabs and backslashes are its own."""
    return _IN_MESSAGES.sub(_escape, message)


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
