"""Inputs to measure with: so many conversations of a file, or talks of one shape from its text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.source.spool import chunks, sniff


def repeat(source: Path, target: Path, conversations: int) -> None:
    """The first so many lines of *source*, which is taken again and again until there are enough.

    Reads any compression; SystemExit for a file without lines.
    """
    with target.open("wb") as file:
        for line in itertools.islice(itertools.chain.from_iterable(_again(source)), conversations):
            file.write(line + b"\n")


def _again(source: Path) -> Iterator[Iterator[bytes]]:
    if next(_lines(source), None) is None:
        raise SystemExit(f"{source}: has no lines; give a file of JSON lines")
    while True:
        yield _lines(source)


def _lines(source: Path) -> Iterator[bytes]:
    """Lines that are not blank."""
    content = sniff(source, name=source.name, label=str(source))
    rest = b""
    for chunk in chunks(source, content.codec, label=str(source)):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from filter(bytes.strip, whole)
    if rest.strip():
        yield rest


def count(source: Path) -> int:
    """How many conversations a file of JSON lines holds."""
    return sum(1 for _ in _lines(source))


def read_text(source: Path, characters: int) -> str:
    """What the messages of a file say, as one text of that length, taken again where it is short.

    SystemExit where no record has a list of messages that say something.
    """
    pieces, size = list[str](), 0
    for line in _lines(source):
        for said in _said(json.loads(line)):
            pieces.append(said)
            size += len(said) + 1
        if size >= characters:
            break
    text = "\n".join(pieces)
    if not text.strip():
        raise SystemExit(f"{source}: no message says anything; give records with messages")
    return (text * (characters // len(text) + 1))[:characters]


def _said(record: Any) -> Iterator[str]:
    """Without white space at the ends, which templates strip in their own ways."""
    for message in record.get("messages") or ():
        said = message.get("content")
        if isinstance(said, str) and said.strip() and "<|" not in said:
            yield said.strip()


def synthesize(text: str, target: Path, *, turns: int, size: int) -> int:
    """Talks of *turns* questions and answers, some *size* characters in each, until *text* is used.

    Every shape is cut from the same text, so that only the cuts differ. How many talks there are.
    """
    width = max(1, size // (2 * turns))
    each = 2 * turns * width
    talks = max(1, len(text) // each)
    with target.open("w", encoding="utf-8") as file:
        for talk in range(talks):
            parts = (text[i : i + width] for i in range(talk * each, (talk + 1) * each, width))
            messages = [
                {"role": role, "content": part.strip() or "."}
                for role, part in zip(itertools.cycle(("user", "assistant")), parts, strict=False)
            ]
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return talks
