"""One conversation token by token: what each token is, its weight, and which rule gave it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pipeline import cli
from pipeline.batch import Encoder, Prepared
from pipeline.errors import BuildError, ConfigurationError, InputError, RecordError
from pipeline.explanation import Explanation, explain, restore_turns
from pipeline.manifest import NAME, Manifest, read_manifest
from pipeline.page import make_page, visible, width
from pipeline.recipe import BUNDLED, Recipe, make_recipe
from pipeline.record import Piece, Record, decode
from pipeline.regions import Region, divide
from pipeline.reject import reject
from pipeline.rules import RuleSet, compose, load_rules, parse_rule_file
from pipeline.source import read, survey
from pipeline.task import make_encoder
from pipeline.tokens import Certificate, Encoded, EncodeFailure, engine_versions
from pipeline.vocabulary import TOKENIZER, Vocabulary, read_vocabulary

_PIECE = 64 << 20  # bytes: small enough to read through for one record of a large file
_ROWS = 1 << 40  # no limit: of Parquet and Arrow one row is read, whatever the piece
_COLUMNS = ("#", "id", "text", "chars", "message", "region", "weight", "why")
_RIGHT = ("#", "id", "weight")
_WIDEST = 24  # columns of text; a longer token moves its own line only
_COLOURS = {"untrained": "2", "trained": "32", "lowered": "33", "raised": "36", "silenced": "31"}


class _StoredSpan(msgspec.Struct):
    message: int
    role: str
    region: str
    start: int
    end: int


class _StoredRow(msgspec.Struct):
    """The columns of a shard that are shown."""

    input_ids: list[int]
    loss_scale: list[float]
    source: str
    row: int
    spans: list[_StoredSpan]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; InputError for what a build would reject, shown first where it can be."""
    args = _parser().parse_args(argv)
    colour = _colours(args.color)
    explanation = _explain(args)
    if args.html is None:
        _say(tabulate(explanation, colour=colour))
    else:
        _write(args.html, make_page(explanation))
        _say(_heading((*explanation.facts, ("page", str(args.html))), colour=colour))
    if not explanation.targets:
        raise InputError(
            f"{explanation.place}: no token of it carries loss; drop the record or change the rules"
        )
    return 0


def _explain(args: argparse.Namespace) -> Explanation:
    with tempfile.TemporaryDirectory(prefix="weighted-shards-") as spool:
        record, folder = _find(args.input or str(BUNDLED / "sample.jsonl"), args.index, Path(spool))
    if record.value is not None and {"input_ids", "loss_scale"} <= record.value.keys():
        return explain_row(record, folder, args)
    cli.needs_tokenizer([args.input] if args.input else [], args.tokenizer)
    recipe = make_recipe(
        rules=args.rules,
        tokenizer=args.tokenizer,
        chat_template=args.chat_template,
        template_kwargs=args.template_kwargs,
        date=args.date,
        schema=args.schema,
    )
    return explain_record(record, _load(recipe))


def _load(recipe: Recipe) -> Encoder:
    """With the reference engine: for one text, trust would cost more than it saves."""
    certificate = Certificate(
        engine="reference",
        reason="one text",
        code_points=(),
        strings=0,
        tokenizer=recipe.vocabulary.digests[TOKENIZER],
        versions=engine_versions(),
    )
    return make_encoder(recipe, certificate)


def _find(word: str, index: int, spool: Path) -> tuple[Record, Path]:
    """Record *index* of an input, and the folder in which a shard's manifest would lie."""
    path = Path(word)
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is None:
        return _pick(word, index, spool), path if path.is_dir() else path.parent
    row = index
    for shard in manifest.shards:
        if row < shard["rows"]:
            return _pick(str(path / shard["file"]), row, spool), path
        row -= shard["rows"]
    raise _beyond(word, index, index - row, "rows")


def _pick(word: str, index: int, spool: Path) -> Record:
    """Surveys the input, which counts, and then reads only the piece that has the record."""
    row = index
    for source in survey([word], spool=spool, piece_bytes=_PIECE, piece_rows=_ROWS):
        if row < source.records:
            piece = [piece for piece in source.pieces if piece.first <= row][-1]
            return next(r for batch in read(_narrowed(piece, row)) for r in batch if r.row == row)
        row -= source.records
    raise _beyond(word, index, index - row, "records")


def _narrowed(piece: Piece, row: int) -> Piece:
    """Only that row, where rows can be had alone."""
    if piece.form not in ("parquet", "arrow"):
        return piece
    size = max(1, piece.size // (piece.end - piece.start))
    return replace(piece, start=row, end=row + 1, first=row, size=size)


def _beyond(word: str, index: int, count: int, what: str) -> InputError:
    remedy = f"use --index 0 to {count - 1}" if count else "choose another"
    return InputError(f"{word}: holds {count:,} {what}, --index {index} asks for another; {remedy}")


def explain_record(record: Record, encoder: Encoder) -> Explanation:
    """Raises InputError, in the words of the reject, where the record cannot become tokens."""
    prepared, rejects = encoder.prepare([record])
    if rejects:
        raise InputError(rejects[0].message)
    try:
        encoded = encoder.tokenizer.encode([p.text for p in prepared])
    except EncodeFailure as failure:
        raise InputError(reject(record, failure.rows[0]).message) from failure
    (one,) = prepared
    return explain(
        one,
        encoded,
        encoder.weigh(prepared, encoded),
        regions=[region for turn in one.turns for region in divide(turn, one.text)],
        rules=encoder.rules.rules,
        place=record.place,
    )


def explain_row(record: Record, folder: Path, args: argparse.Namespace) -> Explanation:
    """A row of a shard: its text comes from its ids, its turns from ``spans``."""
    _refuse_rendering(args)
    manifest = read_manifest(folder)
    if manifest is None:
        raise BuildError(
            f"{folder}: no {NAME} there, which tells the tokenizer and the rules of "
            f"{record.source}; show it in the folder of a finished build"
        )
    row = _stored(record)
    encoder = _load(_recipe_of(manifest, folder, args))
    origin = f"{row.source}[{row.row}]"
    text, encoded = _restore(row, encoder, place=record.place, origin=origin)
    regions = [Region(s.message, s.role, s.region, s.start, s.end) for s in row.spans]
    prepared = _prepare(record, text, regions, encoder.rules)
    stored = np.array(row.loss_scale, np.float32)
    weighed = encoder.weigh([prepared], encoded)
    _require_weights(stored, weighed.loss_scale, place=record.place, origin=origin)
    if args.rules:
        encoder = Encoder(encoder.tokenizer, encoder.template, load_rules(args.rules))
        prepared = _prepare(record, text, regions, encoder.rules)
        weighed = encoder.weigh([prepared], encoded)
    return explain(
        prepared,
        encoded,
        weighed,
        regions=regions,
        rules=encoder.rules.rules,
        place=f"{record.place}, made of {origin}",
    )


def _refuse_rendering(args: argparse.Namespace) -> None:
    for flag, given in (
        ("--chat-template", args.chat_template),
        ("--template-kwargs", args.template_kwargs),
        ("--schema", args.schema != "auto"),
    ):
        if given:
            raise ConfigurationError(
                f"{flag}: the rows of a shard are rendered already; show the source record with it"
            )


def _stored(record: Record) -> _StoredRow:
    try:
        return msgspec.convert(decode(record), _StoredRow)
    except (RecordError, msgspec.ValidationError) as error:
        raise InputError(
            f"{record.place}: not a row of a shard of this version: {error}; build it again"
        ) from error


def _recipe_of(manifest: Manifest, folder: Path, args: argparse.Namespace) -> Recipe:
    """The recipe of a build, as its manifest tells it; the tokenizer's files are not in there."""
    files = [
        parse_rule_file(text, place=f"{folder / NAME}: rules.{name}")
        for name, text in manifest.rules.items()
    ]
    return Recipe(
        vocabulary=_vocabulary_of(manifest, args.tokenizer),
        templates=manifest.chat_templates,
        variables=manifest.template_variables,
        date=args.date,
        rules=compose(files),
        schema=args.schema,
        form=manifest.format,
    )


def _vocabulary_of(manifest: Manifest, name: str | None) -> Vocabulary:
    """The tokenizer of that *name*, or the embedded one, if it is the build's."""
    vocabulary = read_vocabulary(name or BUNDLED / "tokenizer")
    wanted, found = manifest.parts["tokenizer"][TOKENIZER], vocabulary.digests[TOKENIZER]
    if found == wanted:
        return vocabulary
    told = f"--tokenizer {name}: its" if name else "--tokenizer: missing; the embedded one's"
    raise ConfigurationError(
        f"{told} {TOKENIZER} is {found[:12]}..., but the shards were made with {wanted[:12]}... "
        "(sha256); name the folder or hub id of that tokenizer"
    )


def _restore(row: _StoredRow, encoder: Encoder, *, place: str, origin: str) -> tuple[str, Encoded]:
    """The text of a row's ids, which must encode to these ids again."""
    tokenizer, ids = encoder.tokenizer, np.array(row.input_ids, np.int64)
    known = bool(len(ids)) and ids.min() >= 0 and ids.max() < tokenizer.size
    text = tokenizer.decode(row.input_ids) if known else ""
    try:
        encoded = tokenizer.encode([text])
    except EncodeFailure:
        encoded = tokenizer.encode([""])
    fits = all(0 <= span.start <= span.end <= len(text) for span in row.spans)
    if known and fits and np.array_equal(encoded.ids, ids):
        return text, encoded
    raise InputError(
        f"{place}: its text cannot be had back from its ids: the tokenizer normalized it, or the "
        f"shard is damaged; show the source record, {origin}"
    )


def _prepare(record: Record, text: str, regions: Iterable[Region], rules: RuleSet) -> Prepared:
    turns = list(restore_turns(regions))
    try:
        claims = [c for turn in turns if turn.outputs for c in rules.claims(turn, text)]
    except RecordError as error:
        raise InputError(reject(record, error).message) from error
    return Prepared(record, text, turns, claims)


def _require_weights(stored: Any, computed: Any, *, place: str, origin: str) -> None:
    """Stored weights are shown, so the rules that are said to give them must."""
    if np.array_equal(stored, computed):
        return
    if len(stored) != len(computed):
        fact = f"{len(stored)} weights for {len(computed)} tokens"
    else:
        first = int(np.flatnonzero(stored != computed)[0])
        fact = f"token {first}: stored {stored[first]:g}, computed {computed[first]:g}"
    raise InputError(
        f"{place}: its weights are not what the rules of {NAME} give ({fact}): the tokenizer "
        f"normalized its text, or the shard is damaged; show the source record, {origin}"
    )


def tabulate(explanation: Explanation, *, colour: bool) -> list[str]:
    """Lines for a terminal: what there is to know of the row, then a line for each token."""
    rows = [
        (
            str(token.number),
            str(token.id),
            visible(token.piece),
            f"{token.start}-{token.end}",
            token.owner,
            token.region,
            f"{token.weight:g}",
            token.why,
        )
        for token in explanation.tokens
    ]
    widths = [max(map(width, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    widths[_COLUMNS.index("text")] = min(widths[_COLUMNS.index("text")], _WIDEST)
    lines = [*_heading(explanation.facts, colour=colour), ""]
    lines.append(_painted(_line(_COLUMNS, widths), "1" if colour else ""))
    message = explanation.tokens[0].message
    for token, row in zip(explanation.tokens, rows, strict=True):
        if token.message != message:
            lines.append("")
        message = token.message
        lines.append(_painted(_line(row, widths), _COLOURS[token.kind] if colour else ""))
    return lines


def _heading(facts: Sequence[tuple[str, str]], *, colour: bool) -> list[str]:
    widest = max(len(name) for name, _ in facts)
    return [
        _painted(f"{name:<{widest}}", "1" if colour else "") + f"  {fact}" for name, fact in facts
    ]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = []
    for name, cell, wanted in zip(_COLUMNS, cells, widths, strict=True):
        blank = " " * (wanted - width(cell))
        padded.append(blank + cell if name in _RIGHT else cell + blank)
    return "  ".join(padded).rstrip()


def _painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _colours(choice: str) -> bool:
    if choice == "auto":
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return choice == "always"


def _say(lines: Iterable[str]) -> None:
    """What standard output's encoding has no character for is escaped, never an error."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "backslashreplace").decode(encoding))


def _write(path: Path, page: str) -> None:
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"--html {path}: cannot be written ({error.strerror}); choose another file"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(
        "show", "Prints one conversation token by token: its weight, and which rule gave it."
    )
    parser.epilog = (
        "In the table, chars are half-open and count the rendered text; a space at a token's end "
        "shows as a middle dot, and \\xNN is one byte of a character that several tokens share. "
        "why: 'not generated' is what the model is given; 'assistant' weighs 1, multiplied by each "
        "rule named after it; of a token that an edge cuts, the bytes inside the edge are told."
    )
    parser.add_argument(
        "input",
        nargs="?",
        metavar="INPUT",
        help="conversations (a file, - for standard input, or whatever a build takes), a shard, or "
        "the folder of a build; before --rules (default: the embedded sample)",
    )
    parser.add_argument(
        "--index",
        type=_number,
        default=0,
        metavar="N",
        help="which record of a file, which row of a shard or of a build's, from 0 (default: 0)",
    )
    cli.add_recipe_flags(parser)
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page instead of printing the table"
    )
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: on a terminal, unless NO_COLOR is set (default: auto)",
    )
    return parser


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


if __name__ == "__main__":
    cli.leave(main)
