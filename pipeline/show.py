"""One conversation token by token: what each token is, its weight, and which rule gave it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline import cli, flags
from pipeline.batch import Encoder
from pipeline.building import make_encoder
from pipeline.errors import ConfigurationError, InputError
from pipeline.explanation import Explanation, explain
from pipeline.manifest import read_manifest
from pipeline.page import make_page, visible, width
from pipeline.policy import PROFILES, TURNS, UNSURE
from pipeline.recipe import BUNDLED, recipe_of
from pipeline.regions import divide
from pipeline.reject import reject
from pipeline.rows import Prepared
from pipeline.scales import cut_regions
from pipeline.source import read, survey
from pipeline.source.record import Piece, Record
from pipeline.stored import explain_row
from pipeline.tokens.encoded import select_rows
from pipeline.tokens.faults import EncodeFailure

_PIECE = 64 << 20  # bytes: small enough to read through for one record of a large file
_ROWS = 1 << 40  # no limit: of Parquet and Arrow one row is read, whatever the piece
_COLUMNS = ("#", "id", "text", "chars", "message", "region", "weight", "why")
_RIGHT = ("#", "id", "weight")
_WIDEST = 24  # columns of text; a longer token moves its own line only
_COLOURS = {"untrained": "2", "trained": "32", "lowered": "33", "raised": "36", "silenced": "31"}


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
        _refuse_rendering(args)
        return explain_row(record, folder, tokenizer=args.tokenizer, rules=args.rules)
    flags.needs_tokenizer([args.input] if args.input else [], args.tokenizer)
    if args.turn is not None and args.turns != "fan_out":
        raise ConfigurationError("--turn: tells rows of one record apart; pass --turns fan_out too")
    recipe = recipe_of(args)
    return explain_record(record, make_encoder(recipe), turn=args.turn)


def _refuse_rendering(args: argparse.Namespace) -> None:
    for flag, given in (
        ("--chat-template", args.chat_template),
        ("--template-kwargs", args.template_kwargs),
        ("--schema", args.schema != "auto"),
        ("--turns", args.turns != TURNS[0]),
        ("--turn", args.turn is not None),
        ("--control-tokens", args.control_tokens),
        ("--edge", args.edge),
        ("--profile", args.profile != PROFILES[0]),
        ("--keep", args.keep),
        ("--unsure", args.unsure != UNSURE[0]),
        ("--stop-token", args.stop_token),
        ("--train-trailing", args.train_trailing),
    ):
        if given:
            raise ConfigurationError(
                f"{flag}: the rows of a shard are rendered already; show the source record with it"
            )


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


def explain_record(record: Record, encoder: Encoder, *, turn: int | None = None) -> Explanation:
    """Of several rows that of message *turn*, or the last.

    Raises InputError, in the words of the reject, where the record cannot become tokens.
    """
    prepared, rejects = encoder.prepare([record])
    if rejects:
        raise InputError(rejects[0].message)
    try:
        encoded = encoder.encode_texts(prepared)
    except EncodeFailure as failure:
        raise InputError(reject(record, next(iter(failure.rows.values()))).message) from failure
    prepared, encoded = encoder.rescale(prepared, encoded)
    row = _row_of(turn, prepared, record.place)
    one, encoded = prepared[row], select_rows(encoded, [row])
    return explain(
        one,
        encoded,
        encoder.weigh([one], encoded),
        regions=[
            region
            for turn in one.turns
            for region in cut_regions(divide(turn, one.text), one.scales)
        ],
        rules=encoder.rules,
        policy=encoder.policy,
        place=record.place,
    )


def _row_of(turn: int | None, prepared: Sequence[Prepared], place: str) -> int:
    """Which row supervises message *turn*; the last without one."""
    if turn is None:
        return len(prepared) - 1
    for row, p in enumerate(prepared):
        if any(t.message == turn and t.outputs for t in p.turns):
            return row
    supervised = [str(t.message) for p in prepared for t in p.turns if t.outputs]
    raise InputError(
        f"{place}: messages[{turn}]: no row of it trains that; use --turn {', '.join(supervised)}"
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
        cli.put(line.encode(encoding, "backslashreplace").decode(encoding))


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
    parser.add_argument(
        "--turn",
        type=_number,
        metavar="N",
        help="with --turns fan_out, the row that trains message N (default: the last row)",
    )
    flags.add_recipe_flags(parser)
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
