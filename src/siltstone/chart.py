"""The answer to a range query as a chart for the terminal."""

from __future__ import annotations

from typing import Final

import numpy as np
import plotille
from rich.console import Console
from rich.text import Text

from siltstone.metrics.result import Result

COLORS: Final = ("green", "red", "blue", "yellow", "magenta", "cyan")
MARKS: Final = "*o+x#%"  # in their place where there are no colours
SERIES_MAX: Final = len(COLORS)
MARGIN: Final = 16  # columns that the axis' numbers take
HEIGHT: Final = 12


def series_name(labels: dict[str, str]) -> str:
    """As PromQL writes it: name{label="value"}."""
    inside = ", ".join(f'{name}="{labels[name]}"' for name in sorted(labels) if name != "__name__")
    return labels.get("__name__", "") + (f"{{{inside}}}" if inside else "") or "{}"


def of(result: Result, console: Console, y_label: str = "", height: int = HEIGHT) -> Text:
    """A line for each series over the seconds since the first sample, with a legend.

    Shows the six series with the largest means; says how many others there are. `console` tells
    the width, and whether there are colours.
    """
    colors = console.color_system is not None
    figure = plotille.Figure()
    figure.width = max(console.width - MARGIN, 20)
    figure.height = height
    figure.with_colors = colors
    figure.x_label, figure.y_label = "seconds", y_label
    figure.register_label_formatter(float, _number)
    values = result.to_numpy()
    shown = _largest(values)
    if not shown:
        return Text("no samples")
    seconds = result.seconds - result.seconds[0]
    figure.set_x_limits(min_=0.0, max_=max(float(seconds[-1]), 1e-3))
    lowest, highest = float(np.nanmin(values[shown])), float(np.nanmax(values[shown]))
    figure.set_y_limits(min_=min(lowest, 0.0), max_=highest if highest > min(lowest, 0.0) else 1.0)
    for place, row in enumerate(shown):
        here = np.isfinite(values[row])
        figure.plot(
            seconds[here].tolist(),
            values[row][here].tolist(),
            label=series_name(result.labels[row]),
            lc=COLORS[place] if colors else None,
            marker=None if colors else MARKS[place],
        )
    text = Text.from_ansi(figure.show(legend=True))
    if len(values) > len(shown):
        text.append(f"\nand {len(values) - len(shown)} more series")
    return text


def _largest(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> list[int]:
    """The rows to show: those with a finite value, largest mean first."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=1)
    means = np.where(finite, values, 0.0).sum(axis=1) / np.maximum(counts, 1)
    order = np.argsort(-means, kind="stable")
    return [int(row) for row in order if counts[row]][:SERIES_MAX]


def _number(value: float, chars: int, delta: float, left: bool = False) -> str:
    text = f"{value:.3g}"
    return text.ljust(chars) if left else text.rjust(chars)
