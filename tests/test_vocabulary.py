"""A tokenizer's folder is read as transformers reads it; what is missing is named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TemplateError, TokenizerError
from pipeline.tokens.vocabulary import choose_template, read_vocabulary

DEFINITION: dict[str, Any] = {
    "added_tokens": [{"id": 1, "content": "<|end|>", "special": True, "rstrip": False}],
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path / "tokenizer.json", DEFINITION)
    return tmp_path


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def configure(folder: Path, **config: Any) -> None:
    put(folder / "tokenizer_config.json", config)


def test_a_folder_with_only_a_definition_is_enough(folder: Path) -> None:
    vocabulary = read_vocabulary(folder)
    assert (vocabulary.name, vocabulary.folder) == (str(folder), folder)
    assert (dict(vocabulary.templates), dict(vocabulary.special_tokens)) == ({}, {})
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


def test_a_single_template_is_the_default(folder: Path) -> None:
    configure(folder, chat_template="config")
    assert choose_template(read_vocabulary(folder)) == "config"


@pytest.mark.parametrize("form", ["list", "dict"])
def test_templates_can_have_names(form: str, folder: Path) -> None:
    named = {"default": "d", "tool_use": "t"}
    listed = [{"name": name, "template": text} for name, text in named.items()]
    configure(folder, chat_template=listed if form == "list" else named)
    assert read_vocabulary(folder).templates == named
    assert choose_template(read_vocabulary(folder), name="tool_use") == "t"


def test_template_files_win_over_the_configuration_as_a_whole(folder: Path) -> None:
    configure(
        folder,
        chat_template=[{"name": "default", "template": "c"}, {"name": "rag", "template": "r"}],
    )
    (folder / "chat_template.jinja").write_bytes("ä\r\nb".encode())
    assert read_vocabulary(folder).templates == {"default": "ä\nb"}
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("t")
    (folder / "additional_chat_templates" / "notes.txt").write_text("n")
    assert read_vocabulary(folder).templates == {"default": "ä\nb", "tool_use": "t"}


def test_a_processor_template_comes_last(folder: Path) -> None:
    put(folder / "chat_template.json", {"chat_template": "processor"})
    assert read_vocabulary(folder).templates == {"default": "processor"}
    configure(folder, chat_template="config")
    assert read_vocabulary(folder).templates == {"default": "config"}


def test_a_missing_template_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(TemplateError) as none:
        choose_template(read_vocabulary(folder))
    for place in ("chat_template.jinja", "additional_chat_templates", "tokenizer_config.json"):
        assert place in str(none.value)
    assert str(none.value).endswith("; pass --chat-template FILE.jinja")
    configure(
        folder, chat_template=[{"name": "rag", "template": ""}, {"name": "a", "template": ""}]
    )
    with pytest.raises(TemplateError, match="no chat template named 'default', only a, rag; "):
        choose_template(read_vocabulary(folder))


@pytest.mark.parametrize("template", [3, [{"name": "x"}], ["x"], [{"name": "x", "template": 1}]])
def test_a_template_that_is_no_text_is_an_error(template: Any, folder: Path) -> None:
    configure(folder, chat_template=template)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: chat_template: expected"):
        read_vocabulary(folder)


def test_a_template_file_that_is_not_utf8_is_an_error(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match="not UTF-8"):
        read_vocabulary(folder)


def test_special_tokens_are_named_contents(folder: Path) -> None:
    configure(
        folder,
        image_token="<img>",
        pad_token=None,
        eos_token={"__type": "AddedToken", "content": "<e>", "lstrip": False},
        bos_token="<b>",
        add_bos_token=True,
        additional_special_tokens=["<x>"],
        extra_special_tokens={"audio_token": "<a>", "boi": "<i>"},
    )
    tokens = read_vocabulary(folder).special_tokens
    assert tokens == {
        "bos_token": "<b>",
        "eos_token": "<e>",
        "image_token": "<img>",
        "audio_token": "<a>",
        "boi": "<i>",
    }


def test_the_legacy_map_wins_unless_the_configuration_lists_added_tokens(folder: Path) -> None:
    """As in transformers 5.23; a key that the configuration lacks is taken from the map anyway."""
    put(folder / "special_tokens_map.json", {"eos_token": {"content": "<map>"}, "pad_token": "<p>"})
    configure(folder, eos_token="<config>")
    assert read_vocabulary(folder).special_tokens == {"eos_token": "<map>", "pad_token": "<p>"}
    configure(folder, eos_token="<config>", added_tokens_decoder={})
    assert read_vocabulary(folder).special_tokens == {"eos_token": "<config>", "pad_token": "<p>"}


def test_digests_are_of_the_files_that_matter(folder: Path) -> None:
    configure(folder, chat_template="x")
    (folder / "README.md").write_text("no")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("r")
    digests = read_vocabulary(folder).digests
    names = ["additional_chat_templates/rag.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(digests) == names
    for name in names:
        assert digests[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def test_a_token_that_only_transformers_would_add_is_refused_where_it_is_written(
    folder: Path,
) -> None:
    listed = {"1": {"content": "<|end|>"}, "2": {"content": "<audio>"}}
    configure(folder, added_tokens_decoder=listed, chat_template="{{ x }}<|end|>")
    assert read_vocabulary(folder).templates
    configure(folder, added_tokens_decoder=listed, chat_template="{{ x }}<audio>")
    with pytest.raises(TokenizerError, match=r"'<audio>' is missing from tokenizer\.json; write"):
        read_vocabulary(folder)
    configure(folder, added_tokens_decoder=listed, eos_token="<audio>")
    with pytest.raises(TokenizerError, match="'<audio>' is missing"):
        read_vocabulary(folder)


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "/no/where/at/all", "a/b/c", "", "a b/c"])
def test_neither_a_folder_nor_an_id(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TokenizerError, match=r"no tokenizer\.json|no such folder, and not a hub id"
    ):
        read_vocabulary(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(TokenizerError, match="is a file; pass the folder"):
        read_vocabulary(folder / "tokenizer.json")


@pytest.mark.parametrize("other", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_of_another_kind_says_how_to_convert(other: str, tmp_path: Path) -> None:
    (tmp_path / other).write_text("")
    with pytest.raises(TokenizerError) as caught:
        read_vocabulary(tmp_path)
    assert f"no tokenizer.json, only {other}; write one with transformers: " in str(caught.value)
    assert "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"model": ', b'{"added_tokens": []}', b"\xff"])
def test_a_broken_definition_is_an_error(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer definition: "):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff"])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_broken_configuration_is_an_error(raw: bytes, name: str, folder: Path) -> None:
    (folder / name).write_bytes(raw)
    with pytest.raises(TokenizerError, match=rf"{name}: (not JSON|expected an object)"):
        read_vocabulary(folder)


def test_a_local_folder_never_touches_the_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("network")

    (folder / "org" / "name").mkdir(parents=True)
    put(folder / "org" / "name" / "tokenizer.json", DEFINITION)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert read_vocabulary("org/name").folder == Path("org/name")


def test_a_hub_id_without_the_hub_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(TokenizerError, match=r"pip install 'weighted-shards\[hub\]'"):
        read_vocabulary("some-org/no.such_name@v1")


def offline(code: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process whose hub client has a cache of its own and no network."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_CACHE", None)
    return subprocess.run(
        [sys.executable, "-c", f"from pipeline.tokens.vocabulary import read_vocabulary\n{code}"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=Path(__file__).resolve().parent.parent,
    )


@pytest.mark.parametrize("revision", ["", "@v2"])
def test_a_hub_id_is_read_from_the_cache_offline(revision: str, tmp_path: Path) -> None:
    repo, commit = tmp_path / "hub" / "models--org--name", "0123456789abcdef" * 2 + "01234567"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / (revision[1:] or "main")).write_text(commit)
    snapshot = repo / "snapshots" / commit
    put(snapshot / "tokenizer.json", DEFINITION)
    (snapshot / "chat_template.jinja").write_text("T")
    run = offline(
        f"v = read_vocabulary('org/name{revision}'); print(v.name, v.templates)", tmp_path
    )
    assert run.stdout.strip() == f"org/name{revision} {{'default': 'T'}}", run.stderr


def test_an_unknown_id_is_one_error(tmp_path: Path) -> None:
    run = offline("read_vocabulary('org/unknown')", tmp_path)
    last = run.stderr.strip().splitlines()[-1]
    assert (
        "TokenizerError: org/unknown: no such folder here, and the hub gave no tokenizer.json"
        in last
    )
    assert last.endswith("or pass a folder")


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        # What AutoTokenizer(...).special_tokens_map of transformers 5.23 says.
        ("qwen2.5", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        ("qwen3", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
        ("glm-4.7-flash", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}),
        (
            "deepseek_r1",
            {
                "bos_token": "<｜begin▁of▁sentence｜>",
                "eos_token": "<｜end▁of▁sentence｜>",
                "pad_token": "<｜end▁of▁sentence｜>",
            },
        ),
        (
            "gemma3",  # transformers adds mask_token, a default of its class
            {
                "bos_token": "<bos>",
                "eos_token": "<end_of_turn>",
                "unk_token": "<unk>",
                "pad_token": "<pad>",
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
        ),
    ],
)
def test_real_special_tokens(name: str, tokens: dict[str, str], shared: Path) -> None:
    assert read_vocabulary(shared / "tokenizers" / name).special_tokens == tokens


@pytest.mark.corpus
def test_every_real_tokenizer_has_its_template(shared: Path) -> None:
    folders = sorted((shared / "tokenizers").iterdir())
    assert len(folders) >= 7
    for folder in folders:
        assert "{%" in choose_template(read_vocabulary(folder)), folder.name
