"""A histogram of scores as SVG, for a page that brings fonts and colours.

Lengths are percentages of the plot's area or multiples of the font's size, so that the picture fills any width while
its text stays as large as the page's. Legend and labels stand around that area, in the padding that the page gives to
the class `histogram`: `ABOVE` above, 3.5 below, and room for a number on the left.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.reports.bins import BARS, Scores, bar_edges, shares

ABOVE = 6.5
"""Height of the legend and of the title of the y axis, in multiples of the font's size."""
LINE = 1.5
"""Height of a line of the legend, in the same unit."""
FEWEST_BARS = 10
HEADROOM = 1.05
"""Height of the y axis as a multiple of the highest bar."""
ROOM = 40
"""Characters that fit below the plot on a phone; longer labels of the x axis are fewer."""


@dataclass(frozen=True)
class Series:
    """Scores with the name that the legend gives them."""

    name: str
    scores: Scores
    """Finite, shape `(n,)`, not empty."""


@dataclass(frozen=True)
class Axis:
    """A range of values along one side of the picture."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value stands, in per cent of the way from `low` to `high`."""
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self, steps: int) -> list[tuple[str, float]]:
        """Round values from `low` to `high` with their labels, equally far apart; at most `steps + 1` of them."""
        step = round_step((self.high - self.low) / steps)
        values = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        largest = max(step, *(abs(value) for value in values))
        # As many digits as tell a step from the next, but not so few that 2000 becomes 2e+03.
        digits = max(6, 1 + _exponent(largest) - _exponent(step))
        return [(f"{value:.{digits}g}", value) for value in values]


def round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least this large."""
    power = 10.0 ** _exponent(least)
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least), 10 * power)


def _exponent(value: float) -> int:
    return math.floor(math.log10(value) + 1e-9)  # log10(1000) may be 2.9999999999999996


def score_histogram(filled: Series, outlined: Series, threshold: float) -> str:
    """Two series of scores and a threshold, as an `<svg>` element.

    A bar shows the share of its series' scores, so that series of different lengths compare. Far outliers are counted
    in the first and last bar, see `bar_edges`. A threshold so far from all bars that they would fill less than half of
    the width is only named in the legend.

    Args:
        filled: drawn as filled bars.
        outlined: drawn over them as an outline.
        threshold: drawn as a dashed line; finite.
    """
    series = (filled, outlined)
    edges = bar_edges([each.scores for each in series], _bars(min(len(each.scores) for each in series)))
    across = Axis(float(edges[0]), float(edges[-1]))
    far = not -100 <= across.place(threshold) <= 200
    if not far:
        across = Axis(min(across.low, threshold), max(across.high, threshold))
    heights = [100 * shares(each.scores, edges) for each in series]
    up = Axis(0.0, HEADROOM * float(np.max(heights)))
    bars, outline = (_steps(across, up, edges, tops) for tops in heights)
    x = _number(across.place(threshold))
    names = [f"{each.name} ({len(each.scores)})" for each in series]
    names.append(f"threshold {threshold:.6g}" + (", far off this axis" if far else ""))
    description = html.escape(f"Histogram of scores: {', '.join(names)}")
    lines = [
        f'<svg class="histogram" role="img" aria-label="{description}">',
        f"<title>{description}</title>",
        *_legend(names),
        *_left(up),
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none">',
        f'<path class="bars" d="{bars}"/>',
        f'<path class="outline" d="{outline}"/>',
        "</svg>",
        "" if far else f'<line class="threshold" x1="{x}%" x2="{x}%" y2="100%"/>',
        *_below(across),
        "</svg>",
    ]
    return "\n".join(line for line in lines if line)


def _bars(scores: int) -> int:
    """How many bars: few scores in many bars would look like a comb."""
    return min(BARS, max(FEWEST_BARS, 3 * math.ceil(math.sqrt(scores))))


def _steps(across: Axis, up: Axis, edges: NDArray[np.float64], heights: NDArray[np.float64]) -> str:
    """The data of a path along the tops of bars, from the x axis back to it."""
    tops = "".join(
        f"V{_number(100 - up.place(height))}H{_number(across.place(right))}"
        for height, right in zip(heights.tolist(), edges[1:].tolist(), strict=True)
    )
    return f"M{_number(across.place(float(edges[0])))} 100{tops}V100"


def _legend(names: Sequence[str]) -> list[str]:
    """A line for the bars, one for the outline and one for the threshold."""
    swatches = (
        '<rect class="bars" width="2em" height="0.8em"/>',
        '<rect class="outline" width="2em" height="0.8em"/>',
        '<line class="threshold" x2="2em" y1="0.4em" y2="0.4em"/>',
    )
    return [
        f'<svg y="{_number(i * LINE - ABOVE)}em">{swatch}<text x="2.6em" y="0.8em">{html.escape(name)}</text></svg>'
        for i, (swatch, name) in enumerate(zip(swatches, names, strict=True))
    ]


def _left(up: Axis) -> list[str]:
    """The values of the y axis with lines across the picture, and its title."""
    lines = ['<text class="quiet" y="-1em">% of images</text>']
    for label, value in up.ticks(5):
        y = _number(100 - up.place(value))
        lines.append(f'<line class="grid" x2="100%" y1="{y}%" y2="{y}%"/>')
        lines.append(f'<text class="quiet left" x="-0.6em" y="{y}%" dy="0.35em">{label}</text>')
    return lines


def _below(across: Axis) -> list[str]:
    """The values of the x axis, and its title."""
    lines = []
    choices = [across.ticks(steps) for steps in (8, 5, 3)]
    ticks = next((ticks for ticks in choices if sum(len(label) + 2 for label, _ in ticks) <= ROOM), choices[-1])
    for label, value in ticks:
        x = _number(across.place(value))
        lines.append(f'<line class="tick" x1="{x}%" x2="{x}%" y2="0.4em"/>')
        lines.append(f'<text class="quiet below" x="{x}%" y="1.6em">{label}</text>')
    title = '<text class="quiet below" x="50%" y="3.2em">score (larger = more out of distribution)</text>'
    return ['<svg y="100%">', *lines, title, "</svg>"]


def _number(value: float) -> str:
    """Two digits after the point are enough: a hundredth of a per cent is less than a pixel."""
    return f"{round(value, 2) + 0:g}"
