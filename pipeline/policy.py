"""What a build decides, beside its rules: the values that flags can have."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigurationError

TURNS = ("as_rendered", "fan_out", "last_turn")
CONTROL_TOKENS = ("text", "reject", "allow")
UNSURE = ("reject", "build")
EDGES = ("majority", "any", "contained", "fraction", "split")
PROFILES = ("default", "ms-swift")
FORMATS = ("parquet", "arrow")
ROW_TIMEOUT = 120.0  # seconds: a record of 100 MB takes a tenth of it
SHARD_SIZE = 8 << 20  # bytes of input: a shard of two million tokens, a task of seconds


@dataclass(frozen=True, slots=True)
class Policy:
    """``turns``: one row a conversation (``as_rendered``), one for each message of the assistant as
    at inference (``fan_out``), or the last of these only (``last_turn``).

    ``control_tokens``: what the data spells out is ordinary ``text``, a ``reject``, or a token
    (``allow``). ``unsure``: a turn that cannot be established is a ``reject``, or ``build`` trains
    what the message itself says. ``stop_tokens`` end a turn to which the template gives none (GLM's
    next role marker), and are appended to a text that ends without. ``trailing``: the template's
    white space after a stop token is trained too. ``edge`` decides over tokens across an edge where
    a rule does not. ``profile``: ``ms-swift`` counts rounds and weighs stop tokens as it does, and
    decides what is left open: ``edge`` split, ``trailing``, control tokens allowed. ``keep`` are
    fields of the record that stay with its row, for rules to come. ``max_length``: a record with a
    row of more tokens is rejected; 0 for no limit. ConfigurationError for another word.
    """

    turns: str = TURNS[0]
    control_tokens: str = ""
    unsure: str = UNSURE[0]
    stop_tokens: tuple[str, ...] = ()
    trailing: bool | None = None
    edge: str = ""
    profile: str = PROFILES[0]
    keep: tuple[str, ...] = ()
    max_length: int = 0

    def __post_init__(self) -> None:
        for name, ours, theirs in (
            ("control_tokens", CONTROL_TOKENS[0], "allow"),
            ("edge", EDGES[0], "split"),
        ):
            if not getattr(self, name):
                object.__setattr__(self, name, theirs if self.swift else ours)
        if self.trailing is None:
            object.__setattr__(self, "trailing", self.swift)
        for name, known in (
            ("turns", TURNS),
            ("control_tokens", CONTROL_TOKENS),
            ("unsure", UNSURE),
            ("edge", EDGES),
            ("profile", PROFILES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigurationError(f"{name}: {value!r}; use one of {', '.join(known)}")
        for name in ("stop_tokens", "keep"):
            if isinstance(getattr(self, name), str):
                raise ConfigurationError(f"{name}: {getattr(self, name)!r}; write a tuple of them")

    @property
    def swift(self) -> bool:
        """Whether to weigh as ms-swift does."""
        return self.profile == "ms-swift"
