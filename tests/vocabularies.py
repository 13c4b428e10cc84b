"""Small tokenizers of every kind, trained in a second on the text below."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXT = (
    "The quick brown fox jumps over the lazy dog. Hello world, I'm here and they'll see it's 123 "
    "or 3.14! naïve café Straße über Привет мир שלום नमस्ते 你好世界 日本語 한국어 😀 "
    "👩\u200d👩\u200d👧 x = f(y);\n\ndef main():\n    return {'a': [1, 2]}\n"
) * 3
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ADDED = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def byte_level(
    *,
    normalizer: Any = None,
    trim: bool = False,
    prefix: bool = False,
    split: str = SPLIT,
    alphabet: bool = True,
    text: str = TEXT,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None if alphabet else "<unk>"))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=[] if alphabet else ["<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
    )
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t[1] == "|") for t in ADDED])
    return tokenizer


def with_other_whitespace() -> Tokenizer:
    """U+180E is a space to one engine's regexes, not to the other's; merges cross it."""
    text = "x\u180ex \u180e \u180e1\u180e1 " * 50
    return byte_level(split=r"\s+|\S+", text=TEXT + text)


def stripping() -> Tokenizer:
    """Added tokens that take the spaces around them, stand alone, or match normalized text."""
    tokenizer = byte_level(normalizer=normalizers.NFC())
    tokenizer.add_tokens(
        [
            AddedToken("<l>", lstrip=True, normalized=False),
            AddedToken("<r>", rstrip=True, normalized=False),
            AddedToken("<lr>", lstrip=True, rstrip=True, normalized=True),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("e\u0301!", normalized=True),
            AddedToken("\u0958", normalized=True),
        ]
    )
    return tokenizer


def byte_fallback(*, prepend: bool = False, normalizer: Any = None) -> Tokenizer:
    """Like Gemma's; with *prepend* like Llama 2's."""
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if prepend:
        steps.insert(0, normalizers.Prepend("▁"))
    if normalizer is not None:
        steps.append(normalizer)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=special, max_token_length=8
    )
    tokenizer.train_from_iterator(TEXT.replace("日本語", "").split("\n"), trainer)
    definition = json.loads(tokenizer.to_str())
    # Byte tokens are ordinary entries of the vocabulary; the trainer only knows added ones.
    definition["added_tokens"] = [t for t in definition["added_tokens"] if t["id"] == 0]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t[1] == "|") for t in ADDED])
    tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("a b", normalized=True)])
    tokenizer.add_tokens([AddedToken("c▁d", normalized=True), AddedToken("\n\n", normalized=False)])
    return tokenizer


def word_piece(*, unknown: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]"] if unknown else []
    trainer = trainers.WordPieceTrainer(vocab_size=300, show_progress=False, special_tokens=special)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t[1] == "|") for t in ADDED])
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "nfc": lambda: byte_level(normalizer=normalizers.NFC()),
    "nfkc": lambda: byte_level(normalizer=normalizers.NFKC()),
    "lowercase": lambda: byte_level(normalizer=normalizers.Lowercase()),
    "trim": lambda: byte_level(trim=True),
    "prefix": lambda: byte_level(prefix=True),
    "incomplete": lambda: byte_level(alphabet=False),
    "stripping": stripping,
    "byte_fallback": byte_fallback,
    "byte_fallback_nfc": lambda: byte_fallback(normalizer=normalizers.NFC()),
    "prepend": lambda: byte_fallback(prepend=True),
    "word_piece": word_piece,
    "unigram": unigram,
}


def write(folder: Path, tokenizer: Tokenizer, *, config: dict[str, Any] | None = None) -> Path:
    """A folder as `save_pretrained` leaves it, without a template unless *config* has one."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    return folder
