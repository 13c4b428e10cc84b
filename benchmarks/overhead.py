"""What knowing who wrote what costs: hooked renders and turns against plain Jinja.

Both render the same talks, template by template, turn about; the figure is the median over the
templates of the ratio of medians. Cost must also grow with the number of turns, not faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from benchmarks.supervision import DAY, SPECIAL, control_tokens
from pipeline.conversation import Conversation
from pipeline.environment import GenerationTag, prepare_environment
from pipeline.errors import RecordError, TemplateError
from pipeline.established import establish
from pipeline.markers import Markers
from pipeline.surroundings import Surroundings
from pipeline.template import Template

_WORDS = "The committee met again on Tuesday, and nothing at all was decided there. " * 4


def talk(turns: int) -> Conversation:
    """*turns* questions of 300 characters, and as many answers."""
    messages: list[dict[str, Any]] = []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{turn} {_WORDS}"})
        messages.append({"role": "assistant", "content": f"{_WORDS} {turn}"})
    return Conversation(messages)


def plain_template(source: str) -> jinja2.Template:
    """Compiled without a hook, in an environment of the same options, filters and globals."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    prepare_environment(environment, DAY)
    return environment.from_string(source)


class Measured:
    """One template, both ways; RecordError or TemplateError where it refuses."""

    def __init__(self, source: str) -> None:
        self.template = Template(source, variables=SPECIAL, today=DAY)
        self.plain = plain_template(source)
        self.around = Surroundings(self.template)
        control = control_tokens(source)
        self.markers = Markers(control=control, added=control, eos=SPECIAL["eos_token"])

    def render_plainly(self, conversation: Conversation) -> None:
        """What transformers does, without its other work."""
        self.plain.render(
            **SPECIAL,
            messages=conversation.messages,
            tools=None,
            documents=None,
            add_generation_prompt=False,
        )

    def establish(self, conversation: Conversation) -> None:
        """What a build does up to the turns."""
        rendered = self.template.render(conversation)
        establish(
            self.around.setting(conversation),
            rendered,
            None,
            surroundings=self.around,
            markers=self.markers,
        )

    def ratio(self, turns: int, repeats: int) -> tuple[float, float]:
        """Seconds plain, seconds ours: medians of *repeats*, taken turn about."""
        conversation = talk(turns)
        self.establish(conversation)
        self.render_plainly(conversation)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            times[0].append(_seconds(lambda: self.render_plainly(conversation)))
            times[1].append(_seconds(lambda: self.establish(conversation)))
        return statistics.median(times[0]), statistics.median(times[1])


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the ratios over all templates, and what each length of talk costs a turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("templates", type=Path, help="JSON lines with name and template")
    parser.add_argument("--turns", type=int, nargs="+", default=[3, 30])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--all", action="store_true", help="print each template's ratio")
    args = parser.parse_args(argv)
    found: dict[int, list[tuple[float, float]]] = {turns: [] for turns in args.turns}
    for line in args.templates.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        try:
            measured = Measured(entry["template"])
            pairs = [measured.ratio(turns, args.repeats) for turns in args.turns]
        except (RecordError, TemplateError):
            continue
        for turns, pair in zip(args.turns, pairs, strict=True):
            found[turns].append(pair)
        if args.all:
            told = "  ".join(f"{b / a:.2f} ({a * 1e6:.0f} us)" for a, b in pairs)
            print(f"{told}  {entry['name']}")
    for turns, pairs in found.items():
        ratios = sorted(b / a for a, b in pairs)
        ours = statistics.median(b for _, b in pairs)
        print(
            f"{turns:>3} turns: {len(ratios)} templates, median {statistics.median(ratios):.2f} "
            f"(quartiles {ratios[len(ratios) // 4]:.2f}-{ratios[3 * len(ratios) // 4]:.2f}) "
            f"times plain Jinja; ours {ours / turns * 1e6:.0f} us a turn"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
