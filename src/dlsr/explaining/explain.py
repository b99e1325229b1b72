"""Results with reasons: the simple properties in which each image lies outside the range of the ID images."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlsr.calibration.reasons import Ranges, reasons, why_no_reasons
from dlsr.errors import InputError, SettingsError
from dlsr.images.decode import UNREADABLE
from dlsr.images.properties import properties_of
from dlsr.images.sources import ImageItem, ImagesLike, open_images
from dlsr.results import Result
from dlsr.streaming import map_ahead

if TYPE_CHECKING:
    from dlsr.fitted_detector import FittedDetector


def known_ranges(detector: "FittedDetector") -> Ranges:
    """The properties of ID images, from which reasons follow.

    Raises:
        SettingsError: if the model knows those of too few images, or of none.
    """
    ranges = detector.ranges_
    why = why_no_reasons(ranges)
    if ranges is None or why is not None:
        raise SettingsError(f"there are no reasons: {why}")
    return ranges


def explain(detector: "FittedDetector", images: ImagesLike, results: Iterable[Result]) -> Iterator[Result]:
    """Results with the properties in which each image lies outside the range of the ID images, whatever its verdict.

    Each image is read and decoded once more. One that can no longer be read gets no reasons.

    Args:
        detector: fitted to images.
        images: see `dlsr.open_images`.
        results: of these images in their order, such as `detector.detect(images)` or `detector.results(images)`.

    Raises:
        SettingsError: if the model knows the properties of too few ID images, or of none.
        InputError: if the results are not those of these images.
    """
    ranges, found = known_ranges(detector), open_images(images)

    def explained(pair: tuple[ImageItem, Result]) -> Result:
        item, result = pair
        if item.name != result.path:
            raise InputError(
                f"the result of '{result.path}' is not that of the image '{item.name}'; score these images"
            )
        if result.error is not None:
            return result
        try:
            return replace(result, reasons=reasons(properties_of(item.read()), ranges))
        except UNREADABLE:
            return result

    workers = detector.workers
    return map_ahead(explained, _pairs(found.items, results), workers, ahead=8 * workers)


def _pairs(items: Sequence[ImageItem], results: Iterable[Result]) -> Iterator[tuple[ImageItem, Result]]:
    """Images and their results. A clip may have ended before it seemed to, so that the last images have none."""
    remaining = iter(items)
    for result in results:
        item = next(remaining, None)
        if item is None:
            raise InputError(f"there are only {len(items)} images, but more results; score these images")
        yield item, result
