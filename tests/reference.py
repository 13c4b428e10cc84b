"""Slow ways to the same answers, written apart from the code they judge."""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes


class _Tags(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012 - the attribute Jinja reads

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Any) -> str:
        return str(caller())


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def plain_template(source: str, day: datetime.date) -> jinja2.Template:
    """A chat template as Hugging Face's documentation says it is rendered, with no hooks."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Tags, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, **{"ensure_ascii": False, **options}
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = day.strftime
    return environment.from_string(source)


def render_plainly(template: jinja2.Template, messages: list[Any], **variables: Any) -> str:
    """The text, with reasoning under both of its names as transformers passes it."""
    aliased = []
    for message in messages:
        reasoning = next(
            (
                message[k]
                for k in ("reasoning_content", "thinking", "reasoning")
                if message.get(k) is not None
            ),
            None,
        )
        extra = {"thinking": reasoning} if reasoning is not None else {}
        last = {"reasoning_content": reasoning} if reasoning is not None else {}
        aliased.append({**extra, **message, **last})
    return template.render(**{"messages": aliased, "tools": None, "documents": None, **variables})
