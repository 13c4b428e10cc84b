"""The script that one writes oneself, with care: Jinja, ``encode_batch``, a loop over tokens.

Right for ChatML alone. What an assistant's header opens trains, through the line end after its stop
token; an empty think block does not.
"""

from __future__ import annotations

from benchmarks.peers.phases import LIKE, Phases, give_up, read_arguments  # isort: skip

import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, NoReturn

try:
    import jinja2.ext
    import jinja2.sandbox
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer
except ImportError as absent:
    give_up(absent)
try:
    from orjson import loads
except ImportError:
    from json import loads

_BATCH = 256
_TURN = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)", re.DOTALL)
_EMPTY = "<think>\n\n</think>\n\n"
_TAG = re.compile(r"({%-?\s*)(end)?generation(\s*-?%})")


def main() -> None:
    """Reads, renders, encodes, weighs and writes batch by batch."""
    phases, arguments = Phases(), read_arguments()
    phases.end("imports")
    template = arguments.template.read_text(encoding="utf-8")
    if "<|im_start|>" not in template:
        give_up("the template is no ChatML, and this peer knows no other")
    render = _compile(template)
    tokenizer = Tokenizer.from_file(str(arguments.tokenizer / "tokenizer.json"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    phases.end("load")
    schema = pa.schema(
        [("input_ids", pa.list_(pa.int32())), ("loss_weight", pa.list_(pa.float32()))]
    )
    path = arguments.output / "rows.parquet"
    with (
        arguments.input.open("rb") as lines,
        pq.ParquetWriter(path, schema, compression="zstd") as file,
    ):
        while batch := [loads(line) for line in islice(lines, _BATCH)]:
            texts = [render(messages=r["messages"], tools=_tools(r)) for r in batch]
            encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
            weights = [
                _weigh(e.offsets, [*_trained(text)])
                for text, e in zip(texts, encodings, strict=True)
            ]
            columns = [
                pa.array([e.ids for e in encodings], schema.types[0]),
                pa.array(weights, schema.types[1]),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
    phases.end("work")
    phases.tell(like=["--rules", "ignore_empty_think", *LIKE])


def _tools(record: dict[str, Any]) -> Any:
    """Some files hold them as JSON in a string."""
    tools = record.get("tools")
    return loads(tools) if isinstance(tools, str) else tools


def _compile(source: str) -> Callable[..., str]:
    """The template as transformers would compile it; tags that only mark become no-ops."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_now)
    plain = _TAG.sub(lambda t: f"{t[1]}{'endif' if t[2] else 'if true'}{t[3]}", source)
    return environment.from_string(plain).render


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(reason: str) -> NoReturn:
    raise jinja2.TemplateError(reason)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _trained(text: str) -> Iterator[tuple[int, int]]:
    """The characters that train: turns, less the empty think block that one begins with."""
    for turn in _TURN.finditer(text):
        start, end = turn.span(1)
        while (empty := text.find(_EMPTY, start, end)) >= 0:
            if empty > start:
                yield start, empty
            start = empty + len(_EMPTY)
        yield start, end


def _weigh(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[float]:
    weights, token, count = [0.0] * len(offsets), 0, len(offsets)
    for start, end in spans:
        while token < count and offsets[token][1] <= start:
            token += 1
        while token < count and offsets[token][0] < end:
            weights[token] = 1.0
            token += 1
    return weights


if __name__ == "__main__":
    main()
