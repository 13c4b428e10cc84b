"""What a scheduler sees of a job: exit codes, one line of JSON, nothing of the network."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.order import Step
from pipeline.progress import Progress
from pipeline.recipe import BUNDLED

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
TOKENIZER = ["--tokenizer", str(BUNDLED / "tokenizer")]


def run(
    *argv: str | bytes, through: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command of the package, *through* a shell's redirection if need be."""
    command: Sequence[str | bytes] = [PYTHON, "-m", *argv]
    if through:
        command = ["sh", "-c", f'exec "$@" {through}', "sh", *command]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )


def build(
    output: Path, *argv: str | bytes, through: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    words = ["pipeline.build", "--workers", "1", "--output", str(output)]
    return run(*words, *argv, through=through, env=env)


def only_line(text: str) -> dict[str, Any]:
    assert text.count("\n") == 1, text
    assert text.isascii()
    value: dict[str, Any] = json.loads(text)
    return value


def records(path: Path, *lines: str) -> str:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    path.write_text("\n".join([good, *lines]) + "\n", encoding="utf-8")
    return str(path)


def test_json_tells_a_finished_build_and_one_that_had_nothing_left(tmp_path: Path) -> None:
    first, second = (build(tmp_path / "ö", "--json") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    told, again = only_line(first.stdout), only_line(second.stdout)
    assert set(told) == {
        "exit",
        "output",
        "rejects_file",
        "format",
        "fingerprint",
        "shards",
        "shards_kept",
        "counts",
        "seconds",
        "tokens_per_second",
        "workers_replaced",
        "inputs_without_records",
    }
    assert (told["exit"], told["shards_kept"], told["output"]) == (0, 0, str(tmp_path / "ö"))
    assert (again["shards_kept"], again["tokens_per_second"]) == (told["shards"], 0)
    assert again["counts"] == told["counts"]


def test_json_of_too_many_rejects_has_the_summary_and_the_error(tmp_path: Path) -> None:
    source = records(tmp_path / "a.jsonl", "{")
    done = build(tmp_path / "o", *TOKENIZER, "--input", source, "--json")
    told = only_line(done.stdout)
    assert (done.returncode, told["exit"], told["counts"]["rejects"]) == (1, 1, 1)
    assert "1 of 2 conversations were rejected" in told["error"]
    assert done.stderr == f"error: {told['error']}\n"


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--rules", "no_such_rule"], 1, "no_such_rule: no such rule file"),
        (["--input", "gone.jsonl", *TOKENIZER], 1, "gone.jsonl: no such file"),
        (["--no-such-flag"], 2, "unrecognized arguments: --no-such-flag"),
        (["--max-reject-rate", "2"], 2, "argument --max-reject-rate: '2' is not a number"),
        (["--workers", "hf_" + "a" * 20], 2, "argument --workers: '***' is not a whole number"),
    ],
)
def test_json_tells_what_went_wrong(flags: list[str], code: int, said: str, tmp_path: Path) -> None:
    done = build(tmp_path / "o", *flags, "--json")
    told = only_line(done.stdout)
    assert (done.returncode, told["exit"], set(told)) == (code, code, {"exit", "error"})
    assert told["error"].startswith(said)
    assert told["error"] in done.stderr


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_json_tells_of_a_signal(number: int, code: int, said: str, tmp_path: Path) -> None:
    words = ["--input", "-", *TOKENIZER, "--output", str(tmp_path / "o"), "--json"]
    with subprocess.Popen(
        [PYTHON, "-m", "pipeline.build", "--workers", "1", *words],
        stdin=subprocess.PIPE,  # and never closed: it waits for the input
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # Whoever runs the tests in the background, or by nohup, ignores it.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs
    ) as running:
        lock = tmp_path / "o" / ".weighted-shards" / "lock"
        deadline = time.monotonic() + 60
        while not (lock.exists() and lock.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(30) == code
        assert running.stdout is not None
        told = only_line(running.stdout.read())
    assert told == {"exit": code, "error": f"{said}; run the same command again to go on"}


DEEP = '{"a": ' + "[" * 30_000 + "]" * 30_000 + "}"
PICKLED = '{"a": ' + "[" * 900 + "]" * 900 + "}"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (DEEP, "nests over 100 levels deep"),
        (PICKLED, "nests over 100 levels deep"),
        ('{"a": "\\ud800"}', "half of a surrogate pair is no text"),
        ('{"\\udfff": 1}', "half of a surrogate pair is no text"),
        ('{"a": 1e999}', "not JSON"),
        ('{"a": NaN}', "not JSON"),
    ],
    ids=["deep", "less deep", "surrogate", "surrogate key", "infinite", "no number"],
)
def test_template_variables_that_no_manifest_can_hold_are_refused(
    value: str, said: str, tmp_path: Path
) -> None:
    done = build(tmp_path / "o", "--template-kwargs", value)
    assert done.returncode == 2
    assert f"argument --template-kwargs: {said}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--input", "--output", "--tokenizer", "--rules", "--keep"])
def test_a_name_that_is_not_utf8_is_refused(flag: str, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xe4.jsonl"
    done = build(tmp_path / "o", *TOKENIZER, flag, name, "--json")
    assert done.returncode == only_line(done.stdout)["exit"] == 1
    assert r"\udce4.jsonl': not UTF-8; rename the file" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_build_whose_caller_closes_its_files_is_the_same(closed: str, tmp_path: Path) -> None:
    assert build(tmp_path / "a").returncode == 0
    done = build(tmp_path / "b", through=closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")
    gone = ["--input", "gone.jsonl", *TOKENIZER]
    assert build(tmp_path / "c", *gone, through=closed).returncode == 1


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_summary_that_cannot_be_printed_ends_with_1_though_the_shards_are_whole(
    flags: list[str], unbuffered: str, tmp_path: Path
) -> None:
    env = {"PYTHONUNBUFFERED": unbuffered}
    done = build(tmp_path / "o", *flags, through=">/dev/full", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: cannot be written (No space left")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "o" / "manifest.json").exists()
    assert build(tmp_path / "o", "--quiet", through=">/dev/full").returncode == 0
    gone = build(tmp_path / "o", "--rules", "gone", through="2>/dev/full", env=env)
    assert gone.returncode == 1


def test_a_reader_that_wants_no_more_is_no_error(tmp_path: Path) -> None:
    with subprocess.Popen(
        [PYTHON, "-m", "pipeline.build", "--workers", "1", "--output", str(tmp_path / "o")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.wait(60) == 0
        assert running.stderr.read() == b""


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_has_gone_hides_no_exit_code(flags: list[str], tmp_path: Path) -> None:
    """A reader that wants no more says nothing of the records, or of the folder."""
    source = records(tmp_path / "a.jsonl", "{", "{")
    words = ["--input", source, "--output", str(tmp_path / "o"), "--workers", "1", *TOKENIZER]
    assert _unread("stdout", "pipeline.build", *words, *flags) == 1
    (tmp_path / "o" / "rejects.jsonl").unlink()
    assert _unread("stdout", "pipeline.verify", str(tmp_path / "o"), *flags) == 1
    assert _unread("stderr", "pipeline.verify", str(tmp_path / "o"), *flags) == 1


def _unread(stream: str, *argv: str) -> int:
    """The exit code of a command whose stdout, or stderr, is a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: write}
    done = subprocess.run([PYTHON, "-m", *argv], cwd=ROOT, check=False, timeout=120, **streams)  # type: ignore[call-overload] # mypy knows no such mapping
    os.close(write)
    return int(done.returncode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
def test_faults_that_cannot_be_told_leave_the_summary(tmp_path: Path) -> None:
    assert build(tmp_path / "o").returncode == 0
    (tmp_path / "o" / "rejects.jsonl").write_text("{}\n")
    done = run("pipeline.verify", str(tmp_path / "o"), "--json", through="2>/dev/full")
    assert done.returncode == 1
    assert only_line(done.stdout)["sound"] is False


def test_a_summary_can_be_printed_in_any_encoding(tmp_path: Path) -> None:
    done = build(tmp_path / "重", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "\\u91cd" in done.stdout


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--tokenizer", "~nosuchuser/x"], 1, "error: ~nosuchuser/x: no such folder"),
        ([*TOKENIZER, "--input", "~nosuchuser/x.jsonl"], 1, "error: ~nosuchuser/x.jsonl: no such"),
        (["--rules", "~nosuchuser/x"], 1, "error: ~nosuchuser/x: no such rule file"),
        (["--output", "~nosuchuser/x"], 2, "argument --output: ~nosuchuser/x: nobody's home"),
        (["--rejects", "~nosuchuser/x"], 2, "argument --rejects: ~nosuchuser/x: nobody's home"),
        (["--rejects", ""], 2, "argument --rejects: '' is no path"),
        (["--output", ""], 2, "argument --output: '' is no path"),
        (["--tokenizer", "x" * 300], 1, "cannot be read (File name too long)"),
        (["--shard-size", "9" * 5000], 2, "is not a whole number above 0"),
    ],
)
def test_a_path_that_is_none_is_told_in_one_message(
    flags: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = build(tmp_path / "o", *flags)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_without_a_home_can_build(tmp_path: Path) -> None:
    """As in a container that runs as a number."""
    code = (
        "import os, pwd, sys\n"
        "def nobody(*_): raise KeyError\n"
        "pwd.getpwuid = pwd.getpwnam = nobody\n"
        "for name in ('HOME', 'XDG_CACHE_HOME'): os.environ.pop(name, None)\n"
        "if __name__ == '__main__':\n"
        "    from pipeline import build, cli\n"
        "    cli.leave(build.main)\n"
    )
    script = tmp_path / "homeless.py"
    script.write_text(code)
    done = subprocess.run(
        [PYTHON, script, "--workers", "1", "--output", tmp_path / "o"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["homeless.py", "o"]


def test_certify_looks_at_its_list_before_it_starts(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for path, said in (
        (tmp_path / "gone" / "x.json", "cannot be written (No such file or directory)"),
        (tmp_path, "cannot be written (Is a directory)"),
        (tmp_path / "bad.json", "not a list of certificates"),
    ):
        started = time.monotonic()
        done = run("pipeline.certify", str(BUNDLED / "tokenizer"), "--write", str(path))
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert time.monotonic() - started < 15
    assert (tmp_path / "bad.json").read_text() == "{"


def _place(kind: str, folder: Path) -> Path:
    """An --output that no build can be written to."""
    if kind == "below a file":
        return _place("a file", folder) / "x"
    place = folder / "place"
    if kind == "a file":
        place.write_text("years of work")
    elif kind == "a dangling link":
        place.symlink_to(folder / "gone" / "x")
    elif kind == "a link to itself":
        place.symlink_to(place)
    elif kind == "a locked folder":
        place.mkdir(mode=0o555)
    return place


@pytest.mark.parametrize(
    "kind", ["a file", "below a file", "a dangling link", "a link to itself", "a locked folder"]
)
def test_an_output_that_cannot_be_a_folder_is_told_in_one_message(
    kind: str, tmp_path: Path
) -> None:
    if kind == "a locked folder" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    place = _place(kind, tmp_path)
    done = build(place, "--json")
    assert done.returncode == only_line(done.stdout)["exit"] == 1
    fact = "cannot be used: " if kind in ("below a file", "a locked folder") else "is no folder; "
    assert done.stderr.startswith(f"error: {place}: {fact}")
    assert done.stderr.endswith("; choose another --output\n")
    assert done.stderr.count("\n") == 1


UNPLUGGED = """
import socket
def refuse(*_, **__): raise RuntimeError("the network was asked")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
if __name__ == "__main__":
    from pipeline import build, cli
    cli.leave(build.main)
"""


def test_local_files_need_no_network(tmp_path: Path) -> None:
    """The coordinator imports the script, and so does each worker."""
    script = tmp_path / "unplugged.py"
    script.write_text(UNPLUGGED)
    template = tmp_path / "t.jinja"
    template.write_text((BUNDLED / "tokenizer" / "chat_template.jinja").read_text("utf-8"))
    source = records(tmp_path / "a.jsonl")
    words = ["--rules", "ignore_empty_think", "--input", source, *TOKENIZER]
    words += ["--chat-template", str(template), "--workers", "2", "--output", str(tmp_path / "o")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [PYTHON, str(script), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tokenizer", "nosuch/word"], "nosuch/word: no such folder here, and the hub gave no"),
        ([*TOKENIZER, "--input", "nosuch_word"], "nosuch_word: no such file, folder or glob match"),
    ],
)
def test_a_mistyped_word_is_not_asked_for_again_and_again_without_a_network(
    flags: list[str], said: str, tmp_path: Path
) -> None:
    """Nothing listens at the hub's place; each retry of the hub's client would say so."""
    env = {name: "" for name in os.environ if name.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    done = build(tmp_path / "o", *flags, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "error: out of memory: a worker needs some 500 MB"),
        (OSError(errno.EMFILE, "Too many open files"), "; allow more (ulimit -n), or use fewer"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacking(_: Sequence[str] | None) -> int:
        raise error

    assert cli.run(lacking, []) == 1
    assert said in capsys.readouterr().err


def test_a_terminal_without_a_width_has_bars() -> None:
    ours, theirs = pty.openpty()  # 0 by 0, as those of containers are
    with open(theirs, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a number
        with Progress(stream) as progress, progress.stage("building", unit="rows", total=2) as tell:
            tell(Step(2))
        assert b"building: 100%" in os.read(ours, 1 << 16)
    os.close(ours)
