"""Conversations as templates want them, from records of the four schemas people have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form, ready to render.

    ``messages`` are fresh dicts, one object per message (hooks know a message by identity);
    ``tools`` is None where the record has none; ``kwargs`` are the record's own template
    variables (``chat_template_kwargs``).
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
