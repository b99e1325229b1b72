"""The part of a report that shows which refused images belong together, and where all images lie."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dlsr.errors import MissingExtraError
from dlsr.explaining.explain import explain
from dlsr.explaining.groups import ALONE, Group, encoded_again, in_groups_of
from dlsr.explaining.layout import Layout, place
from dlsr.images.sources import ImageDataset
from dlsr.reports.figures import Figures, caption_of, picture_of
from dlsr.reports.map import Point, drawn_map
from dlsr.results import Result

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector

MOST_GROUPED = 1000
"""Refused images that are grouped: so many are drawn at random from more."""
MOST_ON_MAP = 200
"""Images of each verdict on the map."""
GROUPS_SHOWN = 20
GROUP_THUMBNAILS = 8
"""Images of a group that are shown, drawn at random."""
GROUP_SIDE = 96
"""Longer side of their thumbnails, in pixels."""
MAP_SIDE = 64
"""The same of the images that the map's points lead to."""


@dataclass(frozen=True)
class Drawn:
    """Images of a report, drawn at random from those of each verdict, with their features."""

    positions: list[int]
    """Among all images."""
    results: list[Result]
    z0: NDArray[np.float32]

    @classmethod
    def of(
        cls, detector: "FittedDetector", images: ImageDataset, chosen: Sequence[tuple[int, Result]], explained: bool
    ) -> "Drawn":
        """Encode images, or take their features from the store. Those that can no longer be read are left out.

        Args:
            detector: fitted to images.
            images: all of them.
            chosen: positions and results.
            explained: whether refused images are given reasons.
        """
        encoded = encoded_again(detector, images.subset(i for i, _ in chosen))
        kept = [each for each, error in zip(chosen, encoded.errors, strict=True) if error is None]
        positions, results = [i for i, _ in kept], [result for _, result in kept]
        refused = [i for i, result in enumerate(results) if result.is_ood]
        if explained and refused:
            of_refused = [results[i] for i in refused]
            reasoned = explain(detector, images.subset(positions[i] for i in refused), of_refused)
            for i, result in zip(refused, reasoned, strict=True):
                results[i] = result
        return cls(positions, results, encoded.z0)

    def grouped(self) -> tuple["Drawn", list[Group]]:
        """These images with the groups of those refused, and the groups; positions are among these images.

        Raises:
            MissingExtraError: without scikit-learn.
        """
        refused = [i for i, result in enumerate(self.results) if result.is_ood]
        if not refused:
            return self, []
        members = [self.results[i] for i in refused]
        results, groups = in_groups_of(self.z0[refused], members, refused, self.results)
        return replace(self, results=results), groups


def groups_and_map(
    detector: "FittedDetector", drawn: Drawn, figures: Figures, refused: int, layout: Layout
) -> tuple[str, str]:
    """Rows of thumbnails of each group of refused images, and a map of all images.

    Args:
        detector: fitted to images.
        drawn: images of the report.
        figures: draws them.
        refused: number of images refused in all.
        layout: of the map.

    Raises:
        MissingExtraError: for a layout that needs a package that is not installed.
    """
    try:
        drawn, groups = drawn.grouped()
    except MissingExtraError as error:
        return f"<p>Refused images are not grouped: {html.escape(str(error))}</p>", _map(
            detector, drawn, figures, layout
        )
    return _groups(groups, drawn, figures, refused), _map(detector, drawn, figures, layout)


def _groups(groups: Sequence[Group], drawn: Drawn, figures: Figures, refused: int) -> str:
    if not groups:
        return "<p>No image was refused.</p>"
    grouped = sum(len(group.members) for group in groups)
    lines = (
        [] if grouped == refused else [f"<p>{grouped} of {refused} refused images, drawn at random, are grouped.</p>"]
    )
    numbered = [group for group in groups if group.name != ALONE]
    if not numbered:
        lines.append("<p>No refused images are alike enough to be a group.</p>")
    chosen = [*numbered[:GROUPS_SHOWN], *(group for group in groups if group.name == ALONE)]
    figures.prepare((drawn.positions[i] for group in chosen for i in _shown(group)), GROUP_SIDE)
    for group in chosen:
        members, shown = group.members, _shown(group)
        row = "".join(figures.small(drawn.positions[i], GROUP_SIDE) for i in shown)
        name = "Alone" if group.name == ALONE else f"Group {group.name}"
        count = f"{len(members)} image{'s' if len(members) > 1 else ''}"
        shared = f": {html.escape(', '.join(group.shared))}" if group.shared else ""
        lines.append(f'<h3>{name}</h3><p class="quiet">{count}{shared}</p><div class="row">{row}</div>')
    if len(numbered) > GROUPS_SHOWN:
        lines.append(f"<p>And {len(numbered) - GROUPS_SHOWN} smaller groups.</p>")
    return "\n".join(lines)


def _shown(group: Group) -> list[int]:
    return _some(group.members, GROUP_THUMBNAILS)


def _some(members: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, drawn at random, in their order."""
    some = np.random.default_rng(0).permutation(len(members))[:count]
    return [members[i] for i in sorted(some)]


def _map(detector: "FittedDetector", drawn: Drawn, figures: Figures, layout: Layout) -> str:
    chosen: list[int] = []
    for is_ood in (True, False):
        alike = [i for i, result in enumerate(drawn.results) if result.is_ood is is_ood]
        chosen += _some(alike, MOST_ON_MAP)
    figures.prepare((drawn.positions[i] for i in chosen), MAP_SIDE)
    points = [_point(drawn.results[i], drawn.positions[i], figures) for i in chosen]
    z0 = drawn.z0[chosen]
    examples = detector.examples_
    if examples is not None:
        z0 = np.concatenate([z0, examples.z0])
        for name, jpeg in zip(examples.names, examples.thumbnails, strict=True):
            figure = f"{picture_of(jpeg, name)}<figcaption>{html.escape(name)}<br>training image</figcaption>"
            points.append(Point("training", f"{name}, training image", figure))
    if len(points) < 2:
        return "<p>A map needs two images.</p>"
    return drawn_map(points, place(z0, layout, detector.settings_.seed))


def _point(result: Result, position: int, figures: Figures) -> Point:
    group = result.group if result.group != ALONE else None
    label = f"{result.path}: {result.sentence}" + (f" Group {group}." if group else "")
    picture = figures.small(position, MAP_SIDE)
    return Point("ood" if result.is_ood else "id", label, f"{picture}{caption_of(result)}", group)
