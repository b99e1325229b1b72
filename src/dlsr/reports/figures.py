"""Images of a report, with their verdicts and what is said about them."""

import base64
import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dlsr.anomaly_maps import AnomalyMap
from dlsr.calibration.reasons import Ranges, Reason, listed, reasons
from dlsr.encoding.examples import thumbnail
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.images.png import as_png
from dlsr.images.properties import properties_of
from dlsr.images.sources import ImageDataset, ImageItem
from dlsr.results import Result

THUMBNAIL = 160
"""Longer side of a thumbnail, in pixels."""
OVERLAY = 80
"""The same of a map laid over it."""


@dataclass(frozen=True)
class Figures:
    """Draws images of a dataset with their results."""

    images: ImageDataset
    ranges: Ranges | None
    """From which reasons follow; None for none."""
    maps: Mapping[int, AnomalyMap] = field(default_factory=dict)
    """Where images deviate, by their positions; of those that are shown with it."""
    _seen: dict[tuple[int, int], tuple[str, tuple[Reason, ...] | None]] = field(default_factory=dict)
    """What is shown of an image and its reasons, by its position and the side of its thumbnail."""

    def prepare(self, indices: Iterable[int], side: int) -> None:
        """Read images in their order, in which frames of a clip are read fastest, before they are drawn in another.

        Args:
            indices: positions among the images.
            side: longer side of their thumbnails, in pixels.
        """
        for index in sorted(set(indices)):
            self._seen[index, side] = self._look(index, side)

    def _look(self, index: int, side: int) -> tuple[str, tuple[Reason, ...] | None]:
        item, ranges = self.images.items[index], self.ranges if side == THUMBNAIL else None
        try:
            raw = item.read()
            picture = picture_of(thumbnail(raw, side), item.name)
            return picture, None if ranges is None else reasons(properties_of(raw), ranges)
        except UNREADABLE as error:  # the file may have changed since it was scored
            return f"<span>{html.escape(reason_of(error))}</span>", None

    def figure(self, index: int, result: Result) -> str:
        """An image with its map, verdict, numbers, name and reasons.

        Args:
            index: its position among the images, which were prepared.
            result: of this image, readable when it was scored.
        """
        picture, why = self._seen[index, THUMBNAIL]
        shown = self.maps.get(index)
        if shown is not None and shown.image is not None:
            picture = f'<span class="shown">{picture}{_overlay(shown, shown.image.size)}</span>'
        return f"<figure>{picture}{caption_of(result if why is None else replace(result, reasons=why))}</figure>"

    def small(self, index: int, side: int) -> str:
        """A prepared image alone, with a thumbnail of this longer side; its name is shown when pointed at."""
        return self._seen[index, side][0]


def _overlay(shown: AnomalyMap, size: tuple[int, int]) -> str:
    width, height = (max(round(side * OVERLAY / max(size)), 1) for side in size)
    content = base64.b64encode(as_png(shown.overlay((width, height)))).decode()
    return f'<img class="deviation" src="data:image/png;base64,{content}" alt="">'


def embedded(item: ImageItem) -> str:
    """An image's thumbnail as an element that needs no other file; or the reason, if the image cannot be read."""
    try:
        return picture_of(thumbnail(item.read(), THUMBNAIL), item.name)
    except UNREADABLE as error:  # the file may have changed since it was first read
        return html.escape(reason_of(error))


def picture_of(jpeg: bytes, name: str) -> str:
    """An `<img>` that holds its pixels."""
    name = html.escape(name)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="{name}" title="{name}">'


def caption_of(result: Result) -> str:
    """The verdict, score, p-value and layer of an image, its name without folders, its group and its reasons."""
    assert result.score is not None
    verdict = "OOD" if result.is_ood else "ID"
    numbers = f"{result.score:.2f}, p = {result.p_value:.2g}, {html.escape(str(result.top_layer))}"
    lines = [f'<strong class="{verdict.lower()}">{verdict}</strong> {numbers}']
    lines.append(f'<span title="{html.escape(result.path)}">{html.escape(Path(result.path).name)}</span>')
    if result.reasons:
        lines.append(f'<span class="why">Unlike ID images: {html.escape(listed(result.reasons))}</span>')
    if result.group is not None:
        lines.append(f"Group: {html.escape(result.group)}")
    return f"<figcaption>{'<br>'.join(lines)}</figcaption>"
