"""Our tokens and weights beside ms-swift's own, system by system.

An oracle folder holds conversations, and for each of ms-swift's templates and loss scales what it
made of them: text, ids, labels, weights. A row is compared where a chat template of the tokenizers,
or the ChatML template below, gives exactly its text. Under ``--profile ms-swift`` ids, labels and
weights must be equal; in the default profile the weights of the tokens that both have. What differs
must be listed in ``swift_differences.json``, where each cause has a name and a reason.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import itertools
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.batch import Encoder
from pipeline.errors import RecordError
from pipeline.policy import Policy
from pipeline.rules import load_rules
from pipeline.schema import read_conversation
from pipeline.source.record import Record
from pipeline.template import Template
from pipeline.tokens import Tokenizer, load_tokenizer, read_tokenizer
from pipeline.tokens.offsets import read_model
from pipeline.tokens.vocabulary import TOKENIZER, choose_template, read_definition, read_vocabulary

VERSIONS = {"head": "4.6.0.dev0", "v364": "3.6.4"}
PROFILES = ("ms-swift", "default")
DIFFERENCES = Path(__file__).parent / "swift_differences.json"
_DAY = datetime.date(2026, 3, 14)
_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# ms-swift's ChatML: it merges neighbours of one role, leaves an empty system text out, gives an
# assistant that speaks first an empty question, and adds no stop token to an answer that ends with
# one. `prefix` and `history` are what its Qwen3 template does to thoughts, `ending` what 3.6.4
# leaves out at the end. A tool's result stands in the assistant's turn, as in its ReAct texts.
CHATML = r"""
{%- set asked = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message.role in ('user', 'tool') %}{% set asked.last = loop.index0 %}{% endif -%}
{%- endfor -%}
{%- set system = messages[0].content if messages and messages[0].role == 'system' else default_system -%}
{%- if system %}{{ '<|im_start|>system\n' + system + '<|im_end|>\n' }}{% endif -%}
{%- for message in messages -%}
    {%- set before = messages[loop.index0 - 1].role if loop.index0 else '' -%}
    {%- set after = '' if loop.last else messages[loop.index0 + 1].role -%}
    {%- set content = message.content -%}
    {%- if message.role == 'user' -%}
        {%- if before != 'user' %}{{ '<|im_start|>user\n' }}{% endif -%}
        {{- content -}}
        {%- if after != 'user' %}{{ '<|im_end|>\n' }}{% endif -%}
    {%- elif message.role == 'tool' -%}
        {{- content -}}
    {%- elif message.role == 'assistant' -%}
        {%- if before not in ('user', 'assistant', 'tool') -%}
            {{- '<|im_start|>user\n<|im_end|>\n' -}}
        {%- endif -%}
        {%- if before not in ('assistant', 'tool') %}{{ '<|im_start|>assistant\n' }}{% endif -%}
        {%- if before != 'assistant' -%}
            {%- if (prefix == 'all' or prefix == 'last_round' and loop.index0 > asked.last)
                   and not content.startswith('<think>') -%}
                {%- set content = '<think>\n\n</think>\n\n' + content -%}
            {%- endif -%}
            {%- if history == 'stripped' and loop.index0 < asked.last -%}
                {%- set content = content.split('</think>')[-1].strip() -%}
            {%- endif -%}
        {%- endif -%}
        {{- content -}}
        {%- if loop.last -%}
            {%- if not (ending and content.endswith('<|im_end|>')) -%}
                {{- '<|im_end|>' + ending -}}
            {%- endif -%}
        {%- elif after not in ('assistant', 'tool') -%}
            {{- '<|im_end|>\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if not messages or messages[-1].role == 'system' -%}
        {{- '<|im_start|>user\n<|im_end|>\n' -}}
    {%- endif -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What ms-swift made of one conversation with one loss scale; ``error`` if it raised.

    ``file`` is its version and template, such as ``head.qwen3``; ``weights`` are 0 and 1 by the
    labels where it stores none.
    """

    file: str
    system: str
    id: str
    text: str
    ids: list[int]
    labels: list[int]
    weights: list[float]
    segments: list[tuple[str, float]]
    error: str

    @property
    def version(self) -> str:
        return VERSIONS[self.file.partition(".")[0]]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.system, self.id


@dataclass(frozen=True, slots=True)
class Rendering:
    """A chat template with its variables, and the texts it gives by conversation."""

    name: str
    template: Template
    own: bool
    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``equal``, ``differs``, ``raised`` (ms-swift did) or ``other text``; why, and who rendered.

    ``tokens`` are how many were compared.
    """

    row: Row
    kind: str
    why: str = ""
    rendering: str = ""
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A named cause of differing rows, and the rows that it explains in one profile."""

    name: str
    kind: str
    reason: str
    profile: str
    rows: frozenset[tuple[str, str, str]]


def read_rows(folder: Path) -> list[Row]:
    """All rows of all files but the conversations'."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        file = path.name.removesuffix(".jsonl.gz")
        if file == "conversations":
            continue
        for entry in _lines(path):
            labels = entry["labels"] or []
            weights = entry["loss_scale_full"] or entry["loss_scale"]
            rows.append(
                Row(
                    file,
                    entry["loss_scale_name"],
                    entry["id"],
                    entry["text"] or "",
                    entry["input_ids"] or [],
                    labels,
                    weights or [float(label >= 0) for label in labels],
                    entry["segments"] or [],
                    entry["error"] or "",
                )
            )
    return rows


def read_conversations(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by id, as ms-swift was given them."""
    keys = ("messages", "tools")
    return {
        entry["id"]: {key: entry[key] for key in keys if key in entry}
        for entry in _lines(folder / "conversations.jsonl.gz")
    }


def read_differences(path: Path = DIFFERENCES) -> list[Difference]:
    """The data file, one `Difference` for each cause and profile."""
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        rows = frozenset(
            key
            for group in entry["rows"]
            for key in itertools.product(group["files"], group["systems"], group["ids"])
        )
        found.append(
            Difference(entry["name"], entry["kind"], entry["reason"], entry["profile"], rows)
        )
    return found


def as_written(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A talk with calls as ms-swift's agent format wrote it, read back from its own text.

    It writes calls and results into the assistant's turn; a result there runs to the end of its
    line, or to the next result.
    """
    given = record["messages"]
    loss = {"loss": False} if any(m.get("loss") is False for m in given) else {}
    messages: list[dict[str, Any]] = []
    talks = [
        [m["content"] for m in group]
        for role, group in itertools.groupby(given, key=lambda m: m["role"])
        if role == "tool_response"
    ]
    for role, body in re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", text, re.DOTALL):
        while role == "assistant" and talks:
            results = r"(?:\n\S+:)?".join(map(re.escape, talks[0]))
            found = re.search(rf":({results}\n?)", body)
            if found is None:
                break
            messages.append({"role": role, "content": body[: found.start(1)], **loss})
            messages.append({"role": "tool", "content": found[1]})
            body, talks, loss = body[found.end() :], talks[1:], {}
        messages.append({"role": role, "content": body})
    return {"messages": messages}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def make_renderings(
    conversations: Mapping[str, dict[str, Any]], tokenizers: Path
) -> list[Rendering]:
    """The tokenizers' own templates first, as those are what users have."""
    qwen3, qwen2 = (
        choose_template(read_vocabulary(tokenizers / name)) for name in ("qwen3", "qwen2.5")
    )
    sources: list[tuple[str, str, dict[str, Any]]] = [
        ("qwen3", qwen3, {}),
        ("qwen3 enable_thinking=false", qwen3, {"enable_thinking": False}),
        ("qwen2.5", qwen2, {}),
    ]
    own = len(sources)
    for system, prefix, history, ending in itertools.product(
        ("", _SYSTEM), ("", "all", "last_round"), ("", "stripped"), ("\n", "")
    ):
        words = ["system" * bool(system), prefix and f"prefix {prefix}", history]
        words.append("" if ending else "no last newline")
        variables = {
            "default_system": system,
            "prefix": prefix,
            "history": history,
            "ending": ending,
        }
        sources.append((" ".join(["chatml", *filter(None, words)]), CHATML, variables))
    renderings = []
    for index, (name, source, variables) in enumerate(sources):
        template = Template(source, variables=variables, today=_DAY)
        texts = dict(_texts(template, conversations))
        renderings.append(Rendering(name, template, index < own, texts))
    return renderings


def _texts(
    template: Template, conversations: Mapping[str, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    for key, record in conversations.items():
        try:
            yield key, template.render(read_conversation(record, schema="messages")).text
        except RecordError:
            continue


def make_policy(profile: str, version: str) -> Policy:
    """3.6.4 ends its texts with the stop token, and trains no white space after any."""
    if profile == "default":
        return Policy()
    trailing = version != VERSIONS["v364"]
    return Policy(profile=profile, edge="split", control_tokens="allow", trailing=trailing)


def judge(
    rows: Iterable[Row],
    conversations: Mapping[str, dict[str, Any]],
    tokenizers: Path,
    *,
    profile: str,
) -> list[Verdict]:
    """A verdict for each row, in their order."""
    renderings = make_renderings(conversations, tokenizers)
    tokenizer = load_tokenizer(read_vocabulary(tokenizers / "qwen3"))
    lengths = _lengths(tokenizer)
    verdicts: dict[tuple[str, str, str], Verdict] = {}
    groups: dict[tuple[int, str, str], list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
    for row in rows:
        verdicts[row.key] = Verdict(row, "raised" if row.error else "other text", row.error)
        if not row.error:
            index, record = _choose(row, conversations[row.id], renderings)
            if index >= 0:
                groups[index, row.system, row.version].append((row, record))
    for (index, system, version), group in groups.items():
        rendering, policy = renderings[index], make_policy(profile, version)
        rules = load_rules([system], swift=policy.swift)
        encoder = Encoder(tokenizer, rendering.template, rules, policy=policy)
        ours = _encode(encoder, [record for _, record in group])
        for (row, _), mine in zip(group, ours, strict=True):
            why, tokens = _compare(row, mine, lengths, exactly=policy.swift)
            kind = "differs" if why else "equal"
            verdicts[row.key] = Verdict(row, kind, why, rendering.name, tokens)
    return list(verdicts.values())


def _choose(
    row: Row, record: dict[str, Any], renderings: Sequence[Rendering]
) -> tuple[int, dict[str, Any]]:
    """The first rendering that gives the row's text, or -1, and the record that it renders."""
    for index, rendering in enumerate(renderings):
        if rendering.texts.get(row.id) == row.text:
            return index, record
    if any(message["role"] == "tool_call" for message in record["messages"]):
        record = as_written(record, row.text)
        for index, rendering in enumerate(renderings):
            if not rendering.own and dict(_texts(rendering.template, {"": record}))[""] == row.text:
                return index, record
    return -1, record


def _lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    vocabulary = tokenizer.vocabulary
    model = read_model(read_definition(read_tokenizer(vocabulary), vocabulary.folder / TOKENIZER))
    assert model.lengths is not None  # Qwen's is a byte-level BPE
    return model.lengths


def _encode(
    encoder: Encoder, conversations: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any] | str]:
    """Of each record our columns, or why it is rejected."""
    records = [
        Record(source="", row=i, line=0, raw=json.dumps(record).encode())
        for i, record in enumerate(conversations)
    ]
    batch = encoder.encode(records)
    built = {entry["row"]: entry for entry in batch.rows.to_pylist()}
    rejected = {r.row: f"rejected: {r.reason}: {r.message}" for r in batch.rejects}
    for i in range(len(records)):
        yield built[i] if i in built else rejected[i]


def _compare(
    row: Row, ours: dict[str, Any] | str, lengths: npt.NDArray[np.int64], *, exactly: bool
) -> tuple[str, int]:
    """What differs, or nothing; how many tokens were compared."""
    if isinstance(ours, str):
        return ours, 0
    theirs = dict(_by_span(row.ids, row.labels, row.weights, lengths))
    mine = dict(_by_span(ours["input_ids"], ours["labels"], ours["loss_scale"], lengths))
    common = [span for span in theirs if span in mine]
    compared = list(theirs) if exactly else common
    text = row.text.encode()
    differing = [
        f"{text[a:b].decode(errors='replace')!r} {_told(mine.get((a, b)))}, not {_told(theirs[a, b])}"
        for a, b in compared
        if mine.get((a, b)) != theirs[a, b]
    ]
    return "; ".join(differing), len(compared)


def _told(token: tuple[int, bool, float] | None) -> str:
    if token is None:
        return "cut otherwise"
    _, live, weight = token
    return f"{weight:g}{'' if live == (weight != 0) else ' (label)'}"


def _by_span(
    ids: Sequence[int],
    labels: Sequence[int],
    weights: Sequence[float],
    lengths: npt.NDArray[np.int64],
) -> Iterator[tuple[tuple[int, int], tuple[int, bool, float]]]:
    """(start, end) in bytes of each token: id, whether its label is live, weight."""
    ends = np.cumsum(lengths[np.asarray(ids)]).tolist()
    starts = [0, *ends[:-1]]
    for start, end, token, label, weight in zip(starts, ends, ids, labels, weights, strict=True):
        yield (start, end), (token, label != -100, weight)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit code 1 where a row differs for no listed cause, or a cause is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("oracle", type=Path, help="folder of ms-swift's output")
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder of tokenizers")
    parser.add_argument("--profile", choices=PROFILES, default=PROFILES[0])
    parser.add_argument("--rows", action="store_true", help="print each row that differs")
    args = parser.parse_args(argv)
    verdicts = judge(
        read_rows(args.oracle),
        read_conversations(args.oracle),
        args.tokenizers,
        profile=args.profile,
    )
    for v in verdicts:
        if args.rows and v.kind == "differs":
            print(v.row.file, v.row.system, v.row.id, f"({v.rendering})", v.why)
    print(Counter(v.kind for v in verdicts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
