"""Names and folders that others made: nothing escapes, steers, or is read twice."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import build, cli
from pipeline.errors import InputError
from pipeline.recipe import BUNDLED
from pipeline.source import survey
from pipeline.terminal import harmless, printable

GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
NASTY = [
    "new\nline.jsonl",
    "\x1b[2J\x1b]0;title\x07.jsonl",
    "tab\t.jsonl",
    "\u202ereversed.jsonl",
    os.fsdecode(b"latin-\xe9.jsonl"),
    "..jsonl",
    "back\\slash.jsonl",
    "a" * 200 + ".jsonl",
    "--help.jsonl",
]


def names(*words: Path | str, spool: Path) -> list[str]:
    return [s.name for s in survey([str(w) for w in words], spool=spool, piece_bytes=99)]


def error(*words: Path | str, spool: Path) -> str:
    with pytest.raises(InputError) as caught:
        names(*words, spool=spool)
    return str(caught.value)


def written(path: Path, content: bytes = GOOD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_whatever_files_are_called_they_become_rows_and_rejects(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in NASTY:
        written(tmp_path / "in" / name, GOOD + b"broken\n")
    output = tmp_path / "out"
    argv = ["--input", str(tmp_path / "in"), "--output", str(output), "--workers", "1"]
    tokenizer = ["--tokenizer", str(BUNDLED / "tokenizer"), "--max-reject-rate", "0.5"]
    assert cli.run(build.main, [*argv, *tokenizer]) == 0
    rows = pq.read_table(output / "train-00000-of-00001.parquet")["source"].to_pylist()
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_bytes().splitlines()]
    assert len(set(rows)) == len(rows) == len(rejects) == len(NASTY) - 1  # "..jsonl" is hidden
    assert sorted(r["source"] for r in rejects) == sorted(rows)
    told = capfd.readouterr()
    for text in (*rows, told.out, told.err, (output / "manifest.json").read_text("utf-8")):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", text)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_names_that_are_printed_stay_apart(tmp_path: Path) -> None:
    for name in ("a\x01.jsonl", "a\\x01.jsonl", "a\\\\x01.jsonl"):
        written(tmp_path / name)
    got = names(tmp_path, spool=tmp_path / "s")
    assert sorted(got) == sorted(["a\\x01.jsonl", "a\\\\x01.jsonl", "a\\\\\\\\x01.jsonl"])


def test_a_name_has_no_way_up_and_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a" / "x.jsonl")
    written(tmp_path / "b" / "x.jsonl")
    monkeypatch.chdir(tmp_path / "a")
    words = ["../../" + tmp_path.name + "/b/x.jsonl", str(tmp_path / "b" / ".." / "a" / "x.jsonl")]
    assert names(*words, spool=tmp_path / "s") == ["b/x.jsonl", "a/x.jsonl"]


def test_an_error_stays_on_its_line(tmp_path: Path) -> None:
    told = error(written(tmp_path / "x\nerror: done\x1b[2J.jsonl", b"\xff\xfea"), spool=tmp_path)
    assert "x\\nerror: done\\x1b[2J.jsonl: text in UTF-16" in told
    for word in ("no\nsuch.jsonl", "no\nsuch*.jsonl"):
        assert error(word, spool=tmp_path).startswith("no\\nsuch")


def test_a_message_keeps_its_lines_and_backslashes() -> None:
    assert harmless("a\\d\n\tb\x1b[2J\x9b\u202e\ud800") == "a\\d\n\tb\\x1b[2J\\x9b\\u202e\\ud800"
    assert printable("数据 é 👩‍👩‍👧.jsonl") == "数据 é 👩‍👩‍👧.jsonl"


@pytest.mark.parametrize("name", ["../secret.arrow", "/etc/passwd", "..", ".", "", "a/b", 5, None])
def test_a_saved_dataset_names_only_its_own_files(tmp_path: Path, name: object) -> None:
    written(tmp_path / "secret.arrow")
    state = {"_data_files": [{"filename": name}]}
    written(tmp_path / "d" / "state.json", json.dumps(state).encode())
    assert "state.json: _data_files: names what is no file" in error(tmp_path / "d", spool=tmp_path)
    splits = {"splits": [name]}
    written(tmp_path / "e" / "dataset_dict.json", json.dumps(splits).encode())
    assert "dataset_dict.json: splits: names" in error(tmp_path / "e", spool=tmp_path)


@pytest.mark.parametrize(
    "state",
    [b"[" * 9999, b"{", b"[]", b'{"_data_files": "x"}', b'{"_data_files": {"a": 1}}'],
    ids=["deep", "broken", "list", "text", "object"],
)
def test_a_description_that_is_none_is_no_traceback(tmp_path: Path, state: bytes) -> None:
    written(tmp_path / "d" / "state.json", state)
    assert error(tmp_path / "d", spool=tmp_path).startswith(str(tmp_path / "d"))


def test_a_glob_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "x.jsonl")
    written(tmp_path / "d" / "y.jsonl")
    written(tmp_path / "d" / "e" / "z.jsonl")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "up").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "e" / "round").symlink_to(tmp_path / "d")
    expected = ["e/z.jsonl", "link/x.jsonl", "y.jsonl"]
    assert names(tmp_path / "d" / "**" / "*.jsonl", spool=tmp_path / "s") == expected
    assert names(tmp_path / "d" / "**", spool=tmp_path / "s") == expected
    assert names(tmp_path / "d" / "li*" / "*", spool=tmp_path / "s") == ["link/x.jsonl"]
    assert names(tmp_path / "d" / "**" / "e" / "*", spool=tmp_path / "s") == ["e/z.jsonl"]


def test_a_glob_reads_no_shards(tmp_path: Path) -> None:
    written(tmp_path / "x.jsonl")
    written(tmp_path / "shards" / ".weighted-shards" / "00000.json", b"{}")
    written(tmp_path / "shards" / "train-00000-of-00001.jsonl")
    assert names(tmp_path / "*", spool=tmp_path / "s") == ["x.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl", spool=tmp_path / "s") == ["x.jsonl"]


def test_a_glob_says_what_it_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a" / "x.jsonl")
    written(tmp_path / "shut" / "x.jsonl")
    listed = Path.iterdir

    def refusing(path: Path) -> object:
        if path.name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    told = error(tmp_path / "*" / "*.jsonl", spool=tmp_path / "s")
    assert told.startswith(f"{tmp_path / 'shut'}: cannot be read (Permission denied)")
