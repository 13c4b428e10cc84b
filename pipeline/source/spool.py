"""What a file really is, whatever its name; its content as a stream, and unpacked on disk."""

from __future__ import annotations

import bz2
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import lz4.frame
import msgspec
import zstandard

from pipeline.errors import BuildError, InputError
from pipeline.source.elements import split_values
from pipeline.source.record import BOM, WHITE

Heard = Callable[[int], None]  # is told of bytes as they are read

CHUNK = 1 << 22
# Compressed bytes fed at once, which bounds memory: zstd can make 128 KB of 4, so 32 MB of these;
# gzip a thousand of one. bz2 can make 900 KB of 40, so it is asked for CHUNK at a time.
MORSEL, ZSTD_MORSEL = 1 << 14, 1 << 10
BY_LENGTH = ("bz2", "lz4")  # these take a limit
# A bomb is data of no use: gzip and lz4 cannot reach this ratio at all, text in zstd is below 100.
BOMB_RATIO, BOMB_BYTES = 2000, 1 << 30
COMPRESSED = (
    ("gzip", re.compile(rb"\x1f\x8b\x08")),
    ("bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")),
    ("lz4", re.compile(rb"\x04\x22\x4d\x18")),
    # pzstd begins a file with a skippable frame.
    ("zstd", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),
)
LOOKED_AT = 100  # lines
CLAIM = re.compile(r"\.(parquet|arrow|feather|gz|zst|zstd|bz2?|lz4)$", re.IGNORECASE)
# Lines of these would be rejected one by one.
OTHER = re.compile(
    r"\.(csv|tsv|txt|md|html?|xml|ya?ml|toml|py)(\.(gz|zst|zstd|bz2?|lz4))?$", re.IGNORECASE
)
COLUMNAR = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"))


@dataclass(frozen=True, slots=True)
class Content:
    """How to get at the records: *codec* (empty: none), then *layout*, a form or how to make one.

    ``layout`` is ``lines``, ``array``, ``values``, ``parquet`` or ``arrow``.
    """

    codec: str
    layout: str
    bom: bool


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    def decompress(self, data: bytes, limit: int = -1, /) -> bytes: ...


def unheard(size: int) -> None:
    """Where nobody asks how far the reading is."""


def sniff(path: Path, *, name: str, label: str) -> Content:
    """What *path* holds, from its first bytes; *name* decides only what they leave open.

    Raises InputError for what is certainly no input: UTF-16, other binary files.
    """
    head = start = next(chunks(path, "", label=label), b"")
    codec = next((codec for codec, magic in COMPRESSED if magic.match(start)), "")
    if codec:
        head = next(chunks(path, codec, label=label), b"")
    for magic, layout in COLUMNAR:
        if head.startswith(magic):
            return Content(codec, layout, bom=False)
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise InputError(f"{label}: text in UTF-16 or UTF-32; convert it to UTF-8")
    body = head.removeprefix(BOM).lstrip(WHITE)
    likely = re.match(rb"[\[{][^\0]", body)  # JSON with a NUL in it is bad records, not a bad file
    if not likely and b"\0" in body.partition(b"\n")[0]:
        raise InputError(
            f"{label}: neither JSON in UTF-8 nor Parquet, Arrow, gzip, zstd, bz2 or lz4; "
            "convert it to one of these"
        )
    claim = CLAIM.search(name)
    if claim and not (codec or likely) and (body or not start):
        raise InputError(
            f"{label}: does not begin as a .{claim[1]} file does, nor as JSON; "
            "it may be damaged: fetch or write it again"
        )
    if body and not likely and OTHER.search(name):
        raise InputError(f"{label}: holds no JSON; write one JSON object a line instead")
    return Content(codec, _layout(body, name), bom=head.startswith(BOM))


def _layout(body: bytes, name: str) -> str:
    """Whether JSON text is lines, an array, or objects printed over many lines.

    Lines that begin with broken ones look like a printed object, and lines that are arrays like an
    array, so lines further down have a say.
    """
    first, ended, rest = body.partition(b"\n")
    if body[:1] == b"[":
        second = rest.lstrip(WHITE).partition(b"\n")[0]
        lines = second.startswith(b"[") and _is_json(first)
        return "lines" if lines or _are_lines(rest) else "array"
    if body[:1] != b"{" or _is_json(first):
        return "lines"
    value = b"".join(split_values([body])).partition(b"\n")[0]
    if _is_json(value):
        return "values"
    # Of a printed object no line that is not indented is an object, but an empty one.
    whole = re.finditer(rb"^\{(?!\s*\}).*", rest, re.MULTILINE)
    if any(_is_json(line[0]) for line in islice(whole, LOOKED_AT)):
        return "lines"
    named = re.search(r"\.(jsonl|ndjson)\b", name, re.IGNORECASE)
    return "lines" if named or not ended else "values"


def _are_lines(text: bytes) -> bool:
    """Whether two lines that follow one another are objects: in no array, which has commas."""
    before = False
    for line in text.split(b"\n", LOOKED_AT)[:LOOKED_AT]:
        whole = line.startswith(b"{") and line.rstrip(WHITE).endswith(b"}") and _is_json(line)
        if whole and before:
            return True
        before = whole
    return False


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def chunks(
    path: Path, codec: str, *, label: str, size: int = CHUNK, heard: Heard = unheard
) -> Iterator[bytes]:
    """The content in chunks of *size* bytes; InputError where it is damaged or cut off.

    *heard* is told of the bytes that are read of the file. One loop for all codecs: each has a
    decompressor that stops at the end of its frame, and a file is any number of frames.
    (zstandard's own reader takes a cut-off file as whole, and Python's bz2 ignores garbage at the
    end.)
    """
    with path.open("rb") as file:
        if not codec:
            yield from _heard(iter(lambda: file.read(size), b""), heard)
            return
        gathered = bytearray()
        morsel = ZSTD_MORSEL if codec == "zstd" else MORSEL
        morsels = _heard(iter(lambda: file.read(morsel), b""), heard)
        for part in _inflated(morsels, codec, label):
            gathered += part
            while len(gathered) >= size:
                yield bytes(gathered[:size])
                del gathered[:size]
        if gathered:
            yield bytes(gathered)


def _heard(parts: Iterator[bytes], heard: Heard) -> Iterator[bytes]:
    for part in parts:
        heard(len(part))
        yield part


def _inflated(morsels: Iterator[bytes], codec: str, label: str) -> Iterator[bytes]:
    frame: _Inflater | None = None
    taken = given = 0
    limit = (CHUNK,) if codec in BY_LENGTH else ()
    for morsel in morsels:
        data, more = morsel, False
        taken += len(morsel)
        while data or more:
            if frame is None:
                data = data.lstrip(b"\0")  # padding between frames, which gzip's readers allow
                frame = _inflater(codec) if data else None
                continue
            try:
                part = frame.decompress(data, *limit)
            except (zlib.error, zstandard.ZstdError, OSError, RuntimeError) as error:
                raise InputError(
                    f"{label}: damaged {codec} data ({error}); fetch or write the file again"
                ) from None
            given += len(part)
            if given > max(BOMB_BYTES, BOMB_RATIO * taken):
                raise InputError(
                    f"{label}: {taken:,} bytes of {codec} unpack to more than {given:,}; unpack it "
                    "yourself if that is no mistake"
                )
            data = b""
            more = bool(limit) and not (frame.eof or frame.needs_input)
            if frame.eof:
                data, frame = frame.unused_data or b"", None
            yield part
    if frame is not None:
        raise InputError(f"{label}: {codec} data is cut off; fetch or write the file again")


def _inflater(codec: str) -> _Inflater:
    makers: dict[str, Callable[[], Any]] = {
        "gzip": lambda: zlib.decompressobj(wbits=31),
        "bz2": bz2.BZ2Decompressor,
        "lz4": lz4.frame.LZ4FrameDecompressor,
        # Windows of up to 2 GiB: what zstd --long writes.
        "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    }
    frame: _Inflater = makers[codec]()
    return frame


class Digest:
    """SHA-256 and length of whatever passed ``through``."""

    def __init__(self) -> None:
        self._sha, self.size = hashlib.sha256(), 0

    def through(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            self._sha.update(part)
            self.size += len(part)
            yield part

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()


def kept(parts: Iterable[bytes], target: Path) -> Iterator[bytes]:
    """The same chunks, each written to *target* as it passes; BuildError if the disk refuses."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    try:
        for part in parts:
            with writing(target):
                file.write(part)
            yield part
    finally:
        with writing(target):
            file.close()


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns an OSError into a BuildError that names *target*."""
    try:
        yield
    except OSError as error:
        raise BuildError(
            f"{target}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def without_bom(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks without their first three bytes."""
    left = len(BOM)
    for part in parts:
        yield part[left:]
        left = max(0, left - len(part))
