"""Write the bundled sample and tokenizer: ``python scripts/make_bundled.py [FOLDER]``.

The conversations are written in ``bundled/*.txt`` and computed by ``bundled_computed.py``, and a
byte-level BPE is trained on them. Nothing is drawn at random: the same bytes come out every time.
The chat template beside the tokenizer is written by hand.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bundled_computed import computed
from bundled_rows import Forms, Written, parse, parse_all, record
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

WRITTEN = Path(__file__).resolve().parent / "bundled"
BUNDLED = Path(__file__).resolve().parent.parent / "pipeline" / "bundled"

FILES = ("english_1", "english_2", "chinese", "scripts", "dialogues", "agents", "text_agents")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# Blanks by their property: \s differs between regex engines at U+180E, and with it the ids.
BLANK = r"\p{Z}\t-\r\x{85}"
# A run of letters takes the blank or mark before it, digits stand alone, and the line breaks after
# punctuation belong to it, so that an edge after "." can fall inside a token.
PIECES = (
    r"[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    rf"| ?[^{BLANK}\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    rf"|[{BLANK}]*[\r\n]+|[{BLANK}]+(?![^{BLANK}])|[{BLANK}]+"
)
VOCABULARY = 5000 - len(SPECIAL) - len(MARKERS)


def sample_lines(written: list[Written], first: int, known: dict[str, Any]) -> list[str]:
    """The rows as JSON; all but the *first* few are mixed, in the order of their hashes."""
    forms = Forms()
    lines = [
        json.dumps(record(one, forms, known), ensure_ascii=next(forms.ascii_only))
        for one in written
    ]
    mixed = sorted(lines[first:], key=lambda line: hashlib.sha256(line.encode()).digest())
    return lines[:first] + mixed


def training_texts(written: list[Written], known: dict[str, Any]) -> Iterator[str]:
    """All that was written, without the markers: they are tokens of their own."""
    marker = re.compile("|".join(map(re.escape, SPECIAL + MARKERS)))
    primer = (WRITTEN / "primer.txt").read_text(encoding="utf-8").split("\n====\n")
    yield from primer * 2  # once only, a word would stay below min_frequency
    for tool in known.values():
        yield json.dumps(tool, ensure_ascii=False)
    told: set[str] = set()
    for turn in itertools.chain.from_iterable(one.turns for one in written):
        if turn.text not in told:  # system texts come again, and would become single tokens
            yield from marker.split(turn.text)
        told.add(turn.text)
        yield turn.thought
        for name, arguments in turn.calls:
            call = {"name": name, "arguments": arguments}
            yield f"\n{json.dumps(call, ensure_ascii=False)}\n"


def train(texts: Iterator[str]) -> dict[str, Any]:
    """Vocabulary and merges of a byte-level BPE, as ``tokenizer.json`` spells a model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        max_token_length=24,  # bytes; without it whole Chinese sentences become tokens
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(model["vocab"].items(), key=lambda item: item[1])),
        "merges": model["merges"],
    }


def added_tokens(first: int) -> list[dict[str, Any]]:
    """The control tokens and the markers, numbered from *first*."""
    return [
        {
            "id": first + place,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": content in SPECIAL,
        }
        for place, content in enumerate(SPECIAL + MARKERS)
    ]


def tokenizer_files(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """``tokenizer.json`` and ``tokenizer_config.json``."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PIECES},
        "behavior": "Isolated",
        "invert": False,
    }
    added = added_tokens(len(model["vocab"]))
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": model,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 32768,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in added
            },
        },
    }


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else BUNDLED
    known = json.loads((WRITTEN / "tools.json").read_text(encoding="utf-8"))
    opening = parse_all((WRITTEN / "opening.txt").read_text(encoding="utf-8"))
    written = list(opening)
    for name in FILES:
        written += parse_all((WRITTEN / f"{name}.txt").read_text(encoding="utf-8"))
    written += [parse(text) for text in computed()]

    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    lines = sample_lines(written, len(opening), known)
    (folder / "sample.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    files = tokenizer_files(train(training_texts(written, known)))
    for name, content in files.items():
        indent = None if name == "tokenizer.json" else 2
        separators = (",", ":") if indent is None else (",", ": ")
        text = json.dumps(content, ensure_ascii=False, indent=indent, separators=separators)
        (folder / "tokenizer" / name).write_bytes(f"{text}\n".encode())
    sys.stdout.write(f"{len(lines)} conversations, {len(files)} tokenizer files in {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
