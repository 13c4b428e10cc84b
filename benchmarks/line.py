"""The line that measurements should lie on, were cost linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: *x* of its axis, what was worked on, median seconds and their spread.

    Of rows that are ``checked`` the reference encodes all as well; ``beyond`` are the seconds that
    this takes more than for 1 row in 200, which eight rows cannot have.
    """

    x: int
    rows: int
    tokens: int
    repaired: int
    seconds: float
    spread: float
    checked: int = 0
    beyond: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = ``fixed`` + ``row`` x rows + ``token`` x tokens; one of the first two is 0.

    ``off`` has, for each point, its seconds (less those ``beyond``) over the line's, less one.
    """

    fixed: float
    row: float
    token: float
    off: tuple[float, ...]


def fit(points: Sequence[Point], *, rows: bool) -> Line:
    """The line that is off by the least share; with a cost for each row, or one for the whole.

    Neither cost is ever below 0. With a single point all cost is the tokens'.
    """
    seconds = np.array([p.seconds - p.beyond for p in points])
    tokens = np.array([p.tokens for p in points], np.float64)
    others = np.array([p.rows if rows else 1 for p in points], np.float64)
    a = b = 0.0
    if len(points) > 1:
        columns = np.stack([others, tokens], axis=1) / seconds[:, None]
        a, b = np.linalg.lstsq(columns, np.ones(len(points)), rcond=None)[0].tolist()
    if a <= 0 or b <= 0:
        shares = tokens / seconds
        a, b = 0.0, float(shares.sum() / (shares @ shares))
    off = tuple((seconds / (a * others + b * tokens) - 1).tolist())
    return Line(0.0 if rows else a, a if rows else 0.0, b, off)
