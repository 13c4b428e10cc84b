"""The environment whose renders are limited: what compiled templates and the sandbox call.

Guards look at values and give them back unchanged, so a limited render writes the same text.
"""

from __future__ import annotations

import datetime
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext, Macro

from pipeline.charges import METHODS, SCALARS, charge_filters, formatted, width
from pipeline.environment import HookedEnvironment
from pipeline.guards import GuardedGenerator, Guards
from pipeline.limits import ITEM, SMALL, Limits, Meter, size

_call_safely = jinja2.sandbox.SandboxedEnvironment.call
UNDEFINED = jinja2.Undefined()  # what a shortcut takes for each value that is not there
_LIPSUM = jinja2.defaults.DEFAULT_NAMESPACE["lipsum"]


class LimitedEnvironment(HookedEnvironment):
    """The hooked environment, whose renders report what they take to ``meter``.

    ``meter.begin`` comes before each render.
    """

    # A 31st attribute in ``__dict__`` ends Python's cached look-ups of all of them: a tenth of a
    # small render was lost by it.
    __slots__ = ("heaviest", "meter", "write_json")

    code_generator_class = GuardedGenerator
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, today: datetime.date, limits: Limits) -> None:
        super().__init__(today)
        self.meter, self.heaviest = Meter(limits), 1
        self.write_json = self.filters["tojson"]
        charge_filters(self)
        self.tests["sameas"] = _is_same

    def from_string(self, source: Any, *args: Any, **kwargs: Any) -> jinja2.Template:
        """As Jinja's; a source too long or too deep is a TemplateSyntaxError too."""
        if isinstance(source, str) and len(source) > self.meter.limits.source:
            raise jinja2.TemplateSyntaxError(
                f"the chat template is longer than {self.meter.limits.source:,} characters", 1
            )
        self.meter.begin(None)
        try:
            return super().from_string(source, *args, **kwargs)
        except jinja2.TemplateError:
            raise
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise jinja2.TemplateSyntaxError(
                f"the chat template nests too deeply, or has too long a number, to be compiled "
                f"({type(error).__name__})",
                getattr(error, "lineno", 1) or 1,
            ) from error

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        guards = Guards(tree)
        guarded: nodes.Template = guards.visit(tree)
        self.heaviest = guards.heaviest
        return guarded

    def load(self, python: str) -> Any:
        """The root function of a template's Python, which Jinja runs as all that it compiles."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it can index a constant, where Jinja indexes a name
            code = self._compile(python, "<template>")
        return jinja2.Template.from_code(self, code, {}).root_render_func

    # Called by the code that GuardedGenerator writes.

    def limit_loop(self, values: Any, weight: int) -> Any:
        """*values* of a loop: *weight* steps for each, before the first."""
        try:
            count = len(values)
        except TypeError:
            return self.limit_search(values, weight)
        meter = self.meter  # `spend`, written out: every loop comes here
        meter.steps += count * weight + 1
        if meter.steps > meter.next_look:
            meter.look()
        return values

    def limit_search(self, values: Any, weight: int) -> Iterator[Any]:
        """*values* of a loop that may not take all of them: steps for each it takes."""
        return _counted(self.meter, iter(values), weight)

    def limit_kept(self, value: Any, site: int) -> Any:
        """A *value* that one assignment, the *site*, keeps until it runs again."""
        if isinstance(value, str):
            if len(value) > SMALL:
                self.meter.keep(site, len(value))
        elif isinstance(value, (list, tuple)) and len(value) > SMALL // ITEM:
            self.meter.keep(site, len(value) * ITEM)
        return value

    def limit_json(self, value: Any, **options: Any) -> str:
        """JSON of a part of the record: as long as that, however long its measure would take."""
        text: str = self.write_json(value, **options)
        if len(text) > SMALL:
            self.meter.make(len(text))
        return text

    def limit_space(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """*attributes* of a namespace, as the call counts that they stand for."""
        for value in attributes.values():
            if type(value) is str and len(value) > SMALL:
                self.meter.make(len(value))
        self.meter.enter()
        self.meter.depth -= 1
        return attributes

    def limit_macro(self, function: Callable[..., str], /, *args: Any) -> str:
        """The text of a macro, counted as its call. A render that fails begins anew: nothing is
        put back."""
        meter = self.meter
        for value in args:
            if type(value) is str and len(value) > SMALL:
                meter.make(len(value))
        meter.enter()
        text = function(*args)
        meter.depth -= 1
        return text

    def limit_built(self, value: Any) -> Any:
        """A list, tuple or dict of the template's own."""
        self.meter.make(size(self.meter, value))
        return value

    def limit_compared(self, value: Any) -> Any:
        if type(value) not in SCALARS:
            self.meter.spend(size(self.meter, value) >> 6)
        return value

    def limit_searched(self, value: str) -> str:
        """A long text in which another is looked for."""
        self.meter.spend(len(value) >> 6)
        return value

    def limit_joined(self, parts: tuple[Any, ...]) -> str:
        """The text of ``a ~ b``, as Jinja's ``str_join``."""
        total = 0
        for part in parts:
            total += len(part) if type(part) is str else size(self.meter, part)
        self.meter.allow(total)
        return "".join(map(str, parts))

    def limit_sum(self, value: Any) -> Any:
        """A sum inside an expression of many, which as a whole may be in no variable."""
        if isinstance(value, (str, list, tuple)):
            self.meter.allow(len(value) if isinstance(value, str) else len(value) * ITEM)
        return value

    def limit_shown(self, value: Any) -> str:
        """What is printed for a *value* that is long, or no string."""
        if type(value) not in SCALARS or type(value) is str:
            self.meter.make(size(self.meter, value))
        return str(value)

    def limit_printed(self, value: Any) -> str:
        """What is printed into a macro, a block or a filter's body, which keep it all."""
        text = value if type(value) is str else str(self.limit_sized(value))
        self.meter.make(len(text))
        return text

    def limit_sized(self, value: Any) -> Any:
        """A *value* that a filter writes out."""
        self.meter.make(size(self.meter, value))
        return value

    def limit_divided(self, left: Any, right: Any) -> Any:
        """``left % right``, where *left* is no integer: a text is formatted."""
        if isinstance(left, (str, bytes)):
            values = right if isinstance(right, tuple) else (right,)
            self.meter.make(formatted(left, values, right, self.meter))
        return left % right

    def concat(self, pieces: Iterable[str]) -> str:
        """The text of a macro, a block or a filter's body."""
        if type(pieces) is not list:
            pieces = list(self.meter.metered(pieces))
        if len(pieces) > 32:
            self.meter.allow(sum(map(len, pieces)))
        text = "".join(pieces)
        if len(text) > SMALL:
            self.meter.make(len(text))
        return text

    # Called by the sandbox's own code.

    def call_binop(self, _: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%":
            return self.limit_divided(left, right)
        if isinstance(left, int) and isinstance(right, int):
            if operator == "*":
                self.meter.number(left.bit_length() + right.bit_length())
            elif right > 0 and abs(left) > 1:
                self.meter.number(left.bit_length() * right)
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            if times > 0 and isinstance(value, (str, bytes, list, tuple)):
                self.meter.make(size(self.meter, value) * times)
        return self.binop_table[operator](left, right)

    def call(self, context: Context, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """As the sandbox's; a method of a string or dict is called without its four checks,
        which only Python functions can fail."""
        kind, meter = type(called), self.meter
        if kind is types.BuiltinMethodType or kind is Macro:
            if kwargs:  # what Jinja's compiler adds, for functions that take a context
                kwargs.pop("_loop_vars", None)
                kwargs.pop("_block_vars", None)
            if kind is types.BuiltinMethodType:
                owner, name = called.__self__, called.__name__
                if name in METHODS or name == "join":
                    args = self._charge(owner, name, args, kwargs)
                elif type(owner) is str and len(owner) > SMALL:
                    meter.make(len(owner) * ITEM)  # a text that is split is a list
                return called(*args, **kwargs)
        for value in (*args, *kwargs.values()) if kwargs else args:
            if type(value) is str and len(value) > SMALL:
                meter.make(len(value))
        meter.enter()
        try:
            if kind is Macro:  # as Context.call does, without asking what a macro is
                return called(context.eval_ctx, *args, **kwargs)
            args = self._charge_other(called, args, kwargs)
            return _call_safely(self, context, called, *args, **kwargs)
        finally:
            meter.depth -= 1

    def _charge(
        self, owner: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        if name == "join" and args:
            return ([*self.meter.metered(args[0], len(owner))], *args[1:])
        cost = METHODS.get(name)
        self.meter.make(cost(owner, *args, **kwargs) if cost is not None else width(owner) * ITEM)
        return args

    def _charge_other(
        self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        kind = type(called)  # asking an object for what it lacks costs more than the call
        if kind is types.MethodType:
            if isinstance(called.__self__, str) or called.__name__ in METHODS:
                # Markup's methods are Python functions, and so is this package's dict.fromkeys.
                return self._charge(called.__self__, called.__name__, args, _own(kwargs))
        elif kind is LoopContext:
            return (self.limit_loop(args[0], self.heaviest), *args[1:]) if args else args
        elif kind is types.FunctionType:
            form = getattr(getattr(called, "__wrapped__", None), "__self__", None)
            if isinstance(form, str):  # the sandbox's own str.format
                named = args[0] if called.__name__ == "format_map" and args else _own(kwargs)
                self.meter.make(formatted(form, args, named, self.meter))
            elif called is _LIPSUM:
                count = args[0] if args else kwargs.get("n", 5)
                most = args[3] if len(args) > 3 else kwargs.get("max", 100)
                self.meter.make(width(count) * width(most) * 16)
        return args


def _is_same(value: Any, other: Any) -> bool:
    if value is other and value is UNDEFINED:
        raise RuntimeError("they can be two: only the template's own code knows")
    return value is other


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords without those that Jinja's compiler adds."""
    return {k: v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars")}


def _counted(meter: Meter, values: Iterator[Any], weight: int) -> Iterator[Any]:
    for value in values:
        meter.spend(weight)
        yield value
