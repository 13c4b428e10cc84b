"""Who is supervised rightly: our turns and prefix-diffing, on a file of chat templates.

The judge knows no template. Every message holds words that stand nowhere else, so wherever a word
survives rendering, its message is known: a word of an assistant message must lie in that message's
output, a word of any other message in none. Borders must equal plain prefix renders wherever those
are prefixes of the whole text.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pipeline.conversation import Conversation
from pipeline.errors import RecordError, TemplateError
from pipeline.established import establish
from pipeline.markers import Markers
from pipeline.surroundings import Surroundings
from pipeline.template import Template

Spans: TypeAlias = "dict[int, list[tuple[int, int]]]"  # assistant message -> trained characters
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
DAY = datetime.date(2026, 3, 14)
_KINDS = ("right", "reject", "wrong")
_CONTROL = re.compile(r"<[|｜][^<>|｜\s]+[|｜]>|<(?:end_of_turn|start_of_turn|eos|bos)>|\[/?INST\]")


@dataclass
class Case:
    """A conversation and its words: ``words[i]`` stand in message *i* and nowhere else."""

    name: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    words: dict[int, list[str]] = field(default_factory=dict)

    def say(self, role: str, form: str = "{}", **extra: Any) -> Case:
        """Adds a message; every ``{}`` of *form*, and of strings in *extra*, becomes a new word."""
        index = len(self.messages)
        self.words[index] = []
        self.messages.append(
            {"role": role, "content": self._fill(form, index), **self._fill(extra, index)}
        )
        return self

    def _fill(self, value: Any, index: int) -> Any:
        if isinstance(value, str):
            while "{}" in value:
                word = f"zq{index}x{len(self.words[index])}k"
                self.words[index].append(word)
                value = value.replace("{}", word, 1)
            return value
        if isinstance(value, dict):
            return {key: self._fill(item, index) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item, index) for item in value]
        return value

    def parted(self) -> Case:
        """The same with every text as a list of one part."""
        for message in self.messages:
            message["content"] = [{"type": "text", "text": message["content"]}]
        return self


def call(name: str = "find") -> dict[str, Any]:
    return {
        "type": "function",
        "id": "abcdef123",
        "function": {"name": name, "arguments": {"at": "{}", "n": 2}},
    }


def result() -> dict[str, str]:
    return {"name": "find", "tool_call_id": "abcdef123"}


def cases() -> list[Case]:
    """The shapes that real data has."""
    asked = "{} here {}?"
    odd = "<|im_end|> {} <|eot_id|> [/INST] {} </s> <|assistant|>"
    return [
        Case("single").say("user", asked).say("assistant", "{} so {}."),
        Case("multi").say("user").say("assistant").say("user").say("assistant", "{} {}"),
        Case("system").say("system").say("user").say("assistant").say("user").say("assistant"),
        Case("reasoning").say("user").say("assistant", reasoning_content="{} hm {}"),
        Case("reasoning twice")
        .say("user")
        .say("assistant", reasoning_content="{}")
        .say("user")
        .say("assistant", reasoning_content="{}"),
        Case("inline think").say("user").say("assistant", "<think>\n{}\n</think>\n\n{}"),
        Case("empty think").say("user").say("assistant", "<think>\n\n</think>\n\n{}"),
        Case("tool call")
        .say("user")
        .say("assistant", "{}", tool_calls=[call()])
        .say("tool", "{}", **result())
        .say("assistant"),
        Case("tool call alone")
        .say("user")
        .say("assistant", "", tool_calls=[call()])
        .say("tool", "{}", **result())
        .say("assistant"),
        Case("parallel calls")
        .say("user")
        .say("assistant", "", tool_calls=[call(), call("seek")])
        .say("tool", "{}", **result())
        .say("tool", "{}", **result())
        .say("assistant"),
        Case("reasoned call")
        .say("user")
        .say("assistant", "", reasoning_content="{}", tool_calls=[call()])
        .say("tool", "{}", **result())
        .say("assistant", reasoning_content="{}"),
        Case("trailing user").say("user").say("assistant").say("user"),
        Case("two assistants").say("user").say("assistant").say("assistant"),
        Case("white space").say("user", "  {} \n").say("assistant", "\n {}  \n\n"),
        Case("empty content").say("user").say("assistant", "").say("user").say("assistant"),
        Case("repeated content")
        .say("user", "{}: yes")
        .say("assistant", "yes {} yes")
        .say("user", "{}: yes")
        .say("assistant", "yes {} yes"),
        Case("parts").say("user", "{} and").say("assistant", "{} or").parted(),
        Case("special text").say("user", odd).say("assistant", "{} fine"),
        Case("special answer").say("user").say("assistant", "{} <b>{}</b> & \"'"),
        Case("long talk")
        .say("system")
        .say("user")
        .say("assistant")
        .say("user")
        .say("assistant")
        .say("user")
        .say("assistant")
        .say("user")
        .say("assistant"),
    ]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``right``, ``reject`` (refused to say), ``wrong`` or ``refused`` (the template itself)."""

    kind: str
    why: str = ""


def read_templates(path: Path) -> Iterator[tuple[str, Template]]:
    """Names and templates of a file of them, with all special tokens; those that compile."""
    for entry in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        with contextlib.suppress(TemplateError):
            yield entry["name"], Template(entry["template"], variables=SPECIAL, today=DAY)


def judge(
    case: Case,
    text: str,
    spans: Spans,
    *,
    borders: Callable[[int], Border],
    control: re.Pattern[str],
) -> str:
    """What is wrong with *spans*, or nothing."""
    for index, message in enumerate(case.messages):
        own = spans.get(index, []) if message["role"] == "assistant" else None
        for word in case.words[index]:
            for match in re.finditer(word, text):
                inside = [i for i, ranges in spans.items() if _within(match.span(), ranges)]
                if own is None and inside:
                    return f"a word of message {index} ({message['role']}) trains"
                if own is not None and inside != [index]:
                    return f"a word of message {index} does not train"
        if own:
            fault = _misplaced(text, own, borders(index), control)
            if fault:
                return f"message {index}: {fault}"
    return ""


@dataclass(frozen=True, slots=True)
class Border:
    """Where plain prefix renders say that an output starts and ends; None where they cannot."""

    start: int | None
    end: int | None


def _within(span: tuple[int, int], ranges: list[tuple[int, int]]) -> bool:
    return any(a <= span[0] and span[1] <= b for a, b in ranges)


def _misplaced(
    text: str, own: list[tuple[int, int]], border: Border, control: re.Pattern[str]
) -> str:
    start, end = own[0][0], own[-1][1]
    closes = re.compile(rf"\s*(?:{control.pattern})")
    if border.start is not None and start != border.start:
        seen = text[min(start, border.start) :][:40]
        return f"starts {start - border.start:+d} characters off ({seen!r})"
    # A template may close a turn only where another follows: the border lacks the stop token.
    if border.end is not None and end > border.end and not closes.fullmatch(text, border.end, end):
        return f"ends {end - border.end:+d} characters off ({text[border.end : end][:40]!r})"
    stopped = any(m.end() == end for m in control.finditer(text, start, end))
    if border.end is not None and not stopped and control.search(text, end, border.end):
        return f"its stop token does not train ({text[end : border.end][:40]!r})"
    return ""


def control_tokens(source: str) -> list[str]:
    """What looks like a control token in a template, as no tokenizer comes with it."""
    return sorted({*SPECIAL.values(), *_CONTROL.findall(source)})


def judge_template(source: str) -> Iterator[tuple[str, str, Verdict]]:
    """(case, method, verdict) for each case of one template."""
    try:
        template = Template(source, variables=SPECIAL, today=DAY)
    except TemplateError as error:
        yield "all", "ours", Verdict("refused", str(error))
        return
    control = control_tokens(source)
    pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
    around = Surroundings(template)
    markers = Markers(control=control, added=control, eos=SPECIAL["eos_token"])
    for case in cases():
        whole = Conversation(case.messages)
        try:
            rendered = template.render(whole)
        except RecordError as error:
            yield case.name, "ours", Verdict("refused", str(error))
            continue
        text = rendered.text

        border = partial(_border, template, case.messages, text=text)
        methods: dict[str, Callable[[], Spans]] = {
            "ours": partial(_ours, whole, rendered, around, markers),
            "prefixes": partial(_by_prefixes, case, border),
        }
        for method, find in methods.items():
            try:
                spans = find()
            except RecordError as error:
                yield case.name, method, Verdict("reject", str(error))
                continue
            # Tags are the author's own word on what is generated: no border is surer.
            tagged = method == "ours" and rendered.generated is not None
            known = _unknown if tagged else border
            fault = judge(case, text, spans, borders=known, control=pattern)
            yield case.name, method, Verdict("wrong" if fault else "right", fault)


def _unknown(_: int) -> Border:
    return Border(None, None)


def _border(template: Template, messages: list[Any], index: int, *, text: str) -> Border:
    def length(count: int, *, prompt: bool) -> int | None:
        try:
            prefix = template.render(Conversation(messages[:count]), prompt=prompt).text
        except RecordError:
            return None
        return len(prefix) if text.startswith(prefix) else None

    return Border(length(index, prompt=True), length(index + 1, prompt=False))


def _ours(whole: Conversation, rendered: Any, around: Surroundings, markers: Markers) -> Spans:
    turns = establish(around.setting(whole), rendered, None, surroundings=around, markers=markers)
    return {t.message: list(t.outputs) for t in turns if t.role == "assistant"}


def _by_prefixes(case: Case, border: Callable[[int], Border]) -> Spans:
    spans: Spans = {}
    for index, message in enumerate(case.messages):
        if message["role"] != "assistant":
            continue
        found = border(index)
        if found.start is None or found.end is None:
            raise RecordError("render", "no_prefix", "a prefix render is no prefix")
        spans[index] = [(found.start, found.end)]
    return spans


def main(argv: Sequence[str] | None = None) -> int:
    """Prints totals, and with --all each failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.supervision", description=__doc__)
    parser.add_argument("templates", type=Path, help="JSON lines with name and template")
    parser.add_argument("--all", action="store_true", help="print each reject and wrong case")
    parser.add_argument("--table", action="store_true", help="print a line for each template")
    args = parser.parse_args(argv)
    totals: dict[str, Counter[str]] = {"ours": Counter(), "prefixes": Counter()}
    if args.table:
        print(f"{'':<48}{'ours':>24}{'prefixes':>24}")
        print(f"{'template':<48}{''.join(f'{kind:>8}' for _ in totals for kind in _KINDS)}")
    for line in args.templates.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        mine: dict[str, Counter[str]] = {"ours": Counter(), "prefixes": Counter()}
        for case, method, verdict in judge_template(entry["template"]):
            mine[method][verdict.kind] += 1
            totals[method][verdict.kind] += 1
            if args.all and method == "ours" and verdict.kind in ("reject", "wrong"):
                print(f"{verdict.kind}  {entry['name']}  {case}: {verdict.why}")
        if args.table:
            cells = [f"{mine[m][kind]:>8}" for m in totals for kind in _KINDS]
            print(f"{entry['name']:<48}{''.join(cells)}")
    print(f"{'method':<10} {'right':>7} {'reject':>7} {'wrong':>7} {'share right':>12}")
    for method, counts in totals.items():
        judged = counts["right"] + counts["reject"] + counts["wrong"]
        share = counts["right"] / judged
        print(
            f"{method:<10} {counts['right']:>7} {counts['reject']:>7} {counts['wrong']:>7} "
            f"{share:>12.2%}"
        )
    print(f"{totals['ours']['refused']} conversations are refused by the templates themselves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
