"""A map of images as SVG: those that look alike lie side by side. Each point is a link to its image below the map.

It needs no script. The page's style gives colours by verdict, and shows the image that a link has led to.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlsr.reports.svg import Axis

MARKS = {
    "ood": '<path class="mark ood" d="M-6 0L0-6 6 0 0 6z"/>',
    "id": '<circle class="mark id" r="4.5"/>',
    "training": '<rect class="mark training" x="-4" y="-4" width="8" height="8"/>',
}
"""A shape for each kind of point, since not everybody can tell the colours apart."""
NAMES = {"ood": "out of distribution", "id": "in distribution", "training": "training images"}
MARGIN = 0.04
"""Free space at each side, as a share of the points' extent."""


@dataclass(frozen=True)
class Point:
    """An image on the map."""

    kind: str
    """One of `MARKS`."""
    label: str
    """What a screen reader says, and what is shown when it is pointed at."""
    figure: str
    """HTML of the image with its caption."""
    group: str | None = None
    """The group of refused images that it belongs to, whose number is written among its points."""


def drawn_map(points: Sequence[Point], places: NDArray[np.float32]) -> str:
    """A map, and the images that its points lead to.

    Args:
        points: of the map, at least one.
        places: theirs, shape `(n, 2)`.
    """
    across, down = (_axis(places[:, side]) for side in (0, 1))
    kinds = [kind for kind in MARKS if any(point.kind == kind for point in points)]
    legend = "".join(
        f'<li><svg class="key" viewBox="-8 -8 16 16" aria-hidden="true">{MARKS[kind]}</svg>{NAMES[kind]}</li>'
        for kind in kinds
    )
    # By kind, so that the keyboard comes to refused images first.
    order = sorted(range(len(points)), key=lambda i: kinds.index(points[i].kind))
    links = [_link(i, points[i], across.place(float(x)), down.place(float(y))) for i in order for x, y in [places[i]]]
    figures = [
        f'<figure id="image-{i}">{point.figure}<a href="#point-{i}">Back to the map</a></figure>'
        for i, point in enumerate(points)
    ]
    return "\n".join(
        [
            f'<ul class="legend">{legend}</ul>',
            '<a class="skip" href="#after-map">Skip the map</a>',
            f'<svg class="map" role="group" aria-label="Map of {len(points)} images">',
            *links,
            *_numbers(points, places, across, down),
            "</svg>",
            '<div class="chosen" aria-live="polite"><p class="quiet">Choose a point to see its image.</p>',
            *figures,
            '</div><div id="after-map" tabindex="-1"></div>',
        ]
    )


def _axis(values: NDArray[np.float32]) -> Axis:
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * (high - low) or 1.0
    return Axis(low - margin, high + margin)


def _link(i: int, point: Point, x: float, y: float) -> str:
    label = html.escape(point.label)
    link = f'<a id="point-{i}" href="#image-{i}" aria-label="{label}"><title>{label}</title>{MARKS[point.kind]}</a>'
    return f'<svg x="{x:.2f}%" y="{y:.2f}%">{link}</svg>'


def _numbers(points: Sequence[Point], places: NDArray[np.float32], across: Axis, down: Axis) -> list[str]:
    """The number of each group at the median of its points."""
    lines = []
    for group in dict.fromkeys(point.group for point in points if point.group is not None):
        x, y = np.median([places[i] for i, point in enumerate(points) if point.group == group], axis=0)
        place = f'x="{across.place(float(x)):.2f}%" y="{down.place(float(y)):.2f}%"'
        lines.append(f'<text {place} dy="0.35em">{html.escape(group)}</text>')
    return lines
