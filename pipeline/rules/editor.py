"""The rule language as a JSON Schema, with which an editor completes and checks a rule file.

It is built from the tables that the grammar reads by: a key that one of the two does not know is an
error when it is built. Draft 7, which YAML editors know best.

It refuses nothing that the grammar accepts, and is the more lenient of the two. It cannot know:
whether a pattern compiles, matches the empty string, or has the group; whether a marker hides
another; whether a range of turns is empty, or bounds are crossed; whether sections change anything;
whether names clash, marks pair, and weights are as many as marks; whether a role carries loss. It
sees values after YAML: keys given twice, ``010``, ``yes``, 1.0 as a version, and a name with a line
end after it pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pipeline.policy import EDGES
from pipeline.rules.entry import BASES, FLAGS, REGIONS, ROLES
from pipeline.rules.grammar import (
    CONDITION_KEYS,
    ENTRY_KEYS,
    FILE_KEYS,
    HEAVIEST,
    SECTION_KEYS,
    TEST_KEYS,
    UNSECTIONED_KEYS,
    VERSION,
    WHERE_KEYS,
)
from pipeline.rules.marks import EXAMPLE_KEYS, MESSAGE_KEYS

Schema: TypeAlias = "dict[str, Any]"
_STRING: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean", "default": False}
_WEIGHT: Schema = {"type": "number", "minimum": -HEAVIEST, "maximum": HEAVIEST}
_SCALAR: Schema = {"type": ["string", "number", "boolean", "null"]}
# More than the grammar's: \w knows letters of all scripts in Python, and of one in editors.
_NAME: Schema = {"type": "string", "pattern": r"^[^\s\[\]+/]+$"}
_TURNS = "^(-?[0-9]{1,9}:(-?[0-9]{1,9})?|:-?[0-9]{1,9})$"


def build_schema() -> Schema:
    """The schema as a dict. Raises ValueError where it and the grammar's tables differ."""
    keys = {
        "version": {"const": VERSION, "description": "Of the language: 1."},
        "name": _told(_NAME, "What commands and reports call the rule: that of the file."),
        "summary": _told(_STRING, "What it does, in one sentence."),
        "why": _told(_STRING, "What is gained by it, and for which data."),
        "base": _told(
            {"enum": list(BASES), "default": BASES[0]},
            "What carries loss before any rule: what the assistant says (assistant), what it says "
            "after the last message of the user (last_turn), or every character (all). Left out, "
            "other files may say it.",
        ),
        "rules": {
            "type": "array",
            "items": {"$ref": "#/definitions/rule"},
            "description": "What weighs otherwise. Weights of rules that claim the same multiply.",
        },
        "examples": {
            "type": "array",
            "items": {"$ref": "#/definitions/example"},
            "description": "Talks in which ⟦ ⟧ mark what the rules change: at least one hit, and "
            "one near miss without a mark. `python -m pipeline.check` runs them.",
        },
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Rules of Weighted Shards",
        **_object(FILE_KEYS, keys, required=("version", "name")),
        "anyOf": [
            {"required": ["base"]},
            {"required": ["rules"], "properties": {"rules": {"minItems": 1}}},
        ],
        "definitions": {
            "pattern": _told(
                {"type": "string", "minLength": 1},
                "A regular expression of the Python package regex (version 1). In single quotes, "
                "YAML leaves it as it is.",
            ),
            "rule": _rule(),
            "section": _section(),
            "where": _where(),
            "condition": _condition(),
            "example": _example(),
        },
    }


def render_schema() -> str:
    """The text of ``bundled/rules.schema.json``."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


def _rule() -> Schema:
    pattern = {"$ref": "#/definitions/pattern"}
    keys = {
        "name": _told(_NAME, "Its own name, after that of the file; else its number."),
        "pattern": _told(
            {"anyOf": [pattern, {"type": "array", "items": pattern, "minItems": 1}]},
            "Claims each match; of several patterns, those of each. Without pattern and sections "
            "a rule claims whole answers, with the token that stops them, or whole regions.",
        ),
        "sections": {
            "type": "array",
            "minItems": 1,
            "items": {"$ref": "#/definitions/section"},
            "description": "Markers that cut an answer. What stands before the first keeps its "
            "weight; where two match at one place, the one listed first counts.",
        },
        "flags": _told(_choices(tuple(FLAGS)), "How the patterns are read."),
        "group": _told(_STRING, "Claim this named group of the pattern, (?P<name>...), only."),
        "where": {"$ref": "#/definitions/where"},
        "when": _told({"$ref": "#/definitions/condition"}, "Claim only where all of this holds."),
        "unless": _told({"$ref": "#/definitions/condition"}, "Claim only where it does not hold."),
        "weight": _told(_WEIGHT, f"The factor of what is claimed, 0 to {HEAVIEST:,}."),
        "sample_weight": _told(
            _WEIGHT, "The factor of the whole row, once, where anything is claimed."
        ),
        "negative": _told(_FLAG, "Allow weights below 0, which push the model away."),
        "count": _told(
            _FLAG, "With weight 0: keep the label, so that a loss that counts labels counts it."
        ),
        "edge": _told(
            {"enum": list(EDGES)},
            "Tokens across the edge of a claim: it has those with most of their bytes in it "
            "(majority), all of them (any), none (contained), each by its share (fraction), or "
            "the text is tokenized apart there (split). Left out, the build's own.",
        ),
    }
    weighed = {"oneOf": [{"required": ["weight"]}, {"required": ["sample_weight"]}]}
    return {
        **_object(ENTRY_KEYS, keys),
        "allOf": [
            {
                "if": {"required": ["sections"]},
                "then": {"properties": dict.fromkeys(UNSECTIONED_KEYS, False)},
                "else": weighed,
            },
            {"if": _true("negative"), "else": {"properties": _positive()}},
            {"if": _true("count"), "then": {"properties": {"weight": {"const": 0}}}},
        ],
        "dependencies": {
            "flags": ["pattern"],
            "group": ["pattern"],
            "sample_weight": {"properties": {"edge": False, "count": {"const": False}}},
            "where": {
                "if": {"properties": {"where": {"anyOf": [_true("first"), _true("anchored")]}}},
                "then": {"required": ["pattern"]},
            },
        },
    }


def _positive() -> Schema:
    least = {"minimum": 0}
    items = {"properties": {"weight": least, "body": least}}
    return {"weight": least, "sample_weight": least, "sections": {"items": items}}


def _section() -> Schema:
    keys = {
        "marker": _told({"type": "string", "minLength": 1}, "Plain text, such as `Action:`."),
        "pattern": _told({"$ref": "#/definitions/pattern"}, "In place of marker: an expression."),
        "weight": _told(_WEIGHT, "The factor of the marker itself."),
        "body": _told(_WEIGHT, "The factor of what follows, up to the next marker or the end."),
    }
    return {
        **_object(SECTION_KEYS, keys, required=("weight", "body")),
        "oneOf": [{"required": ["marker"]}, {"required": ["pattern"]}],
    }


def _where() -> Schema:
    keys = {
        "role": _told(
            _choices(ROLES), "Whose messages. Left out, all that carry loss under the base."
        ),
        "turn": _told(
            {
                "anyOf": [
                    {"type": "integer", "minimum": -HEAVIEST, "maximum": HEAVIEST},
                    {"type": "string", "pattern": _TURNS},
                ]
            },
            "Which of these messages: 0 is the first, -1 the last, '1:-1' a range as in Python.",
        ),
        "region": _told(_choices(REGIONS), "Which parts of a message; a pattern sees them only."),
        "first": _told(_FLAG, "Only the first match in each piece."),
        "anchored": _told(_FLAG, "Only a match at the start of the piece."),
    }
    return _told(_object(WHERE_KEYS, keys), "Which messages, and which parts of them.")


def _condition() -> Schema:
    pattern = {"$ref": "#/definitions/pattern"}
    keys = {
        "user": _told(pattern, "Searched in the message of the user before."),
        "turn": _told(pattern, "Searched in the message itself."),
        "row": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "anyOf": [
                    _SCALAR,
                    {"type": "array", "items": _SCALAR, "minItems": 1},
                    _test(),
                ]
            },
            "description": "Fields of the record, by name or path with points: the value that each "
            "must have, a list of such values, or {min, max} or {pattern}.",
        },
    }
    return {**_object(CONDITION_KEYS, keys), "minProperties": 1}


def _test() -> Schema:
    number = {"type": "number"}
    keys = {
        "min": _told(number, "At least."),
        "max": _told(number, "At most."),
        "pattern": _told({"$ref": "#/definitions/pattern"}, "Searched in the field's text."),
    }
    return {
        **_object(TEST_KEYS, keys),
        "minProperties": 1,
        "dependencies": {"pattern": {"maxProperties": 1}},
    }


def _example() -> Schema:
    text = {
        "text": _told(_STRING, "What the assistant says, with marks."),
        "calls": _told(_STRING, "Its tool calls as rendered, after the text."),
        "stop": _told(_STRING, "The token that ends the message, as `<|im_end|>`."),
    }
    message = {
        "role": {"enum": list(ROLES)},
        "content": _told(_STRING, "What is said, with marks."),
        **{key: text[key] for key in ("calls", "stop")},
    }
    keys = {
        **text,
        "user": _told(_STRING, "What the user says before."),
        "messages": {
            "type": "array",
            "items": _object(MESSAGE_KEYS, message, required=("role", "content")),
            "description": "In place of text: a whole talk.",
        },
        "row": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": _SCALAR,
            "description": "Fields of the record, for conditions.",
        },
        "weights": {
            "type": "array",
            "items": {"type": "number"},
            "description": "What each marked span weighs, in their order.",
        },
    }
    alone = dict.fromkeys(("text", "user", "calls", "stop"), False)
    return {
        "anyOf": [
            {"type": "string"},
            {
                **_object(EXAMPLE_KEYS, keys),
                "oneOf": [
                    {"required": ["text"], "properties": {"messages": False}},
                    {"required": ["messages"], "properties": alone},
                ],
            },
        ]
    }


def _object(
    table: Sequence[str], keys: Mapping[str, Schema], *, required: Sequence[str] = ()
) -> Schema:
    """A mapping with the keys of a table of the grammar, each of them told and no other."""
    if set(table) != set(keys):
        raise ValueError(f"the schema and the grammar differ in {sorted(set(table) ^ set(keys))}")
    told: Schema = {"required": list(required)} if required else {}
    properties = {key: keys[key] for key in table}
    return {"type": "object", "additionalProperties": False, "properties": properties, **told}


def _told(schema: Schema, description: str) -> Schema:
    """Beside a reference draft 7 reads nothing, so that a reference goes into an ``allOf``."""
    if "$ref" in schema:
        return {"allOf": [schema], "description": description}
    return {**schema, "description": description}


def _choices(words: Sequence[str]) -> Schema:
    one = {"enum": list(words)}
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]}


def _true(key: str) -> Schema:
    return {"type": "object", "required": [key], "properties": {key: {"const": True}}}
