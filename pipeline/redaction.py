"""What must not stand in a log: the secrets of URLs, of the hub, and of its environment."""

from __future__ import annotations

import os
import re

_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
_SHORTEST = 8  # characters: a shorter value is no secret, and would be found in any text
_PATTERNS = (
    # user:password; a Path makes one slash of two.
    re.compile(r"(\b[a-zA-Z][\w+.-]*:/{1,2})[^\s/?#@'\"]+(?:@[^\s/?#@'\"]+)*(?=@)"),
    re.compile(
        r"(?<=[?&;])((?:[\w.-]*(?:token|secret|signature|password|credential|key|sig)[\w.-]*)=)"
        r"[^\s&;#'\"]*[^\s&;#'\":]",  # a colon after it is the message's
        re.IGNORECASE,
    ),
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+"),
)


def redact(text: str) -> str:
    """*text* with ``***`` for what looks like a secret, or is the hub's token."""
    for name in _NAMES:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST:
            text = text.replace(value, "***")
    for pattern in _PATTERNS:
        text = pattern.sub(lambda m: f"{m[1] if m.re.groups else ''}***", text)
    return text
