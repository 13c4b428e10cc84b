"""A row in the making: what each stage of its preparation leaves for the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.conversation import Conversation
from pipeline.errors import RecordError
from pipeline.regions import Turn
from pipeline.scales import Scale
from pipeline.situation import Learnt, Setting
from pipeline.source.record import Record
from pipeline.spans import Span

if TYPE_CHECKING:
    from pipeline.rendered import Recorded, Rendered
    from pipeline.rules import Claim
    from pipeline.sampled import Place


@dataclass(slots=True)
class Draft:
    """*given* as one text, in which the messages *supervised* may train.

    With *cut* it ends with the last of them, as when that was generated. Of the messages in
    ``whole`` the template is given all that was sampled, a control token at its end too.

    ``conversation`` is what is rendered; ``following`` the role that would speak next after a cut.
    ``strings`` has every string of it, ``kept`` the record's fields that stay, as JSON. The
    turns of one that is ``laid`` were established with others', with what is ``learnt`` of it and
    no setting. Once ``error`` is there, no stage looks at the row.
    """

    record: Record
    given: Conversation
    supervised: Sequence[int] = ()
    cut: bool = False
    whole: frozenset[int] = frozenset()
    error: RecordError | None = None
    conversation: Conversation = field(init=False)
    following: str = ""
    strings: str = ""
    learnt: Learnt = field(init=False)
    setting: Setting = field(init=False)
    recorded: Recorded | None = None
    rendered: Rendered | None = None
    traced: Rendered | None = None
    text: str = ""
    turns: Sequence[Turn] = ()
    laid: bool = False
    quoted: Sequence[Span] = ()
    places: Sequence[Place] = ()
    parts: Mapping[int, Sequence[Scale]] = field(default_factory=dict)
    claims: list[Claim] = field(init=False)
    kept: str | None = None
