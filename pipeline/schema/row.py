"""What a record says beside its messages: system text, tools, template variables, media."""

from __future__ import annotations

from typing import Any

from pipeline.schema.field import decode_text, fault, misfit
from pipeline.schema.toolcall import read_tools

MEDIA_KEYS = ("images", "videos", "audios")
# The renderer passes these itself; a record's own would replace what the build was asked for.
RESERVED_KWARGS = frozenset(("messages", "tools", "add_generation_prompt"))


def add_system(record: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    """Put the record's ``system`` text before *messages*; the same text there already is fine.

    Two different texts are rejected: trainers disagree which one wins.
    """
    system = record.get("system")
    if system is None or system == "":
        return
    if not isinstance(system, str):
        raise misfit("bad_system", "system", "a string", system, remedy="write it as text")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != system:
            fact = "differs from the system message in the list; keep one"
            raise fault("conflicting_system", "system", fact)
        return
    messages.insert(0, {"role": "system", "content": system})


def read_toolset(
    record: dict[str, Any], messages: list[dict[str, Any]]
) -> list[dict[str, Any]] | None:
    """Tool schemas under ``tools``, or ``functions`` as OpenAI once called them."""
    tools = read_tools(record.get("tools"), "tools")
    functions = record.get("functions")
    if isinstance(functions, str):
        functions = decode_text(functions) if functions.strip() else None
        if not isinstance(functions, (list, dict)) and functions is not None:
            functions = record["functions"]  # read_tools says what is wrong with the string
    if functions is None or _written_out(functions, messages):
        return tools
    schemas = read_tools(functions, "functions")
    if tools and schemas:
        raise fault("bad_tools", "functions", "stand beside tools; keep one")
    return tools or schemas


def _written_out(functions: Any, messages: list[dict[str, Any]]) -> bool:
    """Whether these are Qwen-Agent's records of tools that the messages themselves spell out.

    As tools they would be in the text twice; where a name is missing from the text they
    are an unknown form of tools, and so a reject rather than a silent loss.
    """
    if not isinstance(functions, list) or not functions:
        return False
    names = [f.get("name_for_model") if isinstance(f, dict) else None for f in functions]
    texts = [m["content"] for m in messages if m["role"] in ("system", "user")]
    text = "\n".join(content for content in texts if isinstance(content, str))
    return all(isinstance(name, str) and f'"{name}"' in text for name in names)


def read_kwargs(record: dict[str, Any]) -> dict[str, Any]:
    """The record's ``chat_template_kwargs``, none of which may be the renderer's own."""
    kwargs = record.get("chat_template_kwargs")
    if kwargs is None:
        return {}
    place = "chat_template_kwargs"
    if not isinstance(kwargs, dict):
        raise misfit("bad_kwargs", place, "an object", kwargs, remedy="use {} or drop it")
    for key in kwargs:
        if key in RESERVED_KWARGS:
            raise fault("bad_kwargs", f"{place}.{key}", "is the renderer's own; drop it")
    return kwargs


def refuse_media(record: dict[str, Any]) -> None:
    """Media of a row would be lost without a word: only its placeholders are text."""
    for key in MEDIA_KEYS:
        if record.get(key):
            fact = "images, audio and video are not supported; drop the record"
            raise fault("unsupported_part", key, fact)
