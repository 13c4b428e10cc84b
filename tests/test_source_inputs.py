"""From words to files: folders, globs, names, and what is no input."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import BuildError, InputError
from pipeline.source import Source, survey


def surveyed(*words: Path | str, piece_bytes: int = 500) -> list[Source]:
    spool = Path(tempfile.gettempdir(), uuid.uuid4().hex)
    return survey([str(word) for word in words], spool=spool, piece_bytes=piece_bytes)


@pytest.fixture(autouse=True)
def _spools(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("spools")))


def error(*words: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        surveyed(*words)
    return str(caught.value)


def written(path: Path, content: bytes = b"{}\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(*words: Path | str) -> list[str]:
    return [source.name for source in surveyed(*words)]


def test_a_folder_gives_its_data_files_by_path(tmp_path: Path) -> None:
    for name in ["b/x.jsonl", "a/y.json.gz", "a-b/z.ndjson", "a/data.NDJSON.zstd", "top.jsonl.lz4"]:
        written(tmp_path / "d" / name)
    for name in ["README.md", ".hidden.jsonl", ".git/x.jsonl", "b/dataset_info.json", "c/x.csv"]:
        written(tmp_path / "d" / name, b"no data")
    expected = ["a-b/z.ndjson", "a/data.NDJSON.zstd", "a/y.json.gz", "b/x.jsonl", "top.jsonl.lz4"]
    assert names(tmp_path / "d") == expected


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "x.jsonl")
    written(tmp_path / "d" / "y.jsonl")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "up").symlink_to(tmp_path)
    (tmp_path / "d" / "z.jsonl").symlink_to(tmp_path / "d" / "y.jsonl")
    got = names(tmp_path / "d")
    assert got[:1] == ["link/x.jsonl"]
    assert set(got) == {"link/x.jsonl", "up/elsewhere/x.jsonl", "y.jsonl", "z.jsonl"}


def test_a_pipe_is_read_where_it_is_named_and_not_waited_for_in_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    told = f"{tmp_path / 'b.jsonl'}: is a pipe, a socket or a device; remove it, or name it"
    assert told in error(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")  # it would fill the disk
    assert told in error(tmp_path)


def test_a_glob_names_its_files_from_where_it_is_plain(tmp_path: Path) -> None:
    for name in ["a/x.jsonl", "b/x.jsonl", "b/c/y.jsonl", "b/notes.md", "b/manifest.json"]:
        written(tmp_path / name)
    assert names(tmp_path / "*" / "x.jsonl") == ["a/x.jsonl", "b/x.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a/x.jsonl", "b/c/y.jsonl", "b/x.jsonl"]
    assert names(tmp_path / "b" / "*") == ["c/y.jsonl", "x.jsonl"]
    assert names(tmp_path / "b" / "n*.md") == ["notes.md"]


def test_a_file_may_have_the_name_of_a_glob(tmp_path: Path) -> None:
    written(tmp_path / "1.jsonl")
    assert names(written(tmp_path / "[1].jsonl")) == ["[1].jsonl"]


def test_equal_names_grow_until_they_differ(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / p) for p in ["a/c/x.jsonl", "b/c/x.jsonl", "b/d/x.jsonl", "y.jsonl"]
    ]
    assert names(*paths) == ["a/c/x.jsonl", "b/c/x.jsonl", "d/x.jsonl", "y.jsonl"]


def test_names_do_not_depend_on_how_a_path_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["a/x.jsonl", "b/x.jsonl", "d/e/y.jsonl"]:
        written(tmp_path / name)
    absolute = [tmp_path / "a/x.jsonl", tmp_path / "b/x.jsonl", tmp_path / "d", tmp_path / "d/e/*"]
    expected = ["a/x.jsonl", "b/x.jsonl", "e/y.jsonl"]
    assert names(*absolute[:3]) == expected
    monkeypatch.chdir(tmp_path / "a")
    assert names("x.jsonl", "../b/./x.jsonl", "../d") == expected
    assert names("../d/e/*") == names(absolute[3]) == ["y.jsonl"]


def test_a_file_given_twice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "d/x.jsonl")
    monkeypatch.chdir(tmp_path)
    assert "given 2 times" in error(path, "./d/../d/x.jsonl")
    assert "given 2 times" in error(tmp_path / "d", path)


@pytest.mark.parametrize(
    ("word", "fact"),
    [
        ("none.jsonl", "no such file, folder or glob match"),
        ("../none", "no such file, folder or glob match"),
        ("a/b/c", "no such file, folder or glob match"),
        ("none*.jsonl", "the glob matches no data file"),
        ("~nobody-of-this-name/x/y", "no such file, folder or glob match"),
    ],
)
def test_a_word_that_is_nothing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, fact: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error(word).startswith(f"{word}: {fact}")


def test_an_empty_word_is_not_the_working_folder() -> None:
    assert "an empty input" in error("")


def test_a_folder_without_data_says_what_was_looked_for(tmp_path: Path) -> None:
    written(tmp_path / "d" / "x.csv")
    assert ".jsonl" in error(tmp_path / "d")
    assert ".parquet" in error(tmp_path / "d")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be"])
def test_other_encodings_are_an_error(tmp_path: Path, encoding: str) -> None:
    assert "UTF-8" in error(written(tmp_path / "x.jsonl", '{"a": 1}\n'.encode(encoding)))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.jsonl.gz", "x.feather", "x.json.zst"])
def test_a_file_that_is_not_what_it_is_called_is_an_error(tmp_path: Path, name: str) -> None:
    assert "damaged" in error(written(tmp_path / name, b"<html>Not found</html>"))


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    assert "neither JSON" in error(written(tmp_path / "x.zip", b"PK\x03\x04\x14\0\0\0\x08\0"))


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder that others may enter, for a test that gives up root's rights."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("word", ["x.jsonl", "shut", "shut/x.jsonl"])
def test_a_missing_permission_is_an_error(guarded: Path, word: str) -> None:
    written(guarded / "shut" / "x.jsonl")
    written(guarded / "x.jsonl").chmod(0)
    (guarded / "shut").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        message = error(guarded / word)
    finally:
        os.seteuid(os.getuid())
        (guarded / "shut").chmod(0o755)
    assert "Permission denied" in message
    assert message.startswith(str(guarded))


def test_a_spool_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "x.json", b"[1]")
    occupied = written(tmp_path / "occupied")
    with pytest.raises(BuildError, match="cannot be written"):
        survey([str(path)], spool=occupied, piece_bytes=9)
