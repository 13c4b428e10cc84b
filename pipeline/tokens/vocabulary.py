"""A tokenizer's files: where they lie, chat templates, special tokens; needs no engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import TemplateError, TokenizerError

TOKENIZER = "tokenizer.json"
_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"
_GENERATION = "generation_config.json"
_JINJA, _JINJA_FOLDER, _PROCESSOR = (
    "chat_template.jinja",
    "additional_chat_templates",
    "chat_template.json",
)
_FILES = (TOKENIZER, _CONFIG, _MAP, _JINJA, f"{_JINJA_FOLDER}/*.jinja", _PROCESSOR, _GENERATION)
# `PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES` of transformers 5.23, in its order.
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_BARRED = re.compile(r"<[|｜].+[|｜]>|\[\|.+\|\]")
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@\s]+))?")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer's folder holds; small, as the big ``tokenizer.json`` stays on disk.

    ``templates`` maps names to chat templates (a single one is ``default``; may be empty).
    ``special_tokens`` is what transformers hands to templates: named tokens such as
    ``eos_token``, model-specific ones such as ``image_token``; absent where null.
    ``stop_tokens`` are those that the model's generation ends with, where its
    ``generation_config.json`` lies beside.
    ``digests`` maps each file that was read to the sha256 of its bytes.
    """

    name: str
    folder: Path
    templates: Mapping[str, str]
    special_tokens: Mapping[str, str]
    digests: Mapping[str, str]
    stop_tokens: tuple[str, ...] = ()


class AddedToken(msgspec.Struct, frozen=True):
    """An entry of ``added_tokens``; ``special`` is as the file has it."""

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False

    @property
    def control(self) -> bool:
        """Special, or written between bars: DeepSeek's ``<｜User｜>`` is not marked special."""
        return self.special or bool(_BARRED.fullmatch(self.content))


class Definition(msgspec.Struct, frozen=True):
    """The parts of ``tokenizer.json`` that decide what a token covers; ``model`` as it is."""

    model: msgspec.Raw
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


def read_vocabulary(name: str | Path) -> Vocabulary:
    """Read a folder, or fetch ``org/name[@revision]`` from the hub (or its cache, offline).

    An existing folder never touches the network. Raises TokenizerError.
    """
    name = str(name)
    folder = _locate(name)
    config = _read_json(folder / _CONFIG)
    raw = _tokenizer_bytes(folder)
    definition = read_definition(raw, folder / TOKENIZER)
    vocabulary = Vocabulary(
        name=name,
        folder=folder,
        templates=_templates(folder, config),
        special_tokens=_special_tokens(config, _read_json(folder / _MAP)),
        digests=_digests(folder),
        stop_tokens=_stop_tokens(_read_json(folder / _GENERATION), definition),
    )
    _require_added_tokens(vocabulary, config, definition)
    return vocabulary


def choose_template(vocabulary: Vocabulary, *, name: str = "default") -> str:
    """The chat template called *name*; the TemplateError says where one was looked for."""
    if name in vocabulary.templates:
        return vocabulary.templates[name]
    if not vocabulary.templates:
        raise TemplateError(
            f"{vocabulary.name}: no chat template in {_JINJA}, {_JINJA_FOLDER}/*.jinja, "
            f"{_CONFIG} or {_PROCESSOR}; pass --chat-template FILE.jinja"
        )
    known = ", ".join(sorted(vocabulary.templates))
    raise TemplateError(
        f"{vocabulary.name}: no chat template named {name!r}, only {known}; "
        "pass --chat-template with one of these names, or a FILE.jinja"
    )


def read_definition(raw: bytes, place: Path) -> Definition:
    """Decode ``tokenizer.json`` without its vocabulary and merges (0.1 s for 33 MB)."""
    try:
        return msgspec.json.decode(raw, type=Definition)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"{place}: not a tokenizer definition: {error}; save or download it again"
        ) from None


def _locate(name: str) -> Path:
    folder = Path(os.path.expanduser(name))  # noqa: PTH111 - Path's raises for an unknown user
    try:
        if folder.is_dir():
            return folder
        exists = folder.exists()
    except OSError as error:
        raise TokenizerError(f"{name}: cannot be read ({error.strerror}); pass a folder") from error
    if exists:
        raise TokenizerError(f"{name}: is a file; pass the folder that holds {TOKENIZER}")
    hub = _HUB_ID.fullmatch(name)
    if hub is None:
        raise TokenizerError(
            f"{name}: no such folder, and not a hub id either; "
            f"pass a folder that holds {TOKENIZER}, or an id such as org/name or org/name@revision"
        )
    return _fetch(name, hub["repo"], hub["revision"])


def _fetch(name: str, repo: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise TokenizerError(
            f"{name}: no such folder, and hub ids need huggingface_hub; "
            "pip install 'weighted-shards[hub]', or pass a folder"
        ) from None
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client raises its own, httpx's and the OS's
        fact = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TokenizerError(
            f"{name}: no such folder here, and the hub gave no {TOKENIZER} for it ({fact}); "
            "check the name, its revision and your token, or pass a folder"
        ) from error


def _tokenizer_bytes(folder: Path) -> bytes:
    path = folder / TOKENIZER
    if path.is_file():
        return path.read_bytes()
    other = [n for n in ("tokenizer.model", "tekken.json", "vocab.json") if (folder / n).is_file()]
    found = f"only {' and '.join(other)}" if other else "nor another tokenizer file"
    raise TokenizerError(
        f"{folder}: no {TOKENIZER}, {found}; write one with transformers: "
        f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained(FOLDER)"
    )


def _read_json(path: Path) -> dict[str, Any]:
    """An absent file is an empty object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise TokenizerError(f"{path}: not JSON: {error}; save or download it again") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected an object; save or download it again")
    return value


def _templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files win over the configuration as a whole, as in transformers' ``_from_pretrained``.

    ``chat_template.json`` belongs to processors, which AutoTokenizer does not read: it comes last.
    """
    files = {p.stem: p for p in sorted((folder / _JINJA_FOLDER).glob("*.jinja"))}
    if (folder / _JINJA).is_file():
        files["default"] = folder / _JINJA
    try:
        texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{folder}: a chat template is not UTF-8: {error}; save it so"
        ) from None
    return (
        texts
        or _configured(config, folder / _CONFIG)
        or _configured(_read_json(folder / _PROCESSOR), folder / _PROCESSOR)
    )


def _configured(config: dict[str, Any], place: Path) -> dict[str, str]:
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": text} for name, text in value.items()]
    try:
        return msgspec.convert(
            {entry["name"]: entry["template"] for entry in value}, dict[str, str]
        )
    except (KeyError, TypeError, msgspec.ValidationError):
        raise TokenizerError(
            f'{place}: chat_template: expected a string or a list of {{"name", "template"}}; '
            f"correct it, or put the template into {_JINJA}"
        ) from None


def _special_tokens(config: dict[str, Any], legacy: dict[str, Any]) -> dict[str, str]:
    # transformers lets special_tokens_map.json win unless the configuration lists added tokens
    # itself; then it ignores the file, and a key that is missing gets a class's default, which the
    # file usually repeats.
    merged = legacy | config if "added_tokens_decoder" in config else config | legacy
    extra = merged.get("extra_special_tokens")
    merged = merged | (extra if isinstance(extra, dict) else {})
    names = [*_NAMED, *(n for n in merged if n.endswith("_token") and n not in _NAMED)]
    names += [n for n in extra if n not in names] if isinstance(extra, dict) else []
    contents = {name: _content(merged.get(name)) for name in names}
    return {name: content for name, content in contents.items() if content is not None}


def _content(token: object) -> str | None:
    """The text of a token given as a string or as an ``AddedToken`` object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _require_added_tokens(
    vocabulary: Vocabulary, config: dict[str, Any], definition: Definition
) -> None:
    """Refuse a control token that only transformers would add, where the chat template writes it.

    transformers adds every entry of ``added_tokens_decoder`` to what ``tokenizer.json`` says; read
    without it, such a token would silently be encoded as text. (Qwen3.5's seven audio tokens are
    such entries, which its template never writes: harmless.)
    """
    known = {token.content for token in definition.added_tokens}
    decoder = config.get("added_tokens_decoder")
    listed = [_content(entry) for entry in decoder.values()] if isinstance(decoder, dict) else []
    ends = {vocabulary.special_tokens.get(name) for name in ("bos_token", "eos_token")}
    for content in listed:
        if not content or content in known:
            continue
        if content in ends or any(content in text for text in vocabulary.templates.values()):
            raise TokenizerError(
                f"{vocabulary.folder / _CONFIG}: added_tokens_decoder: {content!r} is missing from "
                f"{TOKENIZER}; write both anew with transformers: "
                f"AutoTokenizer.from_pretrained({str(vocabulary.folder)!r}).save_pretrained(FOLDER)"
            )


def _stop_tokens(generation: dict[str, Any], definition: Definition) -> tuple[str, ...]:
    ids = generation.get("eos_token_id")
    wanted = ids if isinstance(ids, list) else [ids]
    contents = {token.id: token.content for token in definition.added_tokens}
    return tuple(contents[id_] for id_ in wanted if type(id_) is int and id_ in contents)


def _digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for pattern in _FILES for path in folder.glob(pattern) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
