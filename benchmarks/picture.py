"""Plots of measurements, as SVG or PNG; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

Series = Mapping[str, Sequence[float]]
_FORMS = (".svg", ".png")
_STYLE = {
    "svg.hashsalt": "weighted-shards",  # or ids are random
    "svg.fonttype": "none",  # text stays text
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def require_plots(path: Path | None) -> None:
    """Raises ConfigurationError, before anything is measured, where *path* could not be drawn."""
    if path is None:
        return
    if path.suffix not in _FORMS:
        raise ConfigurationError(f"--plot {path}: ends in neither .svg nor .png; name it so")
    try:
        import matplotlib  # noqa: F401 - an extra: only plots need it
    except ImportError as error:
        raise ConfigurationError(
            f"--plot {path}: matplotlib is not installed ({error}); "
            "pip install 'weighted-shards[bench]', or leave out --plot"
        ) from error


@contextmanager
def _figure(path: Path, title: str, note: str, size: tuple[float, float]) -> Iterator[Any]:
    """Axes to draw on; *path* is written when the block ends. *note* says where it was measured."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # pyplot would keep figures, and look for a display
        axes = figure.add_subplot()
        yield axes
        axes.set_title(title, loc="left", fontsize=10)
        figure.supxlabel(note, x=0.01, ha="left", fontsize=6, color="0.4", wrap=True)
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, metadata=metadata, dpi=150)


def draw_bars(path: Path, bars: Mapping[str, float], *, title: str, unit: str, note: str) -> None:
    """One bar for each name, from the top down, its number at its end."""
    with _figure(path, title, note, (7.0, 1.2 + 0.35 * len(bars))) as axes:
        drawn = axes.barh(list(bars), list(bars.values()), color="#2a6f97", height=0.65)
        axes.bar_label(
            drawn,
            labels=[
                f" {value:,.0f}" if value >= 100 else f" {value:.3g}" for value in bars.values()
            ],
        )
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.set_xlabel(unit)


def draw_lines(
    path: Path, lines: Mapping[str, Series], *, title: str, unit: str, note: str
) -> None:
    """Points of each name's ``x`` and ``y``, joined, from 0 up; names tell what ``x`` counts."""
    with _figure(path, title, note, (7.0, 4.0)) as axes:
        for (name, points), marker in zip(lines.items(), "os^Dv", strict=False):
            axes.plot(points["x"], points["y"], marker=marker, label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(" or ".join(lines))
        axes.set_ylabel(unit)
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False)
