"""What a hostile rule, template, dataset, manifest or folder cannot do; see SECURITY.md."""

from __future__ import annotations

import ast
import bz2
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pipeline import build, cli, reweight, show, verify
from pipeline.errors import BuildError, InputError
from pipeline.files import WORK
from pipeline.recipe import BUNDLED
from pipeline.redaction import redact
from pipeline.source import hub, spool, survey
from pipeline.source.hub import fetch_dataset
from pipeline.source.inputs import resolve

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = str(BUNDLED / "tokenizer")
PAUSE = 60  # seconds: attacks take hours unguarded; a shared machine may pause


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(talk("Hi", f"Hello {i}")) + "\n" for i in range(5)))
    return path


def built(source: Path | str, output: Path, *flags: str) -> int:
    arguments = ["--input", str(source), "--tokenizer", TOKENIZER, "--output", str(output)]
    return cli.run(build.main, [*arguments, "--workers", "1", "--quiet", *flags])


# Code in configuration.


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda p: p.stem)
def test_no_module_unpickles_or_evaluates(path: Path) -> None:
    """Workers' pipes carry pickles between our own processes only, by multiprocessing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "subprocess"}
    if "training" in path.relative_to(ROOT / "pipeline").parts:
        banned -= {"torch"}  # whose own unpickling is banned below
    assert not imported & banned
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert not called & {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    assert not called & {"torch.load", "torch.hub.load", "torch.jit.load", "np.load", "numpy.load"}
    assert not {c for c in called if c.startswith("yaml.") and "load" in c}
    assert "yaml.compose" not in called or path.stem == "document"  # with SafeLoader: see below


@pytest.mark.parametrize(
    "text",
    [
        "rules: !!python/object/apply:os.system ['touch {mark}']",
        "rules:\n  - !!python/object/new:os.system ['touch {mark}']",
        "summary: !!python/name:os.system\nrules: []",
        "rules:\n  - {{pattern: !!python/object/apply:os.system ['touch {mark}'], weight: 0}}",
    ],
)
def test_yaml_makes_no_objects(
    text: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, rules = tmp_path / "mark", tmp_path / "r.yaml"
    rules.write_text(f"version: 1\nname: r\n{text.format(mark=mark)}\n")
    code = built(source, tmp_path / "out", "--rules", str(rules))
    assert code == (0 if "pattern" in text else 1)  # where a tag says nothing, it is passed over
    assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()


def test_aliases_of_aliases_end(source: Path, tmp_path: Path) -> None:
    """A billion of laughs: each list holds nine times the one before."""
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    rules = tmp_path / "r.yaml"
    for body in ("\n".join(laughs), "rules:\n  - when: {row: {x: &a [*a]}}\n    weight: 0"):
        rules.write_text(f"version: 1\nname: r\n{body}\n")
        started = time.monotonic()
        assert built(source, tmp_path / "out", "--rules", str(rules)) == 1
        assert time.monotonic() - started < PAUSE


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
    "{{ lipsum.__globals__['os'].system('touch MARK') }}",
    "{{ self.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
    "{{ ('{0.__class__.__mro__}').format('') }}",
    "{{ ('{x.__class__.__mro__}').format_map({'x': ''}) }}",
    "{{ ''|attr('__class__') }}",
    "{{ dict.__class__.__mro__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('MARK', 'w') }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}{{ p }}",
    "{% extends '/etc/passwd' %}",
    "{% for m in messages %}{{ m.__class__.__base__.__subclasses__() }}{% endfor %}",
    "{% set _ = messages.append({'role': 'user', 'content': 'x'}) %}",
    "{{ messages[0].update({'role': 'assistant'}) }}",
]


def test_no_template_leaves_the_sandbox(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "mark"
    for escape in ESCAPES:
        template = tmp_path / "t.jinja"
        template.write_text(escape.replace("MARK", str(mark)))
        arguments = ["--tokenizer", TOKENIZER, "--chat-template", str(template)]
        started = time.monotonic()
        assert cli.run(show.main, [str(source), *arguments]) == 1, escape
        assert time.monotonic() - started < PAUSE
        out, err = capsys.readouterr()
        assert err.startswith("error: "), escape
        assert "root:" not in out + err
        assert not mark.exists(), escape


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999999) %}{% for b in range(9999999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10000000000 }}",
        "{% set ns = namespace(t='x') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}"
        "{% endfor %}{{ ns.t }}",
        "{{ 10 ** (10 ** 10) }}",
    ],
)
def test_template_bombs_end_from_outside(
    template: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(template)
    started = time.monotonic()
    assert built(source, tmp_path / "out", "--chat-template", str(path)) == 1
    assert time.monotonic() - started < PAUSE
    rejects = tmp_path / "out" / "rejects.jsonl"
    told = capsys.readouterr().err + (rejects.read_text() if rejects.exists() else "")
    assert "the chat template" in told


def test_pattern_bombs_end_from_outside(tmp_path: Path) -> None:
    source, rules, output = tmp_path / "d.jsonl", tmp_path / "r.yaml", tmp_path / "out"
    lines = [talk("Hi", "a" * 60 + "!"), talk("Hi", "Hello")]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rules.write_text(
        "version: 1\nname: r\nrules:\n  - {pattern: '(?:a|a|aa)+(?:a|b)+(?:a|a)+$', weight: 0}\n"
    )
    started = time.monotonic()
    assert built(source, output, "--rules", str(rules), "--max-reject-rate", "1") == 0
    assert time.monotonic() - started < PAUSE
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    assert [(r["row"], r["stage"]) for r in rejects] == [(0, "match")]


# Data.


@pytest.mark.parametrize(
    ("ending", "compress"),
    [("zst", lambda raw: zstandard.ZstdCompressor().compress(raw)), ("bz2", bz2.compress)],
)
def test_decompression_bombs_are_refused_before_the_disk_is_full(
    ending: str,
    compress: Callable[[bytes], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool, "BOMB_BYTES", 1 << 20)
    path = tmp_path / f"bomb.jsonl.{ending}"
    path.write_bytes(compress(b'{"messages": []}' + b" " * (1 << 28)))
    with pytest.raises(InputError, match="unpack it yourself if that is no mistake"):
        survey([str(path)], spool=tmp_path / "spool", piece_bytes=1 << 20)
    kept = sum(p.stat().st_size for p in (tmp_path / "spool").rglob("*"))
    assert kept < (1 << 28) - (1 << 22)


def test_data_that_compresses_well_is_no_bomb(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    raw = (json.dumps(talk("Hi", "Hello")) + "\n").encode() * 20_000
    path.write_bytes(zstandard.ZstdCompressor(level=19).compress(raw))
    assert len(raw) > spool.BOMB_RATIO * path.stat().st_size / 10  # a high ratio, if a small file
    [found] = survey([str(path)], spool=tmp_path / "spool", piece_bytes=1 << 20)
    assert found.records == 20_000


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "a/../../x", "", 7, None, ".."])
def test_a_saved_dataset_lists_files_of_its_own_folder(name: Any, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for entries in ([{"filename": name}], [name], name):
        (folder / "state.json").write_text(json.dumps({"_data_files": entries}))
        with pytest.raises(InputError, match="names what is no file or folder beside it"):
            resolve([str(folder)])
    (folder / "state.json").unlink()
    if name:
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
        with pytest.raises(InputError, match="names what is no file or folder beside it"):
            resolve([str(folder)])


@pytest.mark.parametrize("word", ["pandas", "csv", "pandas@main"])
def test_no_loader_of_datasets_is_taken_for_a_dataset(word: str) -> None:
    """``load_dataset("pandas")`` would unpickle files of the working folder."""
    with pytest.raises(InputError, match="give the files"):
        fetch_dataset(word)


def test_no_script_of_a_dataset_runs() -> None:
    assert hub._without_code("3.6.0") == {"trust_remote_code": False}
    assert hub._without_code("5.2.0") == {}  # there is none any more, nor such an argument


# The output folder.


def test_a_manifest_with_a_path_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, outside = tmp_path / "out", tmp_path / "secret.parquet"
    assert built(source, folder) == 0
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    (folder / manifest["shards"][0]["file"]).rename(outside)
    manifest["shards"][0]["file"] = "../secret.parquet"
    path.write_text(json.dumps(manifest))
    arguments = [str(folder), "--rules", "--output", str(tmp_path / "new")]
    assert cli.run(reweight.main, arguments) == 1
    assert "is not in its folder" in capsys.readouterr().err
    assert cli.run(verify.main, [str(folder)]) == 1
    assert "is not in its folder" in capsys.readouterr().err


def test_a_sidecar_with_a_path_is_no_result(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert built(source, folder) == 0
    path = folder / WORK / "00000.json"
    expected = path.read_bytes()
    done = json.loads(expected)
    (folder / done["file"]).rename(tmp_path / "elsewhere.parquet")
    path.write_text(json.dumps({**done, "file": "../elsewhere.parquet"}))
    assert built(source, folder) == 0
    assert path.read_bytes() == expected
    assert (folder / done["file"]).exists()


@pytest.mark.parametrize(
    "link",
    [
        WORK,
        f"{WORK}/train-00000-of-00001.parquet.tmp",
        f"{WORK}/spool",
        f"{WORK}/spool/00000.jsonl",
        ".rejects.jsonl.tmp",
    ],
)
def test_links_in_an_output_folder_are_not_written_through(
    link: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, victim = tmp_path / "out", tmp_path / "victim"
    kept = victim / "notes.txt" if link in (WORK, f"{WORK}/spool") else victim
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    (folder / link).parent.mkdir(parents=True)
    (folder / link).symlink_to(victim)
    if folder == (folder / link).parent and link != WORK:
        (folder / WORK).mkdir()
    for flags in ((), ("--overwrite",)):
        assert built(source, folder, *flags) == 1
        assert "is a symbolic link, where only a build's own files may lie" in (
            capsys.readouterr().err
        )
        assert kept.read_text() == "mine"


@pytest.mark.parametrize("name", ["manifest.json", f"{WORK}/plan.json", f"{WORK}/00000.json"])
def test_a_pipe_in_an_output_folder_is_not_waited_for(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert built(source, folder) == 0
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert built(source, folder) == 1
    assert f"{folder / name}: " in capsys.readouterr().err
    if name == "manifest.json":
        arguments = [str(folder), "--rules", "--output", str(tmp_path / "new"), "--workers", "1"]
        assert cli.run(reweight.main, arguments) == 1
        assert "is no file" in capsys.readouterr().err


STATES: list[Any] = [[], {}, None, {"parts": [], "fingerprint": "x"}, {"parts": None}]


@pytest.mark.parametrize("text", [*map(json.dumps, STATES), "[" * 100_000, "\0"])
@pytest.mark.parametrize("name", ["manifest.json", f"{WORK}/plan.json"])
def test_a_state_edited_by_hand_is_told_in_one_message(
    name: str, text: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    assert built(source, folder) == 0
    (folder / name).write_text(text)
    assert built(source, folder) == 1
    assert f"{folder / name}: cannot be read: " in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "x", [], -1, 7, 1.5, {"tokens": "x"}, {"rows": 4}])
@pytest.mark.parametrize("key", ["counts", "index", "rows"])
def test_a_sidecar_edited_by_hand_is_no_result(
    key: str, value: Any, source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    assert built(source, folder) == 0
    path, manifest = folder / WORK / "00000.json", (folder / "manifest.json").read_bytes()
    expected = path.read_bytes()
    path.write_text(json.dumps({**json.loads(expected), key: value}))
    assert built(source, folder) == 0
    assert path.read_bytes() == expected
    assert (folder / "manifest.json").read_bytes() == manifest
    path.write_text("[" * 100_000)
    assert built(source, folder) == 0
    assert path.read_bytes() == expected


def test_a_link_to_a_shard_is_replaced_not_written_through(source: Path, tmp_path: Path) -> None:
    folder, victim = tmp_path / "out", tmp_path / "victim"
    assert built(source, folder) == 0
    victim.write_text("mine")
    shard = next(folder.glob("*.parquet"))
    shard.unlink()
    shard.symlink_to(victim)
    assert built(source, folder) == 0
    assert victim.read_text() == "mine"
    assert not shard.is_symlink()


def test_rejects_replace_no_other_file_of_a_build(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    names = ["manifest.json", "train-00000-of-00001.parquet", f"{WORK}/00000.json"]
    for target in [*(folder / name for name in names), pipe, tmp_path, Path("/dev/null")]:
        assert built(source, folder, "--rejects", str(target)) == 1
        assert "error: --rejects" in capsys.readouterr().err
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)  # as root it would be replaced
    assert built(source, folder, "--rejects", str(tmp_path / "left.jsonl")) == 0


def test_a_planted_temporary_file_is_not_written_through(source: Path, tmp_path: Path) -> None:
    victim, rejects = tmp_path / "victim", tmp_path / "shared" / "left.jsonl"
    victim.write_text("mine")
    rejects.parent.mkdir()
    (rejects.parent / ".left.jsonl.tmp").symlink_to(victim)
    assert built(source, tmp_path / "out", "--rejects", str(rejects)) == 0
    assert victim.read_text() == "mine"
    assert rejects.read_bytes() == b""


def test_what_is_written_obeys_the_umask(source: Path, tmp_path: Path) -> None:
    """In a process of its own: the mask is the process's."""
    folder = tmp_path / "out"
    code = (
        "import os, sys; os.umask(0o077); from pipeline import build, cli\n"
        "sys.exit(cli.run(build.main, sys.argv[1:]))\n"
    )
    arguments = ["--input", str(source), "--tokenizer", TOKENIZER, "--output", str(folder)]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--quiet", "--workers", "1"], check=False
    )
    assert run.returncode == 0
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder, *folder.rglob("*"))}
    assert all(mode in (0o600, 0o700) for mode in modes.values()), modes


# Secrets.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf://me:hunter2secret@host/x: no such file", "hf://***@host/x: no such file"),
        ("https://hunter2secret@host/x", "https://***@host/x"),
        ("https://me:hunter2secret@x@host/x", "https://***@host/x"),
        ("GET https://h/x?token=hunter2secret&a=1", "GET https://h/x?token=***&a=1"),
        ("https://h/x?a=1&X-Amz-Signature=hunter2secret", "https://h/x?a=1&X-Amz-Signature=***"),
        ("Invalid hf_hunter2secretAbCdEfGh", "Invalid ***"),
        ("Authorization: Bearer hunter2secret", "Authorization: Bearer ***"),
        ("data.jsonl:3: messages[0]: a@b.c; user@host", None),
        ("https://host/a/b@main: fine", None),
    ],
)
def test_secrets_are_not_told(text: str, shown: str | None) -> None:
    assert redact(text) == (shown or text)


@pytest.mark.parametrize("flag", ["--input", "--tokenizer", "--chat-template", "--rules"])
def test_no_secret_of_a_flag_reaches_the_log_or_the_folder(
    flag: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    given = {"--input": str(source), "--tokenizer": TOKENIZER, "--output": str(folder)}
    given[flag] = "hf://me:hunter2secret@datasets/x?token=hunter2secret"
    assert cli.run(build.main, [part for pair in given.items() for part in pair]) == 1
    out, err = capsys.readouterr()
    assert "hunter2secret" not in out + err
    assert "***" in err
    assert not any(b"hunter2" in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_the_hubs_token_is_nowhere(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-hunter2secret")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{\n" + source.read_text())
    folder = tmp_path / "out"
    assert built(bad, folder, "--max-reject-rate", "1") == 0
    assert not any(b"hunter2" in p.read_bytes() for p in folder.rglob("*") if p.is_file())

    def fail(_: object) -> int:
        raise BuildError("the hub said: plain-hunter2secret is expired; log in")

    def break_down(_: object) -> int:
        raise RuntimeError("plain-hunter2secret")

    assert cli.run(fail, []) == 1
    assert cli.run(break_down, []) == 3
    err = capsys.readouterr().err
    assert "the hub said: *** is expired" in err
    assert "hunter2" not in err


def test_a_filters_number_is_no_text_between_pieces(source: Path, tmp_path: Path) -> None:
    """Command R's template; the build ended with a traceback where a vocabulary has controls."""
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% if tools %}{{ tools | tojson(2) }}{{ {'a': 1} | dictsort(false) }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert built(source, tmp_path / "out", "--chat-template", str(template)) == 0
