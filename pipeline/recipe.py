"""Everything besides the inputs that decides the bytes of the shards."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigurationError, TemplateError
from pipeline.policy import TURNS, Policy
from pipeline.rules import RuleSet, load_rules
from pipeline.tokens.vocabulary import (
    TOKENIZER,
    Vocabulary,
    choose_template,
    read_definition,
    read_vocabulary,
)

if TYPE_CHECKING:
    from pipeline.template import Template

_SHOWN = 12  # tokens in a message
BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How conversations become shards; picklable, sent to each worker once.

    ``templates`` has ``default`` and, where the tokenizer has one, ``tool_use`` for conversations
    with tools; ``variables`` are what every render sees; ``date`` (ISO) is the day that templates
    tell.
    """

    vocabulary: Vocabulary
    templates: Mapping[str, str]
    variables: Mapping[str, Any]
    date: str
    rules: RuleSet
    schema: str
    form: str
    policy: Policy = field(default_factory=Policy)


def make_recipe(
    *,
    rules: Sequence[str],
    tokenizer: str | None,
    chat_template: str | None,
    template_kwargs: Mapping[str, Any],
    date: str,
    schema: str,
    form: str = "parquet",
    policy: Policy | None = None,
) -> Recipe:
    """Reads every file that the flags name; the tokenizer defaults to the embedded one.

    Raises RuleError, TokenizerError or TemplateError.
    """
    vocabulary = read_vocabulary(tokenizer or str(BUNDLED / "tokenizer"))
    if policy is not None and policy.stop_tokens:
        _require_stop_tokens(policy.stop_tokens, vocabulary)
    return Recipe(
        vocabulary=vocabulary,
        templates=_templates(vocabulary, chat_template),
        variables={**vocabulary.special_tokens, **template_kwargs},
        date=date,
        rules=load_rules(rules, profile=policy.profile if policy else ""),
        schema=schema,
        form=form,
        policy=policy or Policy(),
    )


def _require_stop_tokens(tokens: Sequence[str], vocabulary: Vocabulary) -> None:
    place = vocabulary.folder / TOKENIZER
    known = [
        t.content for t in read_definition(place.read_bytes(), place).added_tokens if t.control
    ]
    for token in tokens:
        if token not in known:
            raise ConfigurationError(
                f"--stop-token {token!r}: no control token of {vocabulary.name}; "
                f"use one of {', '.join(known[:_SHOWN])}{', ...' if len(known) > _SHOWN else ''}"
            )


def recipe_of(args: argparse.Namespace, *, form: str = "parquet") -> Recipe:
    """The recipe that the flags of ``flags.add_recipe_flags`` name."""
    return make_recipe(
        rules=args.rules,
        tokenizer=args.tokenizer,
        chat_template=args.chat_template,
        template_kwargs=args.template_kwargs,
        date=args.date,
        schema=args.schema,
        form=form,
        policy=policy_of(args),
    )


def policy_of(args: argparse.Namespace) -> Policy:
    """The policy that the flags name."""
    return Policy(
        turns=args.turns,
        control_tokens=args.control_tokens or "",
        unsure=args.unsure,
        stop_tokens=tuple(args.stop_token),
        trailing=args.train_trailing or None,
        edge=args.edge or "",
        profile=args.profile,
        keep=tuple(args.keep),
        max_length=args.max_length or 0,
    )


def load_template(
    vocabulary: Vocabulary,
    *,
    chat_template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    today: datetime.date | None = None,
) -> Template:
    """The tokenizer's chat template, or a file's, or the one of that name; the day is today's."""
    from pipeline.template import Template  # slow to import, and reweighting needs none

    return Template(
        _templates(vocabulary, chat_template)["default"],
        variables={**vocabulary.special_tokens, **(variables or {})},
        today=today or datetime.date.today(),
    )


def _templates(vocabulary: Vocabulary, chosen: str | None) -> dict[str, str]:
    """What transformers would use: ``tool_use`` beside ``default``, unless one is chosen."""
    if chosen is None:
        templates = {"default": choose_template(vocabulary)}
        if "tool_use" in vocabulary.templates:
            templates["tool_use"] = vocabulary.templates["tool_use"]
        return templates
    if chosen in vocabulary.templates:
        return {"default": vocabulary.templates[chosen]}
    try:
        return {"default": Path(chosen).read_text(encoding="utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        named = ", ".join(vocabulary.templates) or "none"
        raise TemplateError(
            f"--chat-template {chosen}: cannot be read: {error}; give a UTF-8 Jinja file, or the "
            f"name of one of the tokenizer's templates ({named})"
        ) from error


def require_turns(policy: Policy, rules: RuleSet) -> None:
    """Raises ConfigurationError where rows of one turn each leave the rules' base no meaning."""
    if rules.base == "assistant" or policy.turns == TURNS[0]:
        return
    if rules.base == "last_turn" and policy.turns == "last_turn":
        return
    base = "all text of each row" if rules.base == "all" else "the last turn only"
    remedy = "use as_rendered" if rules.base == "all" else "use last_turn, or as_rendered"
    raise ConfigurationError(
        f"--turns {policy.turns}: makes rows of parts of a talk, and the rules' base is {base}; "
        f"{remedy}"
    )
