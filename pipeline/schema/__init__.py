"""Records of the schemas that people have, as conversations.

``auto`` decides by keys and shapes, per record, in this order: the first list under `LIST_KEYS`
that is not empty (its first item tells role/content, from/value or input/output); instruction and
output; query and response; prompt and completion or response, both text; prompt and completion,
both lists of messages (TRL's).
"""

from __future__ import annotations

from typing import Any

from pipeline.conversation import Conversation
from pipeline.errors import ConfigurationError, RecordError
from pipeline.schema.field import decode_text, fault, misfit, name_keys
from pipeline.schema.joint import join_calls
from pipeline.schema.message import CALL_ROLES, copy_plain, read_message
from pipeline.schema.question import find_question, fits_alpaca, read_alpaca, read_pairs, read_query
from pipeline.schema.row import add_system, read_kwargs, read_toolset, refuse_media
from pipeline.schema.weight import Weight, gather_weights, read_message_weight

SCHEMAS = ("auto", "messages", "sharegpt", "alpaca", "query-response")
LIST_KEYS = (
    "messages",
    "conversations",
    "conversation",
    "traj",
    "trajectory",
    "dialogue",
    "dialog",
)


def read_conversation(record: Any, *, schema: str = "auto") -> Conversation:
    """A decoded record as a conversation with at least one assistant message.

    Tool schemas and objects of the record are used, not copied; messages are new dicts.
    RecordError (stage ``parse``) for everything that is wrong with a record, with the field;
    ConfigurationError for a *schema* that is not one of `SCHEMAS`.
    """
    if schema not in SCHEMAS:
        raise ConfigurationError(f"--schema {schema}: unknown; use one of {', '.join(SCHEMAS)}")
    if not isinstance(record, dict):
        remedy = 'write {"messages": [...]}'
        raise misfit("not_an_object", "", "an object", record, remedy=remedy)
    refuse_media(record)
    messages, weights = _read_messages(record, schema)
    count = len(messages)
    if not any(message["role"] == "assistant" for message in messages):
        fact = "no message is an assistant's, so nothing can be trained; drop the record"
        raise fault("no_assistant_turn", "", fact)
    add_system(record, messages)
    tools, kwargs = read_toolset(record, messages), read_kwargs(record)
    gathered = gather_weights(record, weights, shift=len(messages) - count)
    plain = tools is None and gathered is None and not kwargs
    for message in messages if plain else ():
        if len(message) != 2 or type(message["content"]) is not str:
            plain = False
            break
    return Conversation(messages, tools, kwargs, gathered, plain)


def _read_messages(
    record: dict[str, Any], schema: str
) -> tuple[list[dict[str, Any]], dict[int, Weight]]:
    key, items = _find_list(record)
    if schema in ("auto", "messages", "sharegpt") and items:
        return _read_list(items, key, schema)
    if schema in ("auto", "alpaca") and (schema == "alpaca" or fits_alpaca(record)):
        return read_alpaca(record), {}
    if schema in ("auto", "query-response"):
        keys = find_question(record)
        if keys is not None:
            return read_query(record, keys), {}
        if isinstance(record.get("prompt"), list) and isinstance(record.get("completion"), list):
            return _read_completion(record["prompt"], record["completion"])
        if items:  # only an explicit query-response comes here
            return _read_list(items, key, schema)
    if items is not None:
        raise fault("empty_conversation", key, "has no message; drop the record")
    raise _unknown(record, schema)


def _find_list(record: dict[str, Any]) -> tuple[str, list[Any] | None]:
    """The first list of items that is not empty, else an empty one; JSON strings of lists too."""
    empty = ""
    for key in LIST_KEYS:
        items = record.get(key)
        if isinstance(items, str) and items.lstrip()[:1] == "[":
            items = decode_text(items)
        if isinstance(items, list):
            if items:
                return key, items
            empty = empty or key
    return empty, [] if empty else None


def _read_list(
    items: list[Any], key: str, schema: str
) -> tuple[list[dict[str, Any]], dict[int, Weight]]:
    shape = _tell_shape(items[0], f"{key}[0]")
    if schema not in ("auto", shape):
        fact = f"has the shape of --schema {shape}, not {schema}; pass that, or auto"
        raise fault("wrong_schema", f"{key}[0]", fact)
    if shape == "query-response":
        return read_pairs(items, key)
    role_key, content_key = ("from", "value") if shape == "sharegpt" else ("role", "content")
    messages: list[dict[str, Any]] = []
    weights: dict[int, Weight] = {}
    calling: set[int] = set()
    for i, item in enumerate(items):
        message = copy_plain(item) if shape == "messages" else None
        weight = None
        if message is None:
            message, weight = read_message(
                item, f"{key}[{i}]", role_key=role_key, content_key=content_key
            )
            if item[role_key] in CALL_ROLES:
                calling.add(i)
        elif len(message) > 2:
            weight = read_message_weight(message, [], f"{key}[{i}]")
        if weight is not None:
            weights[i] = weight
        messages.append(message)
    return join_calls(messages, weights, calling, key) if calling else (messages, weights)


def _read_completion(
    prompt: list[Any], completion: list[Any]
) -> tuple[list[dict[str, Any]], dict[int, Weight]]:
    """Of the two only the completion carries loss, as TRL has it: the prompt's messages weigh 0."""
    given, weights = _read_list(prompt, "prompt", "auto") if prompt else ([], {})
    for i, weight in weights.items():
        if weight.whole != 0:
            fact = "has a weight, and a prompt carries no loss; drop it, or use messages"
            raise fault("misplaced_weight", f"prompt[{i}]", fact)
    answer, own = _read_list(completion, "completion", "auto") if completion else ([], {})
    if not any(message["role"] == "assistant" for message in answer):
        fact = "no message of it is an assistant's, so nothing can be trained; drop the record"
        raise fault("no_assistant_turn", "completion", fact)
    zeros = {i: Weight(0.0, []) for i in range(len(given))}
    return given + answer, zeros | {i + len(given): weight for i, weight in own.items()}


def _tell_shape(item: Any, place: str) -> str:
    if not isinstance(item, dict):
        raise misfit("bad_message", place, "an object", item, remedy="write one object per message")
    if item.get("role") is not None:  # null where Arrow pads one schema with another's keys
        return "messages"
    if item.get("from") is not None:
        return "sharegpt"
    if "input" in item and "output" in item:
        return "query-response"
    if "content" in item or "value" in item:  # the role is missing, which read_message will say
        return "messages" if "content" in item else "sharegpt"
    fact = f"keys {name_keys(item)}; expected role and content, from and value, or input and output"
    raise fault("unknown_schema", place, fact)


def _unknown(record: dict[str, Any], schema: str) -> RecordError:
    keys = [key for key in LIST_KEYS if key in record and schema != "query-response"]
    for key in keys:
        if record[key] is not None:
            remedy = "write a list, or a JSON string of one"
            return misfit("bad_messages", key, "a list of messages", record[key], remedy=remedy)
    if keys:
        return fault("empty_conversation", keys[0], "is null; drop the record")
    wanted = "no known schema fits" if schema == "auto" else f"--schema {schema} does not fit"
    remedy = f"rename them, or pass another of --schema {', '.join(SCHEMAS)}"
    return fault("unknown_schema", "", f"{wanted} the keys {name_keys(record)}; {remedy}")
