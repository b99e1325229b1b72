"""Images of a report, with their verdicts and what is said about them."""

import base64
import html
from dataclasses import dataclass, replace
from pathlib import Path

from dlsr.calibration.reasons import Ranges, listed, reasons
from dlsr.encoding.examples import thumbnail
from dlsr.images.decode import UNREADABLE, reason_of
from dlsr.images.properties import properties_of
from dlsr.images.sources import ImageDataset
from dlsr.results import Result

THUMBNAIL = 160
"""Longer side of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Figures:
    """Draws images of a dataset with their results."""

    images: ImageDataset
    ranges: Ranges | None
    """From which reasons follow; None for none."""

    def figure(self, index: int, result: Result) -> str:
        """An image with its verdict, numbers, name and reasons.

        Args:
            index: its position among the images.
            result: of this image, readable when it was scored.
        """
        try:
            raw = self.images.items[index].read()
            picture = picture_of(thumbnail(raw, THUMBNAIL), result)
            if self.ranges is not None:
                result = replace(result, reasons=reasons(properties_of(raw), self.ranges))
        except UNREADABLE as error:  # the file may have changed since it was scored
            picture = html.escape(reason_of(error))
        return f"<figure>{picture}{caption_of(result)}</figure>"

    def small(self, index: int, result: Result, side: int) -> str:
        """An image alone, with a thumbnail of this longer side in pixels; its name is shown when pointed at."""
        try:
            return picture_of(thumbnail(self.images.items[index].read(), side), result)
        except UNREADABLE as error:
            return f"<span>{html.escape(reason_of(error))}</span>"


def picture_of(jpeg: bytes, result: Result) -> str:
    """An `<img>` that holds its pixels."""
    name = html.escape(result.path)
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
