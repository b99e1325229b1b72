"""Images worth looking at: of those that a detector refuses, some that differ from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlsr.calibration.copies import found_groups
from dlsr.calibration.diversity import farthest_first
from dlsr.encoding.pipeline import Progress
from dlsr.errors import NoImagesError, SettingsError
from dlsr.fitted_detector import FittedDetector
from dlsr.images.sources import ImagesLike, open_images
from dlsr.results import Result


@dataclass(frozen=True)
class Selection:
    """Images worth looking at, the most anomalous first, each next one as different as possible from those before."""

    results: Sequence[Result]
    positions: Sequence[int]
    """Of the chosen images among all."""
    copies: Sequence[int]
    """How many other images are copies of each, near ones among them."""
    images: int
    """Number of all images."""
    ood: int
    """Number of images that are out of distribution."""
    distinct: int
    """The same without copies: the most that are chosen unless the selection is filled up."""
    unreadable: dict[str, str]
    """Reasons by name."""


def select(
    detector: FittedDetector,
    images: ImagesLike,
    count: int,
    *,
    fill: bool = False,
    progress: Progress | None = None,
) -> Selection:
    """Choose images to label, to look at, or to add to a fit: anomalous, diverse, none a copy of another.

    Of copies among the images that are out of distribution (see `dlsr.calibration.copies`) only the one with the
    highest score can be chosen. The first choice has the highest score of all; each next one is the image whose
    features are farthest from those of all images chosen before it.

    Args:
        detector: fitted; its false-alarm rate says what is out of distribution.
        images: see `dlsr.open_images`.
        count: number of images, at least 1.
        fill: if fewer are out of distribution, add those with the next highest scores, without copies.
        progress: callback with the number of images that were encoded since the last call.

    Raises:
        SettingsError: for a count below 1.
        NoImagesError: if no image can be read.
        NotFittedError, InputError: as `FittedDetector.detect`.
    """
    if count < 1:
        raise SettingsError(f"the number of images to select must be at least 1, got {count}")
    found = open_images(images)
    encoded = detector.extractor_.encode(found, progress=progress)
    results = detector.detect_encoded(encoded)
    if (results.verdicts < 0).all():
        raise NoImagesError.of_unreadable(len(found), "images", results.unreadable.items())
    positions = np.flatnonzero(encoded.readable)
    scores, refused = results.scores[positions], results.verdicts[positions] == 1
    groups = found_groups(encoded.z0, encoded.digests)
    # The first of each group in this order has its highest score. NaN, of a score that is no number, comes last.
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    distinct = order[np.sort(np.unique(groups[order], return_index=True)[1])]
    candidates, rest = distinct[refused[distinct]], distinct[~refused[distinct]]
    chosen = farthest_first(encoded.z0, candidates, count) if len(candidates) else candidates
    if fill:
        chosen = np.concatenate([chosen, rest[: count - len(chosen)]])
    sizes = np.bincount(groups)
    return Selection(
        results=[results[int(positions[i])] for i in chosen],
        positions=positions[chosen].tolist(),
        copies=(sizes[groups[chosen]] - 1).tolist(),
        images=len(results),
        ood=results.ood,
        distinct=len(candidates),
        unreadable=results.unreadable,
    )
