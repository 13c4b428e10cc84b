"""What a build decides about supervision, beside its rules: one value for each flag."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigurationError

TURNS = ("as_rendered", "fan_out", "last_turn")
CONTROL_TOKENS = ("text", "reject", "allow")
UNSURE = ("reject", "build")


@dataclass(frozen=True, slots=True)
class Policy:
    """``turns``: one row a conversation (``as_rendered``), one for each message of the assistant as
    at inference (``fan_out``), or the last of these only (``last_turn``).

    ``control_tokens``: what the data spells out is ordinary ``text``, a ``reject``, or a token
    (``allow``). ``unsure``: a turn that cannot be established is a ``reject``, or ``build`` trains
    what the message itself says. ``stop_tokens`` end a turn to which the template gives none (GLM's
    next role marker), and are appended to a text that ends without. ``trailing``: the template's
    white space after a stop token is trained too. ConfigurationError for another word.
    """

    turns: str = TURNS[0]
    control_tokens: str = CONTROL_TOKENS[0]
    unsure: str = UNSURE[0]
    stop_tokens: tuple[str, ...] = ()
    trailing: bool = False

    def __post_init__(self) -> None:
        for name, known in (
            ("turns", TURNS),
            ("control_tokens", CONTROL_TOKENS),
            ("unsure", UNSURE),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ConfigurationError(f"{name}: {value!r}; use one of {', '.join(known)}")
        if isinstance(self.stop_tokens, str):
            raise ConfigurationError(f"stop_tokens: {self.stop_tokens!r}; write a tuple of them")
