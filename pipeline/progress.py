"""How far a build is: bars on a terminal, a plain line now and then elsewhere, or nothing.

What is done is only counted; a thread of its own shows it. So stages that tell nothing for minutes
are seen too, and a terminal that blocks or is gone holds nothing up.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.order import Step

if TYPE_CHECKING:
    from tqdm import tqdm

Clock = Callable[[], float]

BYTES = "bytes"  # the unit of a stage whose records are bytes

LINES = 10.0  # seconds between two lines
_BARS = 0.25  # and between two looks at a bar
_WINDOW = 30.0  # speed is that of the last seconds, or tasks of another kind would count for ever
_NOTICED = 1.0  # a stage shorter than this is over before it can be read
_COLUMNS = 80  # of a terminal that says it has none, as those of containers and CI do
_NONE = Step(0)


class Stream(Protocol):
    """Where it is shown."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Tell(Protocol):
    """Is told a step; and *of* how many records in all, where only the stage itself finds out."""

    def __call__(self, step: Step, *, of: int = 0) -> None: ...


class _Sample(NamedTuple):
    time: float
    records: int
    tokens: int


@dataclass(slots=True)
class Stage:
    """What has been done, and how fast.

    ``unit`` is what its records are called, empty where none are counted; of ``total`` records (0:
    nobody knows) *kept* were done by an earlier run: they are done, but say nothing of the speed.
    """

    name: str
    started: float
    unit: str = ""
    total: int = 0
    kept: Step = _NONE
    fresh: Step = _NONE
    _samples: deque[_Sample] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._samples.append(_Sample(self.started, 0, 0))

    def add(self, step: Step) -> None:
        """Counts a step, which is negative where a worker died and its work was lost."""
        self.fresh = Step(*(a + b for a, b in zip(self.fresh, step, strict=True)))

    @property
    def records(self) -> int:
        """All that are done."""
        return self.kept.records + self.fresh.records

    def facts(self, now: float) -> str:
        """Speed, rejects and the time left; without a unit, the time that it has taken so far."""
        if not self.unit:
            return _clock(now - self.started)
        records, tokens = self._speeds(now)
        if self.unit == BYTES:
            told = [f"{records / 1e6:,.0f} MB/s"]
        else:
            rejects = self.kept.rejects + self.fresh.rejects
            told = [f"{records:,.0f}/s", f"{_large(tokens)} tokens/s"]
            told.append(f"{rejects:,} reject{'' if rejects == 1 else 's'}")
        if records > 0 and self.total:
            told.append(f"{_clock((self.total - self.records) / records)} left")
        return ", ".join(told)

    def line(self, now: float) -> str:
        """The stage on one line."""
        facts = self.facts(now)
        if not self.unit:
            return f"{self.name}: {facts}"
        size, unit = (1e6, "MB") if self.unit == BYTES else (1, self.unit)
        of = f" of {self.total / size:,.0f}" if self.total else ""
        return f"{self.name}: {self.records / size:,.0f}{of} {unit}, {facts}"

    def _speeds(self, now: float) -> tuple[float, float]:
        """Records and tokens a second."""
        samples = self._samples
        samples.append(_Sample(now, self.fresh.records, self.fresh.tokens))
        while len(samples) > 2 and now - samples[1].time >= _WINDOW:
            samples.popleft()
        first, last = samples[0], samples[-1]
        seconds = last.time - first.time
        if seconds <= 0:
            return 0.0, 0.0
        records, tokens = last.records - first.records, last.tokens - first.tokens
        return max(records, 0) / seconds, max(tokens, 0) / seconds


class Progress:
    """Shows stages on *stream*, or nowhere; a context, at whose end nothing is shown any more."""

    def __init__(
        self, stream: Stream | None, *, every: float = LINES, clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream
        self._bars = stream is not None and stream.isatty()
        self._pause = _BARS if self._bars else every
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._stage: Stage | None = None
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Progress:
        if self._stream is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def stage(
        self, name: str, *, unit: str = "", total: int = 0, kept: Step = _NONE
    ) -> Iterator[Tell]:
        """What is done until the block ends; steps are told to what it gives."""
        stage = Stage(name, self._clock(), unit, total, kept)

        def tell(step: Step, *, of: int = 0) -> None:
            with self._lock:
                stage.add(step)
                stage.total = of or stage.total

        with self._lock:
            self._stage = stage
            self._show()
        try:
            yield tell
        finally:
            with self._lock:
                self._show()
                self._stage = None
                self._close()

    def _watch(self) -> None:
        while not self._ended.wait(self._pause):
            with self._lock:
                self._show(line=not self._bars)

    def _show(self, *, line: bool = False) -> None:
        """Writes a line, or draws the bar as it is now, the first time not before it is worth it.

        A build goes on where its terminal, or who read its lines, has gone.
        """
        if self._stage is None or self._stream is None:
            return
        try:
            if line:
                self._stream.write(f"{self._stage.line(self._clock())}\n")
                self._stream.flush()
            elif self._bars:
                self._draw(self._stage, self._stream)
        except (OSError, ValueError):  # ValueError: it is closed
            self._stream = None
            if self._bar is not None:
                self._bar.disable = True

    def _draw(self, stage: Stage, stream: Stream) -> None:
        now = self._clock()
        if self._bar is None:
            if stage.unit in ("", BYTES) and now - stage.started < _NOTICED:
                return
            self._bar = _make_bar(stage, stream)
        self._bar.n = stage.records
        self._bar.set_postfix_str(stage.facts(now), refresh=False)
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None


def _make_bar(stage: Stage, stream: Any) -> tqdm[Any]:
    from tqdm import tqdm  # only terminals need it

    form = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    if not stage.total:
        form = "{desc}: {n_fmt}{postfix}" if stage.unit else "{desc}{postfix}"
    try:
        known = os.get_terminal_size(stream.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):
        known = True
    return tqdm(
        desc=stage.name,
        total=stage.total or None,
        file=stream,
        bar_format=form,
        leave=stage.unit not in ("", BYTES),
        unit_scale=stage.unit == BYTES,
        dynamic_ncols=known,
        ncols=None if known else _COLUMNS,
    )


def _large(number: float) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
