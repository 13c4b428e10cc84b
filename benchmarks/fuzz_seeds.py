"""Good inputs to begin with, and the words that edits put into them."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
from typing import Any

import lz4.frame
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import zstandard

from benchmarks.fuzz_shapes import CONTROLS
from pipeline.recipe import BUNDLED


def _sample() -> list[bytes]:
    return (BUNDLED / "sample.jsonl").read_bytes().splitlines(keepends=True)[:3]


def record_seeds() -> list[bytes]:
    """Small files of every layout of JSON."""
    lines = _sample()
    values = [json.loads(line) for line in lines]
    pairs = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes."}]}
    alpaca = {"instruction": "Add.", "input": "1+1", "output": "2", "history": [["a", "b"]]}
    small = (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    )
    return [
        small + b"\n",
        small + b"\r\n\n" + small,
        b"".join(lines),
        b"\xef\xbb\xbf" + lines[2],
        json.dumps(values).encode(),
        json.dumps(values, indent=2).encode(),
        b"\n".join(json.dumps(value, indent=1).encode() for value in values),
        json.dumps(pairs).encode() + b"\n" + json.dumps(alpaca).encode(),
        b"[" + small + b",\n" + small + b"]",
        b"[" + small + b"]\n[" + small + b"]\n",
        b'{"query": "a", "response": "b", "weight": 0.5}',
        b"",
    ]


def column_seeds() -> list[bytes]:
    """Small valid Parquet, Arrow and compressed files."""
    values = [json.loads(line) for line in _sample()[:2]]
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = pa.table(
        {
            "messages": [talk, talk, talk],
            "id": [1, None, 3],
            "day": pa.array([0, 1, None], pa.date32()),
            "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
            "meta": pa.array([[("k", 1.5)], [], None], pa.map_(pa.string(), pa.float64())),
        }
    )
    texts = pa.table({"messages": [json.dumps(value["messages"]) for value in values]})
    seeds: list[bytes] = []
    for each, packing in itertools.product((table, texts), ("none", "snappy", "zstd")):
        sink = io.BytesIO()
        pq.write_table(each, sink, compression=packing, row_group_size=2)
        seeds.append(sink.getvalue())
    for each, open_writer, codec in itertools.product(
        (table, texts), (ipc.new_file, ipc.new_stream), (None, "zstd", "lz4")
    ):
        sink = io.BytesIO()
        with open_writer(sink, each.schema, options=ipc.IpcWriteOptions(compression=codec)) as file:
            file.write_table(each, max_chunksize=2)
        seeds.append(sink.getvalue())
    raw = b"".join(_sample())
    packed = [
        gzip.compress(raw, mtime=0),
        bz2.compress(raw),
        lz4.frame.compress(raw),
        zstandard.ZstdCompressor().compress(raw),
    ]
    return [*seeds, *packed, packed[0] + packed[0], gzip.compress(seeds[0], mtime=0)]


def rule_seeds() -> list[bytes]:
    """The bundled rule files, and configs as ms-swift has them."""
    files = sorted((BUNDLED / "rules").rglob("*.yaml"))
    swift: list[Any] = [
        {"<think>\\s*</think>": [0.0]},
        {"Action:": [2.0, 2.0], "Observation:": [2.0, 0.0]},
        {"query": {"mem": [3]}, "response": {"Thought:": [1, 0.5]}},
    ]
    return [*(path.read_bytes() for path in files), *(json.dumps(s).encode() for s in swift)]


JSON_WORDS = (
    *(b'"messages"', b'"role"', b'"assistant"', b'"content"', b'"loss"', b'"weight"', b"null"),
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r\n", b"\0", b"1e400", b"NaN"),
    *(b"\\ud800", b"\\u0000", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"9" * 5000, b"[" * 3000),
    *(b"true", b"-0.0", b'"token_ids"', b'"tool_calls"', b'"tools"', b'"conversations"', b"  "),
    *(word.encode() for word in CONTROLS),
)
RULE_WORDS = (
    *(
        b"version: 1\n",
        b"name: ",
        b"rules:\n",
        b"  - ",
        b"pattern: ",
        b"weight: ",
        b"where: ",
        b"&a ",
    ),
    *(
        b"*a",
        b"!!binary ",
        b"!!python/name:os",
        b"<<: ",
        b"? ",
        b"---\n",
        b"...\n",
        b"%YAML 1.2\n---\n",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b"'",
        b'"',
        b"|\n",
        b">\n",
        b"#",
        b"\t",
        b'"\\U00110000"',
        b'"\\ud800"',
    ),
    *(b"%YAML 1." + b"9" * 5000 + b"\n---\n", b"9" * 5000, b"0x" + b"f" * 5000, b"1_0", b"0o7"),
    *(b"- " * 2000, b"{a: " * 2000, b"[" * 2000, b"!<x> ", b"!!int ", b"!!float ", b"2001-01-01"),
    *(
        b"sections:",
        b"marker:",
        b"body:",
        b"when:",
        b"unless:",
        b"row:",
        b"user:",
        b"turn:",
        b"1:2",
    ),
    *(
        b"(?P<g>",
        b"(?&g)",
        b"{99999}",
        b"(a|a)*",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\0",
        b".inf",
        b"1e400",
    ),
    *(b"examples:\n", "⟦".encode(), "⟧".encode(), b"base: all\n", b"version: 1, ", b"\xe2\x80\xa8"),
)
COLUMN_WORDS = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"PAR1", b"ARROW1"),
    *(b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"BZh9", b"\xff" * 8, b"\0" * 8),
)
