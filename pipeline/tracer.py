"""The environment of a render in which every character knows its origin.

Strings of the record come marked by message and field; literals of the template are marked by the
message being written when they are evaluated, so that text which is built up and printed after the
loop still belongs to its message. Slower than hooks alone by some times, and used only where that
is needed.
"""

from __future__ import annotations

import datetime
import itertools
import re
from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import Frame, operators
from jinja2.exceptions import FilterArgumentError
from jinja2.filters import do_indent, do_title, make_attrgetter
from markupsafe import Markup, soft_str

from pipeline.environment import Generator, HookedEnvironment
from pipeline.notation import trace_json, trace_str
from pipeline.provenance import UNKNOWN, Traced, TracedMarkup, marks_of
from pipeline.tracing import OUTSIDE, Legend

_WORD_START = re.compile(r"([-\s({\[<]+)")  # as Jinja's title filter has it


class _TracingGenerator(Generator):
    """Writes literals as marked strings, and operators that keep marks where a str's lose them."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.write(_source(node.as_const(frame.eval_ctx)))

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return _source("".join(group))

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:  # noqa: ARG002 - autoescape is off, and nothing is finalized
        self.write("environment.said(")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.write("environment.joined((")
        for item in node.nodes:
            self._operand(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.write("environment.added(")
        self._operand(node.left, frame)
        self.write(", ")
        self._operand(node.right, frame)
        self.write(")")

    def _operand(self, node: nodes.Expr, frame: Frame) -> None:
        """A name may hold a literal that was evaluated before the message that uses it."""
        self.write("environment.here(" if isinstance(node, nodes.Name) else "(")
        self.visit(node, frame)
        self.write(")")

    # What is only compared or looked up needs no marks.

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.write("(")
        self._compared(node.expr, frame)
        for op in node.ops:
            self.visit(op, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        self.write(f" {operators[node.op]} ")
        self._compared(node.expr, frame)

    def _compared(self, node: nodes.Expr, frame: Frame) -> None:
        if isinstance(node, nodes.Const):
            super().visit_Const(node, frame)
        else:
            self.visit(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802 - Jinja's visitor names
        if not isinstance(node.arg, nodes.Const):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.getitem(")
        self.visit(node.node, frame)
        self.write(f", {node.arg.value!r})")


def _source(value: Any) -> str:
    """Code that evaluates to a constant, with its strings marked."""
    if type(value) is str:
        return f"environment.literal({value!r})"
    if isinstance(value, Markup):
        return f"environment.safe({_source(str(value))})"
    if isinstance(value, list):
        return f"[{', '.join(map(_source, value))}]"
    if isinstance(value, tuple):
        return f"({''.join(f'{_source(item)}, ' for item in value)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_source(k)}: {_source(v)}" for k, v in value.items()) + "}"
    return str(value) if isinstance(value, float) else repr(value)


class TracingEnvironment(HookedEnvironment):
    """The hooked environment's twin whose text is `Traced`; ``legend`` is the running render's."""

    code_generator_class = _TracingGenerator

    def __init__(self, today: datetime.date) -> None:
        super().__init__(today)
        self.legend = Legend(0)
        self.optimized = False  # folding a constant runs what no render may ever reach
        self.filters.update(
            join=self._join,
            string=self._string,
            format=self._format,
            trim=self._trim,
            replace=self._replace,
            indent=self._indent,
            title=self._title,
            tojson=self._to_json,
            safe=self.safe,
        )
        tell = self.globals["strftime_now"]
        assert callable(tell)
        self.globals["strftime_now"] = lambda form: self.literal(tell(form))

    said = staticmethod(trace_str)

    def literal(self, text: str) -> Traced:
        """A template's constant, which belongs to the message that is being written."""
        return Traced(text, self.legend.literal[self.recorder.owner] * len(text))

    def here(self, value: Any) -> Any:
        """*value*; a literal from outside of any message becomes one of the running message."""
        if type(value) is Traced and value and not value.marks.strip(OUTSIDE):
            return self.literal(value)
        return value

    def known(self, text: str) -> Traced:
        """What nobody followed until now belongs to the message that is being written."""
        marks = marks_of(text)
        return Traced(text, marks.replace(UNKNOWN, self.legend.unknown[self.recorder.owner]))

    def printed(self, text: str, owner: int) -> str:
        """Marks of *text* that is printed while *owner* is being written."""
        marks = marks_of(text).replace(UNKNOWN, self.legend.unknown[owner])
        return marks.replace(OUTSIDE, self.legend.literal[owner])

    def marks_printed(self) -> str:
        """The marks of all that the last render printed."""
        recorder, marks = self.recorder, []
        events = [(0, -1), *recorder.events, (len(recorder.pieces), -1)]
        for (first, owner), (stop, _) in itertools.pairwise(events):
            marks.append(self.printed(Traced().join(recorder.pieces[first:stop]), owner))
        return "".join(marks)

    def concat(self, pieces: Iterable[str]) -> Traced:
        text = Traced().join(pieces)
        return Traced(text, self.printed(text, self.recorder.owner))

    def joined(self, values: Iterable[Any]) -> Traced:
        return self.known(Traced().join(map(self.said, values)))

    def added(self, left: Any, right: Any) -> Any:
        value = left + right
        if type(value) is str or (type(value) is Traced and UNKNOWN in value.marks):
            return self.known(value)
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr != "marks" and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        if attribute == "marks":  # a str has none: what asks for it shall find nothing
            return self.undefined(obj=obj, name=attribute)
        return super().unsafe_undefined(obj, attribute)

    # Filters, as Jinja has them where autoescape is off.

    def safe(self, value: Any) -> Markup:
        return TracedMarkup(value, marks_of(value)) if isinstance(value, str) else Markup(value)

    def _join(self, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
        if attribute is not None:
            value = map(make_attrgetter(self, attribute), value)
        return self.known(Traced(str(d)).join(map(self.said, value)))

    def _string(self, value: Any) -> str:
        return value if isinstance(value, Markup) else self.known(self.said(value))

    def _format(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if args and kwargs:
            raise FilterArgumentError("can't handle positional and keyword arguments together")
        text = value if isinstance(value, str) else Traced(self.said(value))
        return self.known(text % (kwargs or args))

    def _trim(self, value: Any, chars: str | None = None) -> str:
        return (value if isinstance(value, str) else Traced(self.said(value))).strip(chars)

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        text = Traced(self.said(s))
        return self.known(text.replace(str(old), str(new), -1 if count is None else count))

    def _indent(
        self, s: str, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> str:
        if isinstance(s, Markup):
            return do_indent(s, width, first, blank)
        line = Traced("\n")
        margin = Traced(width if isinstance(width, str) else " " * width)
        lines = (s + line).splitlines()
        text = line.join([lines[0], *(margin + x if x or blank else x for x in lines[1:])])
        return self.known(margin + text if first else text)

    def _title(self, s: Any) -> str:
        text = soft_str(s)
        if not isinstance(text, Traced):
            return do_title(text)
        pieces, start = [], 0
        for word in _WORD_START.split(str.__str__(text)):
            end = start + len(word)
            if word:
                pieces += [text[start].upper(), text[start + 1 : end].lower()]
            start = end
        return Traced().join(pieces)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return self.known(
            trace_json(
                value,
                ensure_ascii=ensure_ascii,
                indent=indent,
                separators=separators,
                sort_keys=sort_keys,
            )
        )
